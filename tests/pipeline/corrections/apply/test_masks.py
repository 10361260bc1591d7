"""New masks over a finished dataset: only automatic masks go, numbers stay unique, and nothing comes back."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.manifest import load_manifest
from segmint.catalogs.dataset.submissions import put_submission
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.dataset.versions import latest_version
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.operators.rows import Row
from segmint.pipeline.commands.console import json_value
from segmint.pipeline.corrections.apply import engine, masks
from segmint.pipeline.corrections.apply.engine import FAILED
from segmint.pipeline.corrections.apply.masks import MasksMode, list_masks
from segmint.pipeline.corrections.merge import merge_submissions
from segmint.pipeline.corrections.redact import redact
from segmint.pipeline.corrections.takedown import takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.applied import applied, segmenter
from tests.support.committed_shard import change_manifest
from tests.support.imported import import_coco, masks_of, write_coco
from tests.support.labeled import write_labeled
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath, broken_promises, contents, two_shards, write
from tests.support.submissions import answer_to, committed_row, new_mask

IMAGES = (0, 1, 3, 4)


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """Images 1, 2, 4 and 5 with two masks each.

    A person corrected a mask of image 1, confirmed that image 2 is complete, and labeled a mask of image 4.
    """
    with two_shards(committed=0) as place:
        write(place, 0)
        write_labeled(place, 1)
        for answer in (
            answer_to(place.location, 1, [new_mask((3, 4, 11, 21), 10_001)], complete=False),
            answer_to(place.location, 2, [new_mask((3, 4, 11, 21))]),
        ):
            put_submission(place.location, answer)
        merge_submissions(place.location)
        yield place


def findings(place: DatasetPath) -> list[str]:
    return [finding.line() for finding in audit_integrity(place.location).findings] + broken_promises(place)


def all_masks(place: DatasetPath) -> dict[int, list[Row]]:
    return {ordinal: masks_of(place, ordinal) for ordinal in IMAGES}


def without_container(mask: Row) -> Row:
    return {name: value for name, value in mask.items() if name not in ("container", "index")}


def test_new_masks_replace_only_automatic_ones_and_are_numbered_on(place: DatasetPath) -> None:
    before = all_masks(place)
    done = applied(place, segmenter())
    after = all_masks(place)
    model = done.listed.sha256
    assert (done.listed.images, done.changed_shards, done.listed.not_checked) == (3, (0, 1), [])
    assert done.listed.masks == {"new": 6, "replaced": 4, "kept": 2}
    assert json_value(done)["masks"] == done.listed.masks
    assert after[1] == before[1]
    for ordinal, kept in ((0, [10_002]), (3, [40_000]), (4, [])):
        (old, next_mask) = ({mask["annotation_id"]: mask for mask in before[ordinal]}, 3 if ordinal == 0 else 2)
        new = after[ordinal][len(kept) :]
        assert [mask["annotation_id"] for mask in after[ordinal][: len(kept)]] == kept
        assert [without_container(mask) for mask in after[ordinal][: len(kept)]] == [
            without_container(old[id]) for id in kept
        ]
        assert [mask["annotation_id"] for mask in new] == [
            (ordinal + 1) * 10_000 + next_mask + place for place in range(len(new))
        ]
        assert {(mask["model"], mask["source"], mask["label"], mask["predicted_iou"]) for mask in new} == {
            (model, "automatic", "bright", 0.75)
        }
        row = committed_row(place.location, ordinal)
        assert (row["masks_model"], row["next_mask"]) == (model, next_mask + len(new))
    assert findings(place) == []
    manifest = load_manifest(place.location)
    assert (list(manifest.applied), manifest.applied[model].name) == ([model], "tests.support.segmenters.Bright")
    version = latest_version(place.location)
    assert version is not None
    assert (version.command, version.reason) == (
        "apply",
        f"tests.support.segmenters.Bright, SHA-256 {model[:12]}, --masks replace",
    )


def test_the_same_segmenter_changes_nothing_and_another_one_replaces_its_masks(place: DatasetPath) -> None:
    first = applied(place, segmenter())
    before, made = contents(place), all_masks(place)
    again = applied(place, segmenter())
    assert (again.listed.images, again.changed_shards, contents(place)) == (0, (), before)
    assert again.lines()[0].startswith("no image of")
    other = applied(place, segmenter(threshold=150))
    assert other.listed.masks["replaced"] == first.listed.masks["new"]
    used = {mask["annotation_id"] for ordinal in IMAGES for mask in made[ordinal]}
    new = [mask for ordinal in IMAGES for mask in masks_of(place, ordinal) if mask["model"] == other.listed.sha256]
    assert len(new) == other.listed.masks["new"] > 0
    assert used.isdisjoint(mask["annotation_id"] for mask in new)
    assert findings(place) == []
    assert len(load_manifest(place.location).applied) == 2


def test_added_masks_leave_all_others_and_their_segmenter_replaces_only_its_own(place: DatasetPath) -> None:
    before = all_masks(place)
    done = applied(place, segmenter(), MasksMode.ADD)
    assert done.listed.masks == {"new": 6, "kept": 6}
    after = all_masks(place)
    for ordinal in IMAGES:
        kept = [without_container(mask) for mask in before[ordinal]]
        assert [without_container(mask) for mask in after[ordinal][: len(kept)]] == kept
    assert applied(place, segmenter(), MasksMode.ADD).changed_shards == ()
    assert findings(place) == []
    replacing = applied(place, segmenter())
    assert replacing.listed.masks == {"new": 6, "replaced": 10, "kept": 2}
    assert findings(place) == []


def test_imported_masks_and_images_without_new_masks(place: DatasetPath) -> None:
    import_coco(place, write_coco(place, {5: [((3, 4, 11, 21), None)]}))
    before = masks_of(place, 4)
    done = applied(place, segmenter(threshold=255))
    assert (done.listed.images, done.listed.masks) == (3, {"replaced": 2, "kept": 3})
    assert [without_container(mask) for mask in masks_of(place, 4)] == [without_container(mask) for mask in before]
    assert masks_of(place, 0)[0]["source"] == "corrected"
    assert committed_row(place.location, 4)["masks_model"] == done.listed.sha256
    assert findings(place) == []
    assert applied(place, segmenter(threshold=255)).listed.images == 0


def test_a_list_counts_masks_and_bytes_and_changes_nothing(place: DatasetPath) -> None:
    before = contents(place)
    listed = list_masks(place.location, segmenter(), MasksMode.REPLACE)
    commits = list(place.log.read_all())
    sizes = {kind: sum(commit.file(kind).size for commit in commits) for kind in ("shards", "images", "masks")}
    assert (listed.images, listed.masks, listed.shards) == (3, {"replaced": 4, "kept": 2}, (0, 1))
    assert {kind: listed.bytes[kind] for kind in sizes} == sizes
    assert listed.lines()[2].startswith("rewritten: ")
    assert contents(place) == before
    one = list_masks(place.location, segmenter(), MasksMode.ADD, "id = 5")
    assert (one.images, one.masks, one.shards) == (1, {"replaced": 0, "kept": 2}, (1,))


def test_an_image_that_fails_keeps_its_masks_and_is_tried_again(place: DatasetPath) -> None:
    how = {"4": "raise", "5": "many"}
    before = all_masks(place)
    done = applied(place, segmenter("Faulty", how=how))
    assert (done.listed.images, done.changed_shards) == (1, (0,))
    assert [line.split(": ")[3] for line in done.listed.examples] == ["ValueError", "too_many_masks"]
    assert done.listed.not_checked == [f"2 images: {FAILED}"]
    assert {ordinal: masks_of(place, ordinal) for ordinal in (1, 3, 4)} == {n: before[n] for n in (1, 3, 4)}
    assert findings(place) == []
    assert list_masks(place.location, segmenter("Faulty", how=how), MasksMode.REPLACE).shards == (1,)


def test_a_segmenter_that_fails_for_all_images_ends_the_run(
    place: DatasetPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "BARREN_SHARDS", 2)
    how = dict.fromkeys("145", "raise")
    with pytest.raises(
        UnfinishedError, match="in 2 shards in a row, no image succeeded; the last reason: stage_faulty"
    ):
        applied(place, segmenter("Faulty", how=how))
    assert findings(place) == []


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("Faulty", {"how": {"control": "raise"}}, "no masks for image 1"),
        ("Saying", {}, "sets wants_prompts"),
        ("Original", {}, "sets wants_original"),
        ("WithoutMasks", {}, "doesn't set masks = True|only a stage with masks = True"),
    ],
)
def test_a_segmenter_that_cannot_work_changes_nothing(
    place: DatasetPath, name: str, arguments: dict[str, Any], message: str
) -> None:
    before = contents(place)
    with pytest.raises(UsageError, match=message):
        applied(place, segmenter(name, **arguments))
    assert contents(place) == before


def test_datasets_that_cannot_name_a_segmenter_or_have_no_images_are_refused(place: DatasetPath) -> None:
    config = load_manifest(place.location).config
    change_manifest(Path(place.uri), schema_version=3)
    with pytest.raises(UsageError, match="schema_version 3, which can't name the segmenter"):
        applied(place, segmenter())
    change_manifest(Path(place.uri), schema_version=4, config={**config, "release": {"format": "annotations"}})
    with pytest.raises(UsageError, match="only contains annotations"):
        applied(place, segmenter())


def test_an_interrupted_call_is_continued_with_the_other_shards(place: DatasetPath) -> None:
    def stop(shard: int) -> None:
        if shard == 1:
            raise KeyboardInterrupt

    number = latest_version(place.location)
    with pytest.raises(KeyboardInterrupt):
        applied(place, segmenter(), between=stop)
    assert latest_version(place.location) == number
    seen: list[int] = []
    done = applied(place, segmenter(), between=seen.append)
    assert (seen, done.changed_shards) == ([1], (1,))
    version = latest_version(place.location)
    assert version is not None
    assert number is not None
    assert version.number == number.number + 1
    assert findings(place) == []


def take_down(place: DatasetPath) -> None:
    takedown(place.location, TakedownRequest(ids=("image-0", "image-4")), "as was asked")


def redact_image_5(place: DatasetPath) -> None:
    regions = Path(f"{place.uri}.jsonl")
    regions.write_text('{"id": 5, "kind": "face", "x": 5, "y": 5, "w": 20, "h": 15}\n')
    redact(place.location, location_of(regions))


@pytest.mark.parametrize("other", [take_down, redact_image_5])
def test_another_correction_in_the_middle_loses_nothing(
    place: DatasetPath, other: Callable[[DatasetPath], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs after the images were read and before their masks are written."""
    write_masks = masks.write_masks

    def interrupted(*arguments: Any) -> Any:
        *_, images, _ = arguments
        if images.shard == 1:
            other(place)
        return write_masks(*arguments)

    monkeypatch.setattr(masks, "write_masks", interrupted)
    done = applied(place, segmenter())
    assert findings(place) == []
    if other is take_down:
        assert committed_row(place.location, 0)["reason"] == committed_row(place.location, 4)["reason"] == "taken_down"
        assert done.listed.not_checked == []
    else:
        assert done.listed.examples == ("image 5: skipped: it was redacted in the meantime",)
        assert all(mask["model"] is None for mask in masks_of(place, 4))
    assert committed_row(place.location, 3)["masks_model"] == done.listed.sha256
