"""Plots of a report as values for templates: positions of bars, steps, and cells in percent of the frame.

Plots of a report: the statistics and the paper's figures, as values to draw.

Plots of a report as PNG files for slides and papers, with the same values as the page.
"""

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from segmint.catalogs.licenses import countries
from segmint.infra.wording import UNKNOWN, count, number, share
from segmint.pipeline.quality.statistics.values import (
    Centers,
    Concavity,
    FunnelStep,
    GroupImages,
    Histogram,
    Statistics,
)
from segmint.pipeline.serving.documents import Tick

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


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
        for part, (left, right) in zip(shares, pairwise(self.positions), strict=True):
            height = round(100 - 100 * part / self.top, 2)
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


COUNTRIES_SHOWN = 20
_OTHERS_SHOWN = 15
_LABELS_SHOWN = 30
_UNLABELED = "no label"

_MASKS = "share of masks"

_STEPS = {
    "predicted": "predicted",
    "over_iou": "above the IoU threshold",
    "stable": "stable",
    "under_max_area": "below the maximum area",
    "inside_crop": "away from crop edges",
    "after_nms1": "after NMS within crops",
    "after_nms2": "after NMS between crops",
    "written": "written",
}


@dataclass(frozen=True)
class Charts:
    """Plots of a report. A plot is None or empty if its data is unknown."""

    masks_per_image: Bars | None
    relative_size: StepHistogram | None
    concavity: tuple[StepHistogram, ...]
    centers: HeatMap | None
    scores: tuple[StepHistogram, ...]
    funnel: Bars | None
    countries: Bars | None
    regions: Bars | None
    income: Bars | None
    licenses: Bars | None
    providers: Bars | None
    labels: Bars | None
    rejected: Bars | None


def charts_of(statistics: Statistics) -> Charts:
    """Create the plots of the statistics. Unknown values have no plot."""
    scores = (
        histogram(_up_to_1(statistics.predicted_iou), "Predicted IoU", "predicted IoU; above 1 counts as 1", _MASKS),
        histogram(statistics.stability_score, "Stability score", "stability score", _MASKS),
        histogram(statistics.aspect_ratio, "Aspect ratio", "width / height of a mask's box", _MASKS),
        histogram(statistics.coverage, "Coverage", "share of an image's pixels covered by masks", "share of images"),
    )
    geography = statistics.geography
    reasons = statistics.rejected_by_reason or {}
    return Charts(
        masks_per_image=_bars(
            "Masks",
            "Images",
            [(row.label.replace("<=", "≤ ").replace(">", "> "), row.images) for row in statistics.masks_per_image.bins],
        ),
        relative_size=histogram(statistics.relative_size, "Relative size", "√(mask's area / image's area)", _MASKS),
        concavity=_concavity(statistics.concavity),
        centers=heat_map(statistics.centers, "Mask centers"),
        scores=tuple(score for score in scores if score is not None),
        funnel=_funnel(statistics.funnel or ()),
        countries=ranked(
            ((_country_name(row.country), row.images) for row in geography.countries), "Country", COUNTRIES_SHOWN
        ),
        regions=_with_paper(geography.regions, "Region"),
        income=_with_paper(geography.income, "Income level"),
        licenses=ranked(((row.license, row.images) for row in statistics.licenses), "License", _OTHERS_SHOWN),
        providers=ranked(((row.provider, row.images) for row in statistics.providers), "Provider", _OTHERS_SHOWN),
        labels=ranked(
            ((row.label or _UNLABELED, row.masks) for row in statistics.labels), "Label", _LABELS_SHOWN, "Masks"
        ),
        rejected=_bars("Reason", "Rejected rows", sorted(reasons.items(), key=lambda item: (-item[1], item[0]))),
    )


def ranked(counted: Iterable[tuple[str | None, int]], label: str, shown: int, value: str = "Images") -> Bars | None:
    """Convert counts by name to bars, most frequent first. The names after the first `shown` share one bar.

    Returns None without names.
    """
    known = sorted((row for row in counted if row[1]), key=lambda row: (-row[1], str(row[0])))
    if not any(name for name, _ in known):
        return None
    counts = [(name or UNKNOWN, total) for name, total in known[:shown]]
    rest = known[shown:]
    if rest:
        counts.append((f"{len(rest):,} others", sum(total for _, total in rest)))
    return _bars(label, value, counts)


def _bars(label: str, value: str, counts: Sequence[tuple[str, int]]) -> Bars | None:
    """Convert counts to bars of their shares, or return None if all counts are zero."""
    if not sum(total for _, total in counts):
        return None
    shares = shares_of([total for _, total in counts])
    rows = []
    for (name, total), part in zip(counts, shares, strict=True):
        rows.append(Bar(name, part, _with_share(total, part)))
    return Bars(label, value, tuple(rows))


def _with_paper(groups: Sequence[GroupImages], label: str) -> Bars | None:
    """Create bars for regions or income levels, next to the paper's shares."""
    if not any(group.images for group in groups):
        return None
    bars = [Bar(group.name, group.share, _with_share(group.images, group.share), group.paper_share) for group in groups]
    return Bars(label, "Images", tuple(bars), has_paper=True)


def _concavity(concavity: Concavity) -> tuple[StepHistogram, ...]:
    found = []
    for row in concavity.by_size:
        values = Histogram(concavity.edges, row.counts, row.mean)
        steps = histogram(values, f"{row.size.capitalize()} masks", "1 − area / area of the convex hull", _MASKS)
        if steps is not None:
            found.append(steps)
    return tuple(found)


