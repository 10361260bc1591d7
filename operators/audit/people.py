"""Audits what the rows of images and masks say of people's work: parents, seconds and hashes."""

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.findings import Code, Finding, Place
from segmint.operators.rows import Row
from segmint.operators.schemas import MASKS_PER_IMAGE_LIMIT

_SHA256 = re.compile(r"[0-9a-f]{64}")
_OF_MASKS = ("parent", "seconds", "origin", "model")


def masks_of_work(masks: pa.Table) -> frozenset[int]:
    """Return the ordinals of images whose masks have one of the columns that `audit_work` checks."""
    said = [masks.filter(pc.is_valid(masks.column(name))).column("ordinal") for name in _OF_MASKS]
    return frozenset(ordinal for column in said for ordinal in column.to_pylist())


def audit_work(row: Row, masks: Sequence[Row], images: Place, place: Place) -> Iterator[Finding]:
    """Findings in what an image's row, and the rows of its `masks`, say of people's work.

    `images` and `place` are where findings in the image's row and in those of its masks are made. A mask was made from
    an earlier one of its image, which may be gone; hashes are 64 hexadecimal digits in lower case.
    """
    where = f"id {row['id']}"
    yield from _seconds(row["seconds"], images, where, None)
    if row["answer"] is not None:
        yield from _hash("answer.sha256", row["answer"]["sha256"], images, where, None)
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


def _seconds(value: float | None, place: Place, where: str, mask: int | None) -> Iterator[Finding]:
    if value is not None and not 0 <= value < math.inf:
        yield place.finding(Code.BAD_SECONDS, "seconds of 0 or more", value, where, mask=mask)


def _hash(name: str, value: Any, place: Place, where: str, mask: int | None) -> Iterator[Finding]:
    if value is None or not _SHA256.fullmatch(value):
        yield place.finding(Code.BAD_HASH, f"{name} of 64 hexadecimal digits", repr(value), where, mask=mask)
