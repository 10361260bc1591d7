"""Result of the evaluation by clicks, as text and as JSON."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from segmint.infra.wording import counted
from segmint.operators.evaluate.settings import PointsSettings
from segmint.operators.intervals import basis
from segmint.operators.resampling import holm
from segmint.pipeline.engine.evaluate.points.figures import GroupMean, GroupPair, MeanDifference, Means, MeanScore, Over
from segmint.pipeline.engine.evaluate.points.scores import ImageScores
from segmint.pipeline.engine.evaluate.result import EvaluationSubject, p_value, percent, verdict

_PAIRS = 20
"""Maximum number of pairs of groups to print on a terminal."""

KINDS = {"iou": "the model's choice", "oracle": "the best of three"}
"""Measures to show, with their names."""


@dataclass(frozen=True)
class PointsResult:
    """Means, differences, and groups of an evaluation, and the scores by image that they were computed from.

    `grouped_by` is empty without groups.
    """

    subject: EvaluationSubject
    settings: PointsSettings
    means: Means
    scores: ImageScores
    grouped_by: str = ""
    groups: tuple[GroupMean, ...] = ()
    pairs: tuple[GroupPair, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        judged = {each: {"holm": p, "verdict": word} for _, each, p, word in self.differences()}
        answer = {
            **self.subject.to_dict(),
            "settings": {
                "clicks": list(self.settings.clicks),
                "first_click": self.settings.first.value,
                "several_clicks": self.settings.several.value,
                "seed": self.settings.seed,
            },
            "means": list(map(asdict, self.means.scores)),
            "differences": [{**asdict(each), **judged.get(each, {})} for each in self.means.differences],
        }
        if self.grouped_by:
            means, pairs = list(map(asdict, self.groups)), list(map(asdict, self.pairs))
            answer["groups"] = {"by": self.grouped_by, "means": means, "pairs": pairs}
        return answer

    def lines(self) -> list[str]:
        first = "a random pixel"
        if self.settings.first == "center":
            first = "the pixel farthest from the mask's boundary"
        return [
            self.subject.head(),
            f"first click: {first}; mIoU over masks in percent, {basis(self.subject.images)}",
            *self._tables(),
            *self._differences(),
            *self._groups(),
            *self.subject.closing_lines(),
        ]

    def rows(self, weights: int, truth: int | None) -> Iterator[tuple[str, list[MeanScore]]]:
        """Yield the means after each number of clicks: over masks for both measures, then over images and datasets."""
        there = {(each.weights, each.truth, each.over, each.measure): each for each in self.means.scores}
        ways: list[tuple[str, Over, str]] = [(name, "masks", kind) for kind, name in KINDS.items()]
        ways += [("the model's choice, over images", "images", "iou"), ("mean of datasets' means", "datasets", "iou")]
        for name, over, kind in ways:
            keys = [(weights, truth, over, f"{kind}_{count}") for count in self.settings.clicks]
            if keys[0] in there:
                yield name, [there[key] for key in keys]

    def scopes(self) -> list[int | None]:
        """Return the truths that have means. None stands for all truths together."""
        found: list[int | None] = []
        for each in self.means.scores:
            if each.truth not in found:
                found.append(each.truth)
        return found

    def differences(self) -> Iterator[tuple[str, MeanDifference, float | None, str]]:
        """Yield the differences to show, over all masks, with their names, corrected p, and verdicts."""
        shown = []
        for each in self.means.differences:
            if each.truth is None and each.over == "masks" and each.measure.partition("_")[0] in KINDS:
                shown.append(each)
        for each, corrected in zip(shown, holm([each.p for each in shown]), strict=True):
            kind, _, count = each.measure.partition("_")
            word = verdict(each.mean, each.interval, corrected, self.subject.images)
            yield f"{KINDS[kind]}, {counted(int(count), 'click')}", each, corrected, word

    @property
    def sizes(self) -> dict[str, str]:
        """Number of masks and images in each group, as text."""
        return {each.group: f"{counted(each.masks, 'mask')} of {counted(each.images, 'image')}" for each in self.groups}

    def measured(self, group: GroupMean | GroupPair) -> str:
        """Describe what a group or pair was measured on: the number of clicks and, if there are two, the weights."""
        clicks = counted(int(group.measure.partition("_")[2]), "click")
        if len(self.subject.weights) == 1:
            return clicks
        return f"{self.subject.names[group.weights]}, {clicks}"

    def nearest_pairs(self, most: int) -> list[GroupPair]:
        """Return all pairs in order. If there are more than `most`, return the pairs with the lowest p."""
        if len(self.pairs) <= most:
            return list(self.pairs)
        return sorted(self.pairs, key=lambda pair: 2.0 if pair.p is None else pair.p)[:most]

    def _tables(self) -> Iterator[str]:
        for truth in self.scopes():
            for weights, label in enumerate(self.subject.names):
                one = self.means.mean(f"iou_{self.settings.clicks[0]}", weights, truth)
                size = f"{counted(one.masks, 'mask')} of {counted(one.images, 'image')}"
                where = ""
                if truth is not None:
                    where = f", {self.subject.truths[truth].name}"
                cells = [f"{counted(count, 'click')}" for count in self.settings.clicks]
                yield ""
                yield _line(f"{label}{where} ({size})", cells)
                for name, means in self.rows(weights, truth):
                    yield _line(f"  {name}", [percent(mean.mean, mean.interval) for mean in means])

    def _differences(self) -> Iterator[str]:
        if not self.means.differences:
            return
        yield ""
        first, second = self.subject.names
        yield (
            f"difference: {second} minus {first}, over the same {self.subject.size}; p by flipping the signs of whole "
            "images, corrected by Holm's method"
        )
        for name, each, corrected, word in self.differences():
            change = percent(each.mean, each.interval, sign="+")
            yield f"  {name:<34} {change}, {p_value(each.p)}, corrected {p_value(corrected)}: {word}"

    def _groups(self) -> Iterator[str]:
        if not self.grouped_by:
            return
        yield ""
        yield f"by {self.grouped_by}; pairs: p by permuting labels over images, Holm's correction over the pairs"
        for mean in self.groups:
            size = self.sizes[mean.group]
            yield f"  {self.measured(mean)}, {mean.group}: {percent(mean.mean, mean.interval)} ({size})"
        for pair in self.nearest_pairs(_PAIRS):
            first, second = self.sizes[pair.first], self.sizes[pair.second]
            yield (
                f"  {self.measured(pair)}, {pair.first} minus {pair.second} ({first} and {second}): "
                f"{100 * pair.difference:+.1f}, {p_value(pair.p)}, corrected {p_value(pair.holm)}"
            )
        if len(self.pairs) > _PAIRS:
            yield f"  and {len(self.pairs) - _PAIRS:,} more pairs, all with a higher p"


def _line(name: str, cells: list[str]) -> str:
    return f"{name:<34}" + "".join(f"{cell:>22}" for cell in cells)
