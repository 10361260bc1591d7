"""Near-duplicates of images: their hashes, pairs within a few bits of each other, and confirmation by pixels.

Tables that are larger than memory, stored in files that are split into ranges of a key or mapped into memory.

If memory runs short, the kernel writes mapped pages back to their file and drops them.

Perceptual hashes of several views of an image, computed only with integers, and the thumbnail that confirms matches.

The hashes depend only on the gray values. They don't depend on the machine, the number of threads, or the version of a
library.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, combinations, pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import DTypeLike, NDArray
from PIL import Image

from segmint.infra.arrays import Bools, Box, Bytes, Floats32, Ints, Pixels

PART_ROWS = 1 << 23  # rows of a part, on average; each takes up to 100 bytes while the part is in memory
_SAMPLE = 1 << 16
Column = NDArray[Any]


def borders(sample: Column, rows: int) -> Column:
    """Return the lowest key of every part except the first, ascending, from a sample of the keys of `rows` rows."""
    parts = -(-rows // PART_ROWS)
    ordered = np.sort(sample)
    return np.unique(ordered[[len(ordered) * part // parts for part in range(1, parts)]] if len(ordered) else ordered)


def sampled(keys: Column) -> Column:
    """Return about 65,536 evenly spaced entries along the first axis."""
    return keys[:: len(keys) // _SAMPLE + 1]


class Partitions:
    """Rows of a few columns in files. The rows are split into parts at the `borders` of the first column.

    Within a part, rows keep their order.
    """

    def __init__(self, folder: Path, borders: Column, dtypes: Sequence[DTypeLike]) -> None:
        self._borders = borders
        self._dtypes = dtypes
        self._paths = [
            [folder / f"part-{part}-{column}" for column in range(len(dtypes))] for part in range(len(borders) + 1)
        ]

    def add(self, *columns: Column) -> None:
        """Append rows to the parts that their keys belong to."""
        parts = np.searchsorted(self._borders, columns[0], "right")
        order = np.argsort(parts, kind="stable")
        cuts = np.searchsorted(parts[order], np.arange(len(self._paths) + 1))
        for part, paths in enumerate(self._paths):
            rows = order[cuts[part] : cuts[part + 1]]
            for path, column, dtype in zip(paths, columns, self._dtypes, strict=True):
                append(path, column[rows].astype(dtype, copy=False))

    def drain(self) -> Iterator[list[Column]]:
        """Yield the columns of each part, in ascending order of keys, and delete the part's files."""
        for paths in self._paths:
            found = []
            for path, dtype in zip(paths, self._dtypes, strict=True):
                found.append(np.fromfile(path, dtype) if path.exists() else np.empty(0, dtype))
                path.unlink(missing_ok=True)
            if len(found[0]):
                yield found


def append(path: Path, values: Column) -> None:
    """Append values to a file. If there are none, don't create the file."""
    if len(values):
        with path.open("ab") as file:
            values.tofile(file)


def mapped(path: Path, dtype: DTypeLike) -> Column:
    """Map the values in a file into memory. Return an empty array if the file doesn't exist."""
    return np.asarray(np.memmap(path, dtype, "r")) if path.exists() else np.empty(0, dtype)


def mapped_zeros(shape: int | tuple[int, ...], dtype: DTypeLike) -> Column:
    """Return an array of zeros, mapped into memory from a new temporary file without a name."""
    if not np.prod(shape):
        return np.zeros(shape, dtype)
    with TemporaryFile() as file:
        return np.asarray(np.memmap(file, dtype, "w+", shape=shape))


MOST_BITS = 4
"""Maximum supported distance. A larger distance would need more bands, and so shorter keys and more rounds."""

_BITS = 64
CHUNK = 1 << 20  # number of sorted hashes that are compared at a time
SHORT = 64  # maximum number of hashes with one key that are compared in steps over the chunk
FEW = 2048  # maximum number of hashes that are compared all with all instead of being cut into bands
_BLOCK = 1 << 22  # number of comparisons at a time when all hashes are compared with all
DEPTH = 3  # maximum number of times that hashes of one key are cut into bands again

