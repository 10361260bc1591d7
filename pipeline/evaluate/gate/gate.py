"""`segmint evaluate points --gate`: whether the second weights may replace the first."""

from dataclasses import dataclass, replace

from segmint.catalogs.layout import MANIFEST
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.evaluate.settings import FirstClick, PointsSettings
from segmint.pipeline.evaluate.answer import Subject
from segmint.pipeline.evaluate.gate.answer import GateAnswer, GateJudgment, Images
from segmint.pipeline.evaluate.gate.held_out import Untrained, untrained_images
from segmint.pipeline.evaluate.gate.lineage import Lineage, lineage_of
from segmint.pipeline.evaluate.gate.people import PeopleMasks, find_people_masks
from segmint.pipeline.evaluate.gate.tally import Role, Tally
from segmint.pipeline.evaluate.gate.verdict import MEASURES, GuardCompared, compare, decide
from segmint.pipeline.evaluate.kinds import DATASET, Chosen
from segmint.pipeline.evaluate.measure import EvaluateTask, PartResult, Weights
from segmint.pipeline.evaluate.output import OutputFolder
from segmint.pipeline.evaluate.page import render
from segmint.pipeline.evaluate.points.measure import PointsMeasure
from segmint.pipeline.evaluate.points.points import PointsOptions, evaluate_points, kept_schema
from segmint.pipeline.evaluate.run import run_measure
from segmint.pipeline.evaluate.setup import TruthOptions, open_truths
from segmint.pipeline.evaluate.truth import Truth

CLICKS = (1, 3)
"""Clicks that a gate measures after, besides those of the evaluation."""

_UNKNOWN = "a file: whether its images were trained on is not known, and all count as held out"


@dataclass(frozen=True)
class GateOptions:
    """The evaluation that decides, and the guard sets: datasets, COCO files or folders of label maps."""

    points: PointsOptions
    guards: tuple[str, ...] = ()
    guard_images: tuple[str, ...] = ()


def evaluate_gate(options: GateOptions, storage: Storage) -> GateAnswer:
    """Evaluate two weights on held-out masks of people and on the guard sets, and judge.

    Raises `UsageError` for wrong options, and `NothingMeasuredError` if no image of the truth can be evaluated.
    """
    points = options.points
    if len(points.model.weights) != 2:
        raise UsageError(
            "--gate compares two weights: give --weights twice, first those in use, then those that may replace them"
        )
    if points.truth.chosen is not Chosen.HUMAN:
        raise UsageError(
            f"--gate judges on masks that people made, and a model's own are no independent truth: leave out --truth "
            f"{points.truth.chosen}"
        )
    gate = _Gate(options, storage)
    if gate.targets:
        clicks = tuple(sorted({*points.settings.clicks, *CLICKS}))
        truth = replace(points.truth, targets=gate.targets, only=gate.only)
        evaluation = replace(points, truth=truth, settings=replace(points.settings, clicks=clicks))
        answer = evaluate_points(evaluation, storage, gate)
        return GateAnswer(answer.subject, gate.judge(), answer)
    return _without_truth(gate, points, storage)


@dataclass
class _Found:
    """A dataset among the truths or guard sets: the images that no weights were trained on, and masks of people."""

    untrained: Untrained
    people: PeopleMasks | None = None


