"""Several datasets side by side: a table with a row for each, in the order in which they are given."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from segmint.catalogs.lineage import DIGITS, describe_rounds
from segmint.infra.wording import count, counted, duration, listed, number
from segmint.operators.schemas import SOURCES
from segmint.pipeline.building.status.result import Status, unread_line

NOTHING = "-"
"""What a cell shows where there is nothing to say."""


@dataclass(frozen=True)
class StatusTable:
    """The status of several datasets."""

    rows: Sequence[Status]

    @property
    def complete(self) -> bool:
        """Whether every shard of every dataset is committed."""
        return all(row.complete for row in self.rows)

    @property
    def lineages(self) -> list[int]:
        """The number of each dataset's lineage, from 1: datasets of one number have weights derived from each other.

        A lineage is the longest chain of weights among the datasets, and all whose weights are on it; then the longest
        among the others. Of equally long ones, that of the dataset which was given first comes first.
        """
        chains = [row.chain for row in self.rows]
        numbers = [0] * len(chains)
        number = 0
        while 0 in numbers:
            number += 1
            left = [place for place, taken in enumerate(numbers) if not taken]
            longest = max((chains[place] for place in left), key=len)
            for place in left:
                if chains[place] == longest[: len(chains[place])]:
                    numbers[place] = number
        return numbers

    def to_dict(self) -> dict[str, Any]:
        """Return the table for JSON."""
        numbers = self.lineages
        rows = [{**row.to_dict(), "lineage": lineage} for row, lineage in zip(self.rows, numbers, strict=True)]
        return {"lineages": max(numbers), "datasets": rows}

    def lines(self) -> list[str]:
        """Return the table for people, with what led to the weights below it; columns that say nothing are left out."""
        columns = [[head, *cells] for head, cells in self._columns() if set(cells) != {NOTHING}]
        first, *others = ([cell.rjust(max(map(len, cells))) for cell in cells] for cells in columns)
        names = [cell.strip().ljust(len(cell)) for cell in first]
        table = ["  ".join(cells).rstrip() for cells in zip(names, *others, strict=True)]
        return [*table, *self._lineage_lines(), *self._notes()]

    def _columns(self) -> Iterator[tuple[str, list[str]]]:
        rows, lineages = self.rows, self.lineages
        names = {row.name for row in rows}
        yield "dataset", [row.name if len(names) == len(rows) else row.dataset for row in rows]
        if max(lineages) > 1:
            yield "lineage", list(map(str, lineages))
        yield "round", [str(row.round) for row in rows]
        yield "shards", [f"{row.totals.shards:,} of {row.totals.shards + len(row.totals.missing):,}" for row in rows]
        yield "images", [count(row.totals.written) for row in rows]
        yield "rejected", [count(sum(row.totals.rejected.values())) for row in rows]
        yield "masks", [count(row.totals.masks) for row in rows]
        for source in SOURCES:
            if any(row.masks_by_source.get(source) for row in rows):
                yield source, [count(row.masks_by_source.get(source, 0)) for row in rows]
        yield "masks/image", [_number(row.masks_per_image) for row in rows]
        yield "s/mask", [_number(row.people.seconds_per_mask) for row in rows]
        yield "time left", [NOTHING if row.complete else duration(row.seconds_left) for row in rows]
        yield "cost left", [NOTHING if row.complete else _number(row.cost_left) for row in rows]
        held = [row.held_out for row in rows]
        yield "mIoU at 1 click", [NOTHING if one is None else f"{one.before:.3f} → {one.after:.3f}" for one in held]
        yield "held out", [NOTHING if one is None else count(one.images) for one in held]

    def _lineage_lines(self) -> Iterator[str]:
        """Yield the trainings of each lineage, those of its longest chain of weights."""
        numbers = self.lineages
        for lineage in range(1, max(numbers) + 1):
            rows = [row for row, number in zip(self.rows, numbers, strict=True) if number == lineage]
            longest = max(rows, key=lambda row: len(row.chain))
            if max(numbers) > 1:
                begun = longest.trainings[0].name if longest.trainings else longest.weights.name
                weights = f"{begun} (SHA-256 {longest.chain[0][:DIGITS]})"
                yield f"lineage {lineage}: {weights}, {counted(longest.round, 'training')}"
            yield from describe_rounds(longest.trainings)

    def _notes(self) -> Iterator[str]:
        for row in self.rows:
            people = row.people
            if 0 < people.timed < people.masks:
                yield f"{row.name}: {people.timed:,} of {counted(people.masks, 'mask')} of people have a time"
            if people.unread:
                yield f"{row.name}: {unread_line(people)}"
            on_hold = sum(gap.shards for gap in row.gaps)
            noted = [f"{counted(on_hold, 'shard')} on hold"] if on_hold else []
            noted += [f"{one.name} unusual" for one in (row.drift.compared if row.drift else ()) if one.unusual]
            if noted:
                yield f"{row.name}: {listed(noted)}; see `segmint status {row.dataset}`"


def _number(value: float | None) -> str:
    return NOTHING if value is None else number(value)
