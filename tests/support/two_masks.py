"""`python -m tests.support.two_masks` is `segmint` with a segment stage without a model: each image has two masks.

For builds of what comes before and after that stage, which would take most of their time.
"""

from typing import Any
from unittest import mock

from benchmarks.building.stubs import StubbedSegment
from segmint.operators.rows import FUNNEL_STEPS, MASK, Row
from segmint.operators.segment.segment import decode_row
from segmint.pipeline.commands.cli import main
from tests.support.described_rows import rectangle_mask


class TwoMaskSegment(StubbedSegment):
    """Segment stage that decodes each released image, and gives it masks of its left half and of its top left."""

    def _decode(self, row: Row) -> Any:
        return decode_row(row)

    def _finish(self, row: Row, found: Any) -> Row:
        height, width = row["height"], row["width"]
        half = max(1, width // 2)
        described = [rectangle_mask(height, width, 0, 0, bottom, half) for bottom in (height, max(1, height // 3))]
        masks = [{field.name: mask.get(field.name) for field in MASK} for mask in described]
        return {**row, "masks": masks, "funnel": dict.fromkeys(FUNNEL_STEPS, len(masks))}


if __name__ == "__main__":
    with mock.patch("segmint.pipeline.build.Segment", TwoMaskSegment):
        main()
