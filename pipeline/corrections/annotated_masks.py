"""Annotated masks in an image's row: the columns and numbers of new masks, for imports and merges."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from pycocotools import mask as coco

from segmint.catalogs.dataset.mask_labels import MASK_LABEL
from segmint.catalogs.layout import DamagedDatasetError
from segmint.model.automatic import rle as runs
from segmint.operators.annotations.pairs import LEAST_IOU, iou
from segmint.operators.containment import container_ids
from segmint.operators.describe import describe_mask, image_statistics, redaction_columns
from segmint.operators.rows import Row
from segmint.operators.schemas import AUTOMATIC, DESCRIBED_MASK, MASKS_PER_IMAGE_LIMIT
from segmint.operators.shards.files import annotation_id, counts_of, mask_index


@dataclass(frozen=True)
class NewMask:
    """Annotated mask. `counts` contains its canonical compressed run lengths, and `said` its `MASK_ORIGIN` columns.

    If `label` is None, the mask inherits its parent's label. If `label` is empty, a person removed the label. If
    `by_model` is set, a model chose the label, so the label doesn't confirm an equal label of another mask.
    """

    counts: str
    id: int | None = None
    label: str | None = None
    said: Mapping[str, Any] = field(default_factory=dict)
    by_model: bool = False


def canonical_counts(counts: bytes, size: tuple[int, int]) -> str:
    """Convert compressed run lengths to segmint's canonical form, in which only the first run may be empty.

    Raises `ValueError` if the run lengths can't be read.
    """
    lengths = runs.decompress(counts.decode("ascii"))
    ends = np.cumsum(lengths)
    filled = lengths[1::2] > 0
    return runs.encode_runs((ends - lengths)[1::2][filled], ends[1::2][filled], size).counts


def numbered_masks(row: Row) -> list[Row]:
    """Return the masks of a described row, each with its number as `index`.

    Raises `DamagedDatasetError` if `next_mask` or a mask's run lengths are damaged. pycocotools doesn't validate run
    lengths.
    """
    size = row["height"], row["width"]
    masks = [{**mask, "index": mask_index(mask, position)} for position, mask in enumerate(row["masks"])]
    least = max([(row["funnel"] or {}).get("written") or 0, *(mask["index"] + 1 for mask in masks)])
    if row["next_mask"] is None or not least <= row["next_mask"] <= MASKS_PER_IMAGE_LIMIT:
        raise DamagedDatasetError(
            f"image {row['id']}: its next_mask is {row['next_mask']}, expected {least:,} to {MASKS_PER_IMAGE_LIMIT:,}"
        )
    for mask in masks:
        try:
            runs.area(runs.Rle(size, counts_of(mask)))
        except ValueError as error:
            raise DamagedDatasetError(f"image {row['id']}: the run lengths of a mask are damaged: {error}") from error
    return masks


def is_of_build(mask: Row) -> bool:
    """Return whether a mask comes from a build."""
    return bool(mask["source"] == AUTOMATIC)


def changed_masks(row: Row, masks: Sequence[Row]) -> Row:
    """Return the columns `masks` and `statistics` of an image for these masks. Recompute the masks' containers.

    Both columns depend on all masks, so every correction that adds or removes masks must call this function.
    """
    ids = [annotation_id(row["id"], mask_index(mask, position)) for position, mask in enumerate(masks)]
    contained = [
        {**mask, "container": container} for mask, container in zip(masks, container_ids(masks, ids), strict=True)
    ]
    return {"masks": contained, "statistics": image_statistics((row["height"], row["width"]), contained)}


def described_masks(
    row: Row, new: Sequence[NewMask], parents: Mapping[str, Row], first: int, said: Mapping[str, Any]
) -> list[Row]:
    """Return rows of new masks (keys of `DESCRIBED_MASK`), numbered from `first`.

    `parents` maps the run lengths of a new mask to its parent, the mask that it replaces. `said` contains default
    columns for all new masks. If a mask has no source, its parent determines the source: `corrected` if the parent
    comes from a build, and otherwise the parent's source.
    """
    height, width = row["height"], row["width"]
    counts = [mask.counts for mask in new]
    shares, redaction_ious = redaction_columns(row, counts)
    rows = []
    for index, (mask, share, redaction_iou) in enumerate(zip(new, shares, redaction_ious, strict=True), first):
        code = {"size": [height, width], "counts": mask.counts.encode()}
        x, y, box_width, box_height = coco.toBbox(code).tolist()
        described: Row = dict.fromkeys(each.name for each in DESCRIBED_MASK)
        described |= {
            "segmentation": {"size": [height, width], "counts": mask.counts},
            "bbox": [x, y, box_width - 1, box_height - 1],
            "area": int(coco.area(code)),
            "crop_box": [0.0, 0.0, float(width), float(height)],
            "point_coords": [],
            **asdict(describe_mask((height, width), mask.counts)),
            **said,
            **mask.said,
            **(dict.fromkeys(MASK_LABEL) if mask.label is None else {"label": mask.label or None}),
            "redacted_share": share,
            "redaction_iou": redaction_iou,
            "index": index,
        }
        parent = parents.get(mask.counts)
        if parent is not None:
            described["parent"] = annotation_id(row["id"], parent["index"])
            former = {"size": [height, width], "counts": counts_of(parent).encode()}
            if mask.label is None and iou([code], [former])[0][0] >= LEAST_IOU:
                described |= {name: parent.get(name) for name in MASK_LABEL}
            if "source" not in mask.said:
                described["source"] = "corrected" if is_of_build(parent) else parent["source"]
        rows.append(described)
    return rows
