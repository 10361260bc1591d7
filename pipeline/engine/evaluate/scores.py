"""Scores and figures of an evaluation by points, and its result.

From top to bottom: the measure, which scores the masks of an image; the sums of scores by image; the means,
differences, and groups computed from these sums; and the result with its text and JSON.
"""

import hashlib
import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pycocotools import mask as coco

from segmint.infra.arrays import Bools, Floats, Ints
from segmint.infra.wording import counted, listed
from segmint.operators.evaluate.points import MaskScores, NoNumberError, click_masks, no_answer
from segmint.operators.evaluate.settings import PointsSettings
from segmint.operators.intervals import (
    Interval,
    basis,
    holm,
    mean_intervals,
    relabel_p,
    sign_flip_p,
    studentized,
)
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.page import ComparedScore, Table, comparison, text_lines
from segmint.pipeline.engine.evaluate.result import (
    HEAD,
    WEIGHTS,
    EvaluationSubject,
    Model,
    PartlyMeasuredError,
    PartResult,
    PredictedResult,
    Predictions,
    cell,
    p_value,
    percent,
    verdict,
    with_embeddings,
)
from segmint.pipeline.engine.evaluate.truth import TruthImage, TruthMask

Over = Literal["masks", "images", "datasets"]
"""Units of a mean: masks, images (means over their masks), or datasets (means over their masks)."""

_RLE = pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.binary())])

DRAWN = ["truth_rle", "first_rle", "last_rle"]
"""Columns that aren't stored because only the page needs them: the true mask, and the model's first and last choice."""

SCORES = ("iou", "oracle", "predicted")
"""Scores of a mask: IoU of the model's choice, IoU of the best of three, and the IoU that the model predicts."""

WORST = 12
"""Number of masks that a page draws."""

# Last number of a seed, which separates the random numbers by purpose.
_MEANS, _SIGNS, _GROUPS, _PAIRS, _DATASETS = range(5)

_MOST_PAIRS = 60
"""Maximum number of pairs of groups to show."""

KINDS = {"iou": "the model's choice", "oracle": "the best of three"}
"""Measures to show, with their names."""


