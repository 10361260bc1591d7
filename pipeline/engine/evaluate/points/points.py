"""`segmint evaluate points`: from truths and weights to the answer and its page."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.wording import listed
from segmint.operators.evaluate.settings import FirstClick, PointsSettings
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.answer import Subject, check_measured
from segmint.pipeline.engine.evaluate.judge import Judge
from segmint.pipeline.engine.evaluate.measure import EvaluateTask, PartResult
from segmint.pipeline.engine.evaluate.output import OutputFolder
from segmint.pipeline.engine.evaluate.points.answer import PointsAnswer
from segmint.pipeline.engine.evaluate.points.figures import groups_of, means_of
from segmint.pipeline.engine.evaluate.points.groups import Groups, check_groups, read_groups
from segmint.pipeline.engine.evaluate.points.measure import DRAWN, PointsMeasure
from segmint.pipeline.engine.evaluate.points.page import render_page
from segmint.pipeline.engine.evaluate.points.scores import Collected, collect
from segmint.pipeline.engine.evaluate.run import run_measure
from segmint.pipeline.engine.evaluate.setup import ModelOptions, TruthOptions, open_truths
from segmint.pipeline.engine.evaluate.truth import Truth

GROUP_CLICKS = (1, 3)
"""Clicks after which groups are compared, as in the paper's analysis of fairness."""


@dataclass(frozen=True)
class PointsOptions:
    """What is evaluated and how; `first` None: random with groups, as in the paper's analysis, else the center."""

    truth: TruthOptions
    model: ModelOptions = field(default_factory=ModelOptions)
    settings: PointsSettings = field(default_factory=PointsSettings)
    first: FirstClick | None = None
    groups: str | None = None
    output: str | None = None


def evaluate_points(options: PointsOptions, storage: Storage, judge: Judge | None = None) -> PointsAnswer:
    """Click on all masks with the weights, and sum up; with an output also write the results and a page.

    A `judge` sees the results, and its judgment becomes part of the answer and the page.
    Raises `UsageError` for wrong options, and `NothingMeasuredError` if no image can be evaluated.
    """
    groups = None if options.groups is None else read_groups(options.groups, lambda name: Location(storage, name))
    settings = _settings(options, groups is not None)
    measure = PointsMeasure(settings, None if groups is None else groups.column)
    truths = open_truths(options.truth, storage, () if groups is None else groups.image_columns)
    task = options.model.task(measure)
    folder = None if options.output is None else Location(storage, options.output)
    measures = tuple(f"{kind}_{count}" for kind in ("iou", "oracle", "predicted") for count in settings.clicks)
    with OutputFolder(folder, truths, kept_schema(measure)) as output:
        counted = _Counted(run_measure(task, truths, options.model.run), judge)
        collected = collect(
            counted.results(), measures, len(task.weights), _ungrouped if groups is None else groups.of, output.add
        )
        subject = _subject(task, truths, collected, counted)
        answer = _answer(subject, settings, collected, groups)
        if judge is not None:
            answer = replace(answer, judgment=judge.judge())
        if output.wanted:
            output.put(answer.to_dict(), render_page(answer, collected.worst, truths))
    return replace(answer, page=output.page)


def kept_schema(measure: PointsMeasure) -> pa.Schema:
    """The schema of the results that are kept, without what only a page is drawn from."""
    kept = measure.schema
    for name in DRAWN:
        kept = kept.remove(kept.get_field_index(name))
    return kept


@dataclass
class _Counted:
    """Counts the images of results as they pass, and shows them to a judge."""

    source: Generator[PartResult, None, None]
    judge: Judge | None = None
    images: int = 0
    computed_on: set[str] = field(default_factory=set)

    def results(self) -> Generator[PartResult, None, None]:
        for result in self.source:
            self.images += result.images
            self.computed_on.add(result.computed_on)
            if self.judge is not None:
                self.judge.see(result)
            yield result


def _settings(options: PointsOptions, grouped: bool) -> PointsSettings:
    first = options.first or (FirstClick.RANDOM if grouped else FirstClick.CENTER)
    clicks = {*options.settings.clicks, *(GROUP_CLICKS if grouped else ())}
    return replace(options.settings, first=first, clicks=tuple(sorted(clicks)))


def _ungrouped(row: Row) -> str | None:
    return None


def _subject(task: EvaluateTask, truths: Sequence[Truth], collected: Collected, counted: "_Counted") -> Subject:
    left_out = [*(each for truth in truths for each in truth.left_out), *collected.left_out]
    check_measured(counted.images, left_out)
    return Subject(
        task.measure.name,
        tuple(truths),
        task.weights,
        listed(sorted(counted.computed_on)),
        counted.images,
        collected.scores.masks,
        tuple(left_out),
        collected.seconds,
    )


def _answer(subject: Subject, settings: PointsSettings, collected: Collected, groups: Groups | None) -> PointsAnswer:
    scores = collected.scores
    means = means_of(scores, len(subject.truths), settings.seed)
    if groups is None:
        return PointsAnswer(subject, settings, means, scores)
    check_groups(groups, {group for group in scores.group if group is not None})
    compared = tuple(f"iou_{count}" for count in GROUP_CLICKS)
    by_group, pairs = groups_of(scores, compared, settings.seed)
    return PointsAnswer(subject, settings, means, scores, groups.by, by_group, pairs)