Hashes = NDArray[np.uint64]
Positions = Ints
Pairs = Iterator[tuple[Hashes, Hashes]]
Band = tuple[int, int]  # the lowest bit, and the one after the highest


def near_pairs(distinct: Hashes, distance: int, folder: Path | None = None) -> Iterator[tuple[Positions, Positions]]:
    """Yield each pair of hashes within `distance` bits of each other once, in chunks of positions (lower, higher).

    `distinct` must be ascending and without repetitions.

    This is multi-index hashing (Manku et al. 2007, "Detecting near-duplicates for web crawling"). The 64 bits are cut
    into `distance + 2` bands. Two hashes that differ in at most `distance` bits agree in at least two bands. So for
    each choice of two bands, the hashes are sorted by the bits of these bands, which form the key, and hashes with
    equal keys are compared. If many hashes share a key, they are cut into bands again, using the bits in which they
    vary. Otherwise, a large block of near hashes would take quadratic time.

    Memory holds only a copy of `distinct` and one chunk. With a `folder`, the copy is in files in that folder, and
    memory holds only a part of it. `distinct` may then be mapped into memory from a file. Raises ValueError if the
    distance isn't 0 to `MOST_BITS`, or if the hashes aren't ascending.
    """
    if not 0 <= distance <= MOST_BITS:
        raise ValueError(f"hashes at most {distance} bits apart: expected a distance of 0 to {MOST_BITS}")
    chunks = (distinct[start : start + CHUNK + 1] for start in range(0, len(distinct), CHUNK))
    if not all(np.all(chunk[1:] > chunk[:-1]) for chunk in chunks):
        raise ValueError("hashes are repeated or not ascending: expected each once, in ascending order")
    for one, other in _near_values(distinct, distance, DEPTH, folder) if distance else ():
        places = _places_of(one, distinct), _places_of(other, distinct)
        yield np.minimum(*places), np.maximum(*places)


def _places_of(values: Hashes, distinct: Hashes) -> Positions:
    order = np.argsort(values)  # ascending values are in nearby pages of a mapped file
    found = np.empty(len(values), np.int64)
    found[order] = np.searchsorted(distinct, values[order])
    return found


def _near_values(values: Hashes, distance: int, depth: int, folder: Path | None = None) -> Pairs:
    """Yield each pair of different hashes that are near each other once, in chunks."""
    if len(values) <= FEW or not depth:
        yield from _all_with_all(values, distance)
        return
    bands = _cut(values, distance + 2)
    for first, second in combinations(range(len(bands)), 2):
        key = bands[first], bands[second]
        order = [*key, *(band for band in bands if band not in key)]
        # A pair may agree in more than two bands. Yield it only for the first two of these bands.
        places = dict(zip(order, _places(order), strict=True))
        earlier = [_mask(places[band]) for place, band in enumerate(bands[:second]) if place != first]
        shift = _BITS - sum(high - low for low, high in key)
        for keyed in _sorted(values, order, shift, folder):
            for one, other in _of_one_key(keyed, shift, distance, depth, earlier):
                differ = one ^ other
                here = np.ones(len(one), bool)
                for mask in earlier:
                    here &= (differ & mask) != 0
                yield _restored(one[here], order), _restored(other[here], order)


def _sorted(values: Hashes, order: Sequence[Band], shift: int, folder: Path | None) -> Iterator[Hashes]:
    """Yield the reordered hashes in ascending parts. Hashes with equal bits from `shift` on are in the same part."""
    if folder is None or len(values) <= PART_ROWS:
        keyed = _reordered(values, order)
        keyed.sort()
        yield keyed
        return
    lowest = borders(_reordered(sampled(values), order), len(values))
    parts = Partitions(folder, np.unique(lowest >> np.uint64(shift) << np.uint64(shift)), [np.uint64])
    for start in range(0, len(values), CHUNK):
        parts.add(_reordered(values[start : start + CHUNK], order))
    for (keyed,) in parts.drain():
        keyed.sort()
        yield keyed


