"""Rows of images against the policy: what is judged, what it is judged by, and the counts."""

from datetime import date
from typing import Any

from segmint.catalogs.findings import Code, FindingLocation
from segmint.catalogs.licenses import LicensePolicy
from segmint.pipeline.quality.audit.content import LicenseCounts, LicenseRules, audit_licenses
from segmint.pipeline.quality.audit.result import AssertedLicense, Licenses, LicenseVerdict
from segmint.pipeline.quality.statistics.values import ProviderImages

BUILT, TODAY = date(2026, 1, 1), date(2026, 6, 1)
POLICY = LicensePolicy(frozenset({"CC0-1.0", "CC-BY-4.0"}), require_redistributable=False, policy_date=BUILT)
RULES = LicenseRules(POLICY, TODAY)
PLACE = FindingLocation("images/x.parquet", 3)


def image(ordinal: int, **values: Any) -> dict[str, Any]:
    row = {"license": "CC0-1.0", "attribution": None, "provider": "Acme"}
    return {"ordinal": ordinal, "id": ordinal + 1, **row, **values}


def source(row: dict[str, Any], **values: Any) -> dict[str, Any]:
    return {**row, "redistributable": None, "valid_until": None, **values}


def judged(rows: list[dict[str, Any]], catalog: list[dict[str, Any]] | None, rules: LicenseRules = RULES):
    counts = LicenseCounts()
    known = None if catalog is None else {row["ordinal"]: row for row in catalog}
    findings = list(audit_licenses(rows, known, rules, PLACE, counts))
    return [(finding.code, finding.where) for finding in findings], counts


def test_the_last_day_of_a_license_counts_and_the_build_s_day_tells_since_when() -> None:
    rows = [image(ordinal) for ordinal in range(4)]
    days = [None, TODAY, date(2026, 5, 31), date(2025, 12, 31)]
    found, counts = judged(rows, [source(row, valid_until=day) for row, day in zip(rows, days, strict=True)])
    assert found == [(Code.LICENSE_EXPIRED, "id 3"), (Code.LICENSE_EXPIRED, "id 4")]
    assert (counts.expired, counts.expired_since_build) == (2, 1)


def test_the_catalog_s_row_is_judged_and_the_image_s_row_is_counted() -> None:
    row = image(0, license="MIT")
    assert judged([row], [source(row, license="CC0-1.0")])[0] == []
    found, counts = judged([row], [source(row)])
    assert found == [(Code.LICENSE_NOT_ALLOWED, "id 1")]
    assert counts.licenses == {"MIT": 1}


def test_without_a_catalog_the_image_s_row_is_judged_by_its_license_alone() -> None:
    strict = LicenseRules(LicensePolicy(POLICY.allow, True, BUILT), TODAY)
    rows = [image(0), image(1, license=None), image(2, license="CC-BY-4.0")]
    assert judged(rows, None, strict)[0] == [(Code.LICENSE_NOT_ALLOWED, "id 2"), (Code.MISSING_ATTRIBUTION, "id 3")]
    found, _ = judged([rows[0]], [source(rows[0])], strict)
    assert found == [(Code.NOT_REDISTRIBUTABLE, "id 1")]


def test_counts_add_up_and_rank() -> None:
    _, one = judged([image(0), image(1, license="MIT", provider=None)], None)
    _, other = judged([image(2), image(3, license="CC-BY-4.0")], None)
    one.add(other)
    assert one.answer(RULES) == Licenses(
        judged_on=date(2026, 6, 1),
        by_license=(
            LicenseVerdict("CC0-1.0", 2, allowed=True),
            LicenseVerdict("CC-BY-4.0", 1, allowed=True),
            LicenseVerdict("MIT", 1, allowed=False),
        ),
        by_provider=(ProviderImages("Acme", 3), ProviderImages(None, 1)),
        expired=0,
        expired_since_build=0,
        without_attribution=1,
    )


def test_a_license_that_ended_on_the_build_s_day_held_then() -> None:
    row = image(0)
    _, counts = judged([row], [source(row, valid_until=BUILT)])
    assert (counts.expired, counts.expired_since_build) == (1, 1)


def test_asserted_licenses_are_counted_by_who_asserted_them() -> None:
    rows = [image(0), image(1), image(2), image(3, license="CC-BY-4.0"), image(4)]
    who = ("Ann", None, "Jo, 2026-05-01", "Ann", "Jo, 2026-05-01")
    catalog = [source(row, license_asserted=name) for row, name in zip(rows, who, strict=True)]
    _, counts = judged(rows, catalog)
    assert counts.answer(RULES).asserted == (
        AssertedLicense("CC0-1.0", "Jo, 2026-05-01", 2),
        AssertedLicense("CC-BY-4.0", "Ann", 1),
        AssertedLicense("CC0-1.0", "Ann", 1),
    )


def test_a_blank_is_not_an_attribution() -> None:
    row = image(0, license="CC-BY-4.0")
    found, _ = judged([row], [source(row, attribution="  ")])
    assert found == [(Code.MISSING_ATTRIBUTION, "id 1")]
