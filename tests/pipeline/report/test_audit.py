"""An audit that was made before is taken only if it is one, and of this dataset."""

import json
from pathlib import Path

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.pipeline.report.audit import damaged_shards, read_audit, with_statistics
from segmint.pipeline.statistics.open_tables import open_tables
from tests.support.locations import location_of

INTEGRITY = {
    "dataset": "x",
    "scope": "integrity",
    "findings_total": 0,
    "findings_by_code": {},
    "findings": [],
    "checked": {},
    "not_compared": [4, 2],
}


@pytest.mark.parametrize(
    ("written", "told"),
    [
        ("no JSON at all", "is not JSON"),
        ("[1, 2]", "is not an audit"),
        ('{"dataset": "x"}', "is not an audit: no scope"),
        (json.dumps({**INTEGRITY, "findings": [{"where": "id 1"}]}), "do not name their image"),
    ],
)
def test_what_is_no_audit_is_refused(tmp_path: Path, written: str, told: str) -> None:
    path = tmp_path / "audit.json"
    path.write_text(written)
    with pytest.raises(UsageError, match=told):
        read_audit(str(path), Storage())


def test_an_area_that_was_not_looked_at_is_none(tmp_path: Path) -> None:
    path = tmp_path / "audit.json"
    path.write_text(json.dumps(INTEGRITY))
    read = read_audit(str(path), Storage())
    assert {key: read[key] for key in ("licenses", "privacy", "duplicates", "statistics")} == {
        "licenses": None,
        "privacy": None,
        "duplicates": None,
        "statistics": None,
    }
    assert damaged_shards(read) == {2, 4}


def test_the_statistics_of_an_audit_are_taken_if_they_are_of_these_images(reported: str) -> None:
    with open_tables(location_of(reported)) as tables:
        computed = with_statistics({"statistics": None, "not_compared": []}, "audit.json", tables, 10)
        assert computed["statistics"]["images"] == 6
        computed["statistics"]["without_masks"] = 12345
        assert with_statistics(computed, "audit.json", tables, 10) == computed
        computed["statistics"]["masks"] += 1
        with pytest.raises(UsageError, match=r"audit.json has 11 masks, .* has 10: audit it again"):
            with_statistics(computed, "audit.json", tables, 10)


def test_damaged_shards_are_left_out(reported: str) -> None:
    audit = {"statistics": None, "not_compared": [1]}
    with open_tables(location_of(reported), leave_out=damaged_shards(audit)) as tables:
        found = with_statistics(audit, "audit.json", tables, 10)
    assert found["left_out"] == [1]
    assert found["statistics"]["images"] == 3
