"""Evaluation pages: frame, tables of scores, and curves, for the templates to draw."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from segmint.infra.version import VERSION
from segmint.infra.wording import count, listed, plural
from segmint.operators.intervals import Interval
from segmint.pipeline.engine.evaluate.result import (
    LEVEL,
    Cell,
    EvaluationSubject,
    OutputFolder,
    cell,
    joined,
    p_value,
)
from segmint.pipeline.engine.evaluate.run import LowestScore
from segmint.pipeline.serving.documents import Tick, document_templates

_TEMPLATES = Path(__file__).parent / "assets"

Lowest = Sequence[Sequence[LowestScore]]


@dataclass(frozen=True)
class Curve:
    """Line of a chart. Values are from 0 to 1, intervals are optional, and `color` is 0 or 1."""

    name: str
    values: tuple[float, ...]
    intervals: tuple[Interval | None, ...] = ()
    color: int = 0
    dashed: bool = False


@dataclass(frozen=True)
class Curves:
    """Chart of curves that share evenly spaced values of x, in a 100 x 100 frame. `summary` is for screen readers."""

    title: str
    x_label: str
    y_label: str
    x: tuple[str, ...]
    curves: tuple[Curve, ...]
    summary: str

    @property
    def low(self) -> float:
        """Value at the bottom of the axis, which is the lowest value or interval, rounded down to a tenth."""
        values = list[float]()
        for curve in self.curves:
            values += curve.values
            values += [interval[0] for interval in curve.intervals if interval is not None]
        return max(0.0, min(0.9, math.floor(10 * min(values) - 1e-9) / 10))

    @property
    def x_ticks(self) -> list[Tick]:
        """Tick for each value of x."""
        return [Tick(self._across(place), text) for place, text in enumerate(self.x)]

    @property
    def y_ticks(self) -> list[Tick]:
        """Ticks at round percentages."""
        span = 1 - self.low
        step = 0.1 if span <= 0.5 + 1e-9 else 0.2
        count = math.floor(span / step + 1e-9)
        values = [1 - index * step for index in range(count + 1)]
        return [Tick(round(100 * (value - self.low) / span, 2), f"{100 * value:.0f}") for value in values]

    def path(self, curve: Curve) -> str:
        """Convert a curve to an SVG path in a 100 x 100 frame."""
        return "M" + " L".join(f"{self._across(place):g} {self._down(v):g}" for place, v in enumerate(curve.values))

    def band(self, curve: Curve) -> str:
        """Convert a curve's intervals to a closed SVG path, or to an empty string if an interval is unknown."""
        known = [interval for interval in curve.intervals if interval is not None]
        if len(known) != len(curve.values) or len(known) < 2:
            return ""
        upper, lower = [], []
        for place, (low, high) in enumerate(known):
            upper.append(f"{self._across(place):g} {self._down(high):g}")
            lower.append(f"{self._across(place):g} {self._down(low):g}")
        return f"M{' L'.join([*upper, *reversed(lower)])} Z"

    def _across(self, place: int) -> float:
        if len(self.x) < 2:
            return 50.0
        return round(100 * place / (len(self.x) - 1), 2)

    def _down(self, value: float) -> float:
        return round(100 - 100 * (value - self.low) / (1 - self.low), 2)


def render(
    template: str, subject: EvaluationSubject, eyebrow: str, tiles: Sequence[tuple[str, str]], **values: Any
) -> str:
    """Render a page that extends `evaluation.html.j2`. `made` can add lines about how the results were measured."""
    templates = document_templates(_TEMPLATES)
    templates.filters["counted"] = _counted
    made = [*_made(subject), *values.pop("made", [])]
    return templates.get_template(template).render(
        version=VERSION,
        title=" and ".join(subject.names),
        eyebrow=eyebrow,
        tiles=tiles,
        subject=subject,
        made=made,
        **values,
    )


def _counted(value: int, noun: str, several: str | None = None) -> str:
    return f"{value:,} {plural(value, noun) if several is None or value == 1 else several}"


def _made(subject: EvaluationSubject) -> list[tuple[str, str]]:
    lines = [(f"Weights {each.label}", f"SHA-256 {each.sha256}") for each in subject.weights]
    for truth in subject.truths:
        lines.append((f"Truth: {truth.kind}", f"{truth.name}, {_facts(truth.facts)}; {count(truth.images)} images"))
    return [*lines, ("Computed on", subject.computed_on)]


