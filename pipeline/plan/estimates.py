"""Estimated totals, and how a sample of rows is extrapolated to all of them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
"""How often a sample's rows are drawn again, with repetition, for the spread of an estimate."""

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
        random = np.random.default_rng(0)  # the same sample gives the same interval
        means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
        low, high = np.percentile(means, [2.5, 97.5])
        return Estimate(total, float(low) * self._rows, float(high) * self._rows)

    def count(self, fits: Floats) -> Estimate:
        """The number of all rows that fit, from 1 or 0 for each sampled row.

        Wilson's score interval (1927): rows may be refused even if none of the sample's was.
        """
        total = float(fits.mean()) * self._rows
        if self._sampled >= self._rows:
            return exactly(total)
        sampled, share, square = self._sampled, float(fits.mean()), 1.96**2
        middle = (share + square / (2 * sampled)) / (1 + square / sampled)
        half = math.sqrt(share * (1 - share) * square / sampled + (square / (2 * sampled)) ** 2) / (
            1 + square / sampled
        )
        return Estimate(total, max(0.0, middle - half) * self._rows, min(1.0, middle + half) * self._rows)
