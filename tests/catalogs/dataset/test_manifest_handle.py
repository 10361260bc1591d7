"""Dataset handles: small, fixed where nothing changes, and fresh where another writer may have changed something."""

import pickle
from collections.abc import Iterator

import pytest

from segmint.catalogs.dataset.manifest import DatasetHandle, load_manifest, manifest_name
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.infra.errors import UsageError
from segmint.pipeline.corrections.takedown import takedown
from tests.support.protocol import DatasetPath, contents, two_shards, write


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    with two_shards(committed=1) as place:
        yield place


def test_a_handle_sees_what_other_writers_do(place: DatasetPath) -> None:
    handle = DatasetHandle.open(place.location)
    assert (handle.with_images, handle.catalog_generation, handle.commits.committed()) == (True, 1, {0: 1})
    write(place, 1)
    assert handle.commits.committed() == {0: 1, 1: 1}
    takedown(place.location, TakedownRequest(ids=("image-0",)), "asked")
    assert handle.commits.committed() == {0: 2, 1: 1}
    assert handle.latest().generation == handle.manifest_generation() == 2
    taken = handle.taken()
    assert taken is not None
    assert set(taken.images) == {0}


def test_a_handle_does_not_grow_with_its_dataset(place: DatasetPath) -> None:
    manifest = load_manifest(place.location)
    parts = manifest.model_copy(update={"catalog": manifest.catalog * 1000})
    (place.location / manifest_name(2)).put(parts.to_json())
    assert len(pickle.dumps(DatasetHandle.open(place.location))) < 1000


@pytest.mark.parametrize("release", [{}, {"format": "jpeg"}, {"format": None}])
def test_a_manifest_that_does_not_say_whether_there_are_images_stops_a_takedown(
    place: DatasetPath, release: dict[str, object]
) -> None:
    manifest = load_manifest(place.location)
    damaged = manifest.model_copy(update={"config": {**manifest.config, "release": release}})
    (place.location / manifest_name(1)).put(damaged.to_json())
    before = contents(place)
    with pytest.raises(UsageError, match="doesn't say how images are released"):
        takedown(place.location, TakedownRequest(ids=("image-0",)), "asked")
    assert contents(place) == before


def test_the_generation_of_the_catalog_is_that_of_the_manifest_that_was_opened(place: DatasetPath) -> None:
    takedown(place.location, TakedownRequest(ids=("image-0",)), "asked")
    handle = DatasetHandle.open(place.location, "catalog.csv")
    assert (handle.catalog_generation, handle.catalog_uri) == (2, "catalog.csv")
