"""Statistics of masks and images, compared with pixels and an independent convex hull."""

import math

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as nps
from pycocotools import mask as coco
from scipy.spatial import ConvexHull

from segmint.model.automatic.rle import decompress
from segmint.operators.describe import column_spans, coverage, describe_mask, describe_table
from segmint.operators.rows import DESCRIBED, MASK_INDEX, MASK_ORIGIN, MASK_STATISTICS, SAID, SEGMENTED


def counts_of(mask: np.ndarray) -> str:
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode("ascii")


def masks(max_side: int = 12) -> st.SearchStrategy[np.ndarray]:
    return nps.arrays(np.bool_, nps.array_shapes(min_dims=2, max_dims=2, max_side=max_side))


def corner_hull_area(mask: np.ndarray) -> float:
    y, x = np.nonzero(mask)
    corners = np.concatenate([np.stack([x + dx, y + dy], axis=1) for dx in (0, 1) for dy in (0, 1)])
    return ConvexHull(corners).volume


@given(masks())
def test_spans_rebuild_the_mask(mask):
    painted = np.zeros_like(mask)
    for x, top, bottom in zip(*column_spans(mask.shape[0], decompress(counts_of(mask))), strict=True):
        assert not painted[top:bottom, x].any()
        painted[top:bottom, x] = True
    assert (painted == mask).all()


@given(masks())
def test_statistics_equal_those_from_pixels(mask):
    height, width = mask.shape
    found = describe_mask((height, width), counts_of(mask))
    if not mask.any():
        assert (found.relative_size, found.concavity) == (0, 0)
        return
    y, x = np.nonzero(mask)
    assert found.relative_size == pytest.approx(math.sqrt(mask.mean()))
    assert found.center_x == pytest.approx((x.mean() + 0.5) / width)
    assert found.center_y == pytest.approx((y.mean() + 0.5) / height)
    assert found.aspect_ratio == pytest.approx((np.ptp(x) + 1) / (np.ptp(y) + 1))
    assert found.touches_border == bool(mask[0].any() or mask[-1].any() or mask[:, 0].any() or mask[:, -1].any())
    assert found.concavity == pytest.approx(1 - mask.sum() / corner_hull_area(mask))
    assert 0 <= found.concavity < 1


def test_a_rectangle_and_a_single_pixel_are_convex():
    mask = np.zeros((9, 14), bool)
    mask[2:6, 3:11] = True
    assert describe_mask(mask.shape, counts_of(mask)).concavity == 0
    assert describe_mask(mask.shape, counts_of(mask)).aspect_ratio == 2
    mask[:] = False
    mask[4, 4] = True
    assert describe_mask(mask.shape, counts_of(mask)).concavity == 0


def test_an_l_of_three_pixels_has_the_concavity_of_its_missing_corner():
    mask = np.array([[1, 0], [1, 1]], bool)
    # The hull of an L cuts the fourth pixel diagonally: 3.5 pixels.
    assert describe_mask(mask.shape, counts_of(mask)).concavity == pytest.approx(1 - 3 / 3.5)


@given(st.lists(nps.arrays(np.bool_, (7, 5)), max_size=5))
def test_coverage_counts_each_pixel_once(several):
    expected = np.logical_or.reduce(several).mean() if several else 0
    assert coverage((7, 5), [counts_of(mask) for mask in several]) == pytest.approx(expected)


def mask_row(mask: np.ndarray, iou: float = 0.9) -> dict:
    height, width = mask.shape
    return {
        "segmentation": {"size": [height, width], "counts": counts_of(mask)},
        "bbox": [0.0, 0.0, 1.0, 1.0],
        "area": int(mask.sum()),
        "predicted_iou": iou,
        "stability_score": 0.97,
        "crop_box": [0.0, 0.0, float(width), float(height)],
        "point_coords": [[0.5, 0.5]],
    }


@pytest.fixture
def segmented() -> pa.Table:
    left, right = np.zeros((2, 10, 20), bool)
    left[:, :12] = True
    right[:, 10:] = True
    rows = [
        {"ordinal": 0, "width": 20, "height": 10, "masks": [mask_row(left, 0.8), mask_row(right, 1.0)]},
        {"ordinal": 1, "width": 20, "height": 10, "masks": []},
        {"ordinal": 2, "stage": "ingest", "reason": "truncated", "detail": "it ends early"},
        {"ordinal": 3, "fault": "prepare: OSError: gone"},
        {"ordinal": 4, "width": 20, "height": 10, "masks": [mask_row(left[:, :12])]},
    ]
    return pa.Table.from_pylist([{name: row.get(name) for name in SEGMENTED.names} for row in rows], SEGMENTED)


