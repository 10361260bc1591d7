"""Run lengths of masks, in segmint's form and COCO's, and the records of masks that contain them."""

import base64
import io
from dataclasses import dataclass, fields
from typing import NamedTuple, TypedDict

import numpy as np

from segmint.infra.arrays import Bools, Box, Bytes, Ints, Size

# A count is written in groups of five bits, lowest bits first. The bit with value 32 means that another group follows.
# In the last group, the bit with value 16 means that the number is negative. Adding 48 turns each group into a
# printable ASCII character.
_BITS = 5
_GROUPS = 13
_MORE = 0x20
_SIGN = 0x10
_ASCII = 48
_LAST_SYMBOL = 0x3F


class CocoRle(TypedDict):
    """A mask in pycocotools' format: `size` [height, width], and compressed run lengths `counts` that fill it."""

    size: list[int]
    counts: bytes


@dataclass(frozen=True)
class Rle:
    """Mask in COCO's compressed format.

    Attributes:
        size: (height, width) in pixels.
        counts: compressed lengths of alternating runs of 0 and 1, starting with 0, in column-major order.
    """

    size: Size
    counts: str

    def __repr__(self) -> str:
        start = self.counts if len(self.counts) <= 24 else f"{self.counts[:20]}…"
        return f"Rle(size={self.size}, counts={start!r}, {len(self.counts)} characters)"

    def coco(self) -> CocoRle:
        """Return the mask in pycocotools' format, which pycocotools doesn't check."""
        return {"size": list(self.size), "counts": self.counts.encode("ascii")}


def encode(mask: Bools) -> Rle:
    """Encode a whole mask, (height, width) bool."""
    height, width = mask.shape
    return encode_patch(mask, (0, 0), (height, width))


def encode_patch(patch: Bools, corner: tuple[int, int], size: Size) -> Rle:
    """Encode a mask from the pixels inside a window. All pixels outside the window are background.

    Args:
        patch: (window height, window width) bool.
        corner: (x, y) of the window's top left pixel in the frame.
        size: (height, width) of the frame, which must contain the window.

    Raises ValueError if the window exceeds the frame.
    """
    x, y = corner
    height, width = size
    if x < 0 or y < 0 or y + patch.shape[0] > height or x + patch.shape[1] > width:
        raise ValueError(f"a window of {patch.shape} at x={x}, y={y} extends beyond the frame of {size}")
    return encode_runs(*_column_runs(np.ascontiguousarray(patch.T), x * height + y, height), size)


def encode_runs(starts: Ints, ends: Ints, size: Size) -> Rle:
    """Encode a mask from the foreground runs of each column, in column-major order.

    Args:
        starts: (R,) positions y + x * height of the first pixel of each run in the frame.
        ends: (R,) positions after the last pixel of each run.
        size: (height, width) of the frame.
    """
    height, width = size
    # If a run ends at the bottom of a column and the next one starts at the top of the next column, they are one run.
    joined = starts[1:] == ends[:-1]
    starts = starts[np.concatenate(([True], ~joined))[: starts.size]]
    ends = ends[np.concatenate((~joined, [True]))[: ends.size]]
    borders = np.empty(2 * starts.size + 1, dtype=np.int64)
    borders[:-1:2] = starts
    borders[1::2] = ends
    borders[-1] = height * width
    counts = np.diff(borders, prepend=0)
    if counts.size > 1 and counts[-1] == 0:
        counts = counts[:-1]
    return Rle((height, width), compress(counts))


def decode(rle: Rle) -> Bools:
    """Decode a mask, (height, width) bool. Raises ValueError if the counts don't match the size."""
    height, width = rle.size
    counts = _checked_counts(rle)
    values = np.zeros(counts.size, dtype=np.bool_)
    values[1::2] = True
    return np.ascontiguousarray(np.repeat(values, counts).reshape(width, height).T)


def area(rle: Rle) -> int:
    """Return the number of foreground pixels. Raises ValueError if the counts don't match the size."""
    return int(_checked_counts(rle)[1::2].sum())


