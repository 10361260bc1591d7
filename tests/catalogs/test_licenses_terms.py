"""What is wrong with an image's license terms; the audit's own tests have the days."""

from datetime import date

from segmint.catalogs.findings import Code
from segmint.catalogs.licenses import LicensePolicy, judge_terms

POLICY = LicensePolicy(frozenset({"CC-BY-4.0"}), require_redistributable=True, policy_date=date(2026, 1, 1))


def test_a_row_may_have_two_findings() -> None:
    row = {"license": "CC-BY-4.0", "redistributable": None, "valid_until": None, "attribution": " "}
    found = list(judge_terms(row, POLICY, date(2026, 2, 1)))
    assert [each.code for each in found] == [Code.NOT_REDISTRIBUTABLE, Code.MISSING_ATTRIBUTION]
    assert (found[1].expected, found[1].found) == ("an attribution, as CC-BY-4.0 requires", "none")
