"""The rounds of an engine as an answer: its values, and how they are written as text and JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from segmint.catalogs.dataset.manifest import Weights
from segmint.catalogs.lineage import DIGITS, HeldOut, Round, describe_rounds
from segmint.infra.wording import count, counted, number
from segmint.operators.schemas import AUTOMATIC

NOTHING = "-"
"""What a cell shows where there is nothing to say."""


@dataclass(frozen=True)
class RoundStatus:
    """One dataset: a row of the table."""

    dataset: str
    name: str
    round: int  # how many trainings led to its weights
    lineage: int  # datasets of one number have weights that come one from another
    weights: Weights
    trainings: tuple[Round, ...]  # the lineage of its weights; empty in round 0
    shards: int  # committed
    shards_of: int
    images: int
    masks: int
    by_source: Mapping[str, int]  # masks
    timed: int  # masks with their time
    seconds: float  # over these

    @property
    def chain(self) -> tuple[str, ...]:
        """The SHA-256 of all weights from the first of its lineage to those that made it."""
        return tuple(link.weights for link in self.trainings) or (self.weights.sha256,)

    @property
    def held_out(self) -> HeldOut | None:
        """What was measured before and after the training of its weights; None if nothing was."""
        return self.trainings[-1].held_out if self.trainings else None

    @property
    def masks_per_image(self) -> float | None:
        """Masks an image; None without images."""
        return self.masks / self.images if self.images else None

    @property
    def seconds_per_mask(self) -> float | None:
        """Active seconds of a person a mask, over the masks with a time; None if no mask has one."""
        return self.seconds / self.timed if self.timed else None

    def to_dict(self) -> dict[str, Any]:
        """Return the row for JSON."""
        return {
            "dataset": self.dataset,
            "name": self.name,
            "lineage": self.lineage,
            "round": self.round,
            "complete": self.shards == self.shards_of,
            "shards": self.shards,
            "shards_of": self.shards_of,
            "images": self.images,
            "masks": self.masks,
            "masks_by_source": dict(self.by_source),
            "masks_per_image": self.masks_per_image,
            "masks_timed": self.timed,
            "seconds_per_mask": self.seconds_per_mask,
            "weights": self.weights.model_dump(mode="json"),
            "trainings": [link.model_dump(mode="json") for link in self.trainings],
            "held_out": None if self.held_out is None else self.held_out.model_dump(mode="json"),
        }


@dataclass(frozen=True)
class EngineStatus:
    """Datasets by lineage, and in a lineage by round."""

    rows: tuple[RoundStatus, ...]

    @property
    def lineages(self) -> int:
        """How many lineages the datasets have."""
        return len({row.lineage for row in self.rows})

    def to_dict(self) -> dict[str, Any]:
        """Return the answer for JSON."""
        return {"lineages": self.lineages, "rounds": [row.to_dict() for row in self.rows]}

    def lines(self) -> list[str]:
        """Return the answer as lines for people."""
        table = self._table()
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        head, *body = [_line(cells, widths) for cells in table]
        lines = []
        for lineage, members in groupby(zip(self.rows, body, strict=True), key=lambda pair: pair[0].lineage):
            rows = list(members)
            if lineage > 1:
                lines.append("")
            if self.lineages > 1:
                lines.append(f"lineage {lineage} of {self.lineages}: {_whose([row for row, _ in rows])}")
            lines += [head, *(line for _, line in rows)]
            longest = max((row.trainings for row, _ in rows), key=len)
            lines += describe_rounds(longest)
        return [*lines, *self._notes()]

    def _table(self) -> list[list[str]]:
        """Return the head and a row for each dataset; sources that no mask has are left out."""
        sources = [name for name in self.rows[0].by_source if any(row.by_source.get(name) for row in self.rows)]
        head = ["round", "dataset", "images", "masks", *sources, "masks/image", "s/mask", "mIoU at 1 click", "held out"]
        table = [head]
        for row in self.rows:
            held = row.held_out
            table.append(
                [
                    str(row.round),
                    row.name,
                    count(row.images),
                    count(row.masks),
                    *(count(row.by_source.get(name, 0)) for name in sources),
                    _number(row.masks_per_image),
                    _number(row.seconds_per_mask),
                    NOTHING if held is None else f"{held.before:.3f} → {held.after:.3f}",
                    NOTHING if held is None else count(held.images),
                ]
            )
        return table

    def _notes(self) -> Iterator[str]:
        for row in self.rows:
            if row.shards < row.shards_of:
                yield f"{row.name} is not complete: {row.shards:,} of {counted(row.shards_of, 'shard')} committed"
        for row in self.rows:
            people = sum(masks for source, masks in row.by_source.items() if source != AUTOMATIC)
            if 0 < row.timed < people:
                yield f"{row.name}: {row.timed:,} of {counted(people, 'mask')} of people have a time"


def _whose(rows: list[RoundStatus]) -> str:
    """Say which weights a lineage begins with, and how far it goes."""
    longest = max(rows, key=lambda row: len(row.chain))
    begun = longest.trainings[0].name if longest.trainings else longest.weights.name
    return f"{begun} (SHA-256 {longest.chain[0][:DIGITS]}), {counted(longest.round, 'training')}"


def _number(value: float | None) -> str:
    return NOTHING if value is None else number(value)


def _line(cells: list[str], widths: list[int]) -> str:
    """Return a line of the table: round and name on the left, figures on the right."""
    left = [cell.ljust(width) for cell, width in zip(cells[:2], widths[:2], strict=True)]
    right = [cell.rjust(width) for cell, width in zip(cells[2:], widths[2:], strict=True)]
    return "  ".join([*left, *right]).rstrip()
