"""Measures of the overlap between masks and the redacted regions of their image, computed only from the tables.

A mask may trace a redacted region instead of an object: for example, the ellipse over a face or the box of a plate. The
measures in this module help to recognize such masks. They don't need pixels, so an audit can reproduce them bit for
bit.

The ellipse or polygon of a detected region is surrounded by a band in which the mosaic blends into the image. The
region's box includes this band. The measures compare masks with the line halfway through the band.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmint.model.automatic.rle import encode_patch

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]

MANUAL = "manual"
"""`source` of a region that a person requested."""

FACE_BAND = 0.25
"""Width of the band around a face's ellipse, as a share of the ellipse's half axes.

With 0.15, SAM still segmented the ellipse as an object. With 0.25, it didn't.
"""
PLATE_MARGIN = 0.3
"""Margin around a plate's corners, as a share of the plate's height."""
_PLATE_SHARE = 0.125
"""Width of the band around a plate, as a share of the height of the whole region."""
PLATE_BAND = _PLATE_SHARE * (1 + 2 * PLATE_MARGIN) / (1 - 2 * _PLATE_SHARE) / PLATE_MARGIN
"""Width of the band around a plate, as a share of the margin."""


class Redactions(NamedTuple):
    """Overlap of an image's N masks with its redacted regions.

    Both values are 0 for an empty mask, and for all masks of an image without regions.

    Attributes:
        share: (N,) share of the mask's pixels that are in any region, 0 to 1.
        iou: (N,) highest IoU of the mask with a region, 0 to 1.
    """

    share: Floats
    iou: Floats


class RedactionOutline(NamedTuple):
    """Pixels of a region: `mask` (h, w) bool, in the window of the image whose top left corner is (x, y)."""

    x: int
    y: int
    mask: Bools


def redactions(
    regions: Iterable[Mapping[str, Any]],
    source_size: tuple[int, int],
    size: tuple[int, int],
    counts: Sequence[str],
) -> Redactions:
    """Measure how much the masks of an image overlap its redacted regions.

    Args:
        regions: values of `segmint.operators.schemas.REGION`, in pixels of the upright source.
        source_size: (height, width) of the upright source.
        size: (height, width) of the released image.
        counts: COCO's compressed run lengths of each mask, over the released image. They must be valid because
            pycocotools trusts its input.
    """
    none = Redactions(np.zeros(len(counts)), np.zeros(len(counts)))
    if not counts:
        return none
    outlines = (outline(region, source_size, size) for region in regions)
    codes = [_encoded(found, size) for found in outlines if found.mask.any()]
    if not codes:
        return none
    from pycocotools import mask as coco  # imported here because the sandboxed child needs only this module's constants

    masks = [{"size": list(size), "counts": code.encode("ascii")} for code in counts]
    # For a "crowd", pycocotools divides the intersection by the mask's area. Treat the union of all regions as a crowd.
    is_crowd = [0] * len(codes) + [1]
    ious = np.asarray(coco.iou(masks, [*codes, coco.merge(codes)], is_crowd), np.float64)
    return Redactions(ious[:, -1].copy(), ious[:, :-1].max(axis=1))


def redacted_share(row: Mapping[str, Any]) -> float:
    """Return the share of the released image's pixels that lie in any region's `outline`, 0 to 1.

    Pixels in several regions count once, so this is the area of the regions' union divided by the image's area. In the
    outer half of a region's band, the image is stronger than the mosaic, so these pixels don't count. The columns of
    `row` are as in `segmint.operators.schemas.IMAGES`.
    """
    if not row["regions"]:
        return 0.0
    size = row["height"], row["width"]
    covered = np.zeros(size, np.bool_)
    for region in row["regions"]:
        x, y, mask = outline(region, (row["source_height"], row["source_width"]), size)
        covered[y : y + mask.shape[0], x : x + mask.shape[1]] |= mask
    return float(covered.mean())


def outline(region: Mapping[str, Any], source_size: tuple[int, int], size: tuple[int, int]) -> RedactionOutline:
    """Return the pixels of a redacted region in the released image; a narrow region may have none.

    For a detected face, these are the pixels whose centers lie in the ellipse inscribed in the region's box. For any
    other region, they are the pixels that lie entirely in the box. Both shapes are shrunk by half of the band's width,
    to the line where mosaic and image have equal weight. A manual box has no band, so the result contains exactly the
    redacted pixels. For other regions, the tables contain only boxes, so the result is approximate:

    - An ellipse that crosses the image's border is clipped during redaction. The ellipse in the clipped box is smaller.
    - A tilted plate is redacted as a polygon, which is smaller than its box.
    - Downscaling mixes the pixels at a region's edge with their neighbors. Such a pixel is excluded if its center lies
      outside the ellipse, or if it lies only partly in the box.

    `source_size` and `size` are (height, width) of the upright source and of the released image.
    """
    across, down = (band / 2 for band in band_widths(region))
    if region["kind"] == "face" and region["source"] != MANUAL:
        top, dy = _distances(region["y"], region["h"], down, source_size[0], size[0])
        left, dx = _distances(region["x"], region["w"], across, source_size[1], size[1])
        return RedactionOutline(left, top, dx[None, :] ** 2 + dy[:, None] ** 2 <= 1)
    top, bottom = _span(region["y"], region["h"], down, source_size[0], size[0])
    left, right = _span(region["x"], region["w"], across, source_size[1], size[1])
    return RedactionOutline(left, top, np.ones((bottom - top, right - left), np.bool_))


def band_widths(region: Mapping[str, Any]) -> tuple[float, float]:
    """Return two widths of the band inside a region's box: at the left and right, and at the top and bottom.

    Both are in the region's pixels. They are approximate for a tilted plate, and for a region that was rounded or
    clipped at the image's border.
    """
    if region["source"] == MANUAL:
        return 0.0, 0.0
    if region["kind"] == "face":
        share = FACE_BAND / (1 + FACE_BAND) / 2
        return region["w"] * share, region["h"] * share
    band = min(region["w"], region["h"]) * _PLATE_SHARE
    return band, band


def _span(start: int, length: int, inset: float, source: int, released: int) -> tuple[int, int]:
    """Return the range of released pixels that lie entirely in a span of the source, shrunk by `inset` at both ends."""
    first = max(math.ceil((start + inset) * released / source), 0)
    return first, max(min(math.floor((start + length - inset) * released / source), released), first)


def _distances(start: int, length: int, inset: float, source: int, released: int) -> tuple[int, Floats]:
    """Return a box's first released pixel along one axis, and each of its pixels' distance from the box's center.

    Distances are in units of the half axis of the ellipse that is inscribed in the box after shrinking it by `inset` at
    both ends.
    """
    first = min(max(start * released // source, 0), released)
    end = max(min(-(-(start + length) * released // source), released), first)
    centers = (np.arange(first, end) + 0.5) * source / released
    return first, (centers - (start + length / 2)) / (max(length, 1) / 2 - inset)


def _encoded(found: RedactionOutline, size: tuple[int, int]) -> dict[str, Any]:
    code = encode_patch(found.mask, (found.x, found.y), size)
    return {"size": list(code.size), "counts": code.counts.encode("ascii")}
