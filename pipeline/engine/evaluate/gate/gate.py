"""`segmint evaluate points --gate`: decide whether the second weights may replace the first."""

import sys
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.layout import MANIFEST, DamagedDatasetError
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.threads import map_ahead
from segmint.infra.uris import absolute
from segmint.operators.evaluate.settings import FirstClick, PointsSettings, SeveralClicks
from segmint.operators.schemas import AUTOMATIC
from segmint.pipeline.engine.evaluate.gate.lineage import Lineage, UntrainedImages, lineage_of, untrained_images
from segmint.pipeline.engine.evaluate.gate.result import GateJudgment, GateResult, JudgedImages
from segmint.pipeline.engine.evaluate.gate.verdict import (
    ASSISTED,
    CORRECTED,
    MEASURES,
    GuardComparison,
    Role,
    ScoreSums,
    compare,
    decide,
    role_of,
    role_of_corrected,
)
from segmint.pipeline.engine.evaluate.kinds import DATASET, TruthSelection
from segmint.pipeline.engine.evaluate.measure import EvaluatedWeights, PartResult
from segmint.pipeline.engine.evaluate.output import OutputFolder
from segmint.pipeline.engine.evaluate.page import render
from segmint.pipeline.engine.evaluate.points.measure import PointsMeasure
from segmint.pipeline.engine.evaluate.points.points import PointsOptions, evaluate_points, kept_schema
from segmint.pipeline.engine.evaluate.result import EvaluationSubject
from segmint.pipeline.engine.evaluate.run import run_measure
from segmint.pipeline.engine.evaluate.setup import TruthOptions, open_truths
from segmint.pipeline.engine.evaluate.truth import SkippedTruth, Truth

_THREADS = 16
_AHEAD = 64


@dataclass
class AnnotatedImages:
    """Annotated masks of a dataset: the ids of their images, and the models that were involved.

    `assisted` counts the assisted masks by image and by the SHA-256 of the model. `corrected` maps a mask's annotation
    id to the SHA-256 of the model whose prediction an annotator corrected.
    """

    images: set[int] = field(default_factory=set)
    assisted: Counter[tuple[int, str]] = field(default_factory=Counter)
    corrected: dict[int, str] = field(default_factory=dict)

    def models(self, images: Collection[int]) -> Counter[str]:
        """Count the assisted masks in the given images by the model's SHA-256."""
        found: Counter[str] = Counter()
        for (image, model), count in self.assisted.items():
            if image in images:
                found[model] += count
        return found


def find_annotated_images(location: Location) -> AnnotatedImages:
    """Find the annotated masks in a dataset's masks tables.

    Shards with unreadable tables are skipped without an error, because the evaluation lists them.
    """
    dataset = Dataset.open(location)
    found = AnnotatedImages()

    def table(commit: Commit) -> pa.Table | None:
        try:
            return dataset.table(commit, "masks")
        except DamagedDatasetError:
            return None

    own = dataset.manifest.weights.sha256  # used for masks that don't name a model
    for read in map_ahead(table, dataset.commits(), _THREADS, _AHEAD, "masks"):
        if read is None or not {"source", "annotation_id"} <= set(read.column_names):
            continue
        models = read["model"].to_pylist() if "model" in read.column_names else [None] * read.num_rows
        columns = (read[name].to_pylist() for name in ("id", "annotation_id", "source"))
        for image, mask, source, model in zip(*columns, models, strict=True):
            if source is not None and source != AUTOMATIC:
                found.images.add(image)
                if source == ASSISTED:
                    found.assisted[image, sys.intern(model or own)] += 1
                elif source == CORRECTED:
                    found.corrected[mask] = sys.intern(model or own)
    return found


CLICKS = (1, 3)
"""Numbers of clicks that a gate always measures, in addition to the numbers that the user chose."""

_UNKNOWN = "a file: unknown whether its images were trained on, so all count as held out"


@dataclass(frozen=True)
class GateOptions:
    """Options of a gate: the evaluation that decides, and guard sets, which are datasets, COCO files, or label maps."""

    points: PointsOptions
    guards: tuple[str, ...] = ()
    guard_images: tuple[str, ...] = ()


