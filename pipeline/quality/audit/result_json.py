"""Reader and writer of an audit's result as JSON."""

import json
from typing import Any

from pydantic import TypeAdapter, ValidationError

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import json_text
from segmint.pipeline.quality.audit.result import AuditReport
from segmint.pipeline.quality.audit.result_text import not_checked, verdict
from segmint.pipeline.quality.statistics.values import json_value

_HEAD = ("dataset", "scope", "kind", "version", "shards", "sample")
_FINDING = ("code", "shard", "file", "where", "image", "mask", "expected", "found")
_AREAS = ("licenses", "privacy", "duplicates", "statistics", "redactions")
_NEEDED = (
    *("dataset", "scope", "findings_total", "findings_by_code", "findings"),
    *("checked", "files_of_writers", "not_compared"),
)
_EXPECTED = "expected the output of `segmint audit DATASET --json -o FILE`"
_ADAPTER = TypeAdapter(AuditReport)


def to_dict(report: AuditReport) -> dict[str, Any]:
    """Convert the result to a JSON object. It counts all findings, but only lists the first findings of each code."""
    areas = _AREAS if report.scope == "all" else ()
    return {
        **{name: json_value(getattr(report, name)) for name in _HEAD},
        "findings_total": report.findings.total,
        "findings_by_code": {str(code): count for code, count in sorted(report.findings.counts.items())},
        "findings": [{name: getattr(finding, name) for name in _FINDING} for finding in report.findings],
        "checked": json_value(report.checked),
        "not_built": json_value(report.not_built),
        "files_of_writers": json_value(report.recent_unnamed),
        "other_files": json_value(report.other_files),
        "not_compared": json_value(report.not_compared),
        "unusable_commits": json_value(report.unusable_commits),
        "replaced": json_value(report.replaced),
        "notes": json_value(report.notes),
        "not_checked": not_checked(report),
        "unfinished": json_value(report.unfinished),
        **{area: json_value(getattr(report, area)) for area in areas},
        **({"unsearched": json_value(report.unsearched), "verdict": verdict(report)} if areas else {}),
    }


def to_json(report: AuditReport) -> str:
    """Return the result as `segmint audit --json` prints it."""
    return json_text(to_dict(report))


def from_json(data: str | bytes, where: str) -> AuditReport:
    """Parse JSON from `to_json`. Raises `UsageError`, which names the source `where`, for any other text."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not an audit: not JSON: {error}; {_EXPECTED}") from error
    missing = [key for key in _NEEDED if not isinstance(value, dict) or key not in value]
    if missing:
        raise UsageError(f"{where} is not an audit: no {missing[0]}; {_EXPECTED}")
    findings = value["findings"]
    if not isinstance(findings, list) or not all(isinstance(each, dict) for each in findings):
        raise UsageError(f"{where} is not an audit: findings is not a list of objects; {_EXPECTED}")
    if not all("image" in finding for finding in findings):
        raise UsageError(f"{where} contains findings without their image. Audit again; {_EXPECTED}")
    try:
        return _ADAPTER.validate_python(
            {
                **value,
                "findings": {"counts": value["findings_by_code"], "kept": findings},
                "recent_unnamed": value["files_of_writers"],
            }
        )
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(map(str, first["loc"]))
        raise UsageError(f"{where} is not an audit: {name}: {first['msg']}; {_EXPECTED}") from error


def read_audit(file: Location) -> AuditReport:
    """Read a result from a file. Raises `UsageError` if the file is missing or isn't a result."""
    try:
        data = file.read()
    except NotFoundError as error:
        raise UsageError(f"{file} does not exist. Create it with `segmint audit DATASET --json -o FILE`") from error
    return from_json(data, str(file))
