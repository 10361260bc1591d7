"""Masks that trace a redacted region are dropped and counted; the others stay as they are."""

from typing import Any

import pytest

from segmint.operators.rows import FUNNEL_STEPS, Row
from segmint.operators.segment.mask_config import without_artifacts
from tests.support.described_rows import rectangle_mask

PLATE = {"kind": "plate", "score": 0.9, "x": 20, "y": 20, "w": 80, "h": 32, "source": "clp"}
ROW: Row = {"regions": [PLATE], "source_width": 240, "source_height": 180, "width": 120, "height": 90}
"""The plate has columns 10 to 50 and rows 10 to 26 of the released image; its outline has 11 to 49 and 11 to 25."""


def columns(*boxes: tuple[int, int, int, int]) -> dict[str, Any]:
    """Masks of rectangles (top, left, bottom, right), as `segment` finds them."""
    funnel = dict.fromkeys(FUNNEL_STEPS, 0) | {"after_nms2": 9, "removed_by_cleanup": 6, "written": len(boxes)}
    return {"masks": [rectangle_mask(90, 120, *box) for box in boxes], "funnel": funnel}


TRACES, HALF, BESIDE = (10, 10, 26, 50), (10, 10, 26, 30), (40, 10, 80, 100)


@pytest.mark.parametrize(
    ("iou", "boxes"),
    [(0.8, [HALF, BESIDE]), (0.4, [BESIDE]), (0.9, [TRACES, HALF, BESIDE]), (38 * 14 / (40 * 16), [HALF, BESIDE])],
)
def test_a_mask_is_dropped_from_its_iou_on(iou: float, boxes: list[Any]) -> None:
    """The outline is 38 x 14 pixels of the 40 x 16 of the mask that traces the whole: 0.83."""
    before = columns(TRACES, HALF, BESIDE)
    after = without_artifacts(ROW, before, iou)
    kept = columns(*boxes)
    assert after["masks"] == kept["masks"]
    counts = {"written": len(boxes), "redaction_artifacts": 3 - len(boxes)}
    assert after["funnel"] == before["funnel"] | counts
    assert before == columns(TRACES, HALF, BESIDE), "what was given stays"


@pytest.mark.parametrize(
    ("artifact_iou", "row"),
    [
        (None, ROW),
        (0.1, {**ROW, "regions": []}),
        (0.1, {**ROW, "regions": None}),
    ],
)
def test_nothing_is_dropped_if_it_is_off_or_nothing_was_redacted(artifact_iou: float | None, row: Row) -> None:
    before = columns(TRACES, BESIDE)
    assert without_artifacts(row, before, artifact_iou) == before


def test_an_image_without_masks_has_no_artifact() -> None:
    assert without_artifacts(ROW, columns(), 0.1) == columns()
