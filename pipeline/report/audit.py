"""What a report is made from: an audit with the dataset's statistics."""

import json
from collections.abc import Mapping
from typing import Any

from segmint.catalogs.dataset.tables import DatasetTables
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.pipeline.statistics.statistics import compute_statistics

_KEYS = ("dataset", "scope", "findings_total", "findings_by_code", "findings", "checked", "not_compared")
_AREAS = ("licenses", "privacy", "duplicates", "statistics")


def read_audit(uri: str, storage: Storage) -> dict[str, Any]:
    """Read the audit that `segmint audit --json` wrote to `uri`; raises `UsageError` for anything else.

    An area that was not audited, as with `--integrity-only`, is None.
    """
    expected = "expected what `segmint audit --json -o FILE` writes"
    try:
        audit = json.loads(storage.read(uri))
    except ValueError as error:
        raise UsageError(f"{uri} is not JSON: {error}; {expected}") from error
    missing = [key for key in _KEYS if not isinstance(audit, dict) or key not in audit]
    if missing:
        raise UsageError(f"{uri} is not an audit: no {missing[0]}; {expected}")
    if not all(isinstance(finding, dict) and "image" in finding for finding in audit["findings"]):
        raise UsageError(f"{uri} has findings that do not name their image: audit again; {expected}")
    return {**dict.fromkeys(_AREAS), "notes": [], **audit}


def damaged_shards(audit: Mapping[str, Any]) -> frozenset[int]:
    """Return the shards whose files are damaged, which the audit left out of its statistics."""
    return frozenset(audit["not_compared"])


def with_statistics(audit: Mapping[str, Any], where: str, tables: DatasetTables, sample: int) -> dict[str, Any]:
    """Return the audit with statistics, computing them if it has none.

    `where` names the audit in errors. Raises `UsageError` if the audit is of other images than `tables`.
    """
    left_out = sorted(damaged_shards(audit))
    statistics = audit["statistics"]
    if statistics is None:
        statistics = compute_statistics(tables, sample).to_dict()
    elif not left_out:
        for view in ("images", "masks"):
            there = int(tables.query(f"SELECT count(*) FROM {view}").column(0)[0].as_py())
            if statistics[view] != there:
                raise UsageError(
                    f"{where} has {statistics[view]:,} {view}, {tables.location} has {there:,}: audit it again"
                )
    return {**audit, "statistics": statistics, "left_out": left_out}
