"""Plots of a report as PNG files for slides and papers, with the same values as the page."""

import io
from typing import TYPE_CHECKING

from segmint.infra.wording import number
from segmint.pipeline.quality.report.charts import Charts
from segmint.pipeline.quality.report.plots import Bars, HeatMap, StepHistogram

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

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

    bars = {
        "masks_per_image": charts.masks_per_image,
        "funnel": charts.funnel,
        "countries": charts.countries,
        "regions": charts.regions,
        "income": charts.income,
        "licenses": charts.licenses,
        "providers": charts.providers,
        "labels": charts.labels,
        "rejected": charts.rejected,
    }
    figures = {}
    with style.context(["default", _STYLE]):  # ignore settings of a matplotlibrc or another library
        for name, plot in bars.items():
            if plot is not None:
                figures[name] = _draw_bars(plot)
        if charts.relative_size is not None:
            figures["relative_size"] = _draw_steps((charts.relative_size,))
        if charts.concavity:
            figures["concavity"] = _draw_steps(charts.concavity)
        if charts.scores:
            figures["scores"] = _draw_steps(charts.scores)
        if charts.centers is not None:
            figures["centers"] = _draw_heat_map(charts.centers)
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
