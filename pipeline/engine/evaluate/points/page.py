"""The page of an interactive evaluation: curves, tables, groups, and the masks with the lowest scores."""

from collections.abc import Iterator, Sequence
from typing import Any

from segmint.infra.wording import count, counted
from segmint.operators.intervals import Interval
from segmint.pipeline.engine.evaluate.curves import Curve, Curves
from segmint.pipeline.engine.evaluate.page import render
from segmint.pipeline.engine.evaluate.points.answer import KINDS, PointsAnswer, p_value
from segmint.pipeline.engine.evaluate.points.scores import WorstMask
from segmint.pipeline.engine.evaluate.points.worst import draw_worst
from segmint.pipeline.engine.evaluate.truth import Truth

_PAIRS = 60
"""Pairs of groups on the page."""

_FIRST = {
    "center": "The first click is on the pixel farthest from the mask's boundary.",
    "random": "The first click is on a random pixel of the mask.",
}
_SEVERAL = {
    "single": "the single mask for unambiguous prompts",
    "three": "of three masks the one with the highest predicted IoU",
}


def render_page(answer: PointsAnswer, worst: Sequence[Sequence[WorstMask]], truths: Sequence[Truth]) -> str:
    """Return the page as HTML; `worst` are masks of each weights, whose images are read again to draw them."""
    subject, settings = answer.subject, answer.settings
    names = subject.names
    ends = f"iou_{settings.clicks[0]}", f"iou_{settings.clicks[-1]}"
    return render(
        "points.html.j2",
        subject,
        "Weights evaluated by clicks",
        _tiles(answer),
        made=[
            ("First click", _FIRST[settings.first]),
            ("Two clicks or more", _SEVERAL[settings.several]),
            ("Seed", str(settings.seed)),
        ],
        first_click=_FIRST[settings.first],
        judged=None if answer.judgment is None else answer.judgment.values(),
        clicks=settings.clicks,
        names=names,
        charts=[_chart(answer, scope) for scope in answer.scopes()],
        tables=list(_tables(answer)),
        differences=list(_differences(answer)),
        grouped_by=answer.grouped_by,
        group_heads=_group_heads(answer),
        groups=list(_groups(answer)),
        pairs=list(_pairs(answer)),
        more_pairs=max(0, len(answer.pairs) - _PAIRS),
        worst=[
            {"name": name, "pictures": draw_worst(masks, truths, ends)}
            for name, masks in zip(names, worst, strict=True)
        ],
    )


def _tiles(answer: PointsAnswer) -> list[tuple[str, str]]:
    tiles = [("Masks", count(answer.subject.masks)), ("Images", count(answer.subject.images))]
    one, last = answer.settings.clicks[0], answer.settings.clicks[-1]
    for number, label in enumerate(answer.subject.names):
        name = f"{label}, " if len(answer.subject.weights) > 1 else ""
        for measure, text in (
            (f"iou_{one}", "1 click"),
            (f"oracle_{one}", "best of three"),
            (f"iou_{last}", f"{last} clicks"),
        ):
            tiles.append((f"{name}{text}", _percent(answer.means.mean(measure, number).mean)))
    return list(dict(tiles).items())


def _chart(answer: PointsAnswer, truth: int | None) -> Curves:
    clicks = answer.settings.clicks
    curves = []
    for number, label in enumerate(answer.subject.names):
        for kind, name in KINDS.items():
            means = [answer.means.mean(f"{kind}_{each}", number, truth) for each in clicks]
            text = f"{label}: {name}" if len(answer.subject.weights) > 1 else name
            values = tuple(mean.mean for mean in means)
            intervals = tuple(mean.interval for mean in means) if kind == "iou" else ()
            curves.append(Curve(text, values, intervals, number, kind != "iou"))
    ends = "; ".join(f"{curve.name} {_percent(curve.values[0])} to {_percent(curve.values[-1])}" for curve in curves)
    return Curves(
        _scope(answer, truth),
        "clicks",
        "mean IoU over masks in percent; the bands are 95 % intervals",
        tuple(map(str, clicks)),
        tuple(curves),
        f"Mean IoU after {clicks[0]} to {counted(clicks[-1], 'click')}: {ends}",
    )


def _scope(answer: PointsAnswer, truth: int | None) -> str:
    if truth is not None:
        return answer.subject.truths[truth].name
    return "All truths together" if len(answer.subject.truths) > 1 else answer.subject.truths[0].name


def _tables(answer: PointsAnswer) -> Iterator[dict[str, Any]]:
    for truth in answer.scopes():
        for number, label in enumerate(answer.subject.names):
            rows = [
                (name, [_cell(mean.mean, mean.interval) for mean in means])
                for name, means in answer.rows(number, truth)
            ]
            yield {"title": f"{label}, {_scope(answer, truth)}", "rows": rows}


def _differences(answer: PointsAnswer) -> Iterator[dict[str, str]]:
    for each in answer.means.differences:
        kind, _, clicks = each.measure.partition("_")
        if each.truth is None and each.over == "masks" and kind in KINDS:
            yield {
                "name": f"{KINDS[kind]}, {counted(int(clicks), 'click')}",
                "mean": _percent(each.mean, "+"),
                "interval": _between(each.interval, "+"),
                "p": p_value(each.p),
            }


def _group_heads(answer: PointsAnswer) -> list[str]:
    first = answer.groups[0].group if answer.groups else None
    return [_measured(answer, each.weights, each.measure) for each in answer.groups if each.group == first]


def _groups(answer: PointsAnswer) -> Iterator[dict[str, Any]]:
    for name in dict.fromkeys(each.group for each in answer.groups):
        means = [each for each in answer.groups if each.group == name]
        yield {
            "group": name,
            "images": means[0].images,
            "masks": means[0].masks,
            "cells": [_cell(mean.mean, mean.interval) for mean in means],
        }


def _pairs(answer: PointsAnswer) -> Iterator[dict[str, str]]:
    for pair in answer.nearest_pairs(_PAIRS):
        yield {
            "first": pair.first,
            "second": pair.second,
            "measured": _measured(answer, pair.weights, pair.measure),
            "difference": _percent(pair.difference, "+"),
            "p": p_value(pair.p),
            "holm": p_value(pair.holm),
        }


def _measured(answer: PointsAnswer, weights: int, measure: str) -> str:
    name = f"{answer.subject.names[weights]}, " if len(answer.subject.weights) > 1 else ""
    return f"{name}{counted(int(measure.partition('_')[2]), 'click')}"


def _cell(mean: float, interval: Interval | None) -> tuple[str, str]:
    return _percent(mean), _between(interval)


def _percent(value: float, sign: str = "") -> str:
    return f"{100 * value:{sign}.1f}"


def _between(interval: Interval | None, sign: str = "") -> str:
    return "" if interval is None else f"{_percent(interval[0], sign)} to {_percent(interval[1], sign)}"
