"""Audit of one image's masks and their columns, and search for nearly identical masks and images."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pycocotools import mask as coco

from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.infra.arrays import Bools, Bytes, Floats, Ints, Size
from segmint.model.automatic import rle
from segmint.operators.rows import AUTOMATIC, PLAUSIBLE_IOU, Row
from segmint.operators.similar.near import NO_HASH, Hashes, near_pairs

Numbers = list[float]


@dataclass(frozen=True)
class MaskLimits:
    """Thresholds that a dataset was built with. A threshold of 0 or less is off."""

    pred_iou_thresh: float
    stability_score_thresh: float
    by_segmenter: bool = False  # whether a segmenter made the masks, which then may have no scores and no points
    adding: frozenset[str] = frozenset()  # values of `model` in masks that stages or `segmint apply` added, which, too
    applied: frozenset[str] = frozenset()  # those among them of `segmint apply`, whose masks have higher numbers
    artifact_iou: float | None = None  # minimum IoU with a redacted region at which masks were dropped; None: none were


def audit_masks(
    size: Size,
    masks: Sequence[Row],
    limits: MaskLimits | None,
    place: FindingLocation,
    *,
    decode: bool,
    measured: Callable[[Row, int, Numbers], Row] | None = None,
) -> Iterator[Finding]:
    """Yield findings about an image's rows in `masks/*.parquet`. The image's `size` is (height, width).

    pycocotools measures every mask. With `decode`, each mask without findings so far is also decoded, and its pixels
    are counted. Scores are compared with the thresholds in `limits`, if given. Annotated masks and those of a segmenter
    or a stage don't need scores or a point, and their scores aren't compared with thresholds. For each mask, only the
    first problem with its pixels and the first problem with its scores are reported.

    `measured` is called with the row, the area, and COCO's box of each mask whose run lengths fit its image. It returns
    the row to compare with them.
    """
    sound: list[Row] = []
    for row in masks:
        findings = list(_code_findings(size, row, place))
        yield from findings
        yield from _frame_findings(size, row, limits, place)
        yield from _score_findings(row, limits, place)
        if not findings:
            sound.append(row)
    for row in sound:
        code = _coco(row)
        # Measure one mask at a time, because pycocotools 2.0.11 returns no areas for over 255 masks.
        area, box = int(coco.area(code)), coco.toBbox(code).tolist()
        if measured is not None:
            row = measured(row, area, box)
        findings = list(_pixel_findings(size, row, area, box, place))
        yield from findings
        if decode and not findings:
            yield from _decoded_findings(row, code, place)


def _code_findings(size: Size, row: Row, place: FindingLocation) -> Iterator[Finding]:
    segmentation = row["segmentation"] or {}
    found = segmentation.get("size")
    if found != list(size):
        yield _finding(place, row, Code.RLE_SIZE, f"[height, width] {list(size)}", found)
        return
    try:
        # pycocotools trusts its input, so invalid run lengths must be found here.
        rle.area(rle.Rle(size, segmentation.get("counts") or ""))
    except ValueError as error:
        yield _finding(place, row, Code.BAD_RLE, f"run lengths of {size[0] * size[1]} pixels", error)


def _pixel_findings(size: Size, row: Row, area: int, coco_box: Numbers, place: FindingLocation) -> Iterator[Finding]:
    if area != row["area"] or area == 0:
        yield _finding(place, row, Code.MASK_AREA, f"area {area or 'over 0'} by its run lengths", row["area"])
        return
    x, y, width, height = coco_box
    around = [x, y, width - 1, height - 1]  # COCO's boxes count pixels; SA-1B's extend from the first pixel to the last
    box = finite_numbers(row["bbox"], 4)
    if box is not None and not is_inside([box[0], box[1], box[2] + 1, box[3] + 1], size):
        yield _finding(place, row, Code.BOX_OUTSIDE, f"a box in {size[1]} x {size[0]} pixels", row["bbox"])
    elif box != around:
        yield _finding(place, row, Code.MASK_BOX, f"bbox {around}", row["bbox"])


def _decoded_findings(row: Row, code: dict[str, Any], place: FindingLocation) -> Iterator[Finding]:
    pixels = np.asarray(coco.decode(code)).astype(bool)
    rows, columns = np.flatnonzero(pixels.any(axis=1)), np.flatnonzero(pixels.any(axis=0))
    box = [float(v) for v in (columns[0], rows[0], columns[-1] - columns[0], rows[-1] - rows[0])]
    ours = rle.decode(rle.Rle((pixels.shape[0], pixels.shape[1]), code["counts"].decode("ascii")))
    if int(pixels.sum()) != row["area"] or box != row["bbox"] or not np.array_equal(ours, pixels):
        expected = f"{row['area']} pixels in the box {row['bbox']}"
        yield _finding(place, row, Code.MASK_PIXELS, expected, f"{int(pixels.sum())} in {box}")


def _frame_findings(size: Size, row: Row, limits: MaskLimits | None, place: FindingLocation) -> Iterator[Finding]:
    image = f"{size[1]} x {size[0]} pixels"
    crop = finite_numbers(row["crop_box"], 4)
    if crop is None or min(crop[2:]) <= 0 or not is_inside(crop, size):
        yield _finding(place, row, Code.CROP_OUTSIDE, f"a crop in {image}", row["crop_box"])
        return
    points = row["point_coords"]
    for point in points or ([] if points == [] and not _made_by_sam(row, limits) else [None]):
        x_y = finite_numbers(point, 2)
        if x_y is None or not all(low <= v <= low + n for v, low, n in zip(x_y, crop[:2], crop[2:], strict=True)):
            yield _finding(place, row, Code.POINT_OUTSIDE, f"a point in the crop {crop} of {image}", points)


def _score_findings(row: Row, limits: MaskLimits | None, place: FindingLocation) -> Iterator[Finding]:
    iou, stability = row["predicted_iou"], row["stability_score"]
    if not _made_by_sam(row, limits):
        iou, stability = iou if iou is not None else 1.0, stability if stability is not None else 1.0
        limits = None
    if not _between(iou, *PLAUSIBLE_IOU) or not _between(stability, 0.0, 1.0):
        low, high = PLAUSIBLE_IOU
        expected = f"predicted_iou from {low} to {high}, stability_score from 0 to 1"
        yield _finding(place, row, Code.SCORE_RANGE, expected, f"{iou} and {stability}")
    elif limits is not None:
        # Scores were compared with the thresholds in float32.
        least = float(np.float32(limits.pred_iou_thresh))
        if limits.pred_iou_thresh > 0 and not iou > least:
            expected = f"predicted_iou over {limits.pred_iou_thresh}"
            yield _finding(place, row, Code.UNDER_THRESHOLD, expected, iou)
        least = float(np.float32(limits.stability_score_thresh))
        if limits.stability_score_thresh > 0 and not stability >= least:
            expected = f"stability_score of at least {limits.stability_score_thresh}"
            yield _finding(place, row, Code.UNDER_THRESHOLD, expected, stability)


def _made_by_sam(row: Row, limits: MaskLimits | None) -> bool:
    """Return whether SAM made the mask in a build. Masks that segmint didn't write have no source and count as such."""
    if limits is not None and (limits.by_segmenter or row.get("model") in limits.adding):
        return False
    return row.get("source") in (None, AUTOMATIC)


