"""Described rows of images that were taken down."""

from segmint.catalogs.dataset.tombstones import BLANK, DETAIL, SAME_SOURCE, Taken
from segmint.catalogs.reasons import Reason
from segmint.operators.rows import Row

STAGE = "catalog"
"""The stage that refuses a row that was taken down: a later build finds it blank in the catalog."""


def take_down(row: Row) -> Row:
    """Return the refused row that replaces a row, the same that a build makes of the catalog's blank row."""
    empty: Row = dict.fromkeys(row)
    return {
        **empty,
        "ordinal": row["ordinal"],
        "id": row["id"],
        "image_id": BLANK,
        "uri": BLANK,
        "stage": STAGE,
        "reason": str(Reason.TAKEN_DOWN),
        "detail": DETAIL,
    }


def without_taken(row: Row, taken: Taken) -> Row:
    """Return a row without what tombstones name: blank if they name its ordinal, refused if they name its source.

    A row of the same source under another ordinal keeps its names, as the catalog does, until the next takedown. The
    same object is returned if there is nothing to take.
    """
    if row["ordinal"] in taken.images:
        return row if is_taken(row) and row["image_id"] == BLANK else take_down(row)
    if row["reason"] is not None or not taken.names.names_source(row["uri"], row["source_sha256"]):
        return row
    kept = {name: row[name] for name in ("ordinal", "id", "image_id", "uri")}
    verdict = {"stage": STAGE, "reason": str(Reason.TAKEN_DOWN), "detail": SAME_SOURCE}
    return {**dict.fromkeys(row), **kept, **verdict}


def is_taken(row: Row) -> bool:
    """Return whether a row was taken down: only a refusal is left of it."""
    return bool(row["reason"] == Reason.TAKEN_DOWN)