def _funnel(steps: Sequence[FunnelStep]) -> Bars | None:
    if not steps or not steps[0].masks:
        return None
    first = steps[0].masks
    rows = []
    for row in steps:
        share = row.masks / first
        rows.append(Bar(_STEPS.get(row.step, row.step), share, _with_share(row.masks, share)))
    return Bars("Step", "Masks", tuple(rows))


def _up_to_1(scores: Histogram) -> Histogram:
    """Let the last bin of a histogram end at 1 and include all higher scores, because an IoU can't exceed 1."""
    if scores.counts is None:
        return scores
    last = sum(edge < 1 - 1e-9 for edge in scores.edges)
    counts = (*scores.counts[: last - 1], sum(scores.counts[last - 1 :]))
    mean = scores.mean
    if mean is not None:
        mean = min(1, mean)
    return Histogram(scores.edges[: last + 1], counts, mean)


def _with_share(total: int, part: float | None) -> str:
    return f"{count(total)} ({share(part)})"


def _country_name(code: str) -> str:
    """Return a country's name, or its code if the country is unknown."""
    country = countries().get(code)
    if country is None:
        return code
    return country.name


_DPI = 160

# Colors from Okabe and Ito's palette, which color-blind readers can distinguish.
_INK, _GRAY, _BLUE, _VERMILION = "#1c2126", "#8a9098", "#0b5a9c", "#a8480b"

_STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _GRAY,
    "axes.labelcolor": _INK,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.axisbelow": True,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": "#e3e5e8",
    "figure.facecolor": "white",
    "legend.frameon": False,
}


def draw_figures(charts: Charts) -> dict[str, bytes]:
    """Draw the plots that have data, and return them as PNG files by file name."""
    from matplotlib import style

    figures = {}
    with style.context(["default", _STYLE]):  # ignore settings of a matplotlibrc or another library
        for name, plot in vars(charts).items():
            if isinstance(plot, Bars):
                figures[name] = _draw_bars(plot)
            elif isinstance(plot, HeatMap):
                figures[name] = _draw_heat_map(plot)
            elif plot:
                figures[name] = _draw_steps(plot if isinstance(plot, tuple) else (plot,))
        return {f"{name}.png": _png(figure) for name, figure in figures.items()}


def _draw_bars(bars: Bars) -> "Figure":
    figure = _figure(7.2, 1.0 + (0.5 if bars.has_paper else 0.34) * len(bars.rows))
    axes: Axes = figure.subplots()
    height, shift = (0.36, 0.2) if bars.has_paper else (0.7, 0.0)
    for place, row in enumerate(bars.rows):
        length = 100 * (row.share or 0)
        axes.barh(place - shift, length, height, color=_BLUE, label="this dataset" if not place else None)
        if row.paper is not None:
            label = "SA-1B" if not place else None
            axes.barh(place + shift, 100 * row.paper, height, color="none", edgecolor=_VERMILION, label=label)

        axes.annotate(row.text, (length, place - shift), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
    # Labels from the data can contain text that matplotlib would parse as math.
    axes.set_yticks(range(len(bars.rows)), [row.label for row in bars.rows], parse_math=False)
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.set_xlim(left=0)
    axes.set_xticks([tick for tick in axes.get_xticks() if tick <= 100])
    axes.set_xlabel(f"share of {bars.value.lower()} (%)")
    axes.set_ylabel(bars.label)
    axes.grid(axis="x")
    if bars.has_paper:
        figure.legend(loc="outside upper left", ncols=2)
    return figure


def _draw_steps(plots: tuple[StepHistogram, ...]) -> "Figure":
    columns = min(3 if len(plots) % 2 else 2, len(plots))
    rows = -(-len(plots) // columns)
    figure = _figure(7.2 if columns == 1 else 4.0 * columns, 3.2 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(plots) :]:
        axes.set_visible(False)
    for axes, plot in zip(grid.flat, plots, strict=False):
        shares, title = [100 * share for share in plot.shares], plot.title
        if plot.mean is not None:
            title += f" (mean {number(plot.mean)})"
        axes.stairs(shares, plot.positions, color=_BLUE, linewidth=1.5)
        axes.stairs(shares, plot.positions, fill=True, color=_BLUE, alpha=0.2)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel(plot.x_label)
        axes.set_ylabel(f"{plot.y_label} (%)")
        axes.set_xticks([tick.at for tick in plot.x_ticks], [tick.text for tick in plot.x_ticks])
        axes.set_xlim(0, 100)
        axes.set_ylim(0, 100 * plot.top)
        axes.grid(axis="y")
    return figure


def _draw_heat_map(plot: HeatMap) -> "Figure":
    from matplotlib.ticker import MaxNLocator

    figure = _figure(4.6, 4.2)
    axes = figure.subplots()
    picture = axes.imshow(plot.counts, cmap="Blues", vmin=0, extent=(0, 1, 1, 0))
    axes.set_title(plot.title, fontsize=10)
    axes.set_xlabel("share of the width, from the left")
    axes.set_ylabel("share of the height, from the top")
    figure.colorbar(picture, ax=axes, label="masks", shrink=0.85, ticks=MaxNLocator(6, integer=True))
    return figure


def _figure(width: float, height: float) -> "Figure":
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _png(figure: "Figure") -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DPI, metadata={"Software": None})
    return buffer.getvalue()
