"""Reading and writing files of regions to redact in released images: JSON Lines, or Parquet by extension.

Sums about redaction over many images, for the summary of a build, the status, the audit, and the report.
"""

import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segmint.infra.arrays import PixelBox
from segmint.infra.errors import UsageError, raise_problems
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted, share

_PARQUET = ".parquet"


class WantedRegion(BaseModel):
    """Box to redact, in whole pixels of the **released** image, as a row of a regions file requests it."""

    model_config = ConfigDict(frozen=True, strict=True)

    id: int = Field(ge=1)  # the image's number in the dataset, as in sa_<id>.jpg
    kind: Literal["face", "plate", "other"]
    x: int = Field(ge=0)  # left edge
    y: int = Field(ge=0)  # top edge
    w: int = Field(ge=1)
    h: int = Field(ge=1)
    where: str = ""  # file and row, for messages

    @property
    def ordinal(self) -> int:
        """The ordinal of the image."""
        return self.id - 1


@dataclass(frozen=True, slots=True)
class DetectedRegion:
    """Detection in a released image: a box (x, y, w, h) inside the image, in whole pixels of the released image."""

    id: int
    kind: str
    detector: str
    score: float
    x: int
    y: int
    w: int
    h: int

    @property
    def box(self) -> PixelBox:
        """Left, top, right, and bottom edge."""
        return self.x, self.y, self.x + self.w, self.y + self.h

    def to_dict(self) -> dict[str, Any]:
        """Return the region as a row that `write_regions` accepts."""
        return {field.name: getattr(self, field.name) for field in fields(DetectedRegion)}


@dataclass(frozen=True, slots=True)
class Sighting:
    """Detector that found a region, with its score."""

    detector: str
    score: float


Wanted = TypeVar("Wanted", bound=BaseModel)


def read_regions(file: Location, kind: type[Wanted]) -> list[Wanted]:
    """Read the regions in a file, in the file's order, as `kind`. Columns that `kind` doesn't have are ignored.

    Raises `UsageError` if the file is invalid or contains no regions. The message lists up to ten problems by row and
    column.
    """
    regions: list[Wanted] = []
    problems: list[str] = []
    for row, value in _values(file):
        where = f"{file}, row {row}"
        try:
            regions.append(kind.model_validate({**value, "where": where}))
        except ValidationError as error:
            for found in error.errors():
                name = ".".join(map(str, found["loc"]))
                shown = "" if found["type"] == "missing" else f", got {found['input']!r}"
                problems.append(f"{where}, {name}: {found['msg']}{shown}")
    raise_problems(problems)
    if not regions:
        needed = [name for name, field in kind.model_fields.items() if field.is_required()]
        raise UsageError(f"{file} contains no regions: expected rows with {', '.join(needed)}")
    return regions


def _values(file: Location) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each row of a file with its number, counted from 1. In a text file, this is the line number."""
    try:
        data = file.read()
    except NotFoundError as error:
        raise UsageError(f"{file}: no such regions file") from error
    if file.uri.lower().endswith(_PARQUET):
        try:
            rows = pq.read_table(pa.BufferReader(data)).to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise UsageError(f"{file} is not a readable Parquet file: {' '.join(str(error).split())}") from error
        yield from enumerate(rows, 1)
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{file} is not UTF-8 text: expected JSON Lines, or Parquet in a file that ends in {_PARQUET}"
        ) from error
    for number, line in enumerate(io.StringIO(text, newline=None), 1):  # `splitlines` also splits inside of texts
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"{file}, row {number}: not JSON: {error}") from error
        if not isinstance(value, dict):
            got = line.strip()[:80]
            raise UsageError(f"{file}, row {number}: expected an object, got {got}")
        yield number, value


def write_regions(file: Location, regions: Sequence[Mapping[str, Any]]) -> None:
    """Write a regions file that `read_regions` can read.

    Each row contains id, kind, x, y, w, h, and any other columns, such as a score. The format is Parquet if the file's
    extension is `.parquet`, and JSON Lines otherwise. Without regions, the file is empty, and `read_regions` rejects
    it.
    """
    if file.uri.lower().endswith(_PARQUET):
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([dict(region) for region in regions]), sink)
        file.put(sink.getvalue())
        return
    file.put("".join(json.dumps(region, ensure_ascii=False) + "\n" for region in regions).encode())


HIGH_SHARE = 0.15
"""An image counts as highly redacted if more than this share of its pixels is redacted."""


@dataclass(frozen=True)
class RedactionTotals:
    """Sums about redaction of images, and the images with the highest redacted shares over `HIGH_SHARE`."""

    unconfirmed: int = 0  # detections that a second look didn't confirm
    left_alone: int = 0  # detections that a person wanted left alone
    highly_redacted: int = 0  # images
    worst: tuple[tuple[str, float], ...] = ()  # image_id and share

    @property
    def visible(self) -> str:
        """Describe the detections that weren't redacted. Empty if there are none."""
        visible = []
        if self.unconfirmed:
            visible.append(f"{counted(self.unconfirmed, 'detection')} that a second look didn't confirm")
        if self.left_alone:
            visible.append(f"{counted(self.left_alone, 'detection')} released by a person")
        return " and ".join(visible)

    def lines(self, width: int = 0) -> list[str]:
        """Return lines of text, each with a heading, padded to `width` characters. Empty if all sums are 0."""
        lines = []
        if self.highly_redacted:
            worst = ", ".join(f"{name} {share(redacted)}" for name, redacted in self.worst)
            images = counted(self.highly_redacted, "image")
            lines.append(f"{'redacted ':{width}}over {share(HIGH_SHARE)} of {images}; the worst: {worst}")
        if self.visible:
            lines.append(f"{'visible ':{width}}{self.visible}")
        return lines
