"""Histograms that DuckDB computes."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload


@dataclass(frozen=True)
class Bins:
    """Bins of equal width between `low` and `high`, for the values of an SQL expression or their base-2 logarithms.

    A bin includes its lower edge, and the last bin its upper edge, too. A value outside the range counts in the nearest
    bin.
    """

    low: float
    high: float
    count: int
    log2: bool = False

    @cached_property
    def edges(self) -> tuple[float, ...]:
        """The `count` + 1 edges of the bins, in the scale of the values."""
        steps = [self.low + (self.high - self.low) * index / self.count for index in range(self.count + 1)]
        return tuple(2.0**step if self.log2 else round(step, 12) for step in steps)

    def index(self, value: str) -> str:
        """Return an SQL expression for the index of a value's bin. It is null if the value is null."""
        scaled = f"log2({value})" if self.log2 else value
        scale = self.count / (self.high - self.low)
        place = f"floor(least(greatest(({scaled} - {self.low}) * {scale!r}, 0), {self.count - 1}))::INTEGER"
        return f"CASE WHEN {value} IS NOT NULL THEN {place} END"  # because least and greatest ignore nulls

    def counts(self, found: Mapping[int, int], first: int = 0) -> tuple[int, ...]:
        """Convert the result of `histogram` to counts per bin. `first` is the number of the first bin."""
        return tuple(found.get(first + index, 0) for index in range(self.count))


def as_counts(histogram: Any) -> dict[int, int]:
    """Convert DuckDB's histogram map from Arrow (pairs, or None for no values) to a dictionary."""
    return {int(key): int(count) for key, count in histogram or ()}


@overload
def rounded(value: float) -> float: ...
@overload
def rounded(value: float | None) -> float | None: ...
def rounded(value: float | None) -> float | None:
    """Round a mean for reports. Its last digits depend on the order in which threads add numbers."""
    return None if value is None else round(value, 9)
