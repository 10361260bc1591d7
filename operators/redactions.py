"""Boxes, containment, and overlap of masks and redacted regions, computed only from numbers.

A mask may trace a redacted region instead of an object: for example, the ellipse over a face or the box of a plate. The
measures in this module help to recognize such masks. They don't need pixels, so an audit can reproduce them bit for
bit.

The ellipse or polygon of a detected region is surrounded by a band in which the mosaic blends into the image. The
region's box includes this band. The measures compare masks with the line halfway through the band.
"""

import math
import struct
import zlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from pycocotools import mask as coco

from segmint.catalogs.parquet import Row
from segmint.infra.arrays import Bools, Floats, Size
from segmint.model.automatic.rle import Rle, encode_patch

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


def redactions(row: Mapping[str, Any], counts: Sequence[str]) -> Redactions:
    """Measure how much the masks of an image overlap its redacted regions.

    Args:
        row: the image's regions and sizes, as in `segmint.operators.rows.IMAGES`.
        counts: COCO's compressed run lengths of each mask, over the released image. They must be valid because
            pycocotools trusts its input.
    """
    none = Redactions(np.zeros(len(counts)), np.zeros(len(counts)))
    if not counts:
        return none
    size = row["height"], row["width"]
    codes = [encode_patch(mask, (x, y), size).coco() for x, y, mask in _outlines(row) if mask.any()]
    if not codes:
        return none
    from pycocotools import mask as coco  # imported here because the sandboxed child needs only this module's constants

    masks = [Rle(size, code).coco() for code in counts]
    # For a "crowd", pycocotools divides the intersection by the mask's area. Treat the union of all regions as a crowd.
    is_crowd = [0] * len(codes) + [1]
    ious = np.asarray(coco.iou(masks, [*codes, coco.merge(codes)], is_crowd), np.float64)
    return Redactions(ious[:, -1].copy(), ious[:, :-1].max(axis=1))


def redacted_share(row: Row) -> float:
    """Return the share of the released image's pixels that lie in any region's `outline`, 0 to 1.

    Pixels in several regions count once, so this is the area of the regions' union divided by the image's area. In the
    outer half of a region's band, the image is stronger than the mosaic, so these pixels don't count. The columns of
    `row` are as in `segmint.operators.rows.IMAGES`.
    """
    if not row["regions"]:
        return 0.0
    covered = np.zeros((row["height"], row["width"]), np.bool_)
    for x, y, mask in _outlines(row):
        covered[y : y + mask.shape[0], x : x + mask.shape[1]] |= mask
    return float(covered.mean())


def _outlines(row: Mapping[str, Any]) -> Iterator[RedactionOutline]:
    source_size, size = (row["source_height"], row["source_width"]), (row["height"], row["width"])
    return (outline(region, source_size, size) for region in row["regions"])


def outline(region: Mapping[str, Any], source_size: Size, size: Size) -> RedactionOutline:
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


_MOST = 100_000  # maximum boxes, items, and extents that are read
_XMP_TYPE = b"application/rdf+xml"
_ZLIB_OR_GZIP, _DEFLATE = 47, -15  # window sizes for zlib


def boxes(data: bytes, start: int = 0, end: int | None = None) -> Iterator[tuple[bytes, int, int]]:
    """Yield the name of each box between `start` and `end` in `data`, and the start and end of the box's content.

    A box may declare an end beyond the data.
    """
    end = len(data) if end is None else min(end, len(data))
    for _ in range(_MOST):
        if start + 8 > end:
            return
        size, name = struct.unpack_from(">I4s", data, start)
        header = 8
        if size == 1 and start + 16 <= end:  # a 64-bit size follows
            header, (size,) = 16, struct.unpack_from(">Q", data, start + 8)
        stop = end if size == 0 else start + max(size, header)
        yield name, start + header, stop
        start = stop


def xmp_items(data: bytes, most: int) -> Iterator[bytes | None]:
    """Yield the XMP and EXIF items that the meta box lists (8.11.3, 8.11.6), up to `most` bytes in total.

    None stands for an item in an encoding that can't be decoded.
    """
    for name, start, stop in boxes(data):
        if name == b"meta":
            inside = {kind: (begin, end) for kind, begin, end in boxes(data, start + 4, stop)}
            try:
                yield from _packets(data, inside, most)
            except (struct.error, IndexError):
                return


def _packets(data: bytes, inside: dict[bytes, tuple[int, int]], most: int) -> Iterator[bytes | None]:
    if b"iinf" not in inside or b"iloc" not in inside:
        return
    wanted = dict(_xmp_numbers(data, *inside[b"iinf"]))
    stored = inside.get(b"idat", (len(data), len(data)))[0]
    for number, is_inside, extents in _places(data, inside[b"iloc"][0]):
        most -= sum(length for _, length in extents) if number in wanted else 0
        if number in wanted and most >= 0:
            shift = stored if is_inside else 0
            packet = b"".join(data[shift + at : shift + at + length] for at, length in extents)
            decoded = _inflate(packet, most) if wanted[number] else packet
            most -= len(decoded or b"") - len(packet)
            yield decoded


def _inflate(packet: bytes, most: int) -> bytes | None:
    """Decompress an item up to `most` bytes. The names of encodings aren't reliable, so the format is tried."""
    for window in (_ZLIB_OR_GZIP, _DEFLATE):
        try:
            return zlib.decompressobj(window).decompress(packet, most) if most > 0 else b""
        except zlib.error:
            continue
    return None