@dataclass(frozen=True)
class PointsMeasure:
    """Measure that clicks on each mask except crowds.

    `group_by` is the name of an image column, or `label` or `source` of masks.
    """

    settings: PointsSettings = field(default_factory=PointsSettings)
    group_by: str | None = None

    name = "points"

    @property
    def schema(self) -> pa.Schema:
        """`HEAD`, the mask's attributes, and its scores after each number of clicks."""
        scores = [pa.field(f"{kind}_{count}", pa.float64()) for kind in SCORES for count in self.settings.clicks]
        return pa.schema(
            [
                *HEAD,
                pa.field("mask", pa.int64(), nullable=False),  # id of the annotation
                pa.field("label", pa.string()),
                pa.field("source", pa.string()),
                pa.field("group", pa.string()),
                pa.field("area", pa.int64(), nullable=False),  # pixels
                WEIGHTS,
                *scores,
                # in order; label is 1 for foreground and 0 for background
                pa.field("clicks", pa.list_(pa.struct([("x", pa.int32()), ("y", pa.int32()), ("label", pa.int8())]))),
                *(pa.field(name, _RLE) for name in DRAWN),
            ]
        )

    def rows(self, models: Sequence[Model], image: TruthImage) -> list[Row]:
        """Click on the image's masks with each model. Raises ValueError if the image has no masks.

        If only one of two models predicts NaN, its scores count as 0, because the comparison would otherwise lose the
        image. The scores of masks without a prediction in a file count as 0, too. `PartlyMeasuredError` is raised then.
        If all models predict NaN, ValueError is raised.
        """
        masks = [mask for mask in image.masks if not mask.crowd]
        if not masks:
            raise ValueError("it has no masks to click on")
        rles = [mask.rle for mask in masks]
        numbers = [_number(image.name, mask.id) for mask in masks]
        by_model: list[list[MaskScores]] = []
        failed: dict[int, NoNumberError] = {}
        missing: list[str] = []
        for place, model in enumerate(with_embeddings(models, image.pixels)):
            if isinstance(model, Predictions):
                results = model.results_for(image)
                by_model.append(self._predicted(results, masks))
                if without := {mask.id for mask in masks} - {each.mask for each in results}:
                    missing.append(f"{counted(len(without), 'mask')} without a prediction in {model.label}")
                continue
            try:
                by_model.append(click_masks(*model, rles, numbers, self.settings))
            except NoNumberError as error:
                failed[place] = error
                by_model.append([no_answer(rle, self.settings) for rle in rles])
        if len(failed) == len(models):
            raise failed[0]
        rows = self._rows(image, masks, by_model)
        zeros = []
        for place, why in failed.items():
            which = ("first", "second")[place]
            zeros.append(f"counted with scores of 0 for the {which} weights: {why}")
        if missing:
            zeros.append(f"counted with scores of 0: {listed(missing)}")
        if zeros:
            raise PartlyMeasuredError("; ".join(zeros), rows)
        return rows

    def _predicted(self, results: Sequence[PredictedResult], masks: Sequence[TruthMask]) -> list[MaskScores]:
        """Score predictions after each number of clicks. The last predictions also count for later clicks."""
        found: list[MaskScores] = []
        for mask in masks:
            blank = no_answer(mask.rle, self.settings)
            own = [each for each in results if each.mask == mask.id]
            choices: list[PredictedResult] = []
            scores: list[tuple[float, float, float]] = []
            for count in self.settings.clicks:
                latest = max((each.clicks or 0 for each in own if (each.clicks or 0) <= count), default=None)
                now = [each for each in own if each.clicks == latest]
                if not now:
                    scores.append((0.0, 0.0, 0.0))
                    continue
                ious = coco.iou([each.rle for each in now], [mask.rle], [0])[:, 0].tolist()
                scores.append((ious[0], max(ious), now[0].score or 0.0))
                choices.append(now[0])
            first, last = (choices[0].rle, choices[-1].rle) if choices else (blank.first, blank.last)
            iou, oracle, predicted = zip(*scores, strict=True)
            found.append(MaskScores(iou, oracle, predicted, (), first, last))
        return found

    def _rows(
        self, image: TruthImage, masks: Sequence[TruthMask], by_model: Sequence[Sequence[MaskScores]]
    ) -> list[Row]:
        rows = []
        for place, mask in enumerate(masks):
            group = self._group(image, mask.label, mask.source)
            for weights, of_masks in enumerate(by_model):
                scores = of_masks[place]
                row = {
                    "mask": mask.id,
                    "label": mask.label,
                    "source": mask.source,
                    "group": group,
                    "area": mask.area,
                    "weights": weights,
                    **self._scores(scores),
                    "clicks": [click._asdict() for click in scores.clicks],
                    **dict(zip(DRAWN, (mask.rle, scores.first, scores.last), strict=True)),
                }
                rows.append(row)
        return rows

    def _scores(self, scores: MaskScores) -> Row:
        row = {}
        for kind, values in zip(SCORES, (scores.iou, scores.oracle, scores.predicted), strict=True):
            for count, value in zip(self.settings.clicks, values, strict=True):
                row[f"{kind}_{count}"] = value
        return row

    def _group(self, image: TruthImage, label: str | None, source: str | None) -> str | None:
        if self.group_by is None:
            return None
        value = {**image.columns, "label": label, "source": source}.get(self.group_by)
        return None if value is None else str(value)


def _number(image: str, mask: int) -> int:
    """Derive a mask's number for random clicks. It doesn't depend on where the dataset is stored."""
    return int.from_bytes(hashlib.sha256(f"{image}\0{mask}".encode()).digest()[:8]) >> 1


@dataclass(frozen=True)
class ImageScores:
    """Sums of scores over the masks of each unit. A unit is an image, or an image's masks in one group.

    `measures` names the M scores, such as `iou_1`. For U units, `counts` (U,) are the numbers of masks, and `sums` (U,
    W, M) are the sums of the scores for W sets of weights.
    """

    measures: tuple[str, ...]
    truth: Ints
    image_id: tuple[str, ...]
    group: tuple[str | None, ...]
    counts: Floats
    sums: Floats

    @property
    def masks(self) -> int:
        """Number of masks in all units."""
        return int(self.counts.sum())

    def column(self, measure: str) -> int:
        """Return the index of a measure."""
        return self.measures.index(measure)

    def of(self, chosen: Bools) -> "ImageScores":
        """Select the units that `chosen`, (U,) bool, marks."""
        places = np.flatnonzero(chosen).tolist()
        return ImageScores(
            self.measures,
            self.truth[places],
            tuple(self.image_id[place] for place in places),
            tuple(self.group[place] for place in places),
            self.counts[places],
            self.sums[places],
        )

    def images(self) -> tuple[list[tuple[int, str]], list[int]]:
        """Return the images as (truth, image_id), and the index of each unit's image."""
        keys: dict[tuple[int, str], int] = {}
        unit = []
        for key in zip(self.truth.tolist(), self.image_id, strict=True):
            unit.append(keys.setdefault(key, len(keys)))
        return list(keys), unit

    def by_image(self) -> "ImageScores":
        """Merge the units of each image. The groups of the result are None."""
        keys, unit = self.images()
        counts, sums = np.zeros(len(keys)), np.zeros((len(keys), *self.sums.shape[1:]))
        np.add.at(counts, unit, self.counts)
        np.add.at(sums, unit, self.sums)
        truths = np.array([truth for truth, _ in keys], np.int64)
        return ImageScores(self.measures, truths, tuple(image for _, image in keys), (None,) * len(keys), counts, sums)


