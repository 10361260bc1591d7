"""Judgment of an accepted image's terms: its license, and the attribution that the license requires.

The audit uses this to judge the images of a dataset. Before a build, `segmint catalog check` and `plan` use it to judge
the rows of a catalog.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from segmint.catalogs.attributions import asks_for_attribution
from segmint.catalogs.findings import Code
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.reasons import Reason

_CODES = {
    Reason.LICENSE_MISSING: Code.LICENSE_NOT_ALLOWED,
    Reason.LICENSE_NOT_ALLOWED: Code.LICENSE_NOT_ALLOWED,
    Reason.LICENSE_EXPIRED: Code.LICENSE_EXPIRED,
    Reason.NOT_REDISTRIBUTABLE: Code.NOT_REDISTRIBUTABLE,
    Reason.OPTED_OUT: Code.OPTED_OUT,
}


@dataclass(frozen=True)
class TermsFinding:
    """Problem with the terms of an image. `since_build` is true if the license expired after the policy date."""

    code: Code
    expected: str
    found: str
    since_build: bool = False


def judge_terms(row: Mapping[str, Any], policy: LicensePolicy, today: date) -> Iterator[TermsFinding]:
    """Judge a row by the dataset's policy as of the day `today`, and yield the problems.

    `row` contains `license`, `redistributable`, `valid_until`, and `attribution`, and may contain `opt_out`. The values
    are as in the normalized catalog.
    """
    terms = (row["license"], row["redistributable"], row["valid_until"], row.get("opt_out"))
    verdict = replace(policy, policy_date=today).judge(*terms)
    if verdict is not None:
        reason, detail = verdict
        expected = "a license that the dataset's policy allows"
        since_build = False
        if reason is Reason.LICENSE_EXPIRED:
            since_build = row["valid_until"] >= policy.policy_date
            expected = f"a license that holds on {today.isoformat()}"
            ended = "has ended since the build" if since_build else "had ended before the build"
            detail = f"{row['license']} until {row['valid_until'].isoformat()}, which {ended}"
        elif reason is Reason.OPTED_OUT:
            expected = "no image that the catalog marks as opted out"
        yield TermsFinding(_CODES[reason], expected, detail, since_build)
    yield from judge_attribution(row)


def judge_attribution(row: Mapping[str, Any]) -> Iterator[TermsFinding]:
    """Yield a finding if the row has no attribution although its license requires one."""
    if asks_for_attribution(row["license"]) and not (row["attribution"] or "").strip():
        yield TermsFinding(Code.MISSING_ATTRIBUTION, f"an attribution, as {row['license']} requires", "none")
