"""Confirmation that two views show the same content, by the correlation of their thumbnails' pixels."""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from segmint.operators.similar.hashes import KEPT, MIRROR, SIDE, THUMBNAIL, VIEWS, view_box
from segmint.operators.similar.near import Positions

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

Thumbnails = Callable[[Positions], NDArray[np.uint8]]
"""Function that maps row numbers, distinct and ascending, to the rows' thumbnails, (n, 64, 64) uint8."""

Views = NDArray[np.float32]

_MIDDLE = slice(SIDE // 5, SIDE - SIDE // 5)
_LEAST_LENGTH = 1e-3  # minimum length of a vector whose values differ by more than rounding
_POOLED = 8
_AT_ONCE = 4096


def normalized_views(thumbnails: NDArray[np.uint8], views: Positions) -> Views:
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


def same_view(one: Views, other: Views, thresholds: Thresholds = THRESHOLDS) -> NDArray[np.bool_]:
    """Return whether N pairs of views from `normalized_views` match, both as a whole and in their middles.

    Comparing only whole views isn't enough: two plain images would match because they share a caption.
    """
    same: NDArray[np.bool_] = np.einsum("ij,ij->i", one, other) >= thresholds.whole
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

    def similar(self, one: Positions, other: Positions) -> NDArray[np.bool_]:
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
def _cutting(view: int) -> NDArray[np.float32]:
    """Return the matrix (32, 64) that cuts a view from a thumbnail's rows and scales it, with Pillow's weights."""
    identity = Image.fromarray(np.eye(THUMBNAIL, dtype=np.float32))
    left, _, right, _ = view_box(KEPT[view], THUMBNAIL, THUMBNAIL)
    cut = identity.resize((SIDE, THUMBNAIL), Image.Resampling.BILINEAR, box=(left, 0, right, THUMBNAIL))
    return np.ascontiguousarray(np.asarray(cut).T)
