"""The next row of an image: what stays, is corrected, added and deleted, and that a second time changes nothing."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from segmint.catalogs.layout import DamagedDatasetError
from segmint.model.automatic.rle import compress, encode
from segmint.operators.describe import describe_table
from segmint.operators.rows import SEGMENTED, Row, to_table
from segmint.operators.shards.revise import take_down
from segmint.pipeline.corrections.import_merge import (
    ImageImport,
    ImportedRow,
    ImportMode,
    ImportSettings,
    NewMask,
    SkipReason,
    canonical_counts,
    merge,
)
from tests.support.described_rows import accepted_row, rejected_row

SIZE = (30, 40)
ORIGIN = {"sha256": "a" * 64, "license": "CC-BY-4.0"}
REPLACE = ImportSettings(ImportMode.REPLACE, origin=ORIGIN)
ADD = replace(REPLACE, mode=ImportMode.ADD)
CARRY = replace(REPLACE, mode=ImportMode.CARRY, origin=None)


def rectangle(top: int, left: int, bottom: int, right: int, **said: Any) -> NewMask:
    pixels = np.zeros(SIZE, bool)
    pixels[top:bottom, left:right] = True
    return NewMask(encode(pixels).counts, **said)


def image(masks: int = 3) -> Row:
    """A row as a build makes it, with its `masks` rectangles of 10 x 17 pixels, each a pixel further."""
    (row,) = describe_table(to_table([accepted_row(0, masks)], SEGMENTED)).to_pylist()
    return dict(row)


def as_read(row: Row, **values: Any) -> list[NewMask]:
    """The row's masks as an export has them."""
    return [
        NewMask(mask["segmentation"]["counts"], 10_000 + place, **values) for place, mask in enumerate(row["masks"])
    ]


def answer(*masks: NewMask, **values: Any) -> ImageImport:
    return ImageImport(list(masks), frozenset({SIZE}), **values)


def indices(row: Row) -> list[int]:
    return [place if mask["index"] is None else mask["index"] for place, mask in enumerate(row["masks"])]


def again(merged: ImportedRow, asked: ImageImport, how: ImportSettings) -> None:
    """A second time nothing changes."""
    once_more = merge(merged.row, asked, how)
    assert once_more.row is merged.row
    assert (once_more.added, once_more.corrected, once_more.deleted) == (0, 0, 0)


@pytest.mark.parametrize("how", [REPLACE, ADD, CARRY])
def test_the_masks_that_an_image_has_change_nothing(how: ImportSettings) -> None:
    row = image()
    merged = merge(row, answer(*as_read(row)), how)
    assert merged.row is row
    assert merged.same == 3


def test_replace_corrects_adds_and_deletes() -> None:
    row = image()
    first, *_ = as_read(row)
    smaller = rectangle(3, 4, 11, 21, id=10_001)
    apart = rectangle(25, 1, 29, 9, id=77, label="cup")
    asked = answer(first, smaller, apart)
    merged = merge(row, asked, replace(REPLACE, annotator="Ada"))
    assert (merged.same, merged.corrected, merged.added, merged.deleted) == (1, 1, 1, 1)
    kept, corrected, added = merged.row["masks"]
    assert kept == row["masks"][0] | {"index": 0}
    assert (corrected["source"], corrected["parent"], corrected["index"]) == ("corrected", 10_001, 3)
    assert (added["source"], added["parent"], added["index"], added["label"]) == ("imported", None, 4, "cup")
    assert (added["label_source"], added["label_score"]) == ("import", None)
    assert corrected["origin"] == added["origin"] == ORIGIN
    assert (added["predicted_iou"], added["stability_score"], added["point_coords"]) == (None, None, [])
    assert (added["crop_box"], added["bbox"], added["area"]) == ([0.0, 0.0, 40.0, 30.0], [1.0, 25.0, 7.0, 3.0], 32)
    assert (merged.row["next_mask"], merged.row["annotator"]) == (5, "Ada")
    assert merged.row["submission"] == {"assignment": None, "n": None, "sha256": "a" * 64}
    statistics = merged.row["statistics"]
    assert statistics["mask_count"] == 3
    assert statistics["mean_predicted_iou"] == row["masks"][0]["predicted_iou"]
    codes = [{"size": list(SIZE), "counts": mask["segmentation"]["counts"].encode()} for mask in merged.row["masks"]]
    assert statistics["coverage"] == coco.area(coco.merge(codes)) / 1200
    again(merged, asked, replace(REPLACE, annotator="Ada"))


