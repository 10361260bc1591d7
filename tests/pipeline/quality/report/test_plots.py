"""Where bars, steps and cells lie; expected places are counted by hand."""

import math

import pytest

from segmint.pipeline.quality.report.plots import Bar, Bars, HeatMap, Tick, heat_map, histogram
from segmint.pipeline.quality.statistics.values import Centers, Histogram


def steps(edges: list[float], counts: list[int]):
    made = histogram(Histogram(tuple(edges), tuple(counts), 0.5), "Title", "x", "share of masks")
    assert made is not None
    return made


def test_steps_are_shares_of_the_whole() -> None:
    plot = steps([0, 0.5, 1], [3, 1])
    assert plot.shares == (0.75, 0.25)
    assert plot.top == 0.8
    assert plot.path() == "M0 6.25 L50 6.25 L50 68.75 L100 68.75"
    assert plot.path(closed=True).endswith("L100 100 L0 100 Z")
    assert plot.bins == ["0 to 0.5", "0.5 to 1"]
    assert plot.summary == "Histogram of 2 bins, x: the largest bin, 0 to 0.5, contains 75%"
    assert plot.y_ticks == [Tick(0, "0%"), Tick(50, "40%"), Tick(100, "80%")]


@pytest.mark.parametrize(
    ("low", "high", "texts"),
    [
        (0, 1, ["0", "0.2", "0.4", "0.6", "0.8", "1"]),
        (0.5, 1.1, ["0.6", "0.8", "1"]),
        (0.5, 1, ["0.5", "0.6", "0.7", "0.8", "0.9", "1"]),
        (0, 300, ["0", "100", "200", "300"]),
    ],
)
def test_marks_are_round_numbers_inside_the_frame(low: float, high: float, texts: list[str]) -> None:
    plot = steps([low + (high - low) * part / 10 for part in range(11)], [1] * 10)
    assert [tick.text for tick in plot.x_ticks] == texts
    for tick in plot.x_ticks:
        assert math.isclose(low + (high - low) * tick.at / 100, float(tick.text), abs_tol=1e-2 * (high - low))


@pytest.mark.parametrize(
    ("edges", "ticks"),
    [
        ([0.25, 0.5, 1, 2, 4], {"1/4": 0, "1/2": 25, "1": 50, "2": 75, "4": 100}),
        (
            [2 ** (power / 2) for power in range(-10, 11)],
            {"1/32": 0, "1/10": 16.781, "1/3": 34.15, "1": 50, "3": 65.85, "10": 83.219, "32": 100},
        ),
        ([1, 2, 4, 8, 16], {"1": 0, "2": 25, "4": 50, "8": 75, "16": 100}),  # not on both sides of 1
        ([0.1, 1, 2], {"0.1": 0, "1": 50, "2": 100}),
    ],
)
def test_bins_of_other_widths_stand_side_by_side(edges: list[float], ticks: dict[str, float]) -> None:
    plot = steps(edges, [1] * (len(edges) - 1))
    assert plot.positions == pytest.approx([100 * place / (len(edges) - 1) for place in range(len(edges))])
    assert {tick.text: tick.at for tick in plot.x_ticks} == pytest.approx(ticks)


@pytest.mark.parametrize("counts", [None, (0,)])
def test_what_is_not_known_is_no_plot(counts: tuple[int, ...] | None) -> None:
    assert histogram(Histogram((0, 1), counts, None), "Title", "x", "y") is None


def test_bars_fill_the_frame_with_the_longest() -> None:
    bars = Bars("Region", "Images", (Bar("Africa", 0.2, "20", 0.4), Bar("Europe", None, "", 0.1)), has_paper=True)
    assert [bars.width(0.2), bars.width(0.4), bars.width(0.1), bars.width(None)] == [50, 100, 25, 0]


def test_cells_of_one_shade_are_one_rectangle() -> None:
    plot = HeatMap("Centers", ((0, 24, 24, 0), (0, 0, 0, 12), (0, 0, 0, 0), (0, 0, 0, 1)))
    assert [(cell.x, cell.y, cell.width, cell.opacity) for cell in plot.cells] == [
        (1, 0, 2, 1.0),
        (3, 1, 1, 0.5),
        (3, 3, 1, 0.042),
    ]
    assert plot.coarse(2) == [[24 / 61, 36 / 61], [0, 1 / 61]]
    assert "0% are in the inner quarter" in plot.summary


def test_no_center_is_no_heat_map() -> None:
    assert heat_map(Centers(2, ((0, 0), (0, 0))), "Centers") is None
