"""The audit of licenses: each accepted image against the dataset's policy, on the day of the audit."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date

from segmint.catalogs.attributions import asks_for_attribution
from segmint.catalogs.findings import Code, Finding, Place
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.reasons import Reason
from segmint.operators.rows import Row
from segmint.pipeline.audit.answer import JudgedLicense, Licenses
from segmint.pipeline.statistics.values import ProviderImages

_CODES = {
    Reason.LICENSE_MISSING: Code.LICENSE_NOT_ALLOWED,
    Reason.LICENSE_NOT_ALLOWED: Code.LICENSE_NOT_ALLOWED,
    Reason.LICENSE_EXPIRED: Code.LICENSE_EXPIRED,
    Reason.NOT_REDISTRIBUTABLE: Code.NOT_REDISTRIBUTABLE,
}


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
                JudgedLicense(name, images, allowed=rules.policy.judge(name, True, None) is None)
                for name, images in _ranked(self.licenses)
            ),
            by_provider=tuple(ProviderImages(name, images) for name, images in _ranked(self.providers)),
            expired=self.expired,
            expired_since_build=self.expired_since_build,
            without_attribution=self.without_attribution,
        )


def audit_licenses(
    images: Sequence[Row], catalog: Mapping[int, Row] | None, rules: LicenseRules, place: Place, counts: LicenseCounts
) -> Iterator[Finding]:
    """Findings in rows of `images`, which are added to `counts`.

    An image is judged by the catalog's row of its ordinal, since that is what was licensed; a row of `images` that
    differs is found elsewhere. `catalog` is None if it is damaged: dates and redistribution are then not known.
    """
    today = replace(rules.policy, policy_date=rules.today)
    for row in images:
        counts.licenses[row["license"]] += 1
        counts.providers[row["provider"]] += 1
        known = None if catalog is None else catalog.get(row["ordinal"])
        source = known or {**row, "redistributable": True, "valid_until": None}
        image, where = place.of_image(row["id"]), f"id {row['id']}"
        verdict = today.judge(source["license"], source["redistributable"], source["valid_until"])
        if verdict is not None:
            reason, detail = verdict
            expected = "a license that the dataset's policy allows"
            if reason is Reason.LICENSE_EXPIRED:
                counts.expired += 1
                since_build = source["valid_until"] >= rules.policy.policy_date
                counts.expired_since_build += since_build
                expected = f"a license that holds on {rules.today.isoformat()}"
                ended = "has ended since the build" if since_build else "had ended before the build"
                detail = f"{source['license']} until {source['valid_until'].isoformat()}, which {ended}"
            yield image.finding(_CODES[reason], expected, detail, where)
        if asks_for_attribution(source["license"]) and not (source["attribution"] or "").strip():
            counts.without_attribution += 1
            yield image.finding(Code.MISSING_ATTRIBUTION, f"an attribution, as {source['license']} asks", "none", where)


def _ranked(counts: "Counter[str | None]") -> list[tuple[str | None, int]]:
    return sorted(counts.items(), key=lambda item: (-item[1], item[0] or ""))
