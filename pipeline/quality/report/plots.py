"""Plots of a report as values for templates: positions of bars, steps, and cells in percent of the frame."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from segmint.infra.wording import number
from segmint.pipeline.quality.statistics.values import Centers, Histogram
from segmint.pipeline.serving.documents import Tick

_LEVELS = 24  # shades of a heat map
_MOST_TICKS = 7  # maximum number of ticks on an axis of ratios
_CLOSE = 0.08  # minimum distance of such an axis's ticks from its ends, as a share of the axis
_EVEN = 1e-6  # relative difference of bin widths that still counts as equal


@dataclass(frozen=True)
class Bar:
    """Row of a bar plot. `share` and `paper` are from 0 to 1, or None if unknown. `text` follows the bar."""

    label: str
    share: float | None
    text: str
    paper: float | None = None


@dataclass(frozen=True)
class Bars:
    """Bar plot whose longest bar fills the width. With `has_paper`, each row has a second bar for `paper`."""

    label: str  # heading of the row labels
    value: str  # heading of the texts
    rows: tuple[Bar, ...]
    has_paper: bool = False
    paper: str = "SA-1B"  # name of the dataset that the second bar shows

    def width(self, share: float | None) -> float:
        """Return the length of a bar in percent of the frame."""
        longest = 0.0
        for row in self.rows:
            longest = max(longest, row.share or 0, row.paper or 0)
        if not share or not longest:
            return 0.0
        return round(100 * share / longest, 2)


@dataclass(frozen=True)
class StepHistogram:
    """Histogram that is drawn as steps. Each bin lies between neighboring `edges` and has a share from 0 to 1.

    `other` contains the shares of a second dataset, `other_name`, or is empty.
    """

    title: str
    x_label: str
    y_label: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    mean: float | None
    other: tuple[float, ...] = ()
    other_name: str = ""

    @property
    def top(self) -> float:
        """Share at the top of the axis."""
        return _rounded_up(max(*self.shares, *self.other))

    @property
    def x_ticks(self) -> list[Tick]:
        """Ticks of the horizontal axis.

        They are at round numbers, or at some of the edges if the bins have different widths. On an axis of ratios,
        where edges grow by a constant factor, the labels look like `1/3`, `1`, `3`.
        """
        if not self._even:
            if (values := _ratio_ticks(self.edges)) is not None:
                span = math.log(self.edges[-1] / self.edges[0])
                return [Tick(round(100 * math.log(value / self.edges[0]) / span, 3), _ratio(value)) for value in values]
            step = max(1, (len(self.edges) - 1) // 4)
            return [Tick(self._at(index), number(self.edges[index])) for index in range(0, len(self.edges), step)]
        low, high = self.edges[0], self.edges[-1]
        step_size = _round_step(high - low)
        first = math.ceil(low / step_size - _EVEN)
        last = math.floor(high / step_size + _EVEN)
        values = [index * step_size for index in range(first, last + 1)]
        return [Tick(round(100 * (value - low) / (high - low), 3), number(value)) for value in values]

    @property
    def y_ticks(self) -> list[Tick]:
        """Ticks of the vertical axis, in percent of the total."""
        return [Tick(at, f"{number(100 * self.top * at / 100)}%") for at in (0.0, 50.0, 100.0)]

    @property
    def bins(self) -> list[str]:
        """Range of each bin, as text."""
        return [f"{number(low)} to {number(high)}" for low, high in pairwise(self.edges)]

    @property
    def summary(self) -> str:
        """One-sentence summary of the plot for screen readers."""
        place = max(range(len(self.shares)), key=self.shares.__getitem__)
        return (
            f"Histogram of {len(self.shares)} bins, {self.x_label}: the largest bin, {self.bins[place]}, contains "
            f"{number(100 * self.shares[place])}%"
        )

    @property
    def positions(self) -> list[float]:
        """Position of each edge, in percent of the frame from the left."""
        return list(map(self._at, range(len(self.edges))))

    def path(self, closed: bool = False, other: bool = False) -> str:
        """Convert the steps to an SVG path in a 100 x 100 frame. `closed` adds the bottom edge."""
        points = []
        shares = self.other if other else self.shares
        for share, (left, right) in zip(shares, pairwise(self.positions), strict=True):
            height = round(100 - 100 * share / self.top, 2)
            points += [(left, height), (right, height)]
        drawn = "M" + " L".join(f"{x:g} {y:g}" for x, y in points)
        if closed:
            drawn += " L100 100 L0 100 Z"
        return drawn

    @property
    def _even(self) -> bool:
        widths = [high - low for low, high in pairwise(self.edges)]
        return all(abs(width - widths[0]) <= _EVEN * abs(widths[0]) for width in widths)

    def _at(self, index: int) -> float:
        """Return the position of an edge, in percent."""
        low, high = self.edges[0], self.edges[-1]
        share = index / (len(self.edges) - 1)
        if self._even:
            share = (self.edges[index] - low) / (high - low)
        return round(100 * share, 3)


@dataclass(frozen=True)
class Cell:
    """Rectangle of adjacent cells with the same shade, measured in cells.

    Each side of the frame has `HeatMap.bins` cells.
    """

    x: int
    y: int
    width: int
    opacity: float


@dataclass(frozen=True)
class HeatMap:
    """Heat map of counts over a square frame. Rows are from top to bottom."""

    title: str
    counts: tuple[tuple[int, ...], ...]

    @property
    def bins(self) -> int:
        """Number of cells per side."""
        return len(self.counts)

    @property
    def cells(self) -> list[Cell]:
        """Nonempty cells. The highest count has the darkest shade."""
        most = max(map(max, self.counts))
        found: list[Cell] = []
        for y, row in enumerate(self.counts):
            levels = [math.ceil(_LEVELS * count / most) for count in row]
            start = 0
            for x in range(1, len(levels) + 1):
                if x < len(levels) and levels[x] == levels[start]:
                    continue
                if levels[start]:
                    found.append(Cell(start, y, x - start, round(levels[start] / _LEVELS, 3)))
                start = x
        return found

    @property
    def summary(self) -> str:
        """One-sentence summary of the plot for screen readers."""
        inner = sum(share for row in self.coarse()[1:3] for share in row[1:3])
        return f"Heat map of {self.title.lower()}: {number(100 * inner)}% are in the inner quarter of the image"

    def coarse(self, parts: int = 4) -> list[list[float]]:
        """Sum the shares over `parts` x `parts` fields, for a table that people can read."""
        total = sum(map(sum, self.counts))
        bounds = [round(self.bins * part / parts) for part in range(parts + 1)]
        fields = []
        for up, down in pairwise(bounds):
            rows = self.counts[up:down]
            fields.append([sum(sum(row[left:right]) for row in rows) / total for left, right in pairwise(bounds)])
        return fields


def histogram(statistic: Histogram, title: str, x_label: str, y_label: str) -> StepHistogram | None:
    """Convert a histogram to steps, or return None if it has no counts."""
    if not statistic.counts or not sum(statistic.counts):
        return None
    return StepHistogram(title, x_label, y_label, statistic.edges, shares_of(statistic.counts), statistic.mean)


def heat_map(centers: Centers, title: str) -> HeatMap | None:
    """Convert the mask centers to a heat map, or return None if there are no counts."""
    if not any(map(sum, centers.counts)):
        return None
    return HeatMap(title, centers.counts)


def shares_of(counts: Sequence[float]) -> tuple[float, ...]:
    """Divide counts by their sum, which must be positive."""
    total = sum(counts)
    return tuple(count / total for count in counts)


def _rounded_up(value: float) -> float:
    """Round a positive value up, by at most a factor of 1.5, to a number that is easy to halve."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        factor * power for factor in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if factor * power >= value * (1 - _EVEN)
    )