def test_containers_follow_the_masks() -> None:
    """Also where a mask of another dataset brings a container of its own."""
    row = image(1)
    first, inside = as_read(row), rectangle(4, 5, 8, 9)
    added = merge(row, answer(*first, inside), ADD).row
    assert [mask["container"] for mask in added["masks"]] == [None, 10_000]
    around = rectangle(1, 2, 13, 21, said={"source": "manual", "container": 777})
    carried = merge(added, answer(around), CARRY).row  # replaces the mask of the build
    assert [(mask["index"], mask["container"]) for mask in carried["masks"]] == [(1, 10_002), (2, None)]
    alone = merge(carried, answer(inside), REPLACE).row
    assert [mask["container"] for mask in alone["masks"]] == [None]


def test_a_mask_without_its_id_is_paired_by_iou() -> None:
    row = image(2)
    shrunk = rectangle(3, 4, 13, 20)  # a column less than the second
    merged = merge(row, answer(as_read(row)[0], shrunk), REPLACE)
    assert (merged.corrected, merged.deleted, merged.row["masks"][1]["parent"]) == (1, 0, 10_001)
    wrong = replace(shrunk, id=10_000)
    assert merge(row, answer(wrong), REPLACE).row["masks"][0]["parent"] == 10_000


@pytest.mark.parametrize(("corrected", "label"), [(rectangle(2, 3, 12, 19), "cup"), (rectangle(20, 25, 28, 35), None)])
def test_a_label_is_that_of_the_former_mask_only_where_both_overlap(corrected: NewMask, label: str | None) -> None:
    row = image(1)
    by_model = {"label": "cup", "label_score": 0.7, "label_source": f"model:{'a' * 64}"}
    row["masks"][0] |= by_model
    (mask,) = merge(row, answer(replace(corrected, id=10_000)), REPLACE).row["masks"]
    assert (mask["parent"], mask["label"]) == (10_000, label)
    assert {name: mask[name] for name in by_model} == (by_model if label else dict.fromkeys(by_model))


def test_a_correction_of_a_person_s_mask_keeps_what_that_was() -> None:
    row = image(1)
    drawn = merge(row, answer(*as_read(row), rectangle(20, 20, 28, 35)), replace(REPLACE, source="manual")).row
    edited = merge(drawn, answer(*as_read(row), rectangle(20, 20, 28, 36)), REPLACE)
    assert (edited.corrected, edited.row["next_mask"]) == (1, 3)
    mask = edited.row["masks"][1]
    assert (mask["source"], mask["parent"], mask["index"]) == ("manual", 10_001, 2)


def test_an_image_without_masks_in_the_file_loses_all_its_masks_and_no_number_is_used_again() -> None:
    row = image()
    emptied = merge(row, answer(), REPLACE)
    assert (emptied.deleted, emptied.row["masks"], emptied.row["next_mask"]) == (3, [], 3)
    assert emptied.row["statistics"]["mean_predicted_iou"] is None
    again(emptied, answer(), REPLACE)
    back = merge(emptied.row, answer(*as_read(row)), REPLACE)
    assert indices(back.row) == [3, 4, 5]
    assert {mask["source"] for mask in back.row["masks"]} == {"imported"}
    assert merge(row, answer(), ADD).row is row


def test_add_keeps_all_masks() -> None:
    row = image()
    asked = answer(rectangle(3, 4, 11, 21, id=10_001), rectangle(2, 3, 12, 20))
    merged = merge(row, asked, replace(ADD, source="manual"))
    assert (merged.same, merged.added, merged.deleted, indices(merged.row)) == (1, 1, 0, [0, 1, 2, 3])
    assert [merged.row["masks"][3][name] for name in ("source", "parent")] == ["manual", None]
    again(merged, asked, ADD)


