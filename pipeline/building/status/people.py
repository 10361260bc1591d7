"""Counts of annotated masks for `segmint status`, from the tables of shards that changed since their build.

A build commits generation 1, which contains only automatic masks. Annotated masks are added in later generations.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.storage.errors import NotFoundError
from segmint.operators.schemas import AUTOMATIC


@dataclass(frozen=True)
class People:
    """Numbers and times of annotated masks in some shards."""

    by_source: Mapping[str, int]
    timed: int = 0  # masks with a recorded time
    seconds: float = 0.0  # total time of these masks
    unread: int = 0  # tables that couldn't be read

    @property
    def masks(self) -> int:
        """Number of masks from all sources."""
        return sum(self.by_source.values())

    @property
    def seconds_per_mask(self) -> float | None:
        """Annotators' active seconds per mask with a recorded time, or None if no mask has a recorded time."""
        return self.seconds / self.timed if self.timed else None

    def __add__(self, other: "People") -> "People":
        by_source = Counter(self.by_source) + Counter(other.by_source)
        return People(by_source, self.timed + other.timed, self.seconds + other.seconds, self.unread + other.unread)


NOBODY = People({})


def count_people(dataset: Dataset, commit: Commit) -> People:
    """Count the annotated masks of a shard.

    If the table is damaged or a correction has replaced it, count it as unread.
    """
    try:
        sources = dataset.table(commit, "masks", ["source"]).column("source")
        if not set(sources.unique().to_pylist()) - {AUTOMATIC, None}:
            return NOBODY
        table = dataset.table(commit, "masks", ["source", "seconds", "parent", "prompts"])
        rows = table.filter(pc.not_equal(table.column("source"), AUTOMATIC)).to_pylist()
    except (NotFoundError, DamagedDatasetError, KeyError):
        return People({}, unread=1)
    times = [
        row["seconds"]
        for row in rows
        if row["seconds"] is not None and isfinite(row["seconds"]) and not _is_untouched(row)  # else 0 s
    ]
    return People(Counter(row["source"] for row in rows), len(times), sum(times))


def _is_untouched(mask: Mapping[str, Any]) -> bool:
    """Return whether a mask was prefilled from a detector's box and nobody spent time on it.

    This follows the rule of `assignments.is_untouched`.
    """
    prompts = mask["prompts"] or []
    boxed = len(prompts) == 1 and prompts[0]["kind"] == "box"
    return mask["source"] == "assisted" and mask["parent"] is None and mask["seconds"] == 0 and boxed