@dataclass(frozen=True, order=True)
class WorstMask:
    """Mask with a low score. `part` is the index of its part in the run, and `row` its row of results."""

    badness: float
    order: int
    part: int = field(compare=False)
    row: Row = field(compare=False)


def collect(
    results: Iterable[PartResult],
    measures: tuple[str, ...],
    weights: int,
    group_of: Callable[[Row], str | None],
    keep: Callable[[pa.Table], None] = lambda table: None,
) -> tuple[ImageScores, list[list[WorstMask]]]:
    """Sum the rows of a run by image and group, part by part, and find the worst masks of each set of weights.

    `keep` receives the rows of each part, without the columns that only the page needs. `group_of` returns the group of
    a row's mask. The rows of a mask must be consecutive, with one row per set of weights. The worst masks have the
    lowest values of the first measure.
    """
    units: dict[tuple[int, str, str | None], int] = {}
    counts: list[float] = []
    sums: list[Floats] = []
    heaps: list[list[WorstMask]] = [[] for _ in range(weights)]
    order = 0
    for part, result in enumerate(results):
        groups = []
        for row in result.table.to_pylist():
            group = group_of(row)
            groups.append(group)
            place = units.setdefault((row["truth"], row["image_id"], group), len(units))
            if place == len(counts):
                counts.append(0.0)
                sums.append(np.zeros((weights, len(measures))))
            counts[place] += row["weights"] == 0
            sums[place][row["weights"]] += [row[name] for name in measures]
            order -= 1  # of masks with equal scores, keep the first one
            found = WorstMask(-row[measures[0]], order, part, row)
            (heapq.heappush if len(heaps[row["weights"]]) < WORST else heapq.heappushpop)(heaps[row["weights"]], found)
        table = result.table.drop_columns(DRAWN)
        keep(table.set_column(table.schema.get_field_index("group"), "group", pa.array(groups, pa.string())))
    scores = ImageScores(
        measures,
        np.array([truth for truth, _, _ in units], np.int64),
        tuple(image for _, image, _ in units),
        tuple(group for _, _, group in units),
        np.array(counts),
        np.array(sums).reshape(len(units), weights, len(measures)),
    )
    return scores, [sorted(heap, reverse=True) for heap in heaps]


@dataclass(frozen=True)
class MeanScore:
    """Mean of a measure, with the number of images and masks. It covers all truths if `truth` is None."""

    weights: int
    measure: str
    truth: int | None
    over: Over
    mean: float
    interval: Interval | None
    images: int
    masks: int


@dataclass(frozen=True)
class MeanDifference:
    """Difference of two means over the same masks or images: second weights minus first weights.

    `p` comes from a test that randomly flips the sign of all differences within an image. It exists only for means over
    masks.
    """

    measure: str
    truth: int | None
    over: Over
    mean: float
    interval: Interval | None
    p: float | None
    images: int
    masks: int


@dataclass(frozen=True)
class GroupMean:
    """Mean over a group's masks."""

    weights: int
    measure: str
    group: str
    images: int
    masks: int
    mean: float
    interval: Interval | None


@dataclass(frozen=True)
class GroupPair:
    """Difference of two groups' means: first minus second.

    `p` comes from a test that permutes the groups' labels over images. `holm` is p after Holm's correction over all
    pairs of one measure and one set of weights. Both are None if nothing can be permuted.
    """

    weights: int
    measure: str
    first: str
    second: str
    difference: float
    p: float | None
    holm: float | None


@dataclass(frozen=True)
class Means:
    """Means and differences of one evaluation."""

    scores: tuple[MeanScore, ...]
    differences: tuple[MeanDifference, ...]

    def mean(self, measure: str, weights: int = 0, truth: int | None = None, over: Over = "masks") -> MeanScore:
        """Look up a mean. Raises KeyError if it doesn't exist."""
        wanted = (weights, measure, truth, over)
        for each in self.scores:
            if (each.weights, each.measure, each.truth, each.over) == wanted:
                return each
        raise KeyError(wanted)

    def difference(self, measure: str) -> MeanDifference:
        """Look up a difference over all masks. Raises KeyError if it doesn't exist."""
        for each in self.differences:
            if (each.measure, each.truth, each.over) == (measure, None, "masks"):
                return each
        raise KeyError(measure)