def test_masks_of_another_dataset_keep_what_is_said_of_them_and_take_the_place_of_a_build_s() -> None:
    row = image()
    said = {"source": "assisted", "annotator": "Bo", "seconds": 4.5, "model": "b" * 64, "label_source": "person"}
    moved = rectangle(2, 4, 12, 21, said=said, label="mug")  # IoU 0.89 with the first mask
    of_image = {"submission": {"assignment": 1, "n": 2, "sha256": "c" * 64}, "annotator": "Bo", "seconds": None}
    asked = answer(moved, of_image=of_image)
    merged = merge(row, asked, CARRY)
    assert (merged.corrected, merged.added, merged.deleted) == (1, 0, 0)
    mask = merged.row["masks"][-1]
    assert {name: mask[name] for name in said} == said
    assert (mask["parent"], mask["label"], mask["origin"]) == (10_000, "mug", None)
    assert (merged.row["submission"], merged.row["annotator"]) == (of_image["submission"], "Bo")
    again(merged, asked, CARRY)
    # What overlaps less is another object, and a mask that a person made does not give way.
    assert merge(row, answer(rectangle(2, 3, 6, 20, said=said)), CARRY).added == 1
    nudged = replace(moved, counts=rectangle(2, 5, 12, 22).counts)
    assert [mask["source"] for mask in merge(merged.row, answer(nudged), CARRY).row["masks"]].count("assisted") == 2


@pytest.mark.parametrize("how", [ADD, CARRY])
def test_a_carried_mask_that_the_build_made_too_is_the_person_s(how: ImportSettings) -> None:
    row = image()
    said = {"source": "manual", "annotator": "Bo"}
    asked = answer(*(replace(mask, said=said) for mask in as_read(row)[:1]))
    merged = merge(row, asked, how)
    assert (merged.same, merged.corrected, merged.added, merged.deleted) == (0, 1, 0, 0)
    assert indices(merged.row) == [1, 2, 3]
    mask = merged.row["masks"][-1]
    assert mask["segmentation"] == row["masks"][0]["segmentation"]
    assert [mask[name] for name in ("source", "annotator", "parent")] == ["manual", "Bo", 10_000]
    again(merged, asked, how)


def test_labels_of_masks_that_stay_are_taken_over() -> None:
    row = image()
    labeled = merge(row, answer(*as_read(row, label="tile")), REPLACE)
    assert [(mask["label"], mask["label_source"]) for mask in labeled.row["masks"]] == [("tile", "import")] * 3
    carried = merge(row, answer(*as_read(row, label="tile", said={"label_source": "person"})), REPLACE)
    assert {mask["label_source"] for mask in carried.row["masks"]} == {"person"}
    assert {mask["source"] for mask in labeled.row["masks"]} == {"automatic"}
    assert labeled.row["submission"] == {"assignment": None, "n": None, "sha256": "a" * 64}
    assert labeled.row["statistics"] == row["statistics"]
    again(labeled, answer(*as_read(row, label="tile")), REPLACE)
    assert merge(labeled.row, answer(*as_read(row)), REPLACE).row is labeled.row


@pytest.mark.parametrize("how", [REPLACE, ADD])
def test_a_file_confirms_equal_labels_of_a_model_unless_it_says_that_they_are_a_model_s(how: ImportSettings) -> None:
    row = image(1)
    row["masks"][0] |= {"label": "cup", "label_score": 0.7, "label_source": f"model:{'a' * 64}"}
    assert merge(row, answer(*as_read(row, label="cup", by_model=True)), how).row is row
    for asked in (answer(*as_read(row, label="cup")), answer(*as_read(row, label="mug", by_model=True))):
        (mask,) = (merged := merge(row, asked, how)).row["masks"]
        said = mask["label"], mask["label_score"], mask["label_source"]
        assert said == (asked.masks[0].label, None, "import")
        assert merged.same == 1
        again(merged, asked, how)