def _facts(facts: Mapping[str, Any]) -> str:
    return (
        listed(f"{name.replace('_', ' ')} {value}" for name, value in facts.items() if value not in (None, [], ""))
        or "no more known"
    )


@dataclass(frozen=True)
class Table:
    """Table of scores. `heads` are the headings of all columns after `first`; each row contains a name and cells.

    The page shows the `note` below the table. `compared` is true if the table compares two models.
    """

    title: str
    first: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    note: str = ""
    compared: bool = False


class ComparedScore(NamedTuple):
    """Score of two models: a cell for each, the difference (second minus first), and its test, if any."""

    name: str
    cells: Sequence[Cell]
    difference: float | None
    interval: Interval | None = None
    p: float | None = None
    verdict: str | None = None


def comparison(subject: EvaluationSubject, first: str, scores: Sequence[ComparedScore]) -> Table:
    """Build the table that compares two models by their scores. It contains verdicts if any score was tested."""
    names, tested = subject.names, any(each.verdict is not None for each in scores)
    heads, note = [*names, "Difference"], f"Differences are {names[1]} minus {names[0]}. "
    if tested:
        heads += ["Corrected p", "Verdict"]
        note += (
            f"Better or worse means a corrected p below {LEVEL:g} and an interval without 0. p comes from exchanging "
            "the models in whole images, corrected by Holm's method over the rows."
        )
    else:
        note += "They have no interval, test, or verdict."
    rows = []
    for name, cells, difference, interval, p, word in scores:
        row = [*cells, cell(difference, interval, "+")]
        if tested:
            row += [(p_value(p), ""), (str(word), "")]
        rows.append((name, row))
    return Table(f"{names[1]} compared with {names[0]}, {subject.size}", first, heads, rows, note, compared=True)


def text_lines(tables: Sequence[Table]) -> list[str]:
    """Format tables as lines for a terminal, each after an empty line."""
    lines = []
    for table in tables:
        rows = [(table.title, table.heads)]
        rows += [(f"  {name}", [joined(each) for each in cells]) for name, cells in table.rows]
        first = max(len(name) for name, _ in rows)
        widths = [max(map(len, column)) for column in zip(*(cells for _, cells in rows), strict=True)]
        lines.append("")
        for name, cells in rows:
            row = [f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)]
            lines.append("  ".join([f"{name:<{first}}", *row]))
        if table.note:
            lines.append(table.note)
    return lines


def markdown(subject: EvaluationSubject, tables: Sequence[Table]) -> str:
    """Format tables as Markdown, after a description of the evaluation. Escapes `|` and line ends in names."""
    lines = [_text(subject.head())]
    for table in tables:
        lines += [
            "",
            _text(table.title),
            "",
            _row([table.first, *table.heads]),
            _row(["---", *["--:"] * len(table.heads)]),
        ]
        for name, cells in table.rows:
            lines.append(_row([name, *map(joined, cells)]))
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_text, cells))} |"


def _text(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


@dataclass(frozen=True)
class FiguresPage:
    """Contents of a page. `tiles` are the scores at the top, and `score` names the score that `lowest` lists."""

    eyebrow: str
    lead: str
    note: str
    score: str
    tiles: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    made: Sequence[tuple[str, str]]
    charts: Sequence[Curves] = ()

    def put(self, output: OutputFolder, answer: Mapping[str, Any], subject: EvaluationSubject, lowest: Lowest) -> None:
        """Write the page, its tables, and the JSON answer if there is an output folder."""
        if output.wanted:
            output.put(answer, self.render(subject, lowest), markdown(subject, self.tables))

    def render(self, subject: EvaluationSubject, lowest: Lowest) -> str:
        """Render the page as HTML. `lowest` contains the lowest scores of each set of weights."""
        tiles = [("Images", count(subject.images)), *self.tiles]
        if subject.masks is not None:
            tiles = [("Masks", count(subject.masks)), *tiles]
        return render(
            "figures.html.j2",
            subject,
            self.eyebrow,
            tiles,
            lead=self.lead,
            note=self.note,
            tables=self.tables,
            charts=self.charts,
            made=list(self.made),
            lowest=[
                {
                    "title": weights.label,
                    "head": self.score,
                    "rows": [(each.where, f"{100 * each.score:.1f}") for each in found],
                }
                for weights, found in zip(subject.weights, lowest, strict=True)
                if found
            ],
        )
