"""Regions that a person wants left alone: the list of their boxes, and its comparison with detections.

An entry holds for one photograph, which it names by the hash of its bytes, and for detections whose redaction would
cover about the same box. It never holds for another photograph or another place.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import date
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from segmint.catalogs.dataset.regions import read_regions
from segmint.infra.storage.location import Location
from segmint.model.detectors.detection import Detection, iou
from segmint.operators.prepare.deidentify import Region, box_of, outline

SAME_IOU = 0.5
"""Minimum IoU of an entry's box with the box that redacting a detection would cover."""


class LeftAloneEntry(BaseModel):
    """Row of the list: a box (x, y, w, h) in whole pixels of the upright photograph, and who decided to leave it."""

    model_config = ConfigDict(frozen=True)

    sha256: str = Field(pattern=r"\A[0-9a-f]{64}\z")  # of the photograph's bytes
    x: int = Field(ge=0)
    y: int = Field(ge=0)
    w: int = Field(ge=1)
    h: int = Field(ge=1)
    decided_by: str = Field(min_length=1)
    decided_on: date | None = None

    def matches(self, region: Mapping[str, Any]) -> bool:
        """Return whether a region's box, in pixels of the upright photograph, is about the same as the entry's."""
        return iou(box_of(vars(self)), box_of(region)) >= SAME_IOU


Entries = tuple[LeftAloneEntry, ...]


@dataclass(frozen=True)
class LeftAloneRegion(Region):
    """A detection that a person wanted left alone. Its box is the one that redacting it would have covered."""

    decided_by: str
    decided_on: str | None  # ISO 8601


def region_of(found: Detection, size: tuple[int, int], full: tuple[int, int]) -> Region | None:
    """Return the region that redacting a detection would cover, in an image of the size `full`.

    The detection is in pixels of an image of the size `size`. Sizes are (width, height).
    """
    patch = outline(found, (size[1], size[0]))
    return None if patch is None else Region.of(found, patch).scaled(size, full)


class LeftAlone:
    """Entries of one photograph, and the detections that they hold for.

    `size` is the size of the searched image, and `full` the photograph's, both (width, height). `regions` contains the
    first region that each entry held for, in pixels of the upright photograph.
    """

    def __init__(self, entries: Entries, size: tuple[int, int], full: tuple[int, int]) -> None:
        self._entries = entries
        self._size = size
        self._full = full
        self.regions: dict[LeftAloneEntry, LeftAloneRegion] = {}
        self.detections: list[Detection] = []

    def take(self, found: Iterable[Detection]) -> list[Detection]:
        """Keep the detections that an entry holds for, and return all others, which must be redacted."""
        if not self._entries:
            return list(found)
        others = []
        for each in found:
            region = region_of(each, self._size, self._full)
            entry = next((entry for entry in self._entries if region and entry.matches(vars(region))), None)
            if region is None or entry is None:
                others.append(each)
                continue
            self.detections.append(each)
            decision = entry.model_dump(mode="json", include={"decided_by", "decided_on"})
            self.regions.setdefault(entry, LeftAloneRegion(**vars(region), **decision))
        return others


def count_unmatched(entries: Mapping[str, Entries], images: Iterable[Mapping[str, Any]]) -> tuple[int, int]:
    """Count the entries without a photograph among `images`, and those of a photograph that hold for no detection.

    `images` contains rows of `images`, at least those whose `source_sha256` is a key of `entries`.
    """
    unseen, unmatched = set(entries), {entry for each in entries.values() for entry in each}
    for row in images:
        unseen.discard(row["source_sha256"])
        for region in row["left_alone"] or ():
            unmatched -= {entry for entry in entries.get(row["source_sha256"], ()) if entry.matches(region)}
    without_photograph = sum(entry.sha256 in unseen for entry in unmatched)
    return without_photograph, len(unmatched) - without_photograph


def read_left_alone(file: Location) -> dict[str, Entries]:
    """Read a list from a JSON Lines or Parquet file; return its entries by the photograph's SHA-256.

    Raises the errors of `read_regions`.
    """
    found: dict[str, Entries] = {}
    for entry in read_regions(file, LeftAloneEntry):
        found[entry.sha256] = (*found.get(entry.sha256, ()), entry)
    return found
