"""The answer of an audit survives JSON; anything else is refused."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from segmint.catalogs.findings import Code, FindingCollector, FindingLocation
from segmint.infra.errors import UsageError
from segmint.pipeline.quality.audit.result import (
    AuditReport,
    CheckedCounts,
    Duplicates,
    from_json,
    read_audit,
    to_dict,
    to_json,
)
from tests.support.locations import location_of

st.register_type_strategy(float, st.floats(allow_nan=False, allow_infinity=False))
st.register_type_strategy(date, st.dates())


def small() -> AuditReport:
    findings = FindingCollector()
    findings.add(FindingLocation("masks/x.parquet", 3, 2).finding(Code.MASK_AREA, 7, 8, "mask 20003", mask=20003))
    findings.add(FindingLocation("dataset.json").finding(Code.BAD_MANIFEST, "a", "b"))
    return AuditReport(
        dataset="a dataset",
        scope="all",
        kind="segmint",
        shards=4,
        sample=100,
        findings=findings.collected(),
        checked=CheckedCounts(commits=3, files=12),
        not_built=((3, 3),),
        recent_unnamed=("shards/x.tar",),
        other_files=("README.md",),
        not_compared=(1,),
        unusable_commits=(2,),
        notes=("a note",),
        duplicates=Duplicates(6, 2, repeated_sources=None, similar=1),
    )


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.builds(replace, st.from_type(AuditReport), scope=st.just("all")))
def test_every_answer_survives(report: AuditReport) -> None:
    assert from_json(to_json(report), "audit.json") == report


def test_keys_stay_where_they_are() -> None:
    value = to_dict(small())
    assert list(value) == [
        "dataset",
        "scope",
        "kind",
        "version",
        "shards",
        "sample",
        "findings_total",
        "findings_by_code",
        "findings",
        "checked",
        "not_built",
        "files_of_writers",
        "other_files",
        "not_compared",
        "unusable_commits",
        "replaced",
        "notes",
        "not_checked",
        "unfinished",
        "licenses",
        "privacy",
        "duplicates",
        "statistics",
        "redactions",
        "unsearched",
        "verdict",
    ]
    assert value["findings_by_code"] == {"bad_manifest": 1, "mask_area": 1}
    assert value["findings"][1] == {
        "code": "mask_area",
        "shard": 3,
        "file": "masks/x.parquet",
        "where": "mask 20003",
        "image": 2,
        "mask": 20003,
        "expected": "7",
        "found": "8",
    }
    integrity = to_dict(replace(small(), scope="integrity", duplicates=None))
    assert set(value) - set(integrity) == {
        "licenses",
        "privacy",
        "duplicates",
        "statistics",
        "redactions",
        "unsearched",
        "verdict",
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scope": "some"}, "is not an audit: scope: "),
        ({"findings": [{}]}, "without their image"),
        ({"findings": 3}, "is not a list of objects"),
        ({"findings_by_code": {"no_such_code": 1}}, "is not an audit: findings.counts.no_such_code"),
        ({"statistics": {"images": 1}}, "is not an audit: statistics.masks: Field required"),
    ],
)
def test_anything_else_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        from_json(json.dumps({**to_dict(small()), **changes}), "audit.json")


@pytest.mark.parametrize("text", ["", "no JSON at all", "[]", "{}", "[" * 100_000, '{"dataset": "x"}'])
def test_what_is_no_audit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="is not an audit"):
        from_json(text, "audit.json")


def test_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        read_audit(location_of(tmp_path / "none.json"))
