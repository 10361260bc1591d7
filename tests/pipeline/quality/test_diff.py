"""What changed between two versions or datasets is said, and nothing else."""

import json
import shutil
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.dataset.versions import RemovedVersionError, put_version
from segmint.infra.errors import UsageError
from segmint.operators.rows import Row
from segmint.operators.shards.revise import revise_shard
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.diff import ChangedImages, diff_datasets
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, two_shards, write

NOW = datetime(2026, 11, 21, tzinfo=UTC)


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """A dataset of two shards: images 1, 2, 4 and 5, rows 3 and 6 refused."""
    with two_shards() as place:
        put_version(place.location, "build")
        yield place


def copy_of(place: DatasetPath) -> DatasetPath:
    """A copy of a dataset beside it."""
    target = f"{place.uri}-copy"
    shutil.copytree(place.uri, target)
    return DatasetPath(target)


def test_a_copy_does_not_differ(place: DatasetPath) -> None:
    other = copy_of(place)
    found = diff_datasets(place.location, other.location)
    assert (found.same, found.shards_compared, found.settings) == (True, 0, {})
    assert found.lines() == [
        f"A: {place.uri}: {found.a.version}",
        f"B: {other.uri}: {found.b.version}",
        "no difference: manifests, catalogs, commits, and tombstones are the same. The data files weren't read "
        "(`segmint verify` reads them)",
    ]
    assert found.a.images == found.b.images == 4


@pytest.mark.parametrize(
    "said", [{"label": "cup"}, {"source": "corrected"}, {"origin": {"sha256": "0", "license": None}}]
)
def test_a_mask_of_which_something_else_is_said_is_another_mask(place: DatasetPath, said: dict[str, Any]) -> None:
    other = copy_of(place)

    def change(_: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        return [{**row, "masks": [{**row["masks"][0], **said}]} if row["ordinal"] == 0 else row for row in rows]

    def alone(_: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        return [{**row, "masks": row["masks"][:1]} if row["ordinal"] == 0 else row for row in rows]

    revise_shard(place.handle, 0, alone)
    revise_shard(other.handle, 0, change)
    found = diff_datasets(place.location, other.location)
    assert {kind: images.first for kind, images in found.changed.items() if images.count} == {"masks": ("image-0",)}


def test_what_corrections_did_is_said(place: DatasetPath) -> None:
    other = copy_of(place)
    takedown(other.location, TakedownRequest(ids=("image-0",)), "asked", NOW)
    regions = Path(f"{place.uri}.jsonl")
    regions.write_text('{"id": 4, "kind": "face", "x": 5, "y": 5, "w": 20, "h": 15}\n')
    redact(other.location, location_of(regions))
    found = diff_datasets(place.location, other.location)
    assert (found.added, found.removed, found.removed_why) == (
        ChangedImages(),
        ChangedImages(1, ("image-0",)),
        {"taken_down": 1},
    )
    changed = {kind: images.first for kind, images in found.changed.items() if images.count}
    assert changed == {"redactions": ("image-3",)}
    assert (found.a.images, found.b.images, found.a.tombstones, found.b.tombstones) == (4, 3, 0, 1)
    assert found.b.rejected["taken_down"] == 1
    assert (found.shards_compared, found.settings) == (2, {})
    lines = found.lines()
    assert "images        4 in A, 3 in B" in lines
    assert "  removed     1 image (taken_down 1): image-0" in lines
    assert "  redactions  1 image with others: image-3" in lines
    assert "licenses      CC0-1.0 -1" in lines
    assert json.loads(json.dumps(found.to_dict()))["removed_why"] == {"taken_down": 1}

    # The other way round the image is added.
    back = diff_datasets(other.location, place.location)
    assert (back.added, back.removed.count) == (ChangedImages(1, ("image-0",)), 0)


def test_a_removed_image_counts_once_although_its_duplicates_are_refused_too(place: DatasetPath) -> None:
    other = copy_of(place)

    def refuse(_: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        duplicate = {**rows[2], "image_id": "image-0"}
        return [{**duplicate, "ordinal": 0, "id": 1, "reason": "too_small"}, rows[1], duplicate]

    revise_shard(other.handle, 0, refuse)
    assert diff_datasets(place.location, other.location).removed_why == {"too_small": 1}


def test_only_the_shards_that_differ_are_read(place: DatasetPath) -> None:
    other = copy_of(place)
    write(other, 1, variant=1, generation=2)  # fewer masks
    for path in Path(other.uri, "masks").glob("sa_000000-*"):
        path.unlink()
    found = diff_datasets(place.location, other.location)
    assert found.shards_compared == 1
    assert {kind for kind, images in found.changed.items() if images.count} == {"masks"}
    assert found.a.masks > found.b.masks


def test_versions_of_one_dataset(place: DatasetPath) -> None:
    write(place, 1, variant=2, generation=2)  # the refused row is an image now
    put_version(place.location, "retry")
    found = diff_datasets(place.location, place.location, version_a=1)
    assert (found.a.version.number, found.b.version.number) == (1, 2)
    assert (found.added, found.removed) == (ChangedImages(1, ("image-5",)), ChangedImages())
    (place.location / "commits/000001.g1.json").delete()
    with pytest.raises(RemovedVersionError, match=r"version 2 \(retry of "):
        diff_datasets(place.location, place.location, version_a=1)
    with pytest.raises(UsageError, match="has no version 9"):
        diff_datasets(place.location, place.location, version_b=9)


def test_settings_are_compared_key_by_key(place: DatasetPath) -> None:
    other = copy_of(place)
    manifest = other.location / "dataset.json"
    value = json.loads(manifest.read())
    value["config"]["release"]["jpeg_quality"] = 80
    value["policy_date"] = "2026-02-03"
    manifest.put(json.dumps(value).encode())
    found = diff_datasets(place.location, other.location)
    assert found.settings == {"config.release.jpeg_quality": (95, 80), "policy_date": ("2026-01-01", "2026-02-03")}
    assert not found.same
    assert "setting       config.release.jpeg_quality: 95 in A, 80 in B" in found.lines()


def test_no_dataset(place: DatasetPath, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a segmint dataset"):
        diff_datasets(place.location, location_of(tmp_path))
