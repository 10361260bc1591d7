"""An audit's findings as a report shows them: by area and code, with the images they refer to."""

from collections.abc import Iterable
from dataclasses import dataclass

from segmint.catalogs.findings import AREAS, INTEGRITY, SENTENCES, Finding, Findings


@dataclass(frozen=True)
class FindingGroup:
    """The findings of one code: `total` of them, the first of which are in `rows`."""

    code: str
    sentence: str
    total: int
    rows: tuple[Finding, ...]

    @property
    def more(self) -> int:
        """How many are counted but not listed."""
        return self.total - len(self.rows)


def groups_of(findings: Findings, area: str) -> list[FindingGroup]:
    """Return the findings of an area (`integrity`, `licenses`, `privacy` or `duplicates`) by code."""
    return [
        FindingGroup(code.value, SENTENCES[code], total, tuple(each for each in findings if each.code == code))
        for code, total in sorted(findings.counts.items())
        if AREAS.get(code, INTEGRITY) == area
    ]


def images_of(findings: Iterable[Finding]) -> list[int]:
    """Return the ids of the images that findings refer to, each once, in order."""
    return list(dict.fromkeys(finding.image for finding in findings if finding.image is not None))
