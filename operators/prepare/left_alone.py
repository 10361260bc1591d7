"""Regions that a person wants left alone: the list of their boxes, and its comparison with detections.

An entry holds for one photograph, which it names by the hash of its bytes, and for detections whose redaction would
cover about the same box. It never holds for another photograph or another place.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from segmint.infra.errors import UsageError, raise_problems
from segmint.model.detectors.detection import Box, Detection, iou
from segmint.operators.prepare.deidentify import Region, outline

SAME_IOU = 0.5
"""Minimum IoU of an entry's box with the box that redacting a detection would cover."""

_REQUIRED = "sha256, x, y, w, h, and decided_by"


class LeftAloneEntry(BaseModel):
    """Row of the list: a box (x, y, w, h) in whole pixels of the upright photograph, and who decided to leave it."""

    model_config = ConfigDict(frozen=True)

    sha256: str  # of the photograph's bytes
    x: int = Field(ge=0)
    y: int = Field(ge=0)
    w: int = Field(ge=1)
    h: int = Field(ge=1)
    decided_by: str = Field(min_length=1)
    decided_on: date | None = None

    @field_validator("sha256")
    @classmethod
    def _hexadecimal(cls, value: str) -> str:
        if not re.fullmatch("[0-9a-f]{64}", value):
            raise ValueError("expected the SHA-256 of a photograph: 64 hexadecimal digits, in lower case")
        return value

    @field_validator("decided_on", mode="before")
    @classmethod
    def _empty_is_none(cls, value: object) -> object:
        return None if value == "" else value

    def matches(self, region: Mapping[str, Any]) -> bool:
        """Return whether a region's box, in pixels of the upright photograph, is about the same as the entry's."""
        return iou(box_of(vars(self)), box_of(region)) >= SAME_IOU


Entries = tuple[LeftAloneEntry, ...]


@dataclass(frozen=True)
class LeftAloneRegion(Region):
    """A detection that a person wanted left alone. Its box is the one that redacting it would have covered."""

    decided_by: str
    decided_on: str | None  # ISO 8601


def box_of(region: Mapping[str, Any]) -> Box:
    """Return the left, top, right, and bottom edge of a region."""
    return region["x"], region["y"], region["x"] + region["w"], region["y"] + region["h"]


def region_of(found: Detection, size: tuple[int, int], full: tuple[int, int]) -> Region | None:
    """Return the region that redacting a detection would cover, in an image of the size `full`.

    The detection is in pixels of an image of the size `size`. Sizes are (width, height).
    """
    patch = outline(found, (size[1], size[0]))
    if patch is None:
        return None
    region = Region(found.kind, found.score, patch.x, patch.y, patch.width, patch.height, found.source)
    return region.scaled(size, full)


class LeftAlone:
    """Entries of one photograph, and the detections that they hold for.

    `size` is the size of the searched image, and `full` the photograph's, both (width, height).
    """

    def __init__(self, entries: Entries, size: tuple[int, int], full: tuple[int, int]) -> None:
        self._entries = entries
        self._size = size
        self._full = full
        self._regions: dict[LeftAloneEntry, LeftAloneRegion] = {}
        self.detections: list[Detection] = []

    @property
    def regions(self) -> tuple[LeftAloneRegion, ...]:
        """The first region that each entry held for, in pixels of the upright photograph."""
        return tuple(self._regions.values())

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
            decided_on = None if entry.decided_on is None else entry.decided_on.isoformat()
            left = LeftAloneRegion(**vars(region), decided_by=entry.decided_by, decided_on=decided_on)
            self._regions.setdefault(entry, left)
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
    without_photograph = sum(len(entries[digest]) for digest in unseen)
    return without_photograph, len({entry for entry in unmatched if entry.sha256 not in unseen})


def read_left_alone(file: Path, name: str) -> dict[str, Entries]:
    """Read a list from a CSV or JSON Lines file; return its entries by the photograph's SHA-256.

    `name` is the file's name for messages. Raises `UsageError`, which lists up to ten problems by row and column, if
    the file is invalid or empty.
    """
    found: dict[str, list[LeftAloneEntry]] = {}
    problems: list[str] = []
    for row, value in _rows(file, name):
        try:
            entry = LeftAloneEntry.model_validate(value)
        except ValidationError as error:
            for problem in error.errors():
                column = ".".join(map(str, problem["loc"])) or "all columns"
                shown = "" if problem["type"] == "missing" else f", got {str(problem['input'])[:80]!r}"
                problems.append(f"{name}, row {row}, {column}: {problem['msg']}{shown}")
            continue
        found.setdefault(entry.sha256, []).append(entry)
    raise_problems(problems)
    if not found:
        raise UsageError(f"{name} contains no regions: expected rows with {_REQUIRED}")
    return {digest: tuple(entries) for digest, entries in found.items()}


def _rows(file: Path, name: str) -> Iterator[tuple[int, Any]]:
    """Yield each row with its number, counted from 1 without a CSV file's header."""
    try:
        text = file.read_text("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{name} is not UTF-8 text: expected CSV or JSON Lines with {_REQUIRED}") from error
    if not text.lstrip().startswith("{"):
        for row, cells in enumerate(csv.DictReader(io.StringIO(text, newline="")), 1):
            if None in cells:
                raise UsageError(f"{name}, row {row}: more values than the header has columns")
            yield row, cells
        return
    for row, line in enumerate(io.StringIO(text), 1):
        if line.strip():
            try:
                yield row, json.loads(line)
            except (ValueError, RecursionError) as error:
                raise UsageError(f"{name}, row {row}: not JSON: {error}") from error
