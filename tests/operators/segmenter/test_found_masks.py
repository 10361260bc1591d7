"""Masks of a segmenter: equal bytes for pixels and run lengths, filters like SAM's, and what is invalid."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco

from segmint import Mask
from segmint.catalogs.findings import Reason, RejectedError
from segmint.model.automatic import rle
from segmint.model.automatic.candidates import nms, under_max_area
from segmint.operators.segment.mask_config import without_artifacts
from segmint.operators.segmenter.found_masks import MaskError, MaskFilters, added_columns, found_columns
from tests.support.pixel_cleanup import clean

HEIGHT, WIDTH = 30, 40
ROW = {"height": HEIGHT, "width": WIDTH, "source_height": HEIGHT, "source_width": WIDTH, "regions": []}
SOURCE = f"model:{'cd' * 32}"
NO_FILTERS = MaskFilters()


def stored(*masks: Any, filters: MaskFilters = NO_FILTERS, **row: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = found_columns({**ROW, **row}, masks, filters, SOURCE)["masks"]
    return found


def rectangle(top: int, left: int, bottom: int, right: int) -> np.ndarray:
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[top:bottom, left:right] = True
    return pixels


def noise(count: int, seed: int = 0) -> list[Mask]:
    """Masks of noisy rectangles, with a score for each but the last."""
    random = np.random.default_rng(seed)
    masks = []
    for index in range(count):
        top, left = random.integers(0, 15, 2)
        pixels = rectangle(top, left, top + random.integers(4, 15), left + random.integers(4, 25))
        pixels &= random.random(pixels.shape) < 0.8
        masks.append(Mask(pixels, score=None if index == count - 1 else float(random.random())))
    return masks


@given(st.binary(min_size=3, max_size=150), st.integers(0, 4))
def test_pixels_and_all_forms_of_run_lengths_give_the_same_bytes(data: bytes, empty: int) -> None:
    bits = np.resize(np.unpackbits(np.frombuffer(data, np.uint8)), HEIGHT * WIDTH).astype(bool)
    pixels = bits.reshape(HEIGHT, WIDTH)
    flat = pixels.ravel(order="F").astype(np.int8)
    counts = np.diff(np.flatnonzero(np.diff(flat, prepend=0)), prepend=0, append=flat.size).tolist()
    if empty:
        counts[1:1] = [0, 0] * empty  # empty runs between the others
    of_coco = coco.encode(np.asfortranarray(pixels.astype(np.uint8)))
    forms = (counts, of_coco["counts"], of_coco["counts"].decode())
    expected = stored(Mask(pixels))
    for form in forms:
        assert stored(Mask({"size": [HEIGHT, WIDTH], "counts": form})) == expected
    for mask in expected:
        assert mask["segmentation"] == {"size": of_coco["size"], "counts": of_coco["counts"].decode()}
        assert (mask["area"], mask["bbox"][2] + 1) == (pixels.sum(), coco.toBbox(of_coco)[2])
    assert len(expected) == pixels.any()


def test_a_mask_keeps_what_the_segmenter_says_of_it() -> None:
    said = {"score": np.float32(0.5), "stability": 1, "label": "lamp", "label_score": 3.5, "text": "a lamp"}
    points, box = [(3, np.float32(4.5), np.int64(1)), np.zeros(3)], np.arange(1, 5)
    mask, bare, imported = stored(
        Mask(rectangle(2, 3, 12, 20), **said, points=points, box=box),
        Mask(rectangle(0, 0, 1, 1)),
        Mask(rectangle(0, 0, 1, 2), label="lamp", label_source="import"),
    )
    assert (mask["bbox"], mask["area"], mask["crop_box"]) == ([3, 2, 16, 9], 170, [0, 0, WIDTH, HEIGHT])
    assert (mask["predicted_iou"], mask["stability_score"], mask["point_coords"]) == (0.5, 1.0, [])
    assert (mask["label"], mask["label_score"], mask["label_source"]) == ("lamp", 3.5, SOURCE)
    assert mask["prompts"] == [
        {"kind": "point", "x": 3.0, "y": 4.5, "label": 1},
        {"kind": "point", "x": 0.0, "y": 0.0, "label": 0},
        {"kind": "box", "x": 1.0, "y": 2.0, "w": 3.0, "h": 4.0},
        {"kind": "text", "text": "a lamp"},
    ]
    unknown = ("predicted_iou", "stability_score", "label", "label_score", "label_source", "prompts")
    assert [bare[name] for name in unknown] == [None] * 6
    assert (imported["label_source"], imported["label_score"]) == ("import", None)


def test_filters_are_off_by_default_except_that_empty_masks_are_dropped() -> None:
    masks = [*noise(9), Mask(np.zeros((HEIGHT, WIDTH), bool), score=1.0), Mask(np.ones((HEIGHT, WIDTH), bool))]
    columns = found_columns(ROW, masks, NO_FILTERS, SOURCE)
    assert [mask["area"] for mask in columns["masks"]] == [each.pixels.sum() for each in (*masks[:9], masks[10])]
    assert (columns["funnel"]["predicted"], columns["funnel"]["under_max_area"], columns["funnel"]["written"]) == (
        11,
        10,
        10,
    )


def test_masks_with_low_scores_and_small_or_large_areas_are_dropped() -> None:
    masks = noise(30)
    scores = [mask["predicted_iou"] for mask in stored(*masks, filters=MaskFilters(min_score=0.5))]
    assert scores == [mask.score for mask in masks if mask.score is None or mask.score >= 0.5]
    areas = np.array([mask.pixels.sum() for mask in masks])
    least, ratio = int(np.quantile(areas, 0.3)), float(np.quantile(areas, 0.8)) / (HEIGHT * WIDTH)
    found = [mask["area"] for mask in stored(*masks, filters=MaskFilters(min_area=least, max_area_ratio=ratio))]
    kept = (areas >= least) & under_max_area(areas, (HEIGHT, WIDTH), ratio)
    assert found == areas[kept].tolist()
    assert 0 < len(found) < 30


def test_duplicates_are_suppressed_as_between_masks_of_sam() -> None:
    masks = noise(40)
    boxes = [mask["bbox"] for mask in stored(*masks)]
    corners = np.array([[x, y, x + w, y + h] for x, y, w, h in boxes], np.int64)
    scores = np.array([-1.0 if mask.score is None else mask.score for mask in masks], np.float32)
    kept = nms(corners, scores, 0.5)
    found = stored(*masks, filters=MaskFilters(nms_iou=0.5))
    assert [mask["bbox"] for mask in found] == [boxes[place] for place in kept]
    assert 5 < len(found) < 40
    assert len(stored(filters=MaskFilters(nms_iou=0.5))) == 0


def test_masks_are_cleaned_as_those_of_sam_whether_they_are_pixels_or_run_lengths() -> None:
    pixels = [mask.pixels for mask in noise(20, seed=1)] + [rectangle(0, 0, 2, 2)]
    coded = [rle.encode(np.asarray(each)) for each in pixels]
    cleaned = [clean(np.asarray(each), 5, keep_largest=False) for each in pixels]
    expected = [rle.encode(each.mask).counts for each in cleaned if each.mask is not None]
    for masks in (
        [Mask(each) for each in pixels],
        [Mask({"size": list(each.size), "counts": each.counts}) for each in coded],
    ):
        columns = found_columns(ROW, masks, MaskFilters(cleanup_area=5), SOURCE)
        assert [mask["segmentation"]["counts"] for mask in columns["masks"]] == expected
        for mask, counts in zip(columns["masks"], expected, strict=True):
            assert mask["area"] == rle.area(rle.Rle((HEIGHT, WIDTH), counts))
        assert columns["funnel"]["removed_by_cleanup"] == 1 == len(pixels) - len(expected)
        assert columns["funnel"]["cleaned"] == sum(each.changed for each in cleaned)


def test_masks_of_a_redaction_are_dropped() -> None:
    regions = [{"kind": "plate", "x": 5, "y": 5, "w": 12, "h": 8, "source": "detector"}]
    masks = [Mask(rectangle(5, 5, 13, 17)), Mask(rectangle(0, 0, 30, 30))]
    columns = found_columns({**ROW, "regions": regions}, masks, NO_FILTERS, SOURCE)
    filters = MaskFilters(drop_redaction_artifacts=0.6)
    found = found_columns({**ROW, "regions": regions}, masks, filters, SOURCE)
    assert found == without_artifacts({**ROW, "regions": regions}, columns, 0.6)
    assert (len(found["masks"]), found["funnel"]["redaction_artifacts"]) == (1, 1)


WHOLE = rectangle(0, 0, HEIGHT, WIDTH)
SIZE = [HEIGHT, WIDTH]


@pytest.mark.parametrize(
    ("mask", "told"),
    [
        (WHOLE, "mask 0 is of type ndarray: expected segmint.Mask"),
        (Mask(WHOLE[1:]), r"an array of bool with the shape \(29, 40\): expected bool pixels .* \(30, 40\)"),
        (Mask(WHOLE.T), r"with the shape \(40, 30\)"),
        (Mask(WHOLE.astype(np.uint8)), "an array of uint8"),
        (Mask(np.full((HEIGHT, WIDTH), np.nan)), "an array of float64"),
        (Mask(WHOLE.tolist()), "mask 0 is list: expected bool pixels"),
        (Mask({"size": SIZE[::-1], "counts": [0, 1200]}), r"mask 0: its size is \[40, 30\]: expected \[30, 40\]"),
        (Mask({"counts": [0, 1200]}), "mask 0: its size is None: expected"),
        (Mask({"size": SIZE, "counts": [0, 1199]}), "mask 0: the RLE counts cover 1199 pixels: expected 1200"),
        (Mask({"size": SIZE, "counts": [-1, 1201]}), "mask 0: its counts are not integers, negative, or larger"),
        (Mask({"size": SIZE, "counts": [2**63 - 1, 2**63 - 1, 1202]}), "or larger than any image"),
        (Mask({"size": SIZE, "counts": []}), "mask 0: the RLE counts cover 0 pixels"),
        (Mask({"size": SIZE, "counts": [0.0, 1200.0]}), "mask 0: its counts are not integers"),
        (Mask({"size": SIZE, "counts": None}), "its counts are neither a list of numbers nor ASCII text"),
        (Mask({"size": SIZE, "counts": "é"}), "nor ASCII text"),
        (Mask({"size": SIZE, "counts": b"\xff"}), "nor ASCII text"),
        (Mask({"size": SIZE, "counts": "~"}), "mask 0: these RLE counts are damaged"),
        (Mask(WHOLE, score=float("nan")), "mask 0: score: Input should be a finite number"),
        (Mask(WHOLE, score=7.0), r"score: Input should be less than or equal to 1\.5"),
        (Mask(WHOLE, score="high"), "score: Input should be a valid number"),
        (Mask(WHOLE, stability=1.2), "stability: Input should be less than or equal to 1"),
        (Mask(WHOLE, label="a", label_score=float("inf")), "label_score: Input should be a finite number"),
        (Mask(WHOLE, label_score=0.5), "a label_score or a label_source needs a label"),
        (Mask(WHOLE, label_source="import"), "needs a label"),
        (Mask(WHOLE, label="a", label_source="person"), "label_source: String should match pattern"),
        (Mask(WHOLE, label="a", label_source="import", label_score=0.5), "whose label_source is import has no label_s"),
        (Mask(WHOLE, label=" "), "label: Value error, expected text"),
        (Mask(WHOLE, text=5), "text: Input should be a valid string"),
        (Mask(WHOLE, label="\ud800"), "label: Value error, .utf-8. codec"),
        (Mask(WHOLE, points=[(1, 2)]), r"points: 0: 2: Field required"),
        (Mask(WHOLE, points=[(1, 2, 3)]), r"points: 0: 2: Input should be less than or equal to 1"),
        (Mask(WHOLE, points=[(1, float("nan"), 1)]), r"points: 0: 1: Input should be a finite number"),
        (Mask(WHOLE, box=(1, 2, 3)), r"box: 3: Field required"),
        (Mask(WHOLE, box=(1, 2, 3, float("inf"))), r"box: 3: Input should be a finite number"),
    ],
)  # fmt: skip
def test_an_invalid_mask_is_refused(mask: Any, told: str) -> None:
    with pytest.raises(MaskError, match=told):
        stored(mask)


def test_something_else_than_a_list_is_refused() -> None:
    for masks in (Mask(WHOLE), iter([]), "masks", None, {}):
        with pytest.raises(MaskError, match=r"with_masks got .*: expected a list of segmint\.Mask"):
            found_columns(ROW, masks, NO_FILTERS, SOURCE)  # type: ignore[arg-type]


def test_an_image_has_ids_for_ten_thousand_masks() -> None:
    assert len(stored(*[Mask(WHOLE)] * 10_000)) == 10_000
    with pytest.raises(RejectedError, match="10,001 masks") as caught:
        stored(*[Mask(WHOLE)] * 10_001)
    assert caught.value.reason is Reason.TOO_MANY_MASKS
    assert len(stored(*[Mask(WHOLE, score=0.5)] * 10_001, filters=MaskFilters(nms_iou=0.5))) == 1


def test_masks_of_a_stage_come_after_the_others_and_count_with_them() -> None:
    whole, region = rectangle(0, 0, HEIGHT, WIDTH), {"kind": "face", "score": 1.0, "source": "yunet"}
    earlier = found_columns(ROW, [Mask(rectangle(0, 0, 5, 5)), Mask(np.zeros_like(whole))], NO_FILTERS, SOURCE)
    redacted = {**ROW, "regions": [{**region, "x": 5, "y": 5, "w": 20, "h": 20}]}
    filters = MaskFilters(min_area=2, drop_redaction_artifacts=0.5)
    masks = [Mask(whole), Mask(rectangle(5, 5, 25, 25)), Mask(rectangle(0, 0, 1, 1), label="dot")]
    added = found_columns(redacted, masks, filters, SOURCE)
    both = added_columns(earlier, added, "ab" * 32)
    assert both["masks"] == [*earlier["masks"], {**added["masks"][0], "model": "ab" * 32}]
    steps = ("predicted", "over_iou", "under_max_area", "written", "redaction_artifacts", "holes_filled")
    assert [both["funnel"][step] for step in steps] == [5, 5, 3, 2, 1, 0]

    many = {**added, "masks": added["masks"] * 9_999}
    assert len(added_columns(earlier, many, "ab" * 32)["masks"]) == 10_000
    with pytest.raises(RejectedError, match="10,001 masks") as caught:
        added_columns(earlier, {**many, "masks": [*many["masks"], added["masks"][0]]}, "ab" * 32)
    assert caught.value.reason == Reason.TOO_MANY_MASKS