def _of_one_key(keyed: Hashes, shift: int, distance: int, depth: int, differ: Sequence[np.uint64]) -> Pairs:
    """Yield near pairs of sorted hashes that agree in the bits from `shift` on.

    A large group with the same key is skipped if, for some mask in `differ`, its hashes don't vary in the mask's bits.
    """
    start = 0
    while start < len(keyed):
        end = min(start + CHUNK, len(keyed))
        after = ((int(keyed[end - 1]) >> shift) + 1) << shift  # the first hash that can have the next key
        end = len(keyed) if after >> _BITS else int(np.searchsorted(keyed, np.uint64(after)))
        chunk = keyed[start:end]
        start = end
        keys = chunk >> np.uint64(shift)
        begins = np.concatenate([[0], np.flatnonzero(keys[1:] != keys[:-1]) + 1])
        ends = np.append(begins[1:], len(chunk))
        long = ends - begins > SHORT
        for low, high in zip(begins[long].tolist(), ends[long].tolist(), strict=True):
            block = chunk[low:high]
            varying = np.bitwise_or.reduce(block ^ block[0])
            if all(varying & mask for mask in differ):
                yield from _near_values(block, distance, depth - 1)
        last = np.repeat(np.where(long, 0, ends), ends - begins)  # end of each hash's group; 0: compared above
        places = np.arange(len(chunk))
        for step in range(1, SHORT):
            places = places[places + step < last[places]]
            if not len(places):
                break
            one, other = chunk[places], chunk[places + step]
            near = np.bitwise_count(one ^ other) <= distance
            if near.any():
                yield one[near], other[near]


