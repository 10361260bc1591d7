"""Detections that remain in a released image: comparison of several detectors, and pictures for people."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import simplejpeg

from segmint.catalogs.dataset.regions import DetectedRegion, Sighting
from segmint.model.detectors.detection import Detector, iou
from segmint.operators.images import Pixels
from segmint.operators.prepare.deidentify import Region, box_of
from segmint.operators.prepare.left_alone import SAME_IOU as SAME_REGION_IOU
from segmint.operators.prepare.left_alone import region_of
from segmint.operators.prepare.mosaic import mosaic, rectangle, redact_patches
from segmint.operators.prepare.orientations import ORIENTATIONS, is_same
from segmint.operators.prepare.released_search import MOST_RESIDUAL, search_released
from segmint.operators.rows import Row

SAME_IOU = 0.3
"""Minimum IoU at which boxes from two detectors count as one region. A face's box may or may not include the hair."""

ON_TILES = " on tiles"
"""Suffix of the name of a build's own detector that also searches tiles."""

_RED, _YELLOW = (255, 0, 0), (255, 215, 0)
_CONTEXT_CELLS = 8
_MARGIN = 0.5
_CUTOUT_MARGIN = 1.0  # larger than a picture's: only the area around the region is sharp
_LEAST_MARGIN = 48  # pixels


@dataclass(frozen=True, slots=True)
class RemainingDetection(DetectedRegion):
    """A detection in a released image. Its box covers everything that redacting it would change.

    - `redacted`: whether the detection is inside a redacted region.
    - `is_residual`: whether the image's row records that the build left the detection, because redaction had created
      it.
    - `is_unconfirmed`: whether the row records that the build's second look didn't confirm this detector's detection.
    - `decided_by`: who wanted the detection left alone, according to the row.
    - `found_by`: after `merge_found`, all detectors that found it.
    - `missed_by`: after `merge_found`, the detectors of the same kind that searched the image without finding it.
    """

    redacted: bool
    found_by: tuple[Sighting, ...] = ()
    missed_by: tuple[str, ...] = ()
    is_residual: bool = False
    is_unconfirmed: bool = False
    decided_by: str | None = None

    @property
    def is_explained(self) -> bool:
        """True if the detection is redacted, or if the build left it deliberately."""
        return self.redacted or self.is_residual or self.is_unconfirmed or self.decided_by is not None

    @property
    def sightings(self) -> tuple[Sighting, ...]:
        """Detectors that found this detection, with their scores."""
        return self.found_by or (Sighting(self.detector, self.score),)


def search_release(
    row: Row, image: Pixels, detectors: Sequence[Detector], orientations: Sequence[int] = ORIENTATIONS
) -> list[RemainingDetection]:
    """Search a row's released image, (H, W, 3) uint8 RGB, with all detectors, and return the detections."""
    residual = _recorded(row, "residual_detections")[:MOST_RESIDUAL]
    unconfirmed, left_alone = _recorded(row, "unconfirmed_detections"), _recorded(row, "left_alone")
    size = image.shape[1], image.shape[0]
    full = row.get("source_width") or size[0], row.get("source_height") or size[1]
    found = []
    searched = [each for detector in detectors for each in search_released(row, image, detector, orientations)]
    for each in searched:
        if any(is_same(each.found, other.found) and other.found.score > each.found.score for other in searched):
            continue
        entry = each.entry
        by_build = entry.source.removesuffix(ON_TILES)  # another detector that agrees with the build's explains nothing
        found.append(
            RemainingDetection(
                row["id"],
                entry.kind,
                entry.source,
                entry.score,
                entry.x,
                entry.y,
                entry.w,
                entry.h,
                each.is_redacted,
                is_residual=each.may_remain and any(map(entry.is_same, residual)),
                is_unconfirmed=any(known["source"] == by_build and entry.is_same(known) for known in unconfirmed),
                decided_by=_decided_by(region_of(each.found, size, full), left_alone),
            )
        )
    return found


def _recorded(row: Row, column: str) -> list[Row]:
    """Return the entries of a column without nulls. Foreign and older data may lack the column."""
    return [known for known in row.get(column) or () if known]