def _ratio_ticks(edges: Sequence[float]) -> list[float] | None:
    """Choose ticks for edges that grow by a constant factor from below 1 to above 1. Return None for other edges.

    The ticks are powers of two. If there would be too many of them, the ticks are 1, 3, 10, 30, and so on, with their
    inverses. In this case, each end of the axis that is a power of two is a tick as well.
    """
    low, high = edges[0], edges[-1]
    if not 0 < low < 1 < high:
        return None
    factors = [after / before for before, after in pairwise(edges)]
    if any(abs(factor - factors[0]) > _EVEN * factors[0] for factor in factors):
        return None
    twos = [2.0**power for power in range(math.ceil(math.log2(low) - _EVEN), math.floor(math.log2(high) + _EVEN) + 1)]
    if len(twos) <= _MOST_TICKS:
        return twos
    most = max(high, 1 / low)
    ups = list[float]()
    for power in range(math.ceil(math.log10(most)) + 1):
        ups += [10.0**power, 3 * 10.0**power]
    room = (high / low) ** _CLOSE  # ticks closer to an end than this factor would overlap its label
    ends = [end for end in (low, high) if math.isclose(end, 2.0 ** round(math.log2(end)), rel_tol=_EVEN)]
    inner = [value for value in (*(1 / up for up in ups[1:]), *ups) if low * room < value < high / room]
    return sorted([*ends, *inner])


def _ratio(value: float) -> str:
    """Format a ratio: `1/32` below 1, and `3` above."""
    if value < 1:
        return f"1/{number(1 / value)}"
    return number(value)


def _round_step(span: float) -> float:
    """Choose a distance between ticks that results in three to six ticks."""
    power = 10.0 ** math.floor(math.log10(span))
    return next(factor * power for factor in (0.1, 0.2, 0.25, 0.5, 1, 2) if span / (factor * power) <= 5 + _EVEN)
