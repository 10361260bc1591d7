"""Take down: a described row that says nothing of its image any more, but that it was there."""

from segmint.catalogs.dataset.tombstones import BLANK, DETAIL
from segmint.catalogs.reasons import Reason
from segmint.operators.rows import Row

STAGE = "catalog"
"""Where a row that was taken down is refused: a later build finds it blank in the catalog."""


def take_down(row: Row) -> Row:
    """The refused row in place of this one, accepted or refused; what a build makes of the blank row of the catalog."""
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


def is_taken(row: Row) -> bool:
    """Whether nothing but a refusal is left of a row."""
    return bool(row["reason"] == Reason.TAKEN_DOWN)
