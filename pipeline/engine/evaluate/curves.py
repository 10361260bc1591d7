"""Curves over a few values as positions in percent of a frame, with bands for their intervals. Templates draw them."""

import math
from dataclasses import dataclass

from segmint.operators.intervals import Interval
from segmint.pipeline.serving.documents import Tick


@dataclass(frozen=True)
class Curve:
    """One line: values from 0 to 1, None where there is none. `color` is 0 or 1; `dashed` sets it apart."""

    name: str
    values: tuple[float, ...]
    intervals: tuple[Interval | None, ...] = ()
    color: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Curves:
    """Curves over the same values of x, evenly spaced, in order. `summary` is for screen readers."""

    title: str
    x_label: str
    y_label: str
    x: tuple[str, ...]
    curves: tuple[Curve, ...]
    summary: str

    @property
    def low(self) -> float:
        """The value at the bottom of the axis: a tenth below all values and intervals."""
        values = [value for curve in self.curves for value in curve.values]
        ends = [interval[0] for curve in self.curves for interval in curve.intervals if interval is not None]
        return max(0.0, min(0.9, math.floor(10 * min(values + ends) - 1e-9) / 10))

    @property
    def x_ticks(self) -> list[Tick]:
        """Each value of x."""
        return [Tick(self._across(place), text) for place, text in enumerate(self.x)]

    @property
    def y_ticks(self) -> list[Tick]:
        """Round percentages."""
        span = 1 - self.low
        step = 0.1 if span <= 0.5 + 1e-9 else 0.2
        count = math.floor(span / step + 1e-9)
        values = [1 - index * step for index in range(count + 1)]
        return [Tick(round(100 * (value - self.low) / span, 2), f"{100 * value:.0f}") for value in values]

    def path(self, curve: Curve) -> str:
        """A curve as an SVG path in a 100 x 100 frame."""
        return "M" + " L".join(f"{self._across(place):g} {self._down(v):g}" for place, v in enumerate(curve.values))

    def band(self, curve: Curve) -> str:
        """The intervals of a curve as a closed SVG path; empty if one is unknown."""
        known = [interval for interval in curve.intervals if interval is not None]
        if len(known) != len(curve.values) or len(known) < 2:
            return ""
        upper = [f"{self._across(place):g} {self._down(each[1]):g}" for place, each in enumerate(known)]
        lower = [f"{self._across(place):g} {self._down(each[0]):g}" for place, each in enumerate(known)]
        return f"M{' L'.join([*upper, *reversed(lower)])} Z"

    def _across(self, place: int) -> float:
        return 50.0 if len(self.x) < 2 else round(100 * place / (len(self.x) - 1), 2)

    def _down(self, value: float) -> float:
        return round(100 - 100 * (value - self.low) / (1 - self.low), 2)
