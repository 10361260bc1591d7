"""Perceptual hashes of several views of an image, and the thumbnail that confirms their matches."""

from dataclasses import dataclass

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

FRAME, MIRROR = 0, 5
KEPT = (1.0, 0.97, 0.94, 0.9, 0.75, 1.0)
"""Share of width and height that each view keeps around the frame's center: the frame, four crops, and the mirrored
frame. If an image was cropped by a few percent, a crop of one version nearly equals the frame or a crop of the other.
The smallest crop excludes a caption drawn over an edge."""

VIEWS = len(KEPT)
NO_HASH = 0
"""Placeholder hash of a view that has no structure or was not hashed. No image has this hash."""

THUMBNAIL = 64  # pixels per side
SIDE = 32  # pixels per side of a view that is hashed or compared
_FLAT = 2.0
"""Standard deviation, in gray levels, below which a view has no hash, because only encoder noise remains."""

_ENOUGH = 256  # minimum shorter side in pixels before views are cut: 3 % are eight of them

Thumbnail = NDArray[np.uint8]


@dataclass(frozen=True)
class ImageHashes:
    """The 64-bit perceptual hashes of an image's views, 0 (`NO_HASH`) if missing, and its thumbnail.

    `crops` are those of `KEPT` after the frame; `thumbnail` is the whole frame as (64, 64) uint8 gray, regardless of
    its aspect ratio.
    """

    frame: int
    crops: tuple[int, int, int, int]
    mirror: int
    thumbnail: Thumbnail

    def views(self) -> NDArray[np.uint64]:
        """Return the hashes as (6,) uint64, in the order of `KEPT`: a row of the hashes for `find_copies`."""
        return np.array([self.frame, *self.crops, self.mirror], np.uint64)


def image_hashes(pixels: NDArray[np.uint8], *, mirror: bool) -> ImageHashes:
    """Hash the views of a decoded image, (H, W, 3) RGB or (H, W) gray, including its mirror image if `mirror`.

    The image may be decoded at reduced scale, to at least 256 pixels on its shorter side. The hash is pHash: the signs
    of the low frequencies of the cosine transform (of 32 x 32 pixels) relative to their median.
    """
    gray = Image.fromarray(pixels).convert("L")
    gray = gray.reduce(max(1, min(gray.size) // _ENOUGH))
    hashes = [_hash(gray, kept) for kept in KEPT[:MIRROR]]
    mirrored = _hash(gray.transpose(Image.Transpose.FLIP_LEFT_RIGHT), KEPT[MIRROR]) if mirror else NO_HASH
    thumbnail = np.asarray(gray.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS))
    frame, *crops = hashes
    return ImageHashes(frame, (crops[0], crops[1], crops[2], crops[3]), mirrored, thumbnail)


def view_box(kept: float, width: float, height: float) -> tuple[float, float, float, float]:
    """Return the part of a frame around its center that keeps this share of its sides: left, top, right, bottom."""
    left, top = width * (1 - kept) / 2, height * (1 - kept) / 2
    return left, top, width - left, height - top


def _hash(gray: Image.Image, kept: float) -> int:
    view = gray.resize((SIDE, SIDE), Image.Resampling.LANCZOS, box=view_box(kept, *gray.size))
    if np.asarray(view, np.float32).std() < _FLAT:
        return NO_HASH
    return int.from_bytes(np.packbits(imagehash.phash(view).hash).tobytes(), "big")