def means_of(scores: ImageScores, truths: int, seed: int) -> Means:
    """Compute the means of all measures over masks and over images, for each truth and for all truths together.

    With several truths, the result also contains the mean of the truths' means over masks. For its intervals, images
    are resampled within each truth. Each resample draws the same images for all weights and their differences.
    """
    images = scores.by_image()
    numbers = [number for number in range(truths) if (images.truth == number).any()]
    scopes: list[int | None] = [None] if len(numbers) < 2 else [None, *numbers]
    found: list[MeanScore] = []
    differences: list[MeanDifference] = []
    for scope in scopes:
        part = images if scope is None else images.of(images.truth == scope)
        key = [seed, 0 if scope is None else scope + 1]
        for over, sums, counts in _ways(part):
            p = None
            if over == "masks" and sums.shape[1] == 2:
                p = sign_flip_p(sums[:, 1] - sums[:, 0], [*key, _SIGNS])
            _add(found, differences, part, scope, over, [(sums, counts)], [*key, _MEANS], p)
    if len(scopes) > 1:
        parts = [images.of(images.truth == number) for number in numbers]
        strata = [(part.sums, part.counts) for part in parts]
        _add(found, differences, images, None, "datasets", strata, [seed, 0, _DATASETS], None)
    return Means(tuple(found), tuple(differences))


def groups_of(
    scores: ImageScores, measures: tuple[str, ...], seed: int
) -> tuple[tuple[GroupMean, ...], tuple[GroupPair, ...]]:
    """Compute the means of some measures over each group's masks, and test each pair of groups.

    Masks without a group are skipped.
    """
    names = sorted({group for group in scores.group if group is not None})
    columns = [scores.column(measure) for measure in measures]
    labels = np.array([group if group is not None else "" for group in scores.group], dtype=object)
    known = np.array([group is not None for group in scores.group], dtype=bool)
    means: list[GroupMean] = []
    for place, name in enumerate(names):
        part = scores.of(known & (labels == name))
        sums = part.sums[:, :, columns]
        mean = sums.sum(axis=0) / part.counts.sum()
        flat = sums.reshape(len(part.counts), -1)
        intervals = mean_intervals(flat, part.counts, [seed, place, _GROUPS], (0.0, 1.0))
        for weights, column in np.ndindex(*mean.shape):
            found = intervals[weights * len(columns) + column]
            means.append(
                GroupMean(
                    weights, measures[column], name, len(part.counts), part.masks, float(mean[weights, column]), found
                )
            )
    return tuple(means), tuple(_pairs(scores, names, measures, columns, seed))


def _pairs(
    scores: ImageScores, names: list[str], measures: tuple[str, ...], columns: list[int], seed: int
) -> Iterator[GroupPair]:
    images, units = scores.images()
    width = scores.sums.shape[1] * len(columns) + 1
    by_group = {name: np.zeros((len(images), width)) for name in names}
    for place, (unit, group) in enumerate(zip(units, scores.group, strict=True)):
        if group is not None:
            row = [*scores.sums[place][:, columns].reshape(-1), scores.counts[place]]
            by_group[group][unit] += row
    pairs = list(combinations(names, 2))
    ps = [
        relabel_p(by_group[first], by_group[second], [seed, place, _PAIRS])
        for place, (first, second) in enumerate(pairs)
    ]
    for weights in range(scores.sums.shape[1]):
        for column, measure in enumerate(measures):
            at = weights * len(columns) + column
            found = [None if each is None else each[at] for each in ps]
            adjusted = holm(found)
            for place, (first, second) in enumerate(pairs):
                one, two = by_group[first].sum(axis=0), by_group[second].sum(axis=0)
                gap = float(one[at] / one[-1] - two[at] / two[-1])
                yield GroupPair(weights, measure, first, second, gap, found[place], adjusted[place])


def _ways(scores: ImageScores) -> Iterator[tuple[Over, Floats, Floats]]:
    """Yield sums and counts. Their ratios are the means over masks, and then the means over images."""
    yield "masks", scores.sums, scores.counts
    yield "images", scores.sums / scores.counts[:, None, None], np.ones(len(scores.counts))