def compress(counts: Ints) -> str:
    """Compress run lengths, (N,) int64, to ASCII.

    From the fourth run on, a length is stored as the difference from the length two runs earlier.
    """
    rest = counts.astype(np.int64)
    rest[3:] -= counts[1:-2]
    groups = np.zeros((counts.size, _GROUPS), dtype=np.uint8)
    used = np.zeros((counts.size, _GROUPS), dtype=np.bool_)
    pending = np.ones(counts.size, dtype=np.bool_)
    for index in range(_GROUPS):
        low = rest & 0x1F
        rest >>= _BITS
        more = np.where(low & _SIGN, rest != -1, rest != 0)
        groups[:, index] = low | np.where(more, _MORE, 0)
        used[:, index] = pending
        pending = pending & more
        if not pending.any():
            break
    return bytes(groups[used] + _ASCII).decode("ascii")


def decompress(text: str) -> Ints:
    """Decompress text that `compress` wrote into run lengths, (N,) int64.

    Raises ValueError if a character isn't in COCO's alphabet, the end is truncated, or a number has over 60 bits. Other
    texts that `compress` wouldn't write are accepted; their run lengths may be negative.
    """
    # The bytes of non-ASCII text are outside the alphabet, so they are rejected below.
    data = text.encode("utf-8", errors="surrogatepass")
    symbols = np.frombuffer(data, dtype=np.uint8) - np.uint8(_ASCII)  # characters below the alphabet wrap around
    if symbols.size == 0:
        return np.zeros(0, dtype=np.int64)
    if symbols.max() > _LAST_SYMBOL or symbols[-1] & _MORE:
        raise ValueError("these RLE counts are damaged: a character outside COCO's alphabet, or a truncated end")
    first, last = _number_places(symbols, np.array([symbols.size]))
    if (last - first).max() >= _GROUPS - 1:
        raise ValueError("these RLE counts are damaged: a number of more than 60 bits")
    counts = _numbers(symbols, first, last)
    counts[1::2] = np.cumsum(counts[1::2])
    counts[2::2] = np.cumsum(counts[2::2])
    return counts


class ManyCounts(NamedTuple):
    """Run lengths of many masks.

    Attributes:
        counts: (R,) run lengths of all masks, concatenated.
        ends: (N,) end of each mask's run lengths in `counts`, which is where those of the next mask begin.
        damaged: (N,) True if `decompress` would raise `ValueError`. Such a mask has no run lengths in `counts`.
    """

    counts: Ints
    ends: Ints
    damaged: Bools


def decompress_many(text: Bytes, ends: Ints) -> ManyCounts:
    """Decompress the run lengths of many masks at once, like `decompress`.

    This needs temporary memory of about 20 times the size of the text.

    Args:
        text: (B,) the UTF-8 bytes of all texts, concatenated.
        ends: (N,) end of each text in `text`, in ascending order. The last end is B.
    """
    symbols = text - np.uint8(_ASCII)  # characters below the alphabet wrap around to values above it
    sizes = np.diff(ends, prepend=0)
    first, last = _number_places(symbols, ends[sizes > 0])
    wrong = np.concatenate((np.flatnonzero(symbols > _LAST_SYMBOL), last[last - first >= _GROUPS - 1]))
    damaged = np.zeros(ends.size, dtype=np.bool_)
    damaged[np.searchsorted(ends, wrong, side="right")] = True
    damaged[sizes > 0] |= (symbols[ends[sizes > 0] - 1] & _MORE) != 0
    if damaged.any():
        symbols = symbols[np.repeat(~damaged, sizes)]
        sizes = np.where(damaged, 0, sizes)
        ends = np.cumsum(sizes)
        first, last = _number_places(symbols, ends[sizes > 0])
    number_ends = np.searchsorted(last, ends, side="left")
    return ManyCounts(_undo_differences(_numbers(symbols, first, last), number_ends), number_ends, damaged)