def evaluate_gate(options: GateOptions, storage: Storage) -> GateResult:
    """Evaluate two sets of weights on held-out annotated masks and on the guard sets, and reach a verdict.

    Raises `UsageError` if an option is invalid, and `NothingMeasuredError` if no image of the truth can be evaluated.
    """
    points = options.points
    if len(points.model.weights) != 2:
        raise UsageError(
            "--gate compares two sets of weights. Pass --weights twice: first the current weights, then the candidate"
        )
    if points.truth.chosen is not TruthSelection.HUMAN:
        raise UsageError(
            f"--gate uses annotated masks, because a model's own aren't independent ground truth. Remove --truth "
            f"{points.truth.chosen}"
        )
    _refuse_twice("", points.truth.targets)
    _refuse_twice("--guard ", options.guards)
    gate = _GateJudge(options, storage)
    if gate.targets:
        clicks = tuple(sorted({*points.settings.clicks, *CLICKS}))
        truth = replace(points.truth, targets=gate.targets, only=gate.only)
        evaluation = replace(points, truth=truth, settings=replace(points.settings, clicks=clicks))
        answer = evaluate_points(evaluation, storage, gate)
        return GateResult(answer.subject, gate.judge(), answer)
    return _without_truth(gate, points, storage)


def _refuse_twice(option: str, names: Sequence[str]) -> None:
    """Raise `UsageError` if two names refer to the same place, because its images would count twice."""
    places: dict[str, str] = {}
    for name in names:
        first = places.setdefault(absolute(name), name)
        if first is not name or names.count(name) > 1:
            raise UsageError(f"{option}{name} is given twice, so its images would count twice. Pass it once")


@dataclass
class _GateDataset:
    """Dataset that is a truth or a guard set, with its untrained images and, for a truth, its annotated masks."""

    untrained: UntrainedImages
    people: AnnotatedImages | None = None


@dataclass(frozen=True)
class _TruthPositions:
    """Classifier of a run's masks by their datasets and the lineages. `found` is indexed by the truth."""

    found: tuple[_GateDataset | None, ...]
    lineages: tuple[Lineage, Lineage]

    def role(self, truth: int, mask: int, source: str | None) -> Role:
        """Return the role of a mask, given its truth, annotation id, and source."""
        found = self.found[truth]
        if source == CORRECTED and found is not None and found.people is not None:
            model = found.people.corrected.get(mask)
            return Role.ASSISTED if model is None else role_of_corrected(model, *self.lineages)
        return role_of(source)

    def group(self, truth: int, image: str) -> int | None:
        """Return the group of similar images that an image belongs to, or None if it isn't known."""
        found = self.found[truth]
        return None if found is None else found.untrained.groups.get(image)