class _Gate:
    """A judge of an evaluation by clicks."""

    def __init__(self, options: GateOptions, storage: Storage) -> None:
        points = options.points
        self._options = options
        self._storage = storage
        first, second = map(Weights.of, points.model.weights)
        self.lineages: tuple[Lineage, Lineage] = (lineage_of(first, storage), lineage_of(second, storage))
        self._tally = Tally(MEASURES)
        self._judged: GateJudgment | None = None
        named = dict.fromkeys([*points.truth.targets, *options.guards])
        datasets = [name for name in named if (Location(storage, name) / MANIFEST).exists()]
        untrained = untrained_images(datasets, self.lineages, storage)
        self._found = {name: _Found(untrained[name]) for name in datasets}
        for name in dict.fromkeys(points.truth.targets):
            if name in self._found:
                self._found[name].people = find_people_masks(Location(storage, name))
        self.targets = tuple(name for name in points.truth.targets if self._usable(name))

    @property
    def only(self) -> dict[str, frozenset[int]]:
        """The images that may be evaluated, of the datasets of which not all may."""
        return {name: found.untrained.ids for name, found in self._found.items() if found.untrained.ids is not None}

    def see(self, result: PartResult) -> None:
        """Take the results of a part."""
        self._tally.add(result.table)

    def judge(self) -> GateJudgment:
        """Judge what was seen, after the guard sets; the second call returns the same."""
        if self._judged is None:
            seed = self._options.points.settings.seed
            independent = compare(self._tally.scores([Role.INDEPENDENT]), seed)
            guards = self._guards(seed)
            verdict, reasons = decide(independent, guards)
            self._judged = GateJudgment(
                verdict,
                reasons,
                self.lineages,
                tuple(map(self._images, dict.fromkeys(self._options.points.truth.targets))),
                independent,
                compare(self._tally.scores([Role.ASSISTED]), seed),
                self._assisted_by(),
                guards,
                tuple(map(self._guard_images, self._options.guards)),
            )
        return self._judged

    def _usable(self, name: str) -> bool:
        found = self._found.get(name)
        return found is None or found.people is None or bool(found.untrained.of(found.people.images))

    def _images(self, name: str) -> Images:
        found = self._found.get(name)
        if found is None or found.people is None:
            return Images(name, 0, _UNKNOWN)
        if not found.people.images:
            return Images(name, 0, "it has no masks that people made")
        return Images(name, len(found.untrained.trained & found.people.images), found.untrained.why)

    def _guard_images(self, name: str) -> Images:
        found = self._found.get(name)
        return Images(name, 0, _UNKNOWN) if found is None else _left_out(name, found.untrained)

    def _assisted_by(self) -> dict[str, int]:
        first, second = (each.weights.sha256 for each in self.lineages)
        labels = {first: "the first weights", second: "the second weights"}
        counts: dict[str, int] = {}
        for found in self._found.values():
            if found.people is not None:
                for model, count in found.people.models(found.untrained.of(found.people.images)).items():
                    label = labels.get(model or "", "others")
                    counts[label] = counts.get(label, 0) + count
        return counts

    def _guards(self, seed: int) -> tuple[GuardCompared, ...]:
        options = self._options
        targets = tuple(name for name in options.guards if self._may_guard(name))
        if not targets:
            return tuple(GuardCompared(name, ()) for name in options.guards)
        truth = options.points.truth
        chosen = TruthOptions(
            targets, options.guard_images, Chosen.ALL, truth.ignore, self.only, images_option="--guard-images"
        )
        truths = open_truths(chosen, self._storage)
        tally = Tally(MEASURES)
        for result in run_measure(guard_task(options.points), truths, options.points.model.run):
            tally.add(result.table)
        compared = {name: compare(tally.scores(tuple(Role), number), seed) for number, name in enumerate(targets)}
        return tuple(GuardCompared(name, compared.get(name, ())) for name in options.guards)

    def _may_guard(self, name: str) -> bool:
        found = self._found.get(name)
        return found is None or found.untrained.ids is None or bool(found.untrained.ids)


def guard_task(points: PointsOptions) -> EvaluateTask:
    """The clicks on a guard set: as those on the truth, up to three."""
    first = points.first or (FirstClick.CENTER if points.groups is None else FirstClick.RANDOM)
    settings = PointsSettings(CLICKS, first, points.settings.several, points.settings.seed)
    return points.model.task(PointsMeasure(settings))


def _left_out(name: str, untrained: Untrained) -> Images:
    return Images(name, len(untrained.trained), untrained.why)


def _without_truth(gate: _Gate, points: PointsOptions, storage: Storage) -> GateAnswer:
    """The answer where no truth is left."""
    judgment = gate.judge()
    truths = [Truth(name, DATASET, ()) for name in dict.fromkeys(points.truth.targets)]
    weights = tuple(lineage.weights for lineage in gate.lineages)
    answer = GateAnswer(Subject("points", tuple(truths), weights, "nothing", 0, 0, (), 0.0), judgment)
    folder = None if points.output is None else Location(storage, points.output)
    schema = kept_schema(PointsMeasure(points.settings))
    with OutputFolder(folder, truths, schema) as output:
        if output.wanted:
            page = render("gate.html.j2", answer.subject, "Weights compared by a gate", [], judged=judgment.values())
            output.put(answer.to_dict(), page)
    return replace(answer, page=output.page)
