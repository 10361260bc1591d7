"""Describe stage: statistics of each mask and image, and containers, from the masks and redacted regions.

The statistics come from section 5 of the SAM paper (figures 5-7): relative size, concavity, mask center, and masks per
image. They are computed from the run-length encoding, without decoding masks to pixels.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pycocotools import mask as coco

from segmint.infra.arrays import Ints, Size
from segmint.model.automatic import rle
from segmint.model.automatic.rle import decompress
from segmint.operators.redactions import find_containers, redactions
from segmint.operators.rows import (
    AUTOMATIC,
    DESCRIBED,
    DESCRIBED_MASK,
    MASK_INDEX,
    MASK_ORIGIN,
    MASK_STATISTICS,
    MASKS_PER_IMAGE_LIMIT,
    SAID,
    SEGMENTED,
    SEGMENTED_MASK,
    STATISTICS,
    Row,
    carried,
    faulted,
    to_rows,
    to_table,
)

_AVERAGED = ("predicted_iou", "stability_score", "relative_size", "concavity")
"""Columns of masks whose mean is stored for each image."""


@dataclass(frozen=True)
class MaskStatistics:
    """Statistics of one mask. For an explanation of the fields, see `MASK_STATISTICS`."""

    relative_size: float
    concavity: float
    center_x: float
    center_y: float
    aspect_ratio: float
    touches_border: bool


def describe_mask(size: Size, counts: str) -> MaskStatistics:
    """Compute the statistics of one mask from COCO's compressed RLE. The image's `size` is (height, width).

    The convex hull is computed from the *corners* of the pixels, because a hull of their centers would be smaller than
    the mask. The generator never writes an empty mask. Such a mask would have size 0, concavity 0, aspect ratio 1, and
    its center in the middle of the image.
    """
    height, width = size
    x, top, bottom = column_spans(height, decompress(counts))
    lengths = bottom - top
    area = int(lengths.sum())
    if area == 0:
        return MaskStatistics(0.0, 0.0, 0.5, 0.5, 1.0, touches_border=False)
    box_width = int(x.max()) + 1 - int(x.min())
    box_height = int(bottom.max()) - int(top.min())
    border = x.min() == 0 or x.max() == width - 1 or top.min() == 0 or bottom.max() == height
    return MaskStatistics(
        relative_size=math.sqrt(area / (height * width)),
        concavity=1.0 - area / hull_area(x, top, bottom),
        center_x=float(((x + 0.5) * lengths).sum()) / area / width,
        center_y=float(((top + bottom) / 2 * lengths).sum()) / area / height,
        aspect_ratio=box_width / box_height,
        touches_border=bool(border),
    )


def column_spans(height: int, runs: Ints) -> tuple[Ints, Ints, Ints]:
    """Return a mask as S vertical spans: column x, first row, and one past the last row, (S,) int64 each.

    If a foreground run continues from the bottom of one column to the top of the next, it becomes several spans.
    """
    ends = np.cumsum(runs)
    start, end = ends[0::2][: runs.size // 2], ends[1::2]
    start, end = start[end > start], end[end > start]
    first, final = start // height, (end - 1) // height
    pieces = final - first + 1
    x = np.repeat(first, pieces) + _counters(pieces)
    top = np.maximum(np.repeat(start, pieces), x * height) - x * height
    bottom = np.minimum(np.repeat(end, pieces), (x + 1) * height) - x * height
    return x, top, bottom


def hull_area(x: Ints, top: Ints, bottom: Ints) -> float:
    """Return the area, in pixels, of the convex hull of the pixel corners in these spans (see `column_spans`)."""
    corners = np.stack([np.concatenate([x, x, x + 1, x + 1]), np.concatenate([top, bottom, top, bottom])], axis=1)
    return float(cv2.contourArea(cv2.convexHull(corners.astype(np.int32))))


def coverage(size: Size, all_counts: Sequence[str]) -> float:
    """Return the share of an image's pixels that at least one of its masks covers, 0 to 1."""
    if not all_counts:
        return 0.0
    codes = [rle.Rle(size, counts).coco() for counts in all_counts]
    return float(coco.area(coco.merge(codes))) / (size[0] * size[1])


def describe_table(table: pa.Table) -> pa.Table:
    """Add the statistics to every row that has masks. Rejected and faulted rows get nulls.

    Pass this function to `map_batches(..., batch_format="pyarrow")`. It maps a table of SEGMENTED to a table of
    DESCRIBED with the same rows in the same order. If a row can't be described, it becomes faulted.
    """
    try:
        described = _described(table)
    except Exception:  # noqa: BLE001 - the row at fault is found below
        described = pa.concat_tables([_described_alone(table.slice(index, 1)) for index in range(table.num_rows)])
    return carried(table, described)


def _described_alone(row: pa.Table) -> pa.Table:
    try:
        return _described(row)
    except Exception as error:  # noqa: BLE001 - one row's damage must not affect the other rows
        (values,) = to_rows(row, "describe")
        alone = faulted({**values, "masks": None, "funnel": None}, "describe", error)
        return _described(to_table([alone], SEGMENTED))


