"""The images and masks that a run finds: by kind of masks, without what cannot be used, which is counted and named."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import UsageError
from segmint.operators.images import JpegDecoder, OverLimitError
from segmint.pipeline.engine.train.record import identity_with_digests
from segmint.pipeline.export.export import select_images
from tests.support.committed import write_dataset
from tests.support.committed_shard import CommittedShard, change_manifest
from tests.support.locations import location_of
from tests.support.trainable import row_of
from tests.support.trained import find


@pytest.fixture
def dataset(trainable: Path, tmp_path: Path) -> Path:
    shutil.copytree(trainable, tmp_path / "dataset")
    return tmp_path / "dataset"


@pytest.mark.parametrize(("masks", "indices"), [("all", [0, 1]), ("human", [0]), ("automatic", [1])])
def test_masks_are_those_of_the_kind_that_is_asked_for(trainable, tmp_path, masks, indices):
    found = find(tmp_path, trainable, datasets=[{"uri": str(trainable), "masks": masks}])
    assert found.images.ids.tolist() == list(range(1, 13))
    for row, image in enumerate(found.images.ids):
        assert found.images.masks_of(row).tolist() == [image * 10_000 + index for index in indices]
    too_large = {} if masks == "human" else {"masks over max_mask_area_ratio": 12}
    assert dict(found.skipped.counts) == too_large


def test_only_selected_images_are_trained_on_and_their_hash_is_pinned(trainable, tmp_path):
    file = tmp_path / "subset.json"
    selected = select_images(location_of(trainable), "id % 3 = 1", location_of(file))
    by_file, by_condition = (
        find(tmp_path, trainable, datasets=[{"uri": str(trainable), "select": select}])
        for select in (str(file), "id % 3 = 1")
    )
    assert by_file.images.ids.tolist() == by_condition.images.ids.tolist() == [1, 4, 7, 10]
    pinned = [identity_with_digests(each.config, each.datasets)["datasets"][0] for each in (by_file, by_condition)]
    assert pinned[0] == pinned[1]
    assert pinned[0]["select"] == selected.sha256
    whole = find(tmp_path, trainable)
    assert "select" not in identity_with_digests(whole.config, whole.datasets)["datasets"][0]


def test_a_dataset_that_is_named_twice_has_an_entry_each(trainable, tmp_path):
    entries = [{"uri": str(trainable), "masks": "human", "weight": 10}, {"uri": str(trainable), "masks": "automatic"}]
    images = find(tmp_path, trainable, datasets=entries).images
    assert sorted(zip(images.entry.tolist(), images.ids.tolist(), strict=True)) == [
        (entry, image) for entry in (0, 1) for image in range(1, 13)
    ]


def test_what_cannot_be_used_is_counted_and_named_and_the_rest_is_found(dataset, tmp_path):
    shard = CommittedShard(dataset, 1)  # images 4 to 6
    shard.rows["masks"][0]["area"] = 0
    places = {name: place for place, (name, _) in enumerate(shard.members)}
    shard.edit_member(places["sa_5.jpg"], lambda data: data[: len(data) // 2])
    del shard.members[places["sa_6.json"]]
    shard.write()
    found = find(tmp_path, dataset)
    assert sorted({*range(1, 13)} - {*found.images.ids.tolist()}) == [5, 6]
    assert found.images.masks_of(found.images.ids.tolist().index(4)).tolist() == [40_001]
    named = {line["reason"]: line for line in found.skipped.listed}
    assert found.skipped.counts["empty masks"] == 1
    assert (named["empty masks"]["image"], named["empty masks"]["mask"]) == (4, 40_000)
    damaged = [line for line in found.skipped.listed if line["reason"] == "damaged images"]
    assert [(line["image"], line["detail"][:18]) for line in damaged] == [
        (5, "its JPEG can't be "),
        (6, "its JSON is not in"),
    ]


@pytest.mark.parametrize("kind", ["shards", "masks", "gone"])
def test_a_bad_shard_ends_the_run_with_its_place_or_is_left_out(dataset, tmp_path, kind):
    if kind == "gone":
        next((dataset / "shards").glob("sa_000002*.tar")).unlink()
    else:
        shard = CommittedShard(dataset, 2)
        shard.raw[kind] = b"junk" * 300
        shard.write()
    with pytest.raises(
        DamagedDatasetError, match=r"shard 2 of .*nothing was trained.*segmint repair .*bad_shards: skip"
    ):
        find(tmp_path, dataset)
    found = find(tmp_path, dataset, bad_shards="skip")
    assert found.images.ids.tolist() == [*range(1, 7), *range(10, 13)]
    assert found.skipped.counts["shards that cannot be read"] == 1
    assert not found.held[found.datasets[0].key].whole


def test_a_later_run_uses_the_looks_of_an_earlier_one_unless_they_are_damaged(dataset, tmp_path):
    kept = location_of(tmp_path / "scans")
    first = find(tmp_path, dataset, kept)
    files = sorted((tmp_path / "scans" / first.datasets[0].key).iterdir())
    assert len(files) == 4
    files[0].write_bytes(files[0].read_bytes()[:-40])
    files[1].write_bytes(b"PK")
    before = files[2].stat().st_mtime_ns
    again = find(tmp_path, dataset, kept)
    assert files[2].stat().st_mtime_ns == before
    for name in ("ids", "places", "jpeg_sha256", "hashes", "thumbnails", "annotations"):
        assert np.array_equal(getattr(first.images, name), getattr(again.images, name))


def test_a_jpeg_over_the_limits_of_time_is_tried_again_by_the_next_run(trainable, tmp_path, monkeypatch):
    kept = location_of(tmp_path / "scans")

    def late(decoder, function, jpeg):
        raise OverLimitError("not decoded within 60 seconds")

    with monkeypatch.context() as patched:
        patched.setattr(JpegDecoder, "run", late)
        with pytest.raises(UsageError, match="12 damaged images"):
            find(tmp_path, trainable, kept)
    assert len(find(tmp_path, trainable, kept).images) == 12


def test_a_dataset_without_pictures_or_without_masks_is_refused(trainable, tmp_path):
    with pytest.raises(UsageError, match=r"no images with masks to train on.*24 masks over max_mask_area_ratio"):
        find(tmp_path, trainable, datasets=[{"uri": str(trainable), "masks": "automatic"}], max_mask_area_ratio=0.001)
    write_dataset(location_of(tmp_path / "other"), 1, make_row=row_of, refuse=3)
    with pytest.raises(UsageError, match="no images with masks"):
        find(tmp_path, tmp_path / "other")
    change_manifest(tmp_path / "other", config={"release": {"format": "annotations"}})
    with pytest.raises(
        UsageError, match=r"has only annotations; training needs a dataset with release\.format: images"
    ):
        find(tmp_path, tmp_path / "other")
    with pytest.raises(UsageError, match="is not a segmint dataset"):
        find(tmp_path, tmp_path / "nowhere")
