"""A recorded version is read while its files exist; afterwards the error says what removed them."""

from datetime import UTC, datetime

import pytest

from segmint import open_dataset
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.tombstones import RemovedImage, TakedownRequest, Tombstone, put_tombstone
from segmint.catalogs.dataset.versions.past import RemovedVersionError
from segmint.catalogs.dataset.versions.record import put_version
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import UsageError
from tests.support.committed import write_generation
from tests.support.locations import location_of

NOW = datetime(2026, 11, 21, tzinfo=UTC)


def ids_of(uri: str, version: int | str | None = None) -> list[int]:
    return [sample.id for sample in open_dataset(uri, version=version)]


def test_shards_that_came_later_are_not_in_an_earlier_version(dataset: str) -> None:
    location = location_of(dataset)
    (location / "commits/000002.g1.json").delete()
    first = put_version(location, "build")
    write_generation(location, shard=2)
    put_version(location, "build")
    assert ids_of(dataset) == ids_of(dataset, 2) == [1, 2, 4, 5, 7, 8]
    assert ids_of(dataset, 1) == ids_of(dataset, first.digest) == [1, 2, 4, 5]
    opened = open_dataset(dataset, version=1)
    assert (len(opened), opened.version.number if opened.version else None) == (4, 1)
    assert open_dataset(dataset).version is None


def test_the_manifest_is_that_of_the_version(dataset: str) -> None:
    location = location_of(dataset)
    put_version(location, "build")
    before = load_manifest(location)
    (location / "dataset.g2.json").put(before.model_copy(update={"licenses": {"CC0-1.0": 9}}).to_json())
    put_version(location, "build")
    assert Dataset.open(location, 1).manifest == before
    assert Dataset.open(location, 2).manifest.licenses == {"CC0-1.0": 9}


def test_an_error_says_which_correction_removed_what(dataset: str) -> None:
    location = location_of(dataset)
    put_version(location, "build", now=NOW)
    write_generation(location, shard=0, generation=2, refuse=2)
    image = RemovedImage(ordinal=0, id=1, image_id="image-0", uri="/photos/0.jpg", sha256=None)
    tombstone = Tombstone(request=TakedownRequest(ids=("1",)), reason="its author asked", when="now", images=(image,))
    put_tombstone(location, tombstone)
    assert ids_of(dataset, 1) == [1, 2, 4, 5, 7, 8], "the files are still there"
    (location / "commits/000000.g1.json").delete()
    put_version(location, "takedown", now=NOW)
    write_generation(location, shard=2, generation=2, refuse=2)
    (location / "commits/000002.g1.json").delete()
    with pytest.raises(RemovedVersionError) as caught:
        open_dataset(dataset, version=1)
    assert str(caught.value).splitlines() == [
        f"version 1 of {dataset} can no longer be read:",
        f"  version 2 (takedown of 2026-11-21) replaced the shards 0; tombstones/{tombstone.name}: its author asked",
        "  a correction that recorded no version replaced the shards 2",
        "Open a later version, or omit the version to open the dataset's current state",
    ]
    put_version(location, "redact", now=NOW)
    with pytest.raises(RemovedVersionError, match=r"version 3 \(redact of 2026-11-21\) replaced the shards 2\n"):
        open_dataset(dataset, version=1)
    assert ids_of(dataset, 3) == ids_of(dataset)


def test_files_that_nothing_replaced_are_damage(dataset: str) -> None:
    location = location_of(dataset)
    put_version(location, "build")
    commit = location / "commits/000001.g1.json"
    data = commit.read()
    commit.put(data.replace(b'"masks":4', b'"masks":5'))
    with pytest.raises(DamagedDatasetError, match=r"000001\.g1\.json was changed since the version was recorded"):
        ids_of(dataset, 1)
    commit.delete()
    with pytest.raises(DamagedDatasetError, match=r"commits/000001\.g1\.json are gone, and no later generation"):
        open_dataset(dataset, version=1)
    commit.put(data)
    manifest = location / "dataset.json"
    manifest.put(manifest.read().replace(b'"small"', b'"other"'))
    with pytest.raises(DamagedDatasetError, match=r"dataset\.json was changed"):
        open_dataset(dataset, version=1)
    with pytest.raises(UsageError, match="has no version 7: it has only 1"):
        open_dataset(dataset, version=7)