def _all_with_all(values: Hashes, distance: int) -> Pairs:
    rows = max(1, _BLOCK // max(1, len(values)))
    for low in range(0, len(values), rows):
        block, others = values[low : low + rows], values[low:]
        near = np.bitwise_count(block[:, None] ^ others[None]) <= distance
        one, other = np.divmod(np.flatnonzero(near), len(others))  # far faster than `nonzero` in two dimensions
        later = other > one
        if later.any():
            yield block[one[later]], others[other[later]]


def _cut(values: Hashes, number: int) -> list[Band]:
    """Cut 64 bits into `number` bands. Each band contains the same number of bits in which the hashes vary."""
    chunks = (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))
    varying = int(np.bitwise_or.reduce([np.bitwise_or.reduce(chunk ^ values[0]) for chunk in chunks]))
    bits = [bit for bit in range(_BITS) if varying >> bit & 1]
    cuts = [0, *(bits[len(bits) * band // number] for band in range(1, number)), _BITS]
    return list(pairwise(cuts))


def _mask(band: Band) -> np.uint64:
    low, high = band
    return np.uint64(((1 << (high - low)) - 1) << low)


def _reordered(values: Hashes, order: Sequence[Band]) -> Hashes:
    """Return copies of the hashes with the bands in the order of `order`, starting at the highest bits."""
    return _moved(values, zip(order, _places(order), strict=True))


def _restored(values: Hashes, order: Sequence[Band]) -> Hashes:
    """Reverse `_reordered`."""
    return _moved(values, zip(_places(order), order, strict=True))


def _places(order: Sequence[Band]) -> list[Band]:
    """Return the position that each band of `order` has in the hashes from `_reordered`."""
    ends = accumulate((low - high for low, high in order), initial=_BITS)
    return [(low, high) for high, low in pairwise(ends)]


def _moved(values: Hashes, moves: Iterable[tuple[Band, Band]]) -> Hashes:
    """Return copies of the hashes in which the bits of each pair's second band are moved to the first band."""
    found = np.zeros_like(values)
    shifts = [(_mask(band), target[0] - band[0]) for band, target in moves]
    for start in range(0, len(values), CHUNK):
        chunk = slice(start, start + CHUNK)
        for mask, by in shifts:
            part = values[chunk] & mask
            found[chunk] |= part << np.uint64(by) if by >= 0 else part >> np.uint64(-by)
    return found


HASHES = 9
"""Number of hashes per image.

In order, they are the hashes of the frame, four crops, the mirror image, and the frame turned counterclockwise by 90,
180, and 270 degrees.
"""

FRAME, MIRROR = 0, 5
VIEWS = 6
"""Number of views that curation and splits compare: the frame, the four crops, and the mirror image."""

NO_HASH = 0
"""Placeholder for a view that has no structure or wasn't hashed. No image has this hash."""

THUMBNAIL = 64  # pixels per side
SIDE = 32  # cells per side of a view that is hashed or compared
_GRID = 256  # cells per side of the grid that views are cut from
_MARGINS = (0, 4, 8, 13, 32)  # number of cells that the frame and each crop leave out at every edge

KEPT = (*(1 - 2 * margin / _GRID for margin in _MARGINS), 1.0)
"""Share of the width and height that each of the `VIEWS` keeps around the frame's center.

If someone crops an image by a few percent, a crop of the original nearly equals the frame or a crop of the new version.
The smallest crop excludes a caption drawn over an edge.
"""

_LEVEL = 256  # steps of a gray level
_FLAT = 2 * _LEVEL
"""Standard deviation, in steps, below which a view gets no hash, because such a view contains only encoder noise."""

_LOW = 8  # frequencies per side that a hash compares
_COSINES = (  # round(16384 * cos(pi * m / 64)), m = 0 to 32
    *(16384, 16364, 16305, 16207, 16069, 15893, 15679, 15426, 15137, 14811, 14449, 14053, 13623, 13160, 12665, 12140),
    *(11585, 11003, 10394, 9760, 9102, 8423, 7723, 7005, 6270, 5520, 4756, 3981, 3196, 2404, 1606, 804, 0),
)

Gray = Bytes
Thumbnail = Bytes


@dataclass(frozen=True)
class ImageHashes:
    """The 64-bit hashes of an image's views, (6,) uint64, and its thumbnail. A missing hash is 0 (`NO_HASH`).

    `thumbnail` is the whole frame, scaled to (64, 64) uint8 gray regardless of its aspect ratio.
    """

    views: Hashes
    thumbnail: Thumbnail


def image_hashes(pixels: Pixels, *, mirror: bool) -> ImageHashes:
    """Hash the views of a decoded image, (H, W, 3) RGB or (H, W) gray. Include its mirror image only if `mirror`.

    The image may be decoded at reduced scale, as long as its shorter side has at least 256 pixels.
    """
    gray = pixels if pixels.ndim == 2 else luma(pixels)
    views = view_hashes(gray)[:VIEWS]
    if not mirror:
        views[MIRROR] = NO_HASH
    picture = Image.fromarray(gray)
    picture = picture.reduce(max(1, min(picture.size) // _GRID))
    return ImageHashes(views, np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)))


def jpeg_hashes(jpeg: bytes) -> Hashes:
    """Hash the luminance of a JPEG with `view_hashes`. Raise ValueError if the JPEG doesn't decode to its end."""
    return view_hashes(simplejpeg.decode_jpeg(jpeg, colorspace="GRAY")[..., 0])


def luma(pixels: Pixels) -> Gray:
    """Convert (H, W, 3) RGB to gray values, (H, W) uint8, with BT.601 weights in 65,536ths, rounding half up."""
    weighted = pixels @ np.array([19595, 38470, 7471], np.uint32)
    gray: Gray = ((weighted + 32768) >> 16).astype(np.uint8)
    return gray


def view_hashes(gray: Gray) -> Hashes:
    """Return the `HASHES` hashes of an image, (9,) uint64, from its gray values, (H, W) uint8.

    The frame is averaged to 256 x 256 cells. Each view is cut from these cells and averaged to 32 x 32. Both steps use
    exact areas, in units of 1/256 gray level.

    Each hash is a pHash. It is computed from the 8 x 8 lowest frequencies of the view's cosine transform (DCT-II, with
    cosines in 16,384ths). Each frequency determines one bit, row by row from the highest bit. The bit is 1 if the
    frequency's value exceeds the lower median of all 64 values. Turning a picture permutes its frequencies and changes
    their signs, so the turned frames don't need another transform.
    """
    grid = averages(gray, _GRID, _LEVEL)
    spectra = [_spectrum(grid[margin : _GRID - margin, margin : _GRID - margin]) for margin in _MARGINS]
    frame = spectra[FRAME]
    if frame is None:
        spectra += [None] * 4
    else:
        across, down = _ALTERNATING[None, :], _ALTERNATING[:, None]
        spectra += [frame * across, frame.T * down, frame * across * down, frame.T * across]
    return np.array([NO_HASH if each is None else _hash(each) for each in spectra], np.uint64)


def view_box(kept: float, side: float) -> Box:
    """Return the box (left, top, right, bottom) around a square's center that keeps the share `kept` of its sides."""
    start = side * (1 - kept) / 2
    return start, start, side - start, side - start


def averages(values: NDArray[np.integer], cells: int, scale: int = 1) -> Ints:
    """Return means over `cells` x `cells` equal areas, times `scale`, rounding half up. Areas may split pixels."""
    for axis in (0, 1):  # repeating pixels doesn't change a mean
        values = np.repeat(values, -(-cells // values.shape[axis]), axis)
    sums = _sums(_sums(values, cells).T, cells).T
    return (2 * scale * sums + values.size) // (2 * values.size)


def _sums(values: NDArray[np.integer], parts: int) -> Ints:
    """Return `parts` times the sums over equal parts of the first axis, which must be at least `parts` long."""
    length = len(values)
    ends, shares = np.divmod(np.arange(parts + 1) * length, parts)
    whole = np.add.reduceat(values, ends[:-1], axis=0, dtype=np.int64)
    cut = shares[:, None] * values[np.minimum(ends, length - 1)].astype(np.int64)
    sums: Ints = parts * whole - cut[:-1] + cut[1:]
    return sums


def _spectrum(view: Ints) -> Ints | None:
    """Return the (8, 8) lowest frequencies of a view of the grid, rows first, or None if the view has no structure."""
    values = averages(view, SIDE)
    if values.size * (values**2).sum() - values.sum() ** 2 < (_FLAT * values.size) ** 2:
        return None
    return TRANSFORM @ values @ TRANSFORM.T


def _hash(spectrum: Ints) -> int:
    values = spectrum.reshape(-1)
    median = np.sort(values)[values.size // 2 - 1]
    return int.from_bytes(np.packbits(values > median).tobytes(), "big")


def _cosine(angle: int) -> int:
    """Return the cosine of `angle` times pi / 64 in units of 1/16,384."""
    angle = min(angle % 128, -angle % 128)
    return _COSINES[angle] if angle <= 32 else -_COSINES[64 - angle]


TRANSFORM = np.array([[_cosine((2 * n + 1) * k) for n in range(SIDE)] for k in range(_LOW)], np.int64)
_ALTERNATING = np.array([1, -1] * (_LOW // 2), np.int64)


SIMILAR = 0.9
"""Minimum correlation between two views that show the same content."""

SIMILAR_MIDDLE = 0.8
"""Minimum correlation between the middles of two such views. The middle excludes a fifth of the view at each edge.

docs/curate.md explains the choice of both minimums.
"""


class Thresholds(NamedTuple):
    """Minimum correlations between two views that show the same content, for the whole views and for their middles."""

    whole: float = SIMILAR
    middle: float = SIMILAR_MIDDLE


THRESHOLDS = Thresholds()

Thumbnails = Callable[[Positions], Bytes]
"""Function that maps row numbers, distinct and ascending, to the rows' thumbnails, (n, 64, 64) uint8."""

Views = Floats32

_MIDDLE = slice(SIDE // 5, SIDE - SIDE // 5)
_LEAST_LENGTH = 1e-3  # minimum length of a vector whose values differ by more than rounding
_POOLED = 8
_AT_ONCE = 4096


def normalized_views(thumbnails: Bytes, views: Positions) -> Views:
    """Cut a view from each of N thumbnails, (N, 64, 64) gray. Return them as (N, 1024) vectors of mean 0 and length 1.

    `views` (N,) contains indices in `KEPT`. The dot product of two vectors is the correlation of the views' 32 x 32
    pixels, from -1 to 1. Brightness and contrast don't affect it. A view with a single gray level becomes a vector of
    zeros.
    """
    found = np.empty((len(thumbnails), SIDE, SIDE), np.float32)
    for view in np.unique(views).tolist():
        those = np.flatnonzero(views == view)
        cutting = _cutting(view)
        cut = cutting @ thumbnails[those].astype(np.float32) @ cutting.T
        found[those] = cut[:, :, ::-1] if view == MIRROR else cut
    return _normalized(found.reshape(len(found), SIDE * SIDE))


def same_view(one: Views, other: Views, thresholds: Thresholds = THRESHOLDS) -> Bools:
    """Return whether N pairs of views from `normalized_views` match, both as a whole and in their middles.

    Comparing only whole views isn't enough: two plain images would match because they share a caption.
    """
    same: Bools = np.einsum("ij,ij->i", one, other) >= thresholds.whole
    same &= np.einsum("ij,ij->i", _middles(one), _middles(other)) >= thresholds.middle
    return same


def _middles(views: Views) -> Views:
    middles = views.reshape(-1, SIDE, SIDE)[:, _MIDDLE, _MIDDLE]
    return _normalized(middles.reshape(len(views), -1))


def _normalized(values: Views) -> Views:
    values = values - values.mean(axis=1, keepdims=True)
    length = np.linalg.norm(values, axis=1, keepdims=True)
    normalized: Views = np.divide(values, length, out=np.zeros_like(values), where=length > _LEAST_LENGTH)
    return normalized


class Confirmer:
    """Comparison of entries of a table of hashes, `row * VIEWS + view`. It reads the thumbnails that it needs."""

    def __init__(self, thumbnails: Thumbnails, thresholds: Thresholds = THRESHOLDS) -> None:
        self._thumbnails = thumbnails
        self.thresholds = thresholds

    def similar(self, one: Positions, other: Positions) -> Bools:
        """Return whether N pairs of entries show the same content."""
        found = np.empty(len(one), bool)
        for low in range(0, len(one), _AT_ONCE):
            part = slice(low, low + _AT_ONCE)
            entries, places = np.unique(np.stack([one[part], other[part]]), return_inverse=True)
            views, (left, right) = self.views(entries), places.reshape(2, -1)
            found[part] = same_view(views[left], views[right], self.thresholds)
        return found

    def views(self, entries: Positions) -> Views:
        """Return the normalized views of entries."""
        rows, places = np.unique(entries // VIEWS, return_inverse=True)
        return normalized_views(self._thumbnails(rows)[places], entries % VIEWS)

    def sketches(self, entries: Positions) -> NDArray[np.float16]:
        """Return (N, 65) vectors whose dot products are upper bounds of the views' correlations, up to rounding.

        The first 64 numbers are the view's pixels, mean-pooled to 8 x 8 and scaled so that pooling is a projection. The
        last number is the length of the remainder.
        """
        pixels = SIDE // _POOLED
        found = np.empty((len(entries), _POOLED * _POOLED + 1), np.float16)
        for low in range(0, len(entries), _AT_ONCE):
            views = self.views(entries[low : low + _AT_ONCE])
            pooled = views.reshape(-1, _POOLED, pixels, _POOLED, pixels).sum(axis=(2, 4)) / pixels
            pooled = pooled.reshape(len(views), -1)
            left = np.einsum("ij,ij->i", views, views) - np.einsum("ij,ij->i", pooled, pooled)
            found[low : low + len(views), :-1] = pooled
            found[low : low + len(views), -1] = np.sqrt(np.maximum(left, 0))
        return found


@cache
def _cutting(view: int) -> Floats32:
    """Return the matrix (32, 64) that cuts a view from a thumbnail's rows and scales it, with Pillow's weights."""
    identity = Image.fromarray(np.eye(THUMBNAIL, dtype=np.float32))
    left, _, right, _ = view_box(KEPT[view], THUMBNAIL)
    cut = identity.resize((SIDE, THUMBNAIL), Image.Resampling.BILINEAR, box=(left, 0, right, THUMBNAIL))
    return np.ascontiguousarray(np.asarray(cut).T)