def _number_places(symbols: Bytes, ends: Ints) -> tuple[Ints, Ints]:
    """Return the positions of the first and last group of each number. Each text's end also ends a number."""
    is_last = (symbols & _MORE) == 0
    is_last[ends - 1] = True
    last = np.flatnonzero(is_last)
    return np.concatenate(([0], last[:-1] + 1))[: last.size], last


def _numbers(symbols: Bytes, first: Ints, last: Ints) -> Ints:
    """Return the signed numbers, (R,), still as differences. Each number's groups are at `first` to `last`."""
    lengths = last - first + 1
    values = (symbols[first] & 0x1F).astype(np.int64)
    longer = np.flatnonzero(lengths > 1)
    group = 1
    while longer.size:
        values[longer] |= (symbols[first[longer] + group] & 0x1F).astype(np.int64) << (_BITS * group)
        group += 1
        longer = longer[lengths[longer] > group]
    negative = np.flatnonzero(symbols[last] & _SIGN)
    values[negative] -= np.int64(1) << (_BITS * lengths[negative])
    return values


def _undo_differences(values: Ints, ends: Ints) -> Ints:
    """Compute run lengths of many masks, (R,), from differences. See `compress`.

    The numbers of a mask are arranged in a table with two columns, after one empty cell. This puts each difference
    directly below the number that it refers to, so a cumulative sum over each column restores the lengths. The sum
    continues from mask to mask, so each mask subtracts the total of the previous masks. Sums may wrap around, as they
    do for a single mask.
    """
    sizes = np.diff(ends, prepend=0)
    starts = ends - sizes
    rows = np.where(sizes > 0, sizes // 2 + 1, 0)
    first_rows = np.cumsum(rows) - rows
    places = np.arange(values.size) + np.repeat(2 * first_rows + 1 - starts, sizes)
    table = np.zeros((int(rows.sum()), 2), dtype=np.int64)
    table.reshape(-1)[places] = values
    np.cumsum(table, axis=0, out=table)
    some = sizes > 0
    table -= np.repeat(table[first_rows[some]], rows[some], axis=0)
    counts: Ints = table.reshape(-1)[places]
    counts[starts[some]] = values[starts[some]]  # restore the first count, because no difference refers to it
    return counts


def _checked_counts(rle: Rle) -> Ints:
    counts = decompress(rle.counts)
    pixels = rle.size[0] * rle.size[1]
    # Also check single counts, because the sum of larger counts could wrap around to the expected value.
    if counts.size == 0 or counts.min() < 0 or counts.max() > pixels or int(counts.sum()) != pixels:
        raise ValueError(
            f"the RLE counts cover {int(counts.sum())} pixels: expected {pixels}, "
            f"for {rle.size[0]} rows of {rle.size[1]}"
        )
    return counts


def _column_runs(columns: Bools, origin: int, stride: int) -> tuple[Ints, Ints]:
    """Return the starts and exclusive ends of the runs in each column, as positions in the column-major frame.

    `columns` is (columns, pixels). Pixel (c, p) is at position `origin + c * stride + p` of the frame.
    """
    count, length = columns.shape
    padded = np.zeros((count, length + 2), dtype=np.bool_)
    padded[:, 1:-1] = columns
    changes = np.flatnonzero(padded[:, 1:] != padded[:, :-1])
    column, pixel = np.divmod(changes, length + 1)
    positions = origin + column * stride + pixel
    return positions[0::2], positions[1::2]


@dataclass(frozen=True)
class MaskRecord:
    """Mask with the fields of an SA-1B annotation. All coordinates are in pixels of the frame.

    A mask that is only drawn needs no more than `segmentation` and `area`.

    Attributes:
        segmentation: the mask over the whole frame.
        area: number of foreground pixels.
        bbox: (x, y, width, height) between the outermost pixels, inclusive. A single pixel has width 0.
        predicted_iou: the model's estimate of the mask's quality. It can exceed 1.
        stability_score: see `filters.stability_scores`.
        crop_box: (x, y, width, height) of the crop in which the generator found the mask.
        point_coords: (x, y) of the point that prompted the mask.
        output: index of the mask among the decoder's three outputs, 0 to 2, or None if unknown.
    """

    segmentation: Rle
    area: int
    bbox: Box = (0.0, 0.0, 0.0, 0.0)
    predicted_iou: float = 0.0
    stability_score: float = 0.0
    crop_box: Box = (0.0, 0.0, 0.0, 0.0)
    point_coords: tuple[float, float] = (0.0, 0.0)
    output: int | None = None

    @property
    def mask(self) -> Bools:
        """Pixels of the mask, (height, width) bool. Each access decodes them again, so that records stay small."""
        return decode(self.segmentation)

    def __repr__(self) -> str:
        x, y, width, height = self.bbox
        return (
            f"MaskRecord(area={self.area}, bbox=({x:g}, {y:g}, {width:g}, {height:g}), "
            f"predicted_iou={self.predicted_iou:.3f}, stability_score={self.stability_score:.3f})"
        )

    def _repr_html_(self) -> str:
        """Render the mask in white on black for notebooks, with the text of `repr` below."""
        from PIL import Image

        picture = Image.fromarray(self.mask)
        picture.thumbnail((320, 320), Image.Resampling.NEAREST)
        buffer = io.BytesIO()
        picture.save(buffer, format="PNG")
        source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
        return f'<figure style="margin:0"><img src="{source}" alt="the mask"><figcaption>{self!r}</figcaption></figure>'


@dataclass(frozen=True)
class Funnel:
    """Number of masks that remain after each step, over all crops. You can add the funnels of several images.

    From `predicted` to `after_nms2`, each count is at most the previous one. If a step is turned off, its count equals
    the previous one. `written` is `after_nms2 - removed_by_cleanup`.

    Attributes:
        predicted: masks that the decoder returned, three per prompt, without the padding of the last chunk.
        over_iou: remaining masks with a predicted IoU above the threshold.
        stable: remaining masks with a stability score of at least the threshold.
        under_max_area: remaining masks that cover less than the maximum fraction of the image.
        inside_crop: remaining masks that don't touch the inner edges of their crop.
        after_nms1: remaining masks after NMS within each crop.
        after_nms2: remaining masks after NMS across crops.
        cleaned: masks of `after_nms2` with a small hole or island. Includes masks that were dropped later.
        removed_by_cleanup: masks of `after_nms2` that cleanup dropped because all their islands were small, or that the
            NMS after cleanup suppressed.
        written: masks that the generator returned.
        holes_filled: masks of `after_nms2` with a small hole. Includes masks that were dropped later.
        islands_removed: masks of `after_nms2` with a small island. Includes masks that were dropped later. If a mask
            has both a hole and an island, `cleaned` counts it once. Profiles other than `sa1b` keep the largest island
            even if it is small, and count such a mask here too.
        redaction_artifacts: masks that trace a redacted region. The generator doesn't know the regions, so its count is
            0. Builds drop such masks, count them here, and leave them out of `written`.
    """

    predicted: int = 0
    over_iou: int = 0
    stable: int = 0
    under_max_area: int = 0
    inside_crop: int = 0
    after_nms1: int = 0
    after_nms2: int = 0
    cleaned: int = 0
    removed_by_cleanup: int = 0
    written: int = 0
    holes_filled: int = 0
    islands_removed: int = 0
    redaction_artifacts: int = 0

    def __add__(self, other: "Funnel") -> "Funnel":
        """Add the counts of two funnels."""
        return Funnel(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


@dataclass(frozen=True)
class GeneratedMasks:
    """Masks of one image, in the order of the reference code, with the number of masks after each step."""

    records: tuple[MaskRecord, ...]
    funnel: Funnel

    def __repr__(self) -> str:
        return f"GeneratedMasks({len(self.records)} masks of {self.funnel.predicted:,} predicted)"
