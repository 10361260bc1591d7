"""Which images a report shows, and what it draws of them."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmint.catalogs.dataset.commits import CommitLog
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.model.automatic.rle import MaskRecord, encode
from segmint.pipeline.quality.report.comparison import LONG_SIDE, choose_images, draw_pictures, draw_small
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.bombs import jpeg_saying
from tests.support.foreign_data import loosen
from tests.support.locations import location_of


def jpeg(height: int, width: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()


def record(mask: np.ndarray) -> MaskRecord:
    nowhere = (0.0, 0.0, 0.0, 0.0)
    return MaskRecord(encode(mask), int(mask.sum()), nowhere, 1.0, 1.0, nowhere, (0.0, 0.0))


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def test_a_picture_is_small_and_has_its_masks_drawn() -> None:
    mask = np.zeros((900, 1440), bool)
    mask[:, :720] = True
    drawn = pixels(draw_small(jpeg(900, 1440), [record(mask)]))
    assert drawn.shape == (450, LONG_SIDE, 3)
    assert np.abs(drawn[:, 380:].astype(int) - 90).max() < 12
    assert np.ptp(drawn[225, 100]) > 50  # gray no more


def test_a_small_image_keeps_its_size() -> None:
    assert pixels(draw_small(jpeg(60, 80), [])).shape == (60, 80, 3)


def test_what_cannot_be_drawn_says_so() -> None:
    with pytest.raises(ValueError, match=r"a mask is \(3, 4\) in size"):
        draw_small(jpeg(60, 80), [record(np.ones((3, 4), bool))])
    with pytest.raises(OSError, match="cannot identify"):
        draw_small(b"no picture", [])
    with pytest.raises(OSError, match="truncated"):
        draw_small(jpeg(600, 800)[:-2000], [])


def test_the_choice_is_the_same_whatever_is_asked_and_from_all_strata(reported: str) -> None:
    with open_tables(location_of(reported)) as tables:
        everything = choose_images(tables, 12)
        assert sorted(everything) == [1, 2, 3, 5, 6, 7]
        assert everything[0] == 3  # it has no mask, and masks ascend
        two = choose_images(tables, 2)
        assert two == choose_images(tables, 2)
        assert 3 in two  # a stratum of its own
        assert choose_images(tables, 12, without=[3, 5]) == [id for id in everything if id not in (3, 5)]
        assert choose_images(tables, 0) == []


def test_pictures_come_in_the_order_asked_for(reported: str) -> None:
    with open_tables(location_of(reported)) as tables:
        commits = list(CommitLog(location_of(reported)).read_all())
        drawn = draw_pictures(tables, commits, [7, 4, 1, 99])
    assert [picture.id for picture in drawn] == [7, 1]  # 4 was refused, and there is no 99
    assert all(picture.jpeg is not None and picture.masks == 2 for picture in drawn)
    assert np.ptp(pixels(drawn[0].jpeg or b"")) > 50


def test_an_image_that_the_tar_does_not_hold(reported: str, tmp_path: Path) -> None:
    storage = Storage()
    with open_tables(Location(storage, reported)) as tables:
        first, second = CommitLog(Location(storage, reported)).read_all()
        swapped = [replace(first, files=second.files)]
        (picture,) = draw_pictures(tables, swapped, [1])
    assert picture.jpeg is None
    assert picture.problem == "not in its shard's tar"


def test_a_foreign_image_that_is_none_is_not_shown(small_dataset: Path, tmp_path: Path) -> None:
    data = loosen(small_dataset, tmp_path / "data")
    whole = (data / "sa_1.jpg").read_bytes()
    (data / "sa_1.jpg").write_bytes(whole[: len(whole) // 2])
    (data / "sa_2.jpg").unlink()
    (data / "sa_5.jpg").write_bytes(jpeg_saying(65_500, 65_500))
    with open_tables(location_of(data)) as tables:
        assert 2 not in choose_images(tables, 12)
        broken, absent, good, huge = draw_pictures(tables, [], [1, 2, 4, 5])
    assert (huge.jpeg, "4,290,250,000 pixels" in huge.problem) == (None, True)
    assert broken.jpeg is None
    assert "can't be decoded" in broken.problem
    assert (absent.jpeg, absent.problem) == (None, "no JPEG")
    assert good.jpeg is not None
