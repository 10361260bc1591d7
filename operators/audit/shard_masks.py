"""The masks of a shard, image by image: their rows, and whether the vectorized check passed them."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.operators.audit.mask_columns import MaskColumns
from segmint.operators.audit.masks import MaskLimits
from segmint.operators.audit.origins import (
    MaskOrigins,
    annotated_images,
    audit_next_mask,
    audit_origins,
    codes_hold,
)
from segmint.operators.audit.rows import ShardTables, int_column
from segmint.operators.audit.sound_masks import sound_masks
from segmint.operators.rows import Row
from segmint.operators.schemas import MASKS_PER_IMAGE_LIMIT
from segmint.operators.segment.artifacts import RedactionArtifacts


class ShardMasks:
    """The masks of a shard in whose tables `audit_identity` found nothing wrong. Images are named by their ordinals."""

    def __init__(self, tables: ShardTables, limits: MaskLimits | None, artifacts: RedactionArtifacts | None) -> None:
        """`limits` are the thresholds of the scores, as in `segmint.operators.audit.masks.audit_masks`.

        `artifacts` are those of `segmint.operators.audit.origins.audit_origins`.
        """
        self._table = tables.masks
        ordinals, owners = int_column(tables.images, "ordinal"), int_column(tables.masks, "ordinal")
        starts, stops = (np.searchsorted(owners, ordinals, side) for side in ("left", "right"))
        self._spans = dict(zip(ordinals.tolist(), zip(starts.tolist(), stops.tolist(), strict=True), strict=True))
        self._columns = MaskColumns.of(tables.masks)
        sides = [tables.images.column(name).fill_null(-1).to_numpy() for name in ("height", "width")]
        sizes = np.repeat(np.stack(sides, axis=1).astype(np.int64), stops - starts, axis=0)
        wrong = np.cumsum(np.concatenate(([0], ~sound_masks(self._columns, sizes, limits))))
        self._sound = frozenset(ordinals[wrong[starts] == wrong[stops]].tolist())
        self._origins = MaskOrigins.of(tables.masks)
        self._artifacts = artifacts
        self._ids = int_column(tables.masks, "annotation_id")
        self._annotated = annotated_images(tables.images, tables.masks)
        self._worked_on = self._annotated | masks_of_work(tables.masks)

    def count(self, ordinal: int) -> int:
        """How many masks an image has."""
        start, stop = self._spans[ordinal]
        return int(stop - start)

    def sound(self, ordinal: int) -> bool:
        """Whether `audit_masks`, without decoding, would find nothing in an image's masks."""
        return ordinal in self._sound

    def annotated(self, ordinal: int) -> bool:
        """Whether people worked on an image."""
        return ordinal in self._annotated

    def audit_origins(self, row: Row, place: FindingLocation) -> Iterator[Finding]:
        """Findings in where the masks of an image come from; `row` is its row of `images`."""
        start, stop = self._spans[row["ordinal"]]
        codes: list[str] | None = [text.decode(errors="replace") for text in self._columns.text(start, stop)]
        if not self.sound(row["ordinal"]) and not codes_hold(self.table_rows(row["ordinal"]), row):
            codes = None
        ids = self._ids[start:stop].tolist()
        if self.annotated(row["ordinal"]):
            yield from audit_next_mask(row, ids, place, self._origins.source[start:stop])
        yield from audit_origins(row, self._origins, (start, stop), codes, ids, place, self._artifacts)

    def audit_work(self, row: Row, images: FindingLocation, place: FindingLocation) -> Iterator[Finding]:
        """Findings in what the row of an image, and those of its masks, say of people's work; see `people`."""
        if row["ordinal"] in self._worked_on:
            yield from audit_work(row, self.table_rows(row["ordinal"]), images, place)

    def table_rows(self, ordinal: int) -> list[Row]:
        """The rows of an image's masks, with all columns."""
        start, stop = self._spans[ordinal]
        rows: list[Row] = self._table.slice(start, stop - start).to_pylist()
        return rows

    def annotations(self, ordinal: int) -> Sequence[Row]:
        """The same with the keys that `annotations_json` takes, and for sound masks in a tenth of the time."""
        span = self._spans[ordinal]
        rows = list(self._columns.rows(*span)) if self.sound(ordinal) else self.table_rows(ordinal)
        if not self.annotated(ordinal):
            return rows
        first = (ordinal + 1) * MASKS_PER_IMAGE_LIMIT
        return [{**row, "index": id - first} for row, id in zip(rows, self._ids[slice(*span)].tolist(), strict=True)]


_SHA256 = re.compile(r"[0-9a-f]{64}")
_OF_MASKS = ("parent", "seconds", "origin", "model")


def masks_of_work(masks: pa.Table) -> frozenset[int]:
    """Return the ordinals of images whose masks have one of the columns that `audit_work` checks."""
    said = [masks.filter(pc.is_valid(masks.column(name))).column("ordinal") for name in _OF_MASKS]
    return frozenset(ordinal for column in said for ordinal in column.to_pylist())


def audit_work(row: Row, masks: Sequence[Row], images: FindingLocation, place: FindingLocation) -> Iterator[Finding]:
    """Findings in what an image's row, and the rows of its `masks`, say of people's work.

    `images` and `place` are where findings in the image's row and in those of its masks are made. A mask was made from
    an earlier one of its image, which may be gone; hashes are 64 hexadecimal digits in lower case.
    """
    where = f"id {row['id']}"
    yield from _seconds(row["seconds"], images, where, None)
    if row["submission"] is not None:
        yield from _hash("submission.sha256", row["submission"]["sha256"], images, where, None)
    first = row["id"] * MASKS_PER_IMAGE_LIMIT
    for mask in masks:
        id = mask["annotation_id"]
        where = f"mask {id}"
        if mask["parent"] is not None and not first <= mask["parent"] < id:
            expected = f"a parent from {first} to {id - 1}" if id > first else "no parent: it is its image's first mask"
            yield place.finding(Code.UNKNOWN_PARENT, expected, mask["parent"], where, mask=id)
        yield from _seconds(mask["seconds"], place, where, id)
        if mask["origin"] is not None:
            yield from _hash("origin.sha256", mask["origin"]["sha256"], place, where, id)
        if mask["model"] is not None:
            yield from _hash("model", mask["model"], place, where, id)


def _seconds(value: float | None, place: FindingLocation, where: str, mask: int | None) -> Iterator[Finding]:
    if value is not None and not 0 <= value < math.inf:
        yield place.finding(Code.BAD_SECONDS, "seconds of 0 or more", value, where, mask=mask)


def _hash(name: str, value: Any, place: FindingLocation, where: str, mask: int | None) -> Iterator[Finding]:
    if value is None or not _SHA256.fullmatch(value):
        yield place.finding(Code.BAD_HASH, f"{name} of 64 hexadecimal digits", repr(value), where, mask=mask)
