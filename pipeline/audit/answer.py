"""What an audit answers: its findings, what it looked at to make them, and what it counted on the way."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from segmint.catalogs.findings import AREAS, INTEGRITY, SENTENCES, Finding, Findings
from segmint.infra.wording import counted, some
from segmint.pipeline.audit.lines import area_lines
from segmint.pipeline.audit.places import image_of


@dataclass
class Checked:
    """How much an audit looked at; counts of different shards add up."""

    commits: int = 0
    catalog_parts: int = 0
    catalog_rows: int = 0  # rows of images and rejects that were compared with the catalog
    files: int = 0  # of commits, read whole and hashed
    bytes: int = 0
    images: int = 0  # rows
    rejects: int = 0  # rows
    masks: int = 0  # rows, each measured from its run lengths
    jsons: int = 0  # compared with the tables
    jpegs: int = 0  # looked through for their size and metadata
    jpegs_decoded: int = 0
    masks_decoded: int = 0

    def add(self, other: "Checked") -> None:
        """Adds what was looked at elsewhere."""
        for name, count in asdict(other).items():
            setattr(self, name, getattr(self, name) + count)


@dataclass
class AuditReport:
    """The answer of an audit.

    `not_built` are ranges [first, last] of shards without a commit: a build's rest, and no finding. `young` are files
    that no commit names and that a writer may yet name. `not_compared` are shards in which a file is damaged or rows
    are out of place, so that what stands on these was not compared; `doubtful` those whose commit cannot be used.
    `areas` is None where integrity alone was asked for: else what was counted of licenses, privacy, duplicates and
    statistics as JSON has it, each None where it cannot be known.
    """

    dataset: str
    sample: int
    shards: int  # that the whole dataset has
    findings: Findings = field(default_factory=Findings)
    checked: Checked = field(default_factory=Checked)
    not_built: Sequence[tuple[int, int]] = ()
    young: Sequence[str] = ()
    not_compared: list[int] = field(default_factory=list)
    doubtful: Sequence[int] = ()
    kind: str = "segmint"
    areas: Mapping[str, Any] | None = None
    notes: list[str] = field(default_factory=list)  # what else a person should know of this audit

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON has it. All findings are counted; of each code the first are listed."""
        return {
            "dataset": self.dataset,
            "scope": "integrity" if self.areas is None else "all",
            "kind": self.kind,
            "shards": self.shards,
            "sample": self.sample,
            "findings_total": self.findings.total,
            "findings_by_code": {str(code): count for code, count in sorted(self.findings.counts.items())},
            "findings": [{**finding.to_dict(), "image": self._image(finding)} for finding in self.findings],
            "checked": asdict(self.checked),
            "not_built": [list(span) for span in self.not_built],
            "files_of_writers": list(self.young),
            "not_compared": self.not_compared,
            "notes": list(self.notes),
            **(self.areas or {}),
        }

    def lines(self) -> list[str]:
        """The answer as a person reads it: each finding, what was not looked at, and the totals last."""
        lines = []
        for code, count in sorted(self.findings.counts.items()):
            kept = self.findings.kept[code]
            lines.append(f"{code}: {count:,} ({SENTENCES[code]})")
            lines += [f"  {finding.line()}" for finding in kept]
            if count > len(kept):
                lines.append(f"  and {count - len(kept):,} more")
        lines += self._notes()
        if self.areas is None:
            return [*lines, f"{self._totals()}; {self._sum()}"]
        if lines:
            lines.append("")
        found = self._by_area()
        lines += area_lines(self._totals(), self.checked.images, self.areas, found)
        return [*lines, self._verdict(found)]

    def _image(self, finding: Finding) -> int | None:
        return image_of(finding.where) if self.kind == "segmint" else finding.image

    def _notes(self) -> list[str]:
        notes = []
        if self.not_built:
            spans = [f"{a}" if a == b else f"{a} to {b}" for a, b in self.not_built]
            missing = sum(b - a + 1 for a, b in self.not_built)
            notes.append(f"not yet built: {missing:,} of {self.shards:,} shards ({some(spans)})")
        if self.young:
            notes.append(
                f"{counted(len(self.young), 'file')} that no commit names, of a writer that is at work or was killed "
                f"(less than a day old, or of shards that have no commit): {some(self.young)}"
            )
        if self.not_compared:
            shards = some([str(shard) for shard in self.not_compared])
            notes.append(f"files not compared with one another, for what is named above, in shards: {shards}")
        return [*notes, *self.notes]

    def _totals(self) -> str:
        checked = self.checked
        if self.kind != "segmint":
            return f"measured {counted(checked.images, 'image')} and {counted(checked.masks, 'mask')}"
        parts = [
            counted(checked.commits, "commit"),
            counted(checked.catalog_parts, "catalog part"),
            f"{counted(checked.files, 'file')} ({checked.bytes:,} bytes)",
            counted(checked.images, "image"),
            counted(checked.rejects, "refused row"),
            counted(checked.masks, "mask"),
            f"{counted(checked.jpegs_decoded, 'JPEG')} and {counted(checked.masks_decoded, 'mask')} decoded",
        ]
        return f"checked {', '.join(parts)}"

    def _sum(self) -> str:
        total = self.findings.total
        return counted(total, "finding") if total else "no finding"

    def _by_area(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for code, count in self.findings.counts.items():
            found[AREAS.get(code, INTEGRITY)] += count
        return found

    def _verdict(self, found: "Counter[str]") -> str:
        if not found:
            return "verdict: no finding"
        return f"verdict: {self._sum()} ({', '.join(f'{count:,} in {area}' for area, count in found.most_common())})"
