"""What an audit will find, known from the catalog."""

from datetime import date

from segmint.catalogs.findings import Code
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.source.check import SHOWN_URIS, CatalogFinding, CatalogFindings, CatalogJudge, Notice, Terms

BEGUN, TODAY = date(2026, 1, 1), date(2026, 6, 1)
POLICY = LicensePolicy(frozenset({"CC-BY-4.0"}), require_redistributable=False, policy_date=BEGUN)


def terms(until: date | None = None, attributed: bool = True, redistributable: bool | None = True) -> Terms:
    return Terms("CC-BY-4.0", redistributable, until, None, attributed)


def judge_of(policy: LicensePolicy | None = POLICY) -> CatalogJudge:
    return CatalogJudge(CatalogFindings("c.csv", 0, BEGUN), policy, TODAY)


def test_rows_are_judged_on_the_day_of_the_audit() -> None:
    judge = judge_of()
    for row, each in enumerate([terms(TODAY), terms(BEGUN), terms(attributed=False), terms(attributed=False)], 1):
        judge.look(row, f"{row}.jpg", each, "NO", refused="filtered" if row == 4 else None)
    assert {code: found.rows for code, found in judge.findings.audit.items()} == {
        Code.LICENSE_EXPIRED: [2],
        Code.MISSING_ATTRIBUTION: [3],
    }
    assert judge.findings.notices == {}
    unknown = judge_of(None)
    unknown.look(1, "1.jpg", terms(BEGUN, attributed=False), "NO")
    assert list(unknown.findings.audit) == [Code.MISSING_ATTRIBUTION]


def test_the_same_file_counts_once_it_was_accepted() -> None:
    judge = judge_of()
    for row, (sources, duplicate) in enumerate([((0,), True), ((0, -1), False), ((-1,), False), ((7,), False)], 1):
        judge.look(row, f"{row}.jpg", terms(), "NO", sources, duplicate)
    assert judge.findings.audit[Code.REPEATED_SOURCE].rows == [3]


def test_notices_are_of_paths_buckets_redistribution_and_countries() -> None:
    findings = judge_of().findings
    judge = CatalogJudge(findings, POLICY, TODAY)
    rows = [("/home/ann/1.jpg", True, "NO"), ("FILE:///x/2.jpg", None, "ZZ"), ("s3://A_B/3.jpg", False, None)]
    for row, (uri, redistributable, country) in enumerate(rows, 1):
        judge.look(row, uri, terms(redistributable=redistributable), country)
    assert {notice: found.rows for notice, found in findings.notices.items()} == {
        Notice.LOCAL_PATH: [1, 2],
        Notice.UNUSUAL_BUCKET: [3],
        Notice.REDISTRIBUTION_UNKNOWN: [2],
        Notice.UNKNOWN_COUNTRY: [2],
        Notice.NO_COUNTRY: [3],
    }
    assert findings.audit == {}
    assert any("an absolute path on this machine" in line for line in findings.lines())


def test_a_finding_counts_all_and_names_the_first() -> None:
    found = CatalogFinding()
    for row in range(1, 31):
        found.add(row, f"{row}.jpg")
    assert (found.count, len(found.rows), len(found.uris)) == (30, 20, SHOWN_URIS)
    assert found.named().endswith("19, 20, …)")
