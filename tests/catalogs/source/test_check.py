"""What `segmint catalog check` finds before a build."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.source.check import EXAMPLES, SameFiles, check
from segmint.catalogs.source.collect import DEMO_LICENSES, write_demo
from segmint.catalogs.source.normalize import stage_catalog
from segmint.infra.errors import UsageError
from tests.support.locations import location_of

DAY = date(2026, 6, 1)


def catalog(path: Path, *rows: dict[str, object]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_hostile_rows_are_findings_and_secrets_are_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "c.parquet"
    uris = ["a%0Ab.jpg", "s3://vendor/../x", "ftp://h/x", "gs://bucket/x.jpg", "e.jpg", "f.jpg"]
    licenses = ["CC0-1.0"] * 4 + ["https://user:hunter2@host/", "CC0-1.0"]
    days = pa.array([None] * 5 + [2**31 - 1], pa.int32()).cast(pa.date32())
    pq.write_table(pa.table({"uri": uris, "license": licenses, "valid_until": days}), path)
    found = check(location_of(path), LicensePolicy(frozenset({"CC0-1.0"}), False, DAY))
    assert found.refused_uris.rows == [1, 2, 3]
    assert found.verdicts["uri_not_allowed"].rows == [1, 2, 3]
    assert found.bad_values.rows == [4, 6]
    assert not found.clean
    text = "\n".join(found.lines())
    for part in ("row 6, column valid_until: found the date 5881580", "install gcsfs", "'https://[redacted]@host/'"):
        assert part in text
    assert "hunter2" not in text


def test_findings_list_their_rows(tmp_path: Path) -> None:
    uri = catalog(
        tmp_path / "c.jsonl",
        {"uri": "1.jpg", "license": "CC-BY-4.0"},
        {"uri": "2.jpg", "license": "cc-by-4.0", "valid_until": "2026-05-31"},
        {"uri": "3.jpg"},
        {"uri": "4.jpg", "license": "CC-BY", "image_id": "1.jpg"},
        {"uri": "../5.jpg", "license": "CC0-1.0"},
        {"uri": "6.jpg", "license": "CC-BY-4.0", "country": "Norway", "valid_until": "soon"},
    )
    found = check(location_of(uri), LicensePolicy(frozenset({"CC-BY-4.0"}), False, DAY))
    assert found.rows == 6
    assert found.by_license == {"CC-BY-4.0": 3, "CC0-1.0": 1}
    assert found.missing_license.rows == [3]
    assert (found.unknown_licenses["CC-BY"].rows, found.unknown_licenses["CC-BY"].suggestion) == ([4], "CC-BY-4.0")
    assert found.expired.rows == [2]
    assert found.duplicates.rows == [4]
    assert found.refused_uris.rows == [5]
    assert (found.bad_values.count, found.bad_values.rows) == (1, [6])
    assert len(found.problems) == 2
    assert {reason: finding.rows for reason, finding in found.verdicts.items()} == {
        "license_expired": [2],
        "license_missing": [3],
        "duplicate_id": [4],
        "license_not_allowed": [5],
    }
    assert found.accepted == 2
    assert not found.clean
    text = "\n".join(found.lines())
    for part in (
        "6 rows, 2 of them",
        "'CC-BY' is not a license identifier; did you mean CC-BY-4.0?",
        "row 6, column country",
    ):
        assert part in text
    assert json.loads(json.dumps(found.to_dict()))["clean"] is False


def test_rows_that_are_opted_out_are_refused_unless_the_policy_says_otherwise(tmp_path: Path) -> None:
    rows = ({"uri": f"{i}.jpg", "license": "CC0-1.0", "opt_out": value} for i, value in enumerate([True, False, None]))
    uri = catalog(tmp_path / "c.jsonl", *rows)
    policy = LicensePolicy(frozenset({"CC0-1.0"}), False, DAY)
    found = check(location_of(uri), policy)
    assert {reason: finding.rows for reason, finding in found.verdicts.items()} == {"opted_out": [1]}
    assert (found.accepted, found.clean) == (2, False)
    assert check(location_of(uri), replace(policy, respect_opt_out=False)).accepted == 3


def test_a_good_catalog_is_clean(tmp_path: Path) -> None:
    uri = catalog(tmp_path / "c.jsonl", {"uri": "1.jpg", "license": "CC0-1.0", "valid_until": "2026-06-01"})
    found = check(location_of(uri), today=DAY)
    assert found.clean
    assert found.accepted == found.rows == 1


def test_a_text_that_is_no_license_is_not_acceptable_without_a_policy(tmp_path: Path) -> None:
    licenses = ["https://creativecommons.org/licenses/by/2.0/", "CC BY 2.0", "pdm", "cc-by-2.0", "LicenseRef-acme"]
    rows = ({"uri": f"{row}.jpg", "license": license} for row, license in enumerate(licenses))
    found = check(location_of(catalog(tmp_path / "c.jsonl", *rows)))
    assert found.accepted == 2
    assert found.verdicts["license_not_allowed"].rows == [1, 2, 3]
    assert "'https://creativecommons.org/licenses/by/2.0/' is not a license identifier; did you mean CC-BY-2.0?" in (
        "\n".join(found.lines())
    )


def test_all_rows_are_counted_and_the_first_are_listed(tmp_path: Path) -> None:
    uri = catalog(tmp_path / "c.jsonl", *({"uri": f"{i}.jpg", "license": ""} for i in range(50)))
    found = check(location_of(uri), today=DAY)
    assert found.missing_license.count == 50
    assert found.missing_license.rows == list(range(1, EXAMPLES + 1))


def test_a_file_that_is_not_a_catalog_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'license' is missing"):
        check(location_of(catalog(tmp_path / "c.jsonl", {"uri": "a"})))


def test_the_demo_as_its_configuration_would_judge_it(tmp_path: Path) -> None:
    uri = str(write_demo(tmp_path))
    found = check(location_of(uri), LicensePolicy(frozenset(DEMO_LICENSES), True, DAY))
    assert {reason: finding.rows for reason, finding in found.verdicts.items()} == {
        "license_not_allowed": [3],
        "license_expired": [5],
        "duplicate_id": [8],
    }
    assert not found.problems
    assert found.accepted == 5  # one of them is broken, which shows only when it is read


def test_what_the_catalog_refuses_is_counted_and_is_no_finding(tmp_path: Path) -> None:
    uri = catalog(
        tmp_path / "c.jsonl",
        {"uri": "1.jpg", "license": "CC0-1.0"},
        {"uri": "2.jpg", "license": "CC0-1.0", "refused_reason": "unfit"},
        {"uri": "3.jpg", "license": "MIT", "refused_reason": "opted_out", "refused_detail": "by its owner"},
    )
    found = check(location_of(uri), LicensePolicy(frozenset({"CC0-1.0"}), False, DAY))
    assert (found.accepted, found.verdicts, found.clean) == (1, {}, True)
    assert {reason: each.rows for reason, each in found.refused.items()} == {"opted_out": [3], "unfit": [2]}
    assert "rejected by the catalog: unfit: 1 (row 2)" in found.lines()


def test_rows_with_the_same_digest_or_uri_share_a_group(tmp_path: Path) -> None:
    rows = [
        {"uri": "a.jpg", "sha256": "0" * 64},
        {"uri": "b.jpg"},
        {"uri": "c.jpg", "sha256": "0" * 64},
        {"uri": "a.jpg", "image_id": "another", "sha256": "1" * 64},
        {"uri": "d.jpg"},
    ]
    catalog = tmp_path / "c.jsonl"
    catalog.write_text("".join(json.dumps({"license": "CC0-1.0", **row}) + "\n" for row in rows))
    staged, _ = stage_catalog(location_of(catalog), tmp_path)
    with SameFiles(staged, tmp_path) as same:
        first, rest = same.between(0, 2), same.between(2, 5)
    assert {ordinal: sorted(groups) for ordinal, groups in first.items()} == {0: [-1, 0]}
    assert rest == {2: (0,), 3: (-1,)}


def test_names_of_folders_are_neither_patterns_nor_values(tmp_path: Path) -> None:
    folder = tmp_path / "image_id=a" / "uri=b*"
    folder.mkdir(parents=True)
    rows: list[dict[str, object]] = [{"uri": f"{name}.jpg", "license": "CC0-1.0"} for name in "abc"]
    found = check(location_of(catalog(folder / "c.jsonl", *rows, {**rows[0], "image_id": "d"})), temporary=folder)
    assert (found.accepted, found.duplicates.count) == (4, 0)
    assert found.audit["repeated_source"].rows == [4]
