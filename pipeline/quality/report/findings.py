"""Findings of an audit for a report, grouped by area and code, with the images that they refer to."""

from collections.abc import Iterable
from dataclasses import dataclass

from segmint.catalogs.findings import AREAS, INTEGRITY, SENTENCES, Finding, Findings


@dataclass(frozen=True)
class FindingGroup:
    """Findings with the same code. `total` is their number, and `rows` contains the first of them."""

    code: str
    sentence: str
    total: int
    rows: tuple[Finding, ...]

    @property
    def more(self) -> int:
        """Number of findings that are counted but not listed."""
        return self.total - len(self.rows)


def groups_of(findings: Findings, area: str) -> list[FindingGroup]:
    """Group the findings of an area (`integrity`, `licenses`, `privacy`, or `duplicates`) by code."""
    return [
        FindingGroup(code.value, SENTENCES[code], total, tuple(each for each in findings if each.code == code))
        for code, total in sorted(findings.counts.items())
        if AREAS.get(code, INTEGRITY) == area
    ]


def images_of(findings: Iterable[Finding]) -> list[int]:
    """Return the distinct ids of the images that findings refer to, in order."""
    return list(dict.fromkeys(finding.image for finding in findings if finding.image is not None))