def test_a_table_gains_statistics_and_loses_nothing(segmented):
    described = describe_table(segmented)
    assert described.schema == DESCRIBED
    rows = described.to_pylist()
    assert [row["ordinal"] for row in rows] == [0, 1, 2, 3, 4]
    kept = [name for name in SEGMENTED.names if name != "masks"]
    assert described.select(kept).equals(segmented.select(kept))
    added = {field.name for field in (*MASK_STATISTICS, *MASK_ORIGIN, MASK_INDEX)}
    added -= set(SAID)
    stripped = [row["masks"] and [{k: v for k, v in m.items() if k not in added} for m in row["masks"]] for row in rows]
    assert stripped == segmented.column("masks").to_pylist()

    first = rows[0]["statistics"]
    assert first["mask_count"] == 2
    assert first["coverage"] == 1.0
    assert first["mean_predicted_iou"] == pytest.approx(0.9)
    assert first["mean_relative_size"] == pytest.approx((math.sqrt(0.6) + math.sqrt(0.5)) / 2)
    assert rows[0]["masks"][1]["center_x"] == pytest.approx(0.75)


def test_masks_say_that_they_are_automatic_and_how_much_of_them_was_redacted(segmented):
    rows = segmented.to_pylist()
    region = {"kind": "plate", "score": 1.0, "x": 0, "y": 0, "w": 20, "h": 20, "source": "manual"}
    rows[0] |= {"regions": [region], "source_width": 40, "source_height": 20}
    rows[4]["regions"] = []
    described = describe_table(pa.Table.from_pylist(rows, schema=SEGMENTED)).to_pylist()
    left, right = described[0]["masks"]  # columns 0 to 11 and 10 to 19 of 20; the region has columns 0 to 9
    assert (left["redacted_share"], right["redacted_share"]) == (pytest.approx(10 / 12), 0.0)
    assert (left["redaction_iou"], right["redaction_iou"]) == (pytest.approx(10 / 12), 0.0)
    assert described[4]["masks"][0]["redacted_share"] == 0.0
    assert {mask["source"] for row in described for mask in row["masks"] or ()} == {"automatic"}
    assert [row["next_mask"] for row in described] == [2, 0, None, None, 1]


def test_an_image_without_masks_has_statistics_and_a_rejected_row_has_none(segmented):
    rows = describe_table(segmented).to_pylist()
    empty = rows[1]["statistics"]
    assert (empty["mask_count"], empty["coverage"], empty["mean_concavity"]) == (0, 0.0, None)
    for row in rows[2:4]:
        assert row["masks"] is None
        assert row["statistics"] is None
    assert rows[2]["reason"] == "truncated"


def test_the_result_does_not_depend_on_chunks_and_slices(segmented):
    whole = describe_table(segmented)
    chunked = pa.concat_tables([segmented.slice(0, 1), segmented.slice(1, 3), segmented.slice(4)])
    assert describe_table(chunked).to_pylist() == whole.to_pylist()
    assert describe_table(segmented.slice(3)).to_pylist() == whole.slice(3).to_pylist()
    assert describe_table(segmented.slice(0, 0)).schema == DESCRIBED


def test_a_row_that_cannot_be_described_costs_itself_alone(segmented):
    rows = segmented.to_pylist()
    rows[0]["masks"][0]["segmentation"]["size"] = [3]
    table = pa.Table.from_pylist(rows, schema=SEGMENTED)
    broken, *others = describe_table(table).to_pylist()
    assert broken["fault"].startswith("describe: ValueError: ")
    assert (broken["ordinal"], broken["masks"], broken["statistics"]) == (rows[0]["ordinal"], None, None)
    assert others == describe_table(segmented).to_pylist()[1:]


def test_a_mask_names_the_mask_that_contains_it(segmented):
    rows = segmented.to_pylist()
    small = np.zeros((10, 12), bool)
    small[2:4, 2:4] = True
    rows[4]["masks"] += [mask_row(small), mask_row(small)]
    described = describe_table(pa.Table.from_pylist(rows, schema=SEGMENTED)).to_pylist()
    assert [mask["container"] for mask in described[0]["masks"]] == [None, None]
    assert [mask["container"] for mask in described[4]["masks"]] == [None, 50_000, 50_001]
