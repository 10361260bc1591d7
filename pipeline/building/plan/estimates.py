"""Estimated totals, and how a sample of rows is extrapolated to all of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmint.operators.intervals import bootstrap_mean, wilson

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Estimate:
    """A total with its 95 % interval from a sample; both ends are `value` where nothing was extrapolated."""

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Estimate":
        """The estimate times a factor."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def plus(self, other: "Estimate") -> "Estimate":
        """The sum of two estimates, of which not both have an interval."""
        return Estimate(self.value + other.value, self.low + other.low, self.high + other.high)

    def shifted(self, more: float) -> "Estimate":
        """The estimate plus a constant."""
        return Estimate(self.value + more, self.low + more, self.high + more)


def exactly(value: float) -> Estimate:
    """A total that is known, not estimated."""
    return Estimate(value, value, value)


def column(values: Sequence[float]) -> Floats:
    """One number for each sampled row, shape (rows,)."""
    return np.asarray(values, np.float64)


class Extrapolation:
    """From the rows of a sample to all rows: the mean, and its spread when the sample is drawn again and again.

    Each interval is one of 95 %. Where every row was sampled there is nothing to extrapolate.
    """

    def __init__(self, rows: int, sampled: int) -> None:
        self._rows = rows
        self._sampled = sampled

    def total(self, values: Floats) -> Estimate:
        """The total over all rows of a quantity, given for each sampled row.

        The spread is the bootstrap's percentile interval (Efron 1979): of two rows the lesser and the greater. It says
        nothing about rows unlike all those sampled.
        """
        total = float(values.mean()) * self._rows
        if self._sampled >= self._rows:
            return exactly(total)
        low, high = bootstrap_mean(values)
        return Estimate(total, low * self._rows, high * self._rows)

    def count(self, fits: Floats) -> Estimate:
        """The number of all rows that fit, from 1 or 0 for each sampled row.

        Wilson's score interval (1927): rows may be refused even if none of the sample's was.
        """
        total = float(fits.mean()) * self._rows
        if self._sampled >= self._rows:
            return exactly(total)
        low, high = wilson(float(fits.sum()), self._sampled)
        return Estimate(total, low * self._rows, high * self._rows)
