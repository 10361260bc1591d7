"""Histograms whose bins DuckDB fills."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload


@dataclass(frozen=True)
class Bins:
    """`count` equal bins from `low` to `high` over the values of an SQL expression, or over its logarithm to base 2.

    A bin holds its lower edge; the last one its upper edge too. What lies outside counts in the first or last bin.
    """

    low: float
    high: float
    count: int
    log2: bool = False

    @cached_property
    def edges(self) -> tuple[float, ...]:
        """The `count` + 1 edges, in the values' own scale."""
        steps = [self.low + (self.high - self.low) * index / self.count for index in range(self.count + 1)]
        return tuple(2.0**step if self.log2 else round(step, 12) for step in steps)

    def index(self, value: str) -> str:
        """The SQL expression of a value's bin; null if the value is null."""
        scaled = f"log2({value})" if self.log2 else value
        scale = self.count / (self.high - self.low)
        place = f"floor(least(greatest(({scaled} - {self.low}) * {scale!r}, 0), {self.count - 1}))::INTEGER"
        return f"CASE WHEN {value} IS NOT NULL THEN {place} END"  # least and greatest pass over null

    def counts(self, found: Mapping[int, int], first: int = 0) -> tuple[int, ...]:
        """Counts by bin from the answer of `histogram`, whose bins are numbered from `first`."""
        return tuple(found.get(first + index, 0) for index in range(self.count))


def as_counts(histogram: Any) -> dict[int, int]:
    """DuckDB's map of a histogram, as Arrow gives it (pairs, or None over no value), as a dictionary."""
    return {int(key): int(count) for key, count in histogram or ()}


@overload
def rounded(value: float) -> float: ...
@overload
def rounded(value: float | None) -> float | None: ...
def rounded(value: float | None) -> float | None:
    """A mean as it is reported: threads add in any order, so the last digits differ from run to run."""
    return None if value is None else round(value, 9)
