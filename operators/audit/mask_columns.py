"""Vectorized access to `masks/*.parquet`: columns of many masks as arrays, and conversion back to rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from segmint.operators.audit.masks import MaskLimits
from segmint.operators.rows import Row
from segmint.operators.schemas import AUTOMATIC

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

_NULL = -(1 << 63)
"""Placeholder for null in integer columns. No invalid value can equal it by accident."""


@dataclass(frozen=True)
class MaskColumns:
    """Columns of N masks that `annotations_json` and `audit_masks` need, in the table's order.

    Missing values and lists of the wrong length become -1, NaN, or an empty text. These are invalid in every column.
    """

    size: Ints  # (N, 2) height and width
    counts: NDArray[np.uint8]  # (B,) compressed run lengths of all masks, in UTF-8
    counts_ends: Ints  # (N,) end of each mask's run lengths in `counts`
    bbox: Floats  # (N, 4)
    area: Ints  # (N,)
    predicted_iou: Floats  # (N,)
    stability_score: Floats  # (N,)
    crop_box: Floats  # (N, 4)
    output: Ints  # (N,) `_NULL` if it is null
    container: Ints  # (N,) `_NULL` if it is null
    points: Floats  # (P, 2) points of all masks, one mask after another
    points_ends: Ints  # (N,) end of each mask's points in `points`
    by_people: Bools  # (N,) true for masks of people, a segmenter, or a stage, which may have no scores and no points
    without_iou: Bools  # (N,) true for such masks whose predicted IoU is null
    without_stability: Bools  # (N,) true for such masks whose stability score is null
    without_points: Bools  # (N,) true for such masks with an empty list of points

    @classmethod
    def of(cls, table: pa.Table, limits: MaskLimits | None = None) -> "MaskColumns":
        """Read the columns from a table with the schema `MASKS`."""
        people = of_people(table)
        if limits is not None and limits.by_segmenter:
            people[:] = True
        elif limits is not None and limits.adding:
            people |= pc.is_in(table.column("model"), pa.array(sorted(limits.adding))).to_numpy()
        size, counts = _one_array(table, "segmentation").flatten()
        text, text_ends = _texts(counts.fill_null(""))
        inner, point_ends = _flat(_one_array(table, "point_coords"))
        return cls(
            size=_rows_of(size, 2, -1, np.int64),
            counts=text,
            counts_ends=text_ends,
            bbox=_rows_of(_one_array(table, "bbox"), 4, np.nan, np.float64),
            area=_values(_one_array(table, "area"), -1, np.int64),
            predicted_iou=_values(_one_array(table, "predicted_iou"), np.nan, np.float64),
            stability_score=_values(_one_array(table, "stability_score"), np.nan, np.float64),
            crop_box=_rows_of(_one_array(table, "crop_box"), 4, np.nan, np.float64),
            output=_values(_one_array(table, "output").cast("int64"), _NULL, np.int64),
            container=_values(_one_array(table, "container"), _NULL, np.int64),
            points=_rows_of(inner, 2, np.nan, np.float64),
            points_ends=point_ends,
            by_people=people,
            without_iou=people & _nulls(table, "predicted_iou"),
            without_stability=people & _nulls(table, "stability_score"),
            without_points=people & ~_nulls(table, "point_coords") & (np.diff(point_ends, prepend=0) == 0),
        )

    def __len__(self) -> int:
        return len(self.area)

    def text(self, start: int, stop: int) -> list[bytes]:
        """Return the compressed run lengths of each mask in [start, stop)."""
        first = int(self.counts_ends[start - 1]) if start else 0
        ends = (self.counts_ends[start:stop] - first).tolist()
        data = self.counts[first : first + ends[-1]].tobytes() if ends else b""
        return [data[a:b] for a, b in pairwise([0, *ends])]

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Yield the masks [start, stop) as rows with the keys that `annotations_json` needs, in `to_pylist` format.

        The rows are correct only if no values are missing, except scores of annotated masks.
        `segmint.operators.audit.shard_masks` checks this first.
        """
        first = int(self.points_ends[start - 1]) if start else 0
        ends = (self.points_ends[start:stop] - first).tolist()
        points = self.points[first : first + ends[-1]].tolist() if ends else []
        columns = zip(
            self.size[start:stop].tolist(),
            self.text(start, stop),
            self.bbox[start:stop].tolist(),
            self.area[start:stop].tolist(),
            _with_nulls(self.predicted_iou[start:stop], self.without_iou[start:stop]),
            _with_nulls(self.stability_score[start:stop], self.without_stability[start:stop]),
            self.crop_box[start:stop].tolist(),
            _with_nulls(self.output[start:stop], self.output[start:stop] == _NULL),
            _with_nulls(self.container[start:stop], self.container[start:stop] == _NULL),
            pairwise([0, *ends]),
            strict=True,
        )
        for size, counts, bbox, area, iou, stability, crop, output, container, (first_point, end) in columns:
            yield {
                "segmentation": {"size": size, "counts": counts.decode()},
                "bbox": bbox,
                "area": area,
                "predicted_iou": iou,
                "stability_score": stability,
                "crop_box": crop,
                "point_coords": points[first_point:end],
                "output": output,
                "container": container,
            }