def test_a_removed_label_of_another_dataset_is_removed_from_an_equal_mask_once() -> None:
    row = image(1)
    row["masks"][0] |= {"source": "manual", "label": "cup", "label_source": "import"}
    asked = answer(*as_read(row, label="", said={"source": "manual", "label_source": "person"}))
    (mask,) = (merged := merge(row, asked, ImportSettings(ImportMode.CARRY))).row["masks"]
    assert (mask["label"], mask["label_score"], mask["label_source"]) == (None, None, "person")
    assert merge(merged.row, asked, ImportSettings(ImportMode.CARRY)).row is merged.row


def test_an_answer_that_was_merged_stays_merged_after_an_import() -> None:
    row = image() | {"submission": {"assignment": 1, "n": 2, "sha256": "b" * 64}, "annotation_stage": "semi"}
    merged = merge(row, answer(*as_read(row)[:2]), REPLACE).row
    assert merged["submission"] == {"assignment": 1, "n": 2, "sha256": "a" * 64}
    assert merged["annotation_stage"] is None
    again(merge(row, answer(*as_read(row)[:2]), REPLACE), answer(*as_read(row)[:2]), REPLACE)


def test_an_image_that_somebody_looked_at_and_left_is_known_by_the_name() -> None:
    row = image()
    looked = merge(row, answer(*as_read(row)), replace(REPLACE, annotator="Ada"))
    assert (looked.row["annotator"], looked.row["submission"]["sha256"]) == ("Ada", "a" * 64)
    again(looked, answer(*as_read(row)), replace(REPLACE, annotator="Ada"))
    assert merge(row, answer(*as_read(row)), replace(ADD, annotator="Ada")).row is row


def test_what_was_said_of_a_former_answer_is_not_said_of_the_next() -> None:
    said = {"submission": {"assignment": 0, "n": 1, "sha256": "b" * 64}, "annotator": "Bo", "annotation_stage": "semi"}
    row = image() | said | {"seconds": 9.0, "complete": True}
    merged = merge(row, answer(*as_read(row)[:2]), replace(REPLACE, annotator="Ada")).row
    assert [merged[name] for name in ("annotator", "annotation_stage", "seconds", "complete")] == ["Ada", *[None] * 3]
    assert merge(row, answer(*as_read(row)[:2]), REPLACE).row["annotator"] is None


def test_what_is_carried_never_comes_over_later_work() -> None:
    row = image()
    of_image = {
        "submission": {"assignment": 1, "n": 2, "sha256": "c" * 64},
        "annotator": "Bo",
        "annotation_stage": "semi",
    }
    asked = answer(rectangle(20, 20, 28, 35, said={"source": "manual"}), of_image=of_image)
    carried = merge(row, asked, CARRY)
    assert {name: carried.row[name] for name in of_image} == of_image
    assert carried.row["stage"] == row["stage"]
    again(carried, asked, CARRY)
    later = merge(carried.row, answer(*as_read(row)), replace(REPLACE, annotator="Ada")).row
    for how in (CARRY, replace(CARRY, mode=ImportMode.ADD)):
        left = merge(later, asked, how)
        assert (left.row, left.left) == (later, SkipReason.WORKED_ON)


def test_shares_inside_redacted_regions_are_measured() -> None:
    row = image()
    row["regions"] = [{"kind": "other", "score": 1.0, "x": 0, "y": 0, "w": 20, "h": 30, "source": "manual"}]
    added = merge(row, answer(rectangle(0, 10, 10, 30)), ADD).row["masks"][-1]
    assert (added["redacted_share"], added["redaction_iou"]) == (0.5, 100 / 700)


