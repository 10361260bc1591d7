"""Filter of masks that trace a redacted region instead of an object: the ellipse over a face, the box of a plate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from segmint.operators.redactions import redactions
from segmint.operators.rows import Row


@dataclass(frozen=True)
class RedactionArtifacts:
    """Criterion that decides which masks are artifacts of de-identification."""

    iou: float | None = None  # minimum IoU with a region; None: no mask is an artifact

    def dropped(self, row: Row, columns: Mapping[str, Any]) -> dict[str, Any]:
        """Return an image's columns `masks` and `funnel` without artifacts. `row` contains the keys of `PREPARED`.

        The IoU used here equals the `redaction_iou` that would be written for the mask.
        """
        masks = columns["masks"]
        if self.iou is None or not row["regions"] or not masks:
            return dict(columns)
        source, size = (row["source_height"], row["source_width"]), (row["height"], row["width"])
        counts = [mask["segmentation"]["counts"] for mask in masks]
        near = redactions(row["regions"], source, size, counts).iou
        kept = [mask for mask, iou in zip(masks, near.tolist(), strict=True) if iou < self.iou]
        funnel = {**columns["funnel"], "written": len(kept), "redaction_artifacts": len(masks) - len(kept)}
        return {**columns, "masks": kept, "funnel": funnel}


NO_ARTIFACTS = RedactionArtifacts()
"""Criterion that drops no masks."""