def _finding(place: FindingLocation, row: Row, code: Code, expected: object, found: object) -> Finding:
    """Return a finding about a mask's row. In data that segmint didn't write, the mask's id may be invalid."""
    id = row["annotation_id"]
    return place.finding(code, expected, found, f"mask {id}", mask=id if isinstance(id, int) else None)


def _coco(row: Row) -> dict[str, Any]:
    segmentation = row["segmentation"]
    return {"size": list(segmentation["size"]), "counts": segmentation["counts"].encode("ascii")}


def finite_number(value: Any) -> float | None:
    """Return a finite number, or None for anything else."""
    try:
        return value if type(value) in (int, float) and math.isfinite(value) else None
    except OverflowError:
        return None


def finite_numbers(value: Any, count: int) -> Numbers | None:
    """Return a list of `count` finite numbers, or None for anything else."""
    if not isinstance(value, list) or len(value) != count:
        return None
    if any(finite_number(each) is None for each in value):
        return None
    return [float(each) for each in value]


def is_inside(box: Numbers, size: Size) -> bool:
    """Return whether a box [x, y, width, height] lies inside an image of size (height, width)."""
    x, y, width, height = box
    return x >= 0 and y >= 0 and x + width <= size[1] and y + height <= size[0]


def _between(value: float | None, low: float, high: float) -> bool:
    return value is not None and low <= value <= high


_NULL = -(1 << 63)
"""Placeholder for null in integer columns. No invalid value can equal it by accident."""


@dataclass(frozen=True)
class MaskColumns:
    """Columns of N masks that `annotations_json` and `audit_masks` need, in the table's order.

    Missing values and lists of the wrong length become -1, NaN, or an empty text. These are invalid in every column.
    """

    size: Ints  # (N, 2) height and width
    counts: Bytes  # (B,) compressed run lengths of all masks, in UTF-8
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


def _texts(array: Any) -> tuple[Bytes, Ints]:
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


_AT_ONCE = 256
"""Number of masks that are compared with all others at once. Memory grows with this times the number of masks."""


