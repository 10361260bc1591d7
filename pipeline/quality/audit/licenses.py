"""The audit of licenses: each accepted image against the dataset's policy, on the day of the audit."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date

from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.terms import judge_terms
from segmint.operators.rows import Row
from segmint.pipeline.quality.audit.result import Licenses, LicenseVerdict
from segmint.pipeline.quality.statistics.values import ProviderImages


@dataclass(frozen=True)
class LicenseRules:
    """The policy of the build, with its day, and the day of the audit."""

    policy: LicensePolicy
    today: date


@dataclass
class LicenseCounts:
    """Accepted images by license and provider, and how many are expired or without attribution; counts add up."""

    licenses: Counter[str | None] = field(default_factory=Counter)
    providers: Counter[str | None] = field(default_factory=Counter)
    expired: int = 0
    expired_since_build: int = 0  # of these, by the build's day they were not
    without_attribution: int = 0  # of the images whose license asks for one

    def add(self, other: "LicenseCounts") -> None:
        """Add what was counted elsewhere."""
        self.licenses += other.licenses
        self.providers += other.providers
        self.expired += other.expired
        self.expired_since_build += other.expired_since_build
        self.without_attribution += other.without_attribution

    def answer(self, rules: LicenseRules) -> Licenses:
        """The counts, the most frequent licenses and providers first."""
        return Licenses(
            judged_on=rules.today,
            by_license=tuple(
                LicenseVerdict(name, images, allowed=rules.policy.judge(name, True, None) is None)
                for name, images in _ranked(self.licenses)
            ),
            by_provider=tuple(ProviderImages(name, images) for name, images in _ranked(self.providers)),
            expired=self.expired,
            expired_since_build=self.expired_since_build,
            without_attribution=self.without_attribution,
        )


def audit_licenses(
    images: Sequence[Row],
    catalog: Mapping[int, Row] | None,
    rules: LicenseRules,
    place: FindingLocation,
    counts: LicenseCounts,
) -> Iterator[Finding]:
    """Findings in rows of `images`, which are added to `counts`.

    An image is judged by the catalog's row of its ordinal, since that is what was licensed; a row of `images` that
    differs is found elsewhere. `catalog` is None if it is damaged: dates and redistribution are then not known.
    """
    for row in images:
        counts.licenses[row["license"]] += 1
        counts.providers[row["provider"]] += 1
        known = None if catalog is None else catalog.get(row["ordinal"])
        source = known or {**row, "redistributable": True, "valid_until": None}
        image = place.of_image(row["id"])
        for each in judge_terms(source, rules.policy, rules.today):
            counts.expired += each.code is Code.LICENSE_EXPIRED
            counts.expired_since_build += each.since_build
            counts.without_attribution += each.code is Code.MISSING_ATTRIBUTION
            yield image.finding(each.code, each.expected, each.found, f"id {row['id']}")


def _ranked(counts: "Counter[str | None]") -> list[tuple[str | None, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0] or ""))