def _decided_by(region: Region | None, left_alone: Sequence[Row]) -> str | None:
    """Return who wanted a region left alone, or None if nobody did."""
    for known in left_alone:
        if region is not None and iou(region.box, box_of(known)) >= SAME_REGION_IOU:
            return str(known["decided_by"])
    return None


def merge_found(found: Sequence[RemainingDetection], searched: Sequence[Detector]) -> list[RemainingDetection]:
    """Merge detections that several detectors made at the same place in an image. Explained detections aren't merged.

    Two detections are at the same place if they are of the same kind and their boxes overlap with an IoU of at least
    `SAME_IOU`. The merged detection takes the detector and score of the first one, and its box encloses all boxes.
    `searched` contains the detectors that searched the image.
    """
    merged: list[list[RemainingDetection]] = []
    for each in found:
        if each.is_explained:
            continue
        near = [
            (iou(same[0].box, each.box), index)
            for index, same in enumerate(merged)
            if same[0].kind == each.kind and all(other.detector != each.detector for other in same)
        ]
        best, index = max(near, default=(0.0, 0))
        if best >= SAME_IOU:
            merged[index].append(each)
        else:
            merged.append([each])
    return [_merged(same, searched) for same in merged] + [each for each in found if each.is_explained]


def picture(image: Pixels, found: RemainingDetection) -> bytes:
    """Return a JPEG of `image` with a detection framed in red. Beyond a margin, the image is a coarse mosaic.

    A detection that the build didn't confirm has a yellow frame with a label.
    """
    window = _around(found, _MARGIN)
    shown = mosaic(image, _CONTEXT_CELLS)
    shown[window] = image[window]
    _frame(shown, found, (found.x, found.y), max(1, round(max(image.shape[:2]) / 500)))
    return _encoded(shown)


def _frame(shown: Pixels, found: RemainingDetection, corner: tuple[int, int], width: int) -> None:
    """Draw a detection's frame, whose top left corner is (x, y) in `shown`."""
    end = corner[0] + found.w - 1, corner[1] + found.h - 1
    cv2.rectangle(shown, corner, end, _YELLOW if found.is_unconfirmed else _RED, width)
    if found.is_unconfirmed:
        cv2.putText(
            shown, "unconfirmed", (corner[0], end[1] - 3), cv2.FONT_HERSHEY_SIMPLEX, 0.4, _YELLOW, 1, cv2.LINE_AA
        )


def cutouts(image: Pixels, found: Sequence[RemainingDetection]) -> Iterator[bytes]:
    """Yield a JPEG of the area around each detection, with the detection framed in red and all detections blurred."""
    height, width = image.shape[:2]
    patches = (rectangle(each.x, each.y, each.w, each.h, (height, width)) for each in found)
    blurred = redact_patches(image, filter(None, patches))
    for each in found:
        rows, columns = _around(each, _CUTOUT_MARGIN, _LEAST_MARGIN)
        shown = blurred[rows, columns].copy()
        corner = each.x - columns.start, each.y - rows.start
        _frame(shown, each, corner, max(1, round(max(shown.shape[:2]) / 200)))
        yield _encoded(shown)


def _around(found: RemainingDetection, margin: float, least: int = 0) -> tuple[slice, slice]:
    """Return the rows and columns of a detection with a margin, in longer sides of its box and at least in pixels."""
    pixels = max(round(margin * max(found.w, found.h)), least)
    rows = slice(max(found.y - pixels, 0), found.y + found.h + pixels)
    return rows, slice(max(found.x - pixels, 0), found.x + found.w + pixels)


def _merged(same: Sequence[RemainingDetection], searched: Sequence[Detector]) -> RemainingDetection:
    first = same[0]
    lefts, tops, rights, bottoms = zip(*(each.box for each in same), strict=True)
    names = {each.detector for each in same}
    return replace(
        first,
        x=min(lefts),
        y=min(tops),
        w=max(rights) - min(lefts),
        h=max(bottoms) - min(tops),
        found_by=tuple(Sighting(each.detector, each.score) for each in same),
        missed_by=tuple(each.name for each in searched if each.kind == first.kind and each.name not in names),
    )


def _encoded(shown: Pixels) -> bytes:
    encoded: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(shown), quality=90, colorspace="RGB", colorsubsampling="420"
    )
    return encoded
