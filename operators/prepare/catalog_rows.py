"""What the catalog's row alone decides about an image, before it is read."""

from dataclasses import dataclass

from segmint.catalogs.dataset.tombstones import DETAIL, SAME_SOURCE, TakenNames, is_taken_down
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.reasons import Reason, RejectedError
from segmint.operators.rows import Row

CURATED = "refused in the catalog"
"""The detail of a row that the catalog refuses without a sentence."""


@dataclass(frozen=True)
class CatalogJudge:
    """Judges rows by the license policy and by what was taken down."""

    policy: LicensePolicy
    taken: TakenNames

    def judge(self, row: Row) -> None:
        """Raise `RejectedError` for what the catalog says itself; what it refuses is left to `refuse_curated`."""
        if row["duplicate_of"] is not None:
            first = row["duplicate_of"]
            raise RejectedError(Reason.DUPLICATE_ID, f"the image_id stands already in the row of ordinal {first}")
        verdict = self.policy.judge(row["license"], row["redistributable"], row["valid_until"], row.get("opt_out"))
        if verdict is not None:
            raise RejectedError(*verdict)

    def refuse_taken_down(self, row: Row) -> None:
        """Raise `RejectedError` if the row was taken down, or a tombstone names its source."""
        if is_taken_down(row):
            raise RejectedError(Reason.TAKEN_DOWN, DETAIL)
        self.refuse_taken(row, row["sha256"])

    def refuse_taken(self, row: Row, digest: str | None) -> None:
        """Raise `RejectedError` if a tombstone names the row's source."""
        if self.taken.names_source(row["uri"], digest):
            raise RejectedError(Reason.TAKEN_DOWN, SAME_SOURCE)


def refuse_curated(row: Row) -> None:
    """Raise `RejectedError` if the catalog refuses the row."""
    reason = row.get("refused_reason")
    if reason is not None:
        raise RejectedError(Reason(reason), row.get("refused_detail") or CURATED)