def _xmp_numbers(data: bytes, start: int, end: int) -> Iterator[tuple[int, bytes]]:
    """Yield the number of each XMP and EXIF item, and the name of its encoding, which is empty for plain text."""
    short = data[start] == 0
    for name, begin, stop in boxes(data, start + (6 if short else 8), end):
        if name != b"infe" or data[begin] not in (2, 3):
            continue
        number = _whole(data, begin + 4, 2 if data[begin] == 2 else 4)
        entry = data[begin + (8 if data[begin] == 2 else 10) : stop]
        _, media_type, encoding, *_ = [*entry[4:].split(b"\0"), b"", b""]
        if entry[:4] == b"Exif":
            yield number, b""
        elif entry[:4] == b"mime" and media_type == _XMP_TYPE:
            yield number, encoding


def _places(data: bytes, start: int) -> Iterator[tuple[int, bool, list[tuple[int, int]]]]:
    """Yield each item's number, whether its offsets are relative to the idat box, and its extents (offset, length)."""
    version, sizes = data[start], _whole(data, start + 4, 2)
    offset_size, length_size, base_size, index_size = (sizes >> shift & 15 for shift in (12, 8, 4, 0))
    wide = 4 if version == 2 else 2
    count, at = _whole(data, start + 6, wide), start + 6 + wide
    left = _MOST  # entries may have no bytes, so their number isn't bounded by the data's size
    for _ in range(min(count, _MOST)):
        number, at = _whole(data, at, wide), at + wide
        method = 0
        if version in (1, 2):
            method, at = _whole(data, at, 2) & 15, at + 2
        base, at = _whole(data, at + 2, base_size), at + 2 + base_size
        pieces, at = _whole(data, at, 2), at + 2
        extents = []
        left -= pieces
        if left < 0:
            return
        for _ in range(pieces):
            at += index_size if version in (1, 2) else 0
            extents.append((base + _whole(data, at, offset_size), _whole(data, at + offset_size, length_size)))
            at += offset_size + length_size
        yield number, method == 1, extents


def _whole(data: bytes, start: int, size: int) -> int:
    piece = data[start : start + size]
    if len(piece) != size:
        raise struct.error("the data end here")
    return int.from_bytes(piece, "big")


def uuids(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the type and the content of each top-level `uuid` box."""
    for name, start, stop in islice(boxes(data), _MOST):
        if name == b"uuid":
            yield data[start : start + 16], data[start + 16 : stop]


CONTAINED_SHARE = 0.95
"""Share of a mask's pixels that its container must contain."""

AT_ONCE = 128
"""Number of masks that are compared with all larger masks at once, which bounds memory.

pycocotools 2.0.11 returns no areas for more than 255 masks, so this number must not exceed 255.
"""


def find_containers(size: Size, counts: Sequence[str]) -> list[int | None]:
    """Return the position of each mask's container among an image's N masks, or None for a mask without a container.

    Larger masks that contain at least `CONTAINED_SHARE` of a mask's pixels are candidates, and the smallest candidate
    is the container. If two masks have the same area, the one at the lower position counts as larger, so containers
    never form a cycle. An empty mask has no container.

    Args:
        size: (height, width) of the image.
        counts: COCO's compressed run lengths of each mask. They must be valid because pycocotools trusts its input.
    """
    found: list[int | None] = [None] * len(counts)
    codes = np.array([Rle(size, each).coco() for each in counts], object)
    parts = [slice(start, start + AT_ONCE) for start in range(0, len(counts), AT_ONCE)]
    areas = np.concatenate([np.zeros(0, np.int64), *(coco.area(codes[part].tolist()) for part in parts)])
    order = np.lexsort((-np.arange(len(areas)), areas))  # smallest first
    codes, areas = codes[order], areas[order].astype(np.int64)
    boxes = np.concatenate([np.zeros((0, 4)), *(coco.toBbox(codes[part].tolist()) for part in parts)])
    low, high = boxes[:, :2].T, (boxes[:, :2] + boxes[:, 2:]).T
    for part in parts:
        shared = np.minimum(high[:, part, None], high[:, None]) - np.maximum(low[:, part, None], low[:, None])
        room = np.multiply(*shared.clip(0))  # pixels of the boxes' intersection
        may = np.triu((room >= CONTAINED_SHARE * areas[part, None]) & (areas[part, None] > 0), part.start + 1)
        inner, outer = np.flatnonzero(may.any(axis=1)), np.flatnonzero(may.any(axis=0))
        if not inner.size:
            continue
        # For a "crowd", pycocotools divides the intersection by the first mask's area. Quotients of integers are
        # rounded correctly, so comparing them with 0.95 is exact.
        shares = coco.iou(codes[part][inner].tolist(), codes[outer].tolist(), [1] * outer.size)
        contains = (shares >= CONTAINED_SHARE) & may[np.ix_(inner, outer)]
        for row in np.flatnonzero(contains.any(axis=1)):
            found[order[part.start + inner[row]]] = int(order[outer[contains[row].argmax()]])
    return found


def container_ids(masks: Sequence[Mapping[str, Any]], ids: Sequence[int]) -> list[int | None]:
    """Compute the column `container` of an image's masks, whose annotation ids are `ids`; see `find_containers`."""
    if not masks:
        return []
    height, width = masks[0]["segmentation"]["size"]
    places = find_containers((height, width), [mask["segmentation"]["counts"] for mask in masks])
    return [None if place is None else ids[place] for place in places]