class _GateJudge:
    """Judge that collects the scores of an evaluation with clicks and reaches a verdict."""

    def __init__(self, options: GateOptions, storage: Storage) -> None:
        points = options.points
        self._options = options
        first, second = map(EvaluatedWeights.of, points.model.weights)
        if first.sha256 == second.sha256:
            names = " and ".join(points.model.weights)
            raise UsageError(f"--gate compares two sets of weights, but {names} have the same content")
        self.lineages: tuple[Lineage, Lineage] = (lineage_of(first, storage), lineage_of(second, storage))
        self._judged: GateJudgment | None = None
        self._guard_left_out: list[SkippedTruth] = []
        named = dict.fromkeys([*points.truth.targets, *options.guards])
        datasets = [name for name in named if (Location(storage, name) / MANIFEST).exists()]
        untrained = untrained_images(datasets, self.lineages, storage)
        self._found = {name: _GateDataset(untrained[name]) for name in datasets}
        for name in dict.fromkeys(points.truth.targets):
            if name in self._found:
                self._found[name].people = find_annotated_images(Location(storage, name))
        self.targets = tuple(name for name in points.truth.targets if self._usable(name))
        self._guard_targets = tuple(name for name in options.guards if self._may_guard(name))
        guards = TruthOptions(
            *(self._guard_targets, options.guard_images, TruthSelection.ALL, points.truth.ignore, self.only),
            images_option="--guard-images",
        )
        self._guard_truths = open_truths(guards, storage)  # find errors before the evaluation, which may take hours
        self._tally = ScoreSums(MEASURES, self._known(self.targets))

    @property
    def only(self) -> dict[str, frozenset[int]]:
        """Ids of the images to evaluate, by dataset. A dataset without a restriction is omitted."""
        return {name: found.untrained.ids for name, found in self._found.items() if found.untrained.ids is not None}

    def see(self, result: PartResult) -> None:
        """Add the results of a part."""
        self._tally.add(result.table)

    def judge(self) -> GateJudgment:
        """Evaluate the guard sets, and judge all results. Later calls return the same judgment."""
        if self._judged is None:
            seed = self._options.points.settings.seed
            favoring = self._tally.scores([Role.FAVORS_FIRST]).masks
            independent = compare(self._tally.scores([Role.INDEPENDENT, Role.FAVORS_FIRST]), seed)
            unfavored = compare(self._tally.scores([Role.INDEPENDENT]), seed) if favoring else None
            assisted = self._tally.scores([Role.ASSISTED])
            guards = self._guards(seed)
            verdict, reasons = decide(independent, guards, unfavored)
            self._judged = GateJudgment(
                verdict,
                (*reasons, *_chosen(self._options.points)),
                self.lineages,
                tuple(map(self._images, dict.fromkeys(self._options.points.truth.targets))),
                independent,
                compare(assisted, seed),
                self._assisted_by(),
                guards,
                tuple(map(self._guard_images, self._options.guards)),
                self._tally.corrected_separately,
                favoring,
                tuple(self._guard_left_out),
            )
        return self._judged

    def _usable(self, name: str) -> bool:
        found = self._found.get(name)
        return found is None or found.people is None or bool(found.untrained.of(found.people.images))

    def _images(self, name: str) -> JudgedImages:
        found = self._found.get(name)
        if found is None or found.people is None:
            return JudgedImages(name, 0, _UNKNOWN)
        if not found.people.images:
            return JudgedImages(name, 0, "it has no annotated masks")
        untrained = found.untrained
        return JudgedImages(name, len(untrained.trained & found.people.images), untrained.why, untrained.skipped)

    def _guard_images(self, name: str) -> JudgedImages:
        if (found := self._found.get(name)) is None:
            return JudgedImages(name, 0, _UNKNOWN)
        untrained = found.untrained
        return JudgedImages(name, len(untrained.trained), untrained.why, untrained.skipped)

    def _assisted_by(self) -> dict[str, int]:
        first, second = (each.weights.sha256 for each in self.lineages)
        labels = {first: "the first weights", second: "the second weights"}
        counts: dict[str, int] = {}
        for found in self._found.values():
            if found.people is not None:
                for model, count in found.people.models(found.untrained.of(found.people.images)).items():
                    label = labels.get(model, "others")
                    counts[label] = counts.get(label, 0) + count
        return counts

    def _guards(self, seed: int) -> tuple[GuardComparison, ...]:
        options, targets, truths = self._options, self._guard_targets, self._guard_truths
        if not targets:
            return tuple(GuardComparison(name, ()) for name in options.guards)
        self._guard_left_out += [each for opened in truths for each in opened.skipped]
        tally = ScoreSums(MEASURES, self._known(targets))
        task = options.points.model.task(PointsMeasure(_guard_settings(options.points)))
        for result in run_measure(task, truths, options.points.model.run):
            tally.add(result.table)
            self._guard_left_out += result.skipped
        compared = {name: compare(tally.scores(tuple(Role), number), seed) for number, name in enumerate(targets)}
        return tuple(GuardComparison(name, compared.get(name, ())) for name in options.guards)

    def _known(self, targets: Sequence[str]) -> _TruthPositions:
        return _TruthPositions(tuple(map(self._found.get, targets)), self.lineages)

    def _may_guard(self, name: str) -> bool:
        found = self._found.get(name)
        if found is None:
            return True
        return bool(found.untrained.groups) and (found.untrained.ids is None or bool(found.untrained.ids))


def _chosen(points: PointsOptions) -> Iterator[str]:
    """Yield a reason that lists the options with non-default values, because they may change the verdict."""
    settings = _guard_settings(points)
    chosen = [
        *([f"--seed {settings.seed}"] if settings.seed else []),
        *([f"{settings.first} first clicks"] if settings.first is not FirstClick.CENTER else []),
        *([f"--several-clicks {settings.several}"] if settings.several is not SeveralClicks.SINGLE else []),
        *([f"--groups {points.groups}"] if points.groups is not None else []),
    ]
    if chosen:
        yield f"not the defaults: {', '.join(chosen)}"


def _guard_settings(points: PointsOptions) -> PointsSettings:
    first = points.first or (FirstClick.CENTER if points.groups is None else FirstClick.RANDOM)
    return PointsSettings(CLICKS, first, points.settings.several, points.settings.seed)


def _without_truth(gate: _GateJudge, points: PointsOptions, storage: Storage) -> GateResult:
    """Judge only the guard sets, because no truth has images to evaluate."""
    judgment = gate.judge()
    truths = [Truth(name, DATASET, ()) for name in dict.fromkeys(points.truth.targets)]
    weights = tuple(lineage.weights for lineage in gate.lineages)
    schema = kept_schema(PointsMeasure(points.settings))
    with OutputFolder(points.output, storage, truths, schema) as output:
        subject = EvaluationSubject("points", tuple(truths), weights, "nothing", 0, 0, (), 0.0, output.page)
        answer = GateResult(subject, judgment)
        if output.wanted:
            page = render("gate.html.j2", subject, "Weights compared by a gate", [], judged=judgment.values())
            output.put(answer.to_dict(), page)
    return answer