@pytest.mark.parametrize(
    ("row", "asked", "why"),
    [
        (rejected_row(0) | {"masks": None}, answer(), SkipReason.REFUSED),
        (take_down(accepted_row(0) | {"reason": None}), answer(), SkipReason.TAKEN_DOWN),
        (image(), ImageImport([], frozenset({(40, 30)})), SkipReason.OTHER_SIZE),
        (image(), ImageImport([], frozenset({SIZE, (30, 41)})), SkipReason.OTHER_SIZE),
        (image(), answer(unreadable=1), SkipReason.UNREADABLE),
        (image() | {"next_mask": 9_999}, answer(rectangle(0, 0, 2, 2), rectangle(0, 0, 3, 3)), SkipReason.TOO_MANY),
    ],
)
def test_what_cannot_be_merged_is_left_as_it_is(row: Row, asked: ImageImport, why: SkipReason) -> None:
    merged = merge(row, asked, REPLACE)
    assert merged.row is row
    assert merged.left is why


def test_the_last_number_may_be_given() -> None:
    row = image() | {"next_mask": 9_998}
    merged = merge(row, answer(rectangle(0, 0, 2, 2), rectangle(0, 0, 3, 3), unreadable=1), ADD)
    assert indices(merged.row)[-2:] == [9_998, 9_999]
    assert merged.row["next_mask"] == 10_000


def test_masks_without_pixels_and_repeated_ones_are_none() -> None:
    row = image()
    twice = rectangle(20, 20, 28, 35)
    merged = merge(row, answer(rectangle(0, 0, 0, 0), twice, twice), ADD)
    assert (merged.empty, merged.repeated, merged.added) == (1, 1, 1)


def test_damaged_masks_of_the_dataset_are_named() -> None:
    row = image()
    row["masks"][1]["segmentation"]["counts"] = "0"
    with pytest.raises(DamagedDatasetError, match="image 1: the run lengths of a mask are damaged"):
        merge(row, answer(), REPLACE)


@pytest.mark.parametrize("next_mask", [None, 2, 10_001])
def test_a_damaged_number_of_the_next_mask_is_named(next_mask: int | None) -> None:
    with pytest.raises(DamagedDatasetError, match=r"image 1: its next_mask is .*, expected 3 to 10,000"):
        merge(image() | {"next_mask": next_mask}, answer(), REPLACE)


def test_run_lengths_of_other_tools_are_written_in_our_way() -> None:
    pixels = np.zeros(SIZE, bool)
    pixels[3:7, 5:9] = True
    ours = encode(pixels).counts
    start = 5 * 30 + 3
    odd = [start, 2, 0, 2, 26, 4, 26, 4, 26, 4, 1200 - start - 94, 0, 0]
    assert sum(odd) == 1200
    assert canonical_counts(compress(np.array(odd)).encode(), SIZE) == ours
    assert canonical_counts(ours.encode(), SIZE) == ours


BOXES = st.tuples(st.integers(0, 28), st.integers(0, 38), st.integers(1, 12), st.integers(1, 12))


@given(st.lists(BOXES, max_size=5), st.lists(BOXES, max_size=5), st.sampled_from([REPLACE, ADD, CARRY]))
@settings(max_examples=60, deadline=None)
def test_any_masks_twice_are_the_same_as_once(first: list[Any], second: list[Any], how: ImportSettings) -> None:
    """After any import before, numbers rise and are used once, and the file's masks are all there."""
    row = image()
    for boxes in (first, second):
        asked = answer(*(rectangle(y, x, min(30, y + h), min(40, x + w)) for y, x, h, w in boxes))
        merged = merge(row, asked, how)
        there = [mask["segmentation"]["counts"] for mask in merged.row["masks"]]
        wanted = {mask.counts for mask in asked.masks}
        assert wanted <= set(there)
        assert len(there) == len(set(there))
        if how is REPLACE:
            assert wanted == set(there)
        used = indices(merged.row)
        assert used == sorted(set(used))
        assert all(index < merged.row["next_mask"] for index in used)
        before = dict(zip(indices(row), (mask["segmentation"] for mask in row["masks"]), strict=True))
        after = dict(zip(used, (mask["segmentation"] for mask in merged.row["masks"]), strict=True))
        assert all(before[index] == after[index] for index in before.keys() & after.keys())
        assert all(index >= row["next_mask"] for index in after.keys() - before.keys())
        again(merged, asked, how)
        row = merged.row
