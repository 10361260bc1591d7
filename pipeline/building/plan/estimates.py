"""Estimated totals, and their extrapolation from a sample of rows to all rows."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from segmint.operators.intervals import Floats, mean_intervals, wilson


@dataclass(frozen=True)
class Estimate:
    """Estimated total with its 95% confidence interval. If nothing was extrapolated, both ends equal `value`.

    For a time that wasn't measured, the ends are those of the possible range, and `value` is the slow one.
    """

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Estimate":
        """Return the estimate multiplied by a factor."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def plus(self, other: "Estimate") -> "Estimate":
        """Return the sum of two estimates. At most one of them may have an interval."""
        return Estimate(self.value + other.value, self.low + other.low, self.high + other.high)

    def at_least(self, other: "Estimate") -> "Estimate":
        """Return the larger of two estimates at each end, for stages that run at the same time."""
        return Estimate(max(self.value, other.value), max(self.low, other.low), max(self.high, other.high))


def exactly(value: float) -> Estimate:
    """Return a total that is known exactly."""
    return Estimate(value, value, value)


def column(values: Sequence[float]) -> Floats:
    """Convert one number per sampled row to an array of shape (rows,)."""
    return np.asarray(values, np.float64)


class Extrapolation:
    """Extrapolation from sampled rows to all rows, with 95% confidence intervals.

    If every row was sampled, the totals are exact.
    """

    def __init__(self, rows: int, sampled: int) -> None:
        self._rows = rows
        self._sampled = sampled

    def total(self, values: Floats) -> Estimate:
        """Estimate the total of a quantity over all rows. `values` contains the quantity for each sampled row.

        If there are too few rows for an interval, or all values are equal, the ends are extrapolated from the lowest
        and the highest value. The interval doesn't account for rows that are unlike all sampled rows.
        """
        total = float(values.mean()) * self._rows
        if self._sampled >= self._rows:
            return exactly(total)
        (interval,) = mean_intervals(values[:, None], np.ones(len(values)), limits=(0.0, np.inf))
        low, high = interval or (float(values.min()), float(values.max()))
        return Estimate(total, low * self._rows, high * self._rows)

    def count(self, fits: Floats) -> Estimate:
        """Estimate the number of rows with a property. `fits` contains 1 or 0 for each sampled row.

        The interval is Wilson's (1927). Even if the sample contains no rejected row, this interval allows for some.
        """
        total = float(fits.mean()) * self._rows
        if self._sampled >= self._rows:
            return exactly(total)
        low, high = wilson(float(fits.mean()), self._sampled)
        return Estimate(total, low * self._rows, high * self._rows)
