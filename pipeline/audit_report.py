"""What an audit answers: its findings, and what it looked at to make them."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from catalogs.findings import SENTENCES, Findings

_SHOWN = 10


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
    """The answer of an audit of integrity.

    `not_built` are ranges [first, last] of shards without a commit: a build's rest, and no finding. `young` are files
    that no commit names and that a writer may yet name. `not_compared` are shards in which a file is damaged or rows
    are out of place, so that what stands on these was not compared.
    """

    dataset: str
    sample: int
    shards: int  # that the whole dataset has
    findings: Findings = field(default_factory=Findings)
    checked: Checked = field(default_factory=Checked)
    not_built: Sequence[tuple[int, int]] = ()
    young: Sequence[str] = ()
    not_compared: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """The answer as JSON has it. All findings are counted; of each code the first are listed."""
        return {
            "dataset": self.dataset,
            "scope": "integrity",
            "shards": self.shards,
            "sample": self.sample,
            "findings_total": self.findings.total,
            "findings_by_code": {str(code): count for code, count in sorted(self.findings.counts.items())},
            "findings": [finding.to_dict() for finding in self.findings],
            "checked": asdict(self.checked),
            "not_built": [list(span) for span in self.not_built],
            "files_of_writers": list(self.young),
            "not_compared": self.not_compared,
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
        return [*lines, *self._notes(), self._totals()]

    def _notes(self) -> list[str]:
        notes = []
        if self.not_built:
            spans = [f"{a}" if a == b else f"{a} to {b}" for a, b in self.not_built]
            missing = sum(b - a + 1 for a, b in self.not_built)
            notes.append(f"not yet built: {missing:,} of {self.shards:,} shards ({_some(spans)})")
        if self.young:
            notes.append(
                f"{_counted(len(self.young), 'file')} less than a day old that no commit names, of a writer that is "
                f"at work or was killed: {_some(self.young)}"
            )
        if self.not_compared:
            shards = _some([str(shard) for shard in self.not_compared])
            notes.append(f"files not compared with one another, for what is named above, in shards: {shards}")
        return notes

    def _totals(self) -> str:
        checked = self.checked
        parts = [
            _counted(checked.commits, "commit"),
            _counted(checked.catalog_parts, "catalog part"),
            f"{_counted(checked.files, 'file')} ({checked.bytes:,} bytes)",
            _counted(checked.images, "image"),
            _counted(checked.rejects, "refused row"),
            _counted(checked.masks, "mask"),
            f"{_counted(checked.jpegs_decoded, 'JPEG')} and {_counted(checked.masks_decoded, 'mask')} decoded",
        ]
        total = self.findings.total
        return f"checked {', '.join(parts)}; {_counted(total, 'finding') if total else 'no finding'}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _some(texts: Sequence[str]) -> str:
    more = f", and {len(texts) - _SHOWN:,} more" if len(texts) > _SHOWN else ""
    return ", ".join(texts[:_SHOWN]) + more
