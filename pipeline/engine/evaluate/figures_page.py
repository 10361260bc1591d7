"""The pages of proposals, edges and instances: tables of figures, a chart, and where the lowest scores are."""

from collections.abc import Sequence
from dataclasses import dataclass

from segmint.infra.wording import count
from segmint.operators.intervals import Interval
from segmint.pipeline.engine.evaluate.answer import Subject
from segmint.pipeline.engine.evaluate.curves import Curves
from segmint.pipeline.engine.evaluate.page import render
from segmint.pipeline.engine.evaluate.session import Lowest

Cell = tuple[str, str]
"""A figure in percent, and its interval."""


@dataclass(frozen=True)
class Table:
    """A table of figures: `heads` of its columns after the `first`, and for each row a name and its cells."""

    title: str
    first: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]


@dataclass(frozen=True)
class FiguresPage:
    """What a page shows. `tiles` are the figures at its head; `score` is what `lowest` is the lowest of."""

    eyebrow: str
    lead: str
    note: str
    score: str
    tiles: Sequence[tuple[str, str]]
    tables: Sequence[Table]
    made: Sequence[tuple[str, str]]
    charts: Sequence[Curves] = ()

    def render(self, subject: Subject, lowest: Sequence[Sequence[Lowest]]) -> str:
        """Return the page as HTML; `lowest` are those of each weights."""
        masks = [] if subject.masks is None else [("Masks", count(subject.masks))]
        return render(
            "figures.html.j2",
            subject,
            self.eyebrow,
            [*masks, ("Images", count(subject.images)), *self.tiles],
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


def cell(value: float | None, interval: Interval | None = None, sign: str = "") -> Cell:
    """A figure and its interval in percent, a dash for none."""
    if value is None:
        return "-", ""
    between = "" if interval is None else f"{100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f}"
    return f"{100 * value:{sign}.1f}", between
