"""Sums about redaction over a dataset's images."""

from segmint.catalogs.dataset.commits import MOST_REDACTED
from segmint.catalogs.dataset.redaction_totals import HIGH_SHARE, RedactionTotals
from segmint.catalogs.dataset.tables import DatasetTables

_SUMS = f"""
SELECT coalesce(sum(len(unconfirmed_detections)), 0)::BIGINT AS unconfirmed,
       coalesce(sum(len(left_alone)), 0)::BIGINT AS left_alone,
       count(*) FILTER (redacted_share > {HIGH_SHARE}) AS highly_redacted
FROM images
"""
_WORST = f"""
SELECT image_id, redacted_share FROM images WHERE redacted_share > {HIGH_SHARE}
ORDER BY redacted_share DESC, id LIMIT {MOST_REDACTED}
"""


def sum_redactions(tables: DatasetTables) -> RedactionTotals:
    """Sum the redaction columns of `images`. Datasets of format 3 lack them, so all sums are 0."""
    (sums,) = tables.query(_SUMS).to_pylist()
    worst = [(row["image_id"], row["redacted_share"]) for row in tables.query(_WORST).to_pylist()]
    return RedactionTotals(**sums, worst=tuple(worst))
