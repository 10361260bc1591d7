"""An audit's findings as a report shows them: by area and code, with the images they refer to."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from segmint.catalogs.findings import AREAS, INTEGRITY, SENTENCES

_SENTENCES = {str(code): sentence for code, sentence in SENTENCES.items()}
_AREAS = {str(code): area for code, area in AREAS.items()}


@dataclass(frozen=True)
class FoundRow:
    """One finding; `image` is the id of the image it refers to, or None."""

    shard: int | None
    file: str
    where: str
    expected: str
    found: str
    image: int | None


@dataclass(frozen=True)
class FoundGroup:
    """The findings of one code: `total` of them, the first of which are in `rows`."""

    code: str
    sentence: str
    total: int
    rows: tuple[FoundRow, ...]

    @property
    def more(self) -> int:
        """How many are counted but not listed."""
        return self.total - len(self.rows)


def area_of(code: str) -> str:
    """Return the area that a code belongs to: `integrity`, `licenses`, `privacy` or `duplicates`."""
    return _AREAS.get(code, INTEGRITY)


def groups_of(audit: Mapping[str, Any], area: str) -> list[FoundGroup]:
    """Return the findings of an area by code, in the audit's order."""
    rows: dict[str, list[FoundRow]] = {}
    for finding in audit["findings"]:
        rows.setdefault(finding["code"], []).append(_row(finding))
    return [
        FoundGroup(code, _SENTENCES.get(code, ""), total, tuple(rows.get(code, ())))
        for code, total in audit["findings_by_code"].items()
        if area_of(code) == area
    ]


def images_of(findings: Iterable[Mapping[str, Any]]) -> list[int]:
    """Return the ids of the images that findings refer to, each once, in order."""
    found = (finding["image"] for finding in findings)
    return list(dict.fromkeys(image for image in found if image is not None))


def _row(finding: Mapping[str, Any]) -> FoundRow:
    return FoundRow(*(finding[name] for name in ("shard", "file", "where", "expected", "found", "image")))
