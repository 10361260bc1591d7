"""Perceptual hashes of several views of an image, computed only with integers, and the thumbnail that confirms matches.

The hashes depend only on the gray values. They don't depend on the machine, the number of threads, or the version of a
library.
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

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

Gray = NDArray[np.uint8]
Integers = NDArray[np.int64]
Thumbnail = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageHashes:
    """The 64-bit hashes of an image's views, (6,) uint64, and its thumbnail. A missing hash is 0 (`NO_HASH`).

    `thumbnail` is the whole frame, scaled to (64, 64) uint8 gray regardless of its aspect ratio.
    """

    views: NDArray[np.uint64]
    thumbnail: Thumbnail


def image_hashes(pixels: NDArray[np.uint8], *, mirror: bool) -> ImageHashes:
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


def jpeg_hashes(jpeg: bytes) -> NDArray[np.uint64]:
    """Hash the luminance of a JPEG with `view_hashes`. Raise ValueError if the JPEG doesn't decode to its end."""
    return view_hashes(simplejpeg.decode_jpeg(jpeg, colorspace="GRAY")[..., 0])


def luma(pixels: NDArray[np.uint8]) -> Gray:
    """Convert (H, W, 3) RGB to gray values, (H, W) uint8, with BT.601 weights in 65,536ths, rounding half up."""
    weighted = pixels @ np.array([19595, 38470, 7471], np.uint32)
    gray: Gray = ((weighted + 32768) >> 16).astype(np.uint8)
    return gray


def view_hashes(gray: Gray) -> NDArray[np.uint64]:
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


def view_box(kept: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Return the box (left, top, right, bottom) around a frame's center that keeps the share `kept` of its sides."""
    left, top = width * (1 - kept) / 2, height * (1 - kept) / 2
    return left, top, width - left, height - top


def averages(values: NDArray[np.integer], cells: int, scale: int = 1) -> Integers:
    """Return means over `cells` x `cells` equal areas, times `scale`, rounding half up. Areas may split pixels."""
    for axis in (0, 1):  # repeating pixels doesn't change a mean
        values = np.repeat(values, -(-cells // values.shape[axis]), axis)
    sums = _sums(_sums(values, cells).T, cells).T
    return (2 * scale * sums + values.size) // (2 * values.size)


def _sums(values: NDArray[np.integer], parts: int) -> Integers:
    """Return `parts` times the sums over equal parts of the first axis, which must be at least `parts` long."""
    length = len(values)
    ends, shares = np.divmod(np.arange(parts + 1) * length, parts)
    whole = np.add.reduceat(values, ends[:-1], axis=0, dtype=np.int64)
    cut = shares[:, None] * values[np.minimum(ends, length - 1)].astype(np.int64)
    sums: Integers = parts * whole - cut[:-1] + cut[1:]
    return sums


def _spectrum(view: Integers) -> Integers | None:
    """Return the (8, 8) lowest frequencies of a view of the grid, rows first, or None if the view has no structure."""
    values = averages(view, SIDE)
    if values.size * (values**2).sum() - values.sum() ** 2 < (_FLAT * values.size) ** 2:
        return None
    return TRANSFORM @ values @ TRANSFORM.T


def _hash(spectrum: Integers) -> int:
    values = spectrum.reshape(-1)
    median = np.sort(values)[values.size // 2 - 1]
    return int.from_bytes(np.packbits(values > median).tobytes(), "big")


def _cosine(angle: int) -> int:
    """Return the cosine of `angle` times pi / 64 in units of 1/16,384."""
    angle = min(angle % 128, -angle % 128)
    return _COSINES[angle] if angle <= 32 else -_COSINES[64 - angle]


TRANSFORM = np.array([[_cosine((2 * n + 1) * k) for n in range(SIDE)] for k in range(_LOW)], np.int64)
_ALTERNATING = np.array([1, -1] * (_LOW // 2), np.int64)