def of_people(masks: pa.Table) -> Bools:
    """Return, for each row of a masks table, whether the mask came from a source other than a build, (N,)."""
    if "source" not in masks.column_names:
        return np.zeros(masks.num_rows, bool)
    return np.asarray(pc.fill_null(pc.not_equal(masks.column("source"), AUTOMATIC), False).to_numpy(), bool)


def _nulls(table: pa.Table, name: str) -> Bools:
    return np.asarray(table.column(name).is_null().to_numpy(), bool)


def _with_nulls(numbers: Floats | Ints, missing: Bools) -> list[float | None]:
    found: list[float | None] = numbers.tolist()
    for place in np.flatnonzero(missing):
        found[place] = None
    return found


def _one_array(table: pa.Table, name: str) -> Any:
    """Return a column as a single array. Raise `ValueError` if it is too large (over 2 GB of text)."""
    array = table.column(name).combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        if array.num_chunks > 1:
            raise ValueError(f"the column {name} is too long for one array")
        return array.chunk(0) if array.num_chunks else pa.array([], array.type)
    return array


def _texts(array: Any) -> tuple[NDArray[np.uint8], Ints]:
    """Return the bytes of all texts in an array without nulls, and the position at which each text ends."""
    _, offsets, data = array.buffers()
    if not len(array):
        return np.zeros(0, np.uint8), np.zeros(0, np.int64)
    ends = np.frombuffer(offsets, np.int32)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    text = np.frombuffer(data, np.uint8)[ends[0] : ends[-1]] if data is not None else np.zeros(0, np.uint8)
    return text, ends[1:] - ends[0]


def _flat(array: Any) -> tuple[Any, Ints]:
    """Concatenate an array's lists. Return the result and the end of each list. Nulls count as empty."""
    lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
    return array.flatten(), np.cumsum(lengths, dtype=np.int64)


def _rows_of(array: Any, width: int, missing: float, kind: Any) -> NDArray[Any]:
    """Convert lists to rows, (N, width). Nulls and lists of a different length become rows filled with `missing`."""
    inner, ends = _flat(array)
    values = _values(inner, missing, kind)
    lengths = np.diff(ends, prepend=0)
    right = lengths == width
    if right.all():
        return values.reshape(-1, width)
    rows = np.full((len(lengths), width), missing, kind)
    rows[right] = values[np.repeat(right, lengths)].reshape(-1, width)
    return rows


def _values(array: Any, missing: float, kind: Any) -> NDArray[Any]:
    """Return the numbers in an array, (N,), with `missing` in place of nulls."""
    found = array if not array.null_count else array.fill_null(missing)
    return np.asarray(found.to_numpy(zero_copy_only=False), kind)