class NearDuplicate(NamedTuple):
    """Positions of two masks in the sequence, and the masks' IoU, 0 to 1."""

    first: int
    second: int
    iou: float


def near_duplicates(size: Size, counts: Sequence[str], threshold: float) -> list[NearDuplicate]:
    """Return the pairs of masks with an IoU of at least `threshold`, in order of position. `threshold` must be over 0.

    `counts` contains COCO's compressed run lengths of masks of `size` (height, width). Damaged run lengths are skipped.
    """
    places = [place for place, code in enumerate(counts) if _sound(size, code)]
    codes = [rle.Rle(size, counts[place]).coco() for place in places]
    if len(codes) < 2:
        return []
    found = []
    areas = np.array([coco.area(code) for code in codes])  # pycocotools 2.0.11 returns no areas for over 255 at once
    for first, others in _candidates(areas, coco.toBbox(codes), threshold):
        ious = coco.iou([codes[first]], [codes[other] for other in others], [0] * len(others))[0]
        for other, iou in zip(others, ious, strict=True):
            if iou >= threshold:
                found.append(NearDuplicate(places[first], places[other], float(iou)))
    return found


def _candidates(areas: NDArray[Any], boxes: NDArray[Any], threshold: float) -> Iterator[tuple[int, list[int]]]:
    """Yield each mask with the later masks that may reach the threshold.

    To rule out pairs, this function uses an upper bound of the IoU. The intersection of two masks is at most as large
    as the intersection of their boxes, and at most as large as the smaller mask. Their union is at least as large as
    the larger mask.
    """
    area = areas.astype(np.float64)
    start, end = boxes[:, :2], boxes[:, :2] + boxes[:, 2:]
    for low in range(0, len(area), _AT_ONCE):
        part = slice(low, low + _AT_ONCE)
        sides = np.minimum(end[part, None], end[None]) - np.maximum(start[part, None], start[None])
        shared = np.minimum(np.prod(np.maximum(sides, 0), axis=-1), np.minimum(area[part, None], area[None]))
        possible = shared >= threshold * np.maximum(np.maximum(area[part, None], area[None]), 1)
        for index, row in enumerate(possible, start=low):
            others = np.flatnonzero(row[index + 1 :]) + index + 1
            if others.size:
                yield index, others.tolist()


def _sound(size: Size, code: str) -> bool:
    # pycocotools trusts its input.
    try:
        return code.isascii() and rle.area(rle.Rle(size, code)) > 0
    except ValueError:
        return False


DISTANCE = 2
"""Maximum distance between hashes of images that look alike, in bits of 64.

Scaling an image to half its size or re-encoding it at quality 60 changes at most two bits of its hash. Half of a hash's
bits are set, so only one in 2 · 10^15 random pairs is this close. Among 100 million images, that is a few pairs.
"""

_BITS = 64


@dataclass(frozen=True)
class SimilarImage:
    """Positions of an image and of the most similar earlier image, and the distance between their hashes in bits."""

    index: int
    earlier: int
    distance: int


def find_alike(hashes: Hashes) -> list[SimilarImage]:
    """Return each image whose hash is within `DISTANCE` bits of an earlier image's hash, once, in order.

    Images without a hash (`NO_HASH`) aren't compared.
    """
    distinct, first, kind = np.unique(hashes, return_index=True, return_inverse=True)
    count = len(hashes)
    nearest = np.full(len(distinct), (_BITS + 1) * count)  # for each value's first image: distance * count + position
    for one, other in near_pairs(distinct, DISTANCE):
        distances = np.bitwise_count(distinct[one] ^ distinct[other]).astype(np.int64)
        later = np.where(first[one] > first[other], one, other)
        np.minimum.at(nearest, later, distances * count + np.minimum(first[one], first[other]))
    found = nearest[kind]
    again = (first[kind] != np.arange(count)) & (hashes != NO_HASH)
    found[again] = first[kind][again]  # at distance 0
    alike = np.flatnonzero(found < (_BITS + 1) * count)
    places = zip(alike.tolist(), *(each.tolist() for each in np.divmod(found[alike], count)), strict=True)
    return [SimilarImage(index, earlier, distance) for index, distance, earlier in places]


def find_copies(*parts: Hashes) -> dict[int, int]:
    """Map the position of each item that equals an earlier one to that of the first such item, in order.

    Two items are equal if they have the same values in all `parts`.
    """
    order = np.lexsort(parts)  # a stable sort, so equal items stay in order
    same = np.all([part[order][1:] == part[order][:-1] for part in parts], axis=0)
    found = {}
    first = 0
    for index in np.flatnonzero(same).tolist():
        if index == 0 or not same[index - 1]:
            first = int(order[index])
        found[int(order[index + 1])] = first
    return dict(sorted(found.items()))