def _add(
    found: list[MeanScore],
    differences: list[MeanDifference],
    scores: ImageScores,
    truth: int | None,
    over: Over,
    strata: Sequence[tuple[Floats, Floats]],
    seed: Sequence[int],
    p: list[float] | None,
) -> None:
    """Append the mean over the strata's means for W weights and M measures. If W is 2, append the differences, too."""
    weights, measures = scores.sums.shape[1:]
    tables = []
    for sums, counts in strata:
        difference = [sums[:, 1] - sums[:, 0]] if weights == 2 else []
        tables.append((np.concatenate([*(sums[:, each] for each in range(weights)), *difference], axis=1), counts))
    means = np.mean([sums.sum(axis=0) / counts.sum() for sums, counts in tables], axis=0).tolist()
    lows = np.where(np.arange(len(means)) < weights * measures, 0.0, -1.0)
    size = (len(scores.counts), scores.masks)
    for place, (mean, interval) in enumerate(zip(means, studentized(tables, seed, (lows, 1.0)), strict=True)):
        number, column = divmod(place, measures)
        name = scores.measures[column]
        if number < weights:
            found.append(MeanScore(number, name, truth, over, mean, interval, *size))
        else:
            differences.append(
                MeanDifference(name, truth, over, mean, interval, None if p is None else p[column], *size)
            )


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
            *text_lines([*self.compared(), *self.tables(), *self.group_tables()]),
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

    def scope(self, truth: int | None) -> str:
        """Describe a truth with its numbers of masks and images. None stands for all truths together."""
        if truth is not None:
            mean = self.means.mean(f"iou_{self.settings.clicks[0]}", truth=truth)
            return f"{self.subject.truths[truth].name}, {_size(mean)}"
        name = self.subject.truths[0].name
        if len(self.subject.truths) > 1:
            name = "all ground truths together"
        return f"{name}, {self.subject.size}"

    def compared(self) -> Iterator[Table]:
        """Yield the table that compares two models, if there are two."""
        scores = []
        for name, each, corrected, word in self.differences():
            means = [self.means.mean(each.measure, weights) for weights in range(2)]
            cells = [cell(mean.mean, mean.interval) for mean in means]
            scores.append(ComparedScore(name, cells, each.mean, each.interval, corrected, word))
        if scores:
            yield comparison(self.subject, "Mean over masks", scores)

    def tables(self) -> Iterator[Table]:
        """Yield a table of means by clicks for each scope and each set of weights."""
        heads = [counted(clicks, "click") for clicks in self.settings.clicks]
        for truth in self.scopes():
            for number, label in enumerate(self.subject.names):
                rows = []
                for name, means in self.rows(number, truth):
                    rows.append((name, [cell(mean.mean, mean.interval) for mean in means]))
                yield Table(f"{label}, {self.scope(truth)}", "Mean", heads, rows)

    def group_tables(self) -> Iterator[Table]:
        """Yield the tables of the groups' means and of their pairs, if there are groups.

        If there are too many pairs, the table contains those with the lowest p.
        """
        if not self.groups:
            return
        sizes = {each.group: _size(each) for each in self.groups}
        heads = [self._measured(each) for each in self.groups if each.group == self.groups[0].group]
        rows = []
        for name, size in sizes.items():
            cells = [cell(each.mean, each.interval) for each in self.groups if each.group == name]
            rows.append((f"{name} ({size})", cells))
        yield Table(f"By {self.grouped_by}", "Group", heads, rows)
        shown = list(self.pairs)
        note = (
            "p comes from permuting the labels over images, corrected by Holm's method over the pairs with the same "
            "number of clicks."
        )
        if len(shown) > _MOST_PAIRS:
            note += f" And {counted(len(shown) - _MOST_PAIRS, 'more pair')}, all with a higher p."
            shown = sorted(shown, key=lambda pair: 2.0 if pair.p is None else pair.p)[:_MOST_PAIRS]
        pairs = []
        for pair in shown:
            title = f"{pair.first} ({sizes[pair.first]}) minus {pair.second} ({sizes[pair.second]})"
            cells = [(percent(pair.difference, sign="+"), ""), (p_value(pair.p), ""), (p_value(pair.holm), "")]
            pairs.append((f"{title}, {self._measured(pair)}", cells))
        if pairs:
            yield Table(f"Pairs by {self.grouped_by}", "Pair", ["Difference", "p", "Corrected p"], pairs, note)

    def _measured(self, group: GroupMean | GroupPair) -> str:
        """Describe what a group or pair was measured on: the number of clicks and, if there are two, the weights."""
        clicks = counted(int(group.measure.partition("_")[2]), "click")
        if len(self.subject.weights) == 1:
            return clicks
        return f"{self.subject.names[group.weights]}, {clicks}"


def _size(mean: MeanScore | GroupMean) -> str:
    return f"{counted(mean.masks, 'mask')} of {counted(mean.images, 'image')}"
