"""Random images by seed."""

from itertools import pairwise
from pathlib import Path

import pytest

from segmint.catalogs.dataset.reader import Dataset
from segmint.pipeline.export.export import draw_images, draw_key, read_images
from tests.support.committed import write_dataset
from tests.support.locations import location_of


@pytest.fixture
def small(tmp_path: Path) -> Dataset:
    """Four shards: images 1, 2, 4, 5, 7, 8, 10, 11."""
    write_dataset(location_of(tmp_path / "small"), shards=4)
    return Dataset.open(location_of(tmp_path / "small"))


def test_images_with_the_lowest_keys_are_drawn(small: Dataset) -> None:
    numbers = [1, 2, 4, 5, 7, 8, 10, 11]
    expected = sorted(sorted(numbers, key=lambda number: draw_key(3, number))[:4])
    assert draw_images(small, range(4), 4, seed=3) == expected
    assert set(draw_images(small, range(1, 3), 2, seed=3)) < {4, 5, 7, 8}
    assert draw_images(small, range(4), 100, seed=3) == numbers


def test_a_draw_grows_into_a_larger_one(small: Dataset) -> None:
    draws = [set(draw_images(small, range(4), count, seed=0)) for count in range(9)]
    assert all(less < more for less, more in pairwise(draws))


def test_only_shards_with_a_drawn_image_are_read(small: Dataset) -> None:
    for commit in small.commits({0, 3}):
        Path(small.location.uri, commit.file("shards").path).unlink()
    assert [sample.id for sample in read_images(small, range(4), [5, 7])] == [5, 7]
    assert [sample.id for sample in read_images(small, range(1, 3), None)] == [4, 5, 7, 8]