def _described(table: pa.Table) -> pa.Table:
    masks: pa.ListArray = _contiguous(table.column("masks"))
    structs = masks.flatten()
    sizes = structs.field("segmentation").field("size").to_pylist()
    counts = structs.field("segmentation").field("counts").to_pylist()
    described = [asdict(describe_mask((h, w), code)) for (h, w), code in zip(sizes, counts, strict=True)]
    added = [pa.array([row[field.name] for row in described], field.type) for field in MASK_STATISTICS]
    lengths = pc.fill_null(pc.list_value_length(masks), 0).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    values = dict(zip((field.name for field in SEGMENTED_MASK), structs.flatten(), strict=True))
    said = {name: values.pop(name) for name in SAID}
    added += _origins(table, offsets, counts, _containers(table, offsets, sizes, counts), said)
    longer = pa.StructArray.from_arrays([*values.values(), *added], fields=list(DESCRIBED_MASK))
    column = pa.ListArray.from_arrays(pa.array(offsets), longer, mask=pc.is_null(masks))

    statistics: list[dict[str, Any] | None] = []
    for row, (begin, end) in enumerate(pairwise(offsets)):
        valid = masks[row].is_valid
        statistics.append(_image_statistics(longer.slice(begin, end - begin)) if valid else None)
    next_masks = [None if each is None else each["mask_count"] for each in statistics]
    columns = {name: pa.nulls(table.num_rows, DESCRIBED.field(name).type) for name in DESCRIBED.names}
    columns |= {name: table.column(name) for name in table.column_names}
    columns |= {
        "masks": column,
        "statistics": pa.array(statistics, STATISTICS),
        "next_mask": pa.array(next_masks, pa.int64()),
    }
    return pa.table([columns[name] for name in DESCRIBED.names], schema=DESCRIBED)


def redaction_columns(row: Row, counts: Sequence[str]) -> tuple[list[float | None], list[float | None]]:
    """Return `redacted_share` and `redaction_iou` of an image's masks, or nulls if the row's `regions` is null.

    `row` contains the regions, and the sizes of the upright source and of the released image. `counts` contains the
    compressed RLE of each mask. Raises `ValueError` if there are regions but the run lengths don't cover the image.
    """
    if row["regions"] is None:
        return [None] * len(counts), [None] * len(counts)
    for code in counts if row["regions"] else ():
        rle.area(rle.Rle((row["height"], row["width"]), code))  # pycocotools trusts its input
    found = redactions(row, counts)
    return found.share.tolist(), found.iou.tolist()


def _containers(
    table: pa.Table, offsets: NDArray[np.int32], sizes: Sequence[Sequence[int]], counts: Sequence[str]
) -> list[int | None]:
    """Return the `container` of every mask in a table, as the annotation id that a build would assign to it.

    Images that other tools wrote may contain more masks than a dataset allows. Since the computation time grows with
    the square of the number of masks, the containers of such an image are null.
    """
    found: list[int | None] = []
    for ordinal, (begin, end) in zip(table.column("ordinal").to_pylist(), pairwise(offsets), strict=True):
        if end - begin > MASKS_PER_IMAGE_LIMIT:
            found += [None] * int(end - begin)
        elif begin < end:
            first = (ordinal + 1) * MASKS_PER_IMAGE_LIMIT
            places = find_containers((sizes[begin][0], sizes[begin][1]), counts[begin:end])
            found += [None if place is None else first + place for place in places]
    return found


def _origins(
    table: pa.Table,
    offsets: NDArray[np.int32],
    counts: Sequence[str],
    containers: list[int | None],
    said: Mapping[str, pa.Array],
) -> list[pa.Array]:
    """Return the `MASK_ORIGIN` columns and the index for all masks in a table. A build made all of these masks.

    `said` contains the columns that a segmenter sets.
    """
    shares: list[float | None] = []
    ious: list[float | None] = []
    rows = table.select(["regions", "source_height", "source_width", "height", "width"]).to_pylist()
    for row, (begin, end) in zip(rows, pairwise(offsets), strict=True):
        share, iou = redaction_columns(row, counts[begin:end])
        shares += share
        ious += iou
    known = {"container": containers, "source": [AUTOMATIC] * len(counts)}
    known |= {"redacted_share": shares, "redaction_iou": ious}
    columns = []
    for field in (*MASK_ORIGIN, MASK_INDEX):
        if field.name in said:
            columns.append(said[field.name])
        else:
            columns.append(pa.array(known.get(field.name, [None] * len(counts)), field.type))
    return columns


def image_statistics(size: Size, masks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Compute an image's statistics from its `size` (height, width) and its masks' rows (keys of `DESCRIBED_MASK`).

    The means of scores exclude masks without scores, such as manual masks.
    """
    counts = [mask["segmentation"]["counts"] for mask in masks]
    return _statistics(size, counts, {name: [mask[name] for mask in masks] for name in _AVERAGED})


def _image_statistics(structs: pa.StructArray) -> dict[str, Any]:
    codes = structs.field("segmentation")
    size = codes.field("size")[0].as_py() if len(structs) else (1, 1)
    values = {name: structs.field(name).to_pylist() for name in _AVERAGED}
    return _statistics((size[0], size[1]), codes.field("counts").to_pylist(), values)


def _statistics(size: Size, counts: Sequence[str], values: Mapping[str, Sequence[float | None]]) -> dict[str, Any]:
    means = {}
    for name in _AVERAGED:
        known = [value for value in values[name] if value is not None]
        means[f"mean_{name}"] = math.fsum(known) / len(known) if known else None
    return {"mask_count": len(counts), "coverage": coverage(size, counts), **means}


def _contiguous(column: pa.ChunkedArray) -> pa.Array:
    combined = column.combine_chunks()
    return combined.combine_chunks() if isinstance(combined, pa.ChunkedArray) else combined


def _counters(lengths: Ints) -> Ints:
    """Return the numbers 0, 1, … n-1 for each n in `lengths`, concatenated."""
    total = int(lengths.sum())
    counters: Ints = np.arange(total) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return counters
