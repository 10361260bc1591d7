"""`segmint evaluate edges`: compute the ODS, OIS, AP, and R50 of weights from label maps, and write the results.

Edge detection as a measure, with a row of counts at each threshold for each image and set of weights.
"""

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import cycle
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa

from segmint.infra.arrays import Floats, Ints, Size
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.wording import listed
from segmint.operators.annotations.label_maps import ENDINGS, UnreadableMapError, label_masks, read_label_map
from segmint.operators.evaluate.edges import (
    THRESHOLDS,
    TOLERANCE,
    EdgeCounts,
    EdgeMap,
    EdgeScores,
    LabelMap,
    at_best_thresholds,
    count_edges,
    edge_scores,
    edge_settings,
    find_edges,
    ignored_pixels,
    label_boundaries,
    scores_of_sums,
    stack,
    thresholds,
)
from segmint.operators.intervals import Interval, basis, figure_intervals, holm, swap_p
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.page import (
    ComparedScore,
    Curve,
    Curves,
    FiguresPage,
    Table,
    comparison,
    text_lines,
)
from segmint.pipeline.engine.evaluate.result import (
    HEAD,
    WEIGHTS,
    EvaluationSubject,
    Model,
    OutputFolder,
    Predictions,
    cell,
    verdict,
    with_embeddings,
)
from segmint.pipeline.engine.evaluate.run import (
    SEED,
    EvaluateOptions,
    EvaluationSession,
    check_fail_if_worse,
    open_truths,
)
from segmint.pipeline.engine.evaluate.truth import TruthImage

COUNTS = ("found_matched", "found", "true_matched", "true")
_LARGEST_MAP = 1 << 30  # bytes


@dataclass(frozen=True)
class Annotator:
    """Additional annotator, with a folder of label maps. `names` maps the stem of an image's name to a file name."""

    folder: Location
    names: Mapping[str, str]

    def labels(self, stem: str, size: Size, ignore: Collection[int] = (), is_edge_map: bool = False) -> LabelMap | None:
        """Return an image's label map, or None if this annotator has none. Raises ValueError if the map is invalid.

        An edge map is a picture, so its values are scaled to 8 bits.
        """
        name = self.names.get(stem)
        if name is None:
            return None
        try:
            labels = read_label_map((self.folder / name).read(max_bytes=_LARGEST_MAP), name, is_picture=is_edge_map)
            if not is_edge_map:
                label_masks(labels, ignore)  # checks that the numbers stand for objects
        except (UnreadableMapError, SegmintError, OSError) as error:
            raise ValueError(f"the label map {self.folder / name}: {error}") from error
        if labels.shape != size:
            raise ValueError(
                f"the label map {self.folder / name} is {labels.shape[1]} x {labels.shape[0]} pixels, "
                f"but the image is {size[1]} x {size[0]}"
            )
        return labels


def open_annotator(folder: Location) -> Annotator:
    """List an additional annotator's label maps. Raises `UsageError` if there are none, or if two share a stem."""
    names: dict[str, str] = {}
    for entry in folder.list():
        path = PurePosixPath(entry.name)
        if path.suffix.lower() in ENDINGS:
            if path.stem in names:
                raise UsageError(f"{folder} has two label maps for one image: {names[path.stem]} and {entry.name}")
            names[path.stem] = entry.name
    if not names:
        raise UsageError(f"{folder} contains no label maps: expected files ending in {', '.join(ENDINGS)}")
    return Annotator(folder, names)


@dataclass(frozen=True)
class EdgesMeasure:
    """Edge detection in each image. Edges are matched with the boundaries in each annotator's label map."""

    points_per_side: int = 16
    cuts: int = THRESHOLDS
    tolerance: float = TOLERANCE
    annotators: tuple[Annotator, ...] = field(default_factory=tuple)
    predicted: Mapping[str, Annotator] = field(default_factory=dict)  # by the hash of the predictions: their edge maps

    name = "edges"

    @property
    def schema(self) -> pa.Schema:
        """`HEAD`, the weights, the number of annotators, the image's best F-measure, and the counts by threshold."""
        counts = pa.list_(pa.int64())
        return pa.schema(
            [
                *HEAD,
                WEIGHTS,
                pa.field("annotators", pa.int32(), nullable=False),
                pa.field("f", pa.float64(), nullable=False),
                *(pa.field(name, counts, nullable=False) for name in COUNTS),
            ]
        )

    def rows(self, models: Sequence[Model], image: TruthImage) -> list[Row]:
        """Find edges with each model and count the matches. Raises ValueError if an annotator's map is invalid."""
        assert image.label_map is not None, "checked before"
        others = (each.labels(image.image_id, image.size, image.ignore) for each in self.annotators)
        maps = [image.label_map, *(each for each in others if each is not None)]
        truths = [label_boundaries(labels) for labels in maps]
        ignored = ignored_pixels(maps, image.ignore, self.tolerance) if image.ignore else None
        cuts = thresholds(self.cuts)
        rows = []
        for weights, model in enumerate(with_embeddings(models, image.pixels)):
            if isinstance(model, Predictions):
                edges = _predicted(self.predicted[model.sha256], image)
            else:
                edges = find_edges(*model, edge_settings(self.points_per_side))
            counts = count_edges(edges, truths, cuts, self.tolerance, ignored)
            best = edge_scores([counts], cuts).ois
            lists = {name: getattr(counts, name).tolist() for name in COUNTS}
            rows.append({"weights": weights, "annotators": len(maps), "f": best, **lists})
        return rows


def _predicted(maps: Annotator, image: TruthImage) -> EdgeMap:
    """Read an 8-bit edge map as shares of 255. Raises ValueError if it is missing or invalid."""
    values = maps.labels(image.image_id, image.size, is_edge_map=True)
    if values is None:
        raise ValueError(f"{maps.folder} has no edge map for it")
    if values.min() < 0 or values.max() > 255:
        raise ValueError(f"its edge map in {maps.folder} has values up to {values.max()}: expected 0 to 255")
    return (values / 255).astype(np.float32)


def counts_of(row: Row) -> EdgeCounts:
    """Return the counts of a row."""
    return EdgeCounts(*(np.array(row[name], dtype=np.int64) for name in COUNTS))


FIGURES = ("ods", "ois", "ap", "r50")


@dataclass(frozen=True)
class EdgeFigure:
    """Score from `FIGURES`, or its difference between two sets of weights (second minus first)."""

    name: str
    value: float | None
    interval: Interval | None
    p: float | None = None  # only for a difference; the test swaps the models in whole images
    holm: float | None = None  # p after Holm's correction over all differences
    verdict: str | None = None  # only for a difference


@dataclass(frozen=True)
class EdgesResult:
    """Scores and precision-recall curves of each set of weights, and the differences between two sets."""

    subject: EvaluationSubject
    measure: EdgesMeasure
    scores: tuple[EdgeScores, ...]
    figures: tuple[tuple[EdgeFigure, ...], ...]
    differences: tuple[EdgeFigure, ...]

    def to_dict(self) -> dict[str, Any]:
        weights = []
        for scores, figures in zip(self.scores, self.figures, strict=True):
            found: dict[str, Any] = {}
            for figure in figures:
                found[figure.name] = {"value": figure.value, "interval": figure.interval}
            found["ods_threshold"] = scores.ods_threshold
            found["curve"] = {
                "threshold": thresholds(self.measure.cuts).tolist(),
                "precision": scores.precision.tolist(),
                "recall": scores.recall.tolist(),
            }
            weights.append(found)
        differences = {}
        for each in self.differences:
            values = asdict(each)
            differences[values.pop("name")] = values
        return {
            **self.subject.to_dict(),
            "settings": {
                "points_per_side": self.measure.points_per_side,
                "tolerance": self.measure.tolerance,
                "annotators": 1 + len(self.measure.annotators),
            },
            "weights_scores": weights,
            "differences": differences,
        }

    def lines(self) -> list[str]:
        side = self.measure.points_per_side
        grid = ""
        if self.subject.runs_weights:
            grid = f" of masks from a grid of {side} x {side} points"
        return [
            self.subject.head(),
            f"edges{grid}, matched within {100 * self.measure.tolerance:g}% of the diagonal; ODS at a threshold of "
            f"{self._ods_thresholds()}; in percent, {basis(self.subject.images)}",
            *text_lines([self.table()]),
            *self.subject.closing_lines(),
        ]

    def table(self) -> Table:
        """Return the table of the figures, which compares two models if there are two."""
        cells = [[cell(each.value, each.interval) for each in figures] for figures in self.figures]
        if not self.differences:
            heads = [name.upper() for name in FIGURES]
            return Table(self.subject.size, "Weights", heads, [(self.subject.names[0], cells[0])])
        compared = []
        for *both, change in zip(*cells, self.differences, strict=True):
            name, p, word = change.name.upper(), change.holm, change.verdict
            compared.append(ComparedScore(name, both, change.value, change.interval, p, word))
        return comparison(self.subject, "Figure", compared)

    def _ods_thresholds(self) -> str:
        return listed(f"{each.ods_threshold:.2f}" for each in self.scores)

    def page(self) -> FiguresPage:
        """Build the contents of the page."""
        names = self.subject.names
        tiles = []
        for name, figures in zip(names, self.figures, strict=True):
            for each in figures:
                title = each.name.upper()
                if len(names) > 1:
                    title = f"{name}, {title}"
                tiles.append((title, cell(each.value)[0]))
        tolerance = f"{100 * self.measure.tolerance:g}% of the diagonal"
        facts = [
            ("Threshold of ODS", self._ods_thresholds()),
            ("Matched within", tolerance),
            ("Annotators", f"{1 + len(self.measure.annotators)}"),
        ]
        if self.subject.runs_weights:
            side = self.measure.points_per_side
            facts.insert(1, ("Grid", f"{side} x {side} points"))
        return FiguresPage(
            "Weights evaluated by edges",
            "Edges of the model's masks, matched with the boundaries of label maps, in percent.",
            f"Figures are in percent, {basis(self.subject.images)}.",
            "F at the image's best threshold",
            tiles,
            [self.table()],
            facts,
            [self._chart(names)],
        )

    def _chart(self, names: Sequence[str]) -> Curves:
        cuts = thresholds(self.measure.cuts)
        curves, best = [], []
        for number, (name, scores) in enumerate(zip(names, self.scores, strict=True)):
            best.append(f"{name}: best F {100 * scores.ods:.1f} percent at {scores.ods_threshold:.2f}")
            start = ""
            if len(names) > 1:
                start = f"{name}: "
            curves.append(Curve(f"{start}precision", tuple(scores.precision.tolist()), color=number))
            curves.append(Curve(f"{start}recall", tuple(scores.recall.tolist()), color=number, dashed=True))
        step = max(1, round(len(cuts) / 10))
        x = tuple(f"{cut:.2g}" if place % step == step - 1 else "" for place, cut in enumerate(cuts))
        return Curves("Precision and recall", "threshold", "in percent", x, tuple(curves), "; ".join(best))


def gather(tables: Iterable[Sequence[Row]], weights: int) -> Ints:
    """Stack the rows of `EdgesMeasure` into the counts of all images, (I, W, 4, K)."""
    found = []
    for rows in tables:
        for row in rows:
            found.append(stack([counts_of(row)])[0])
    return np.array(found, dtype=np.int64).reshape(-1, weights, *(found[0].shape if found else (4, 0)))


def edges_result(subject: EvaluationSubject, measure: EdgesMeasure, counts: Ints) -> EdgesResult:
    """Compute the result from the counts (I, W, 4, K). Each resample draws the same images for all weights."""
    cuts = thresholds(measure.cuts)
    images, weights, kinds, steps = counts.shape
    best = np.stack([at_best_thresholds(counts[:, each]) for each in range(weights)], axis=1)
    values = np.concatenate([counts.reshape(images, -1), best.reshape(images, -1)], axis=1)

    def scores(sums: Floats) -> list[EdgeScores]:
        whole = sums[: weights * kinds * steps].reshape(weights, kinds, steps)
        at_best = sums[weights * kinds * steps :].reshape(weights, kinds)
        return [scores_of_sums(*each, cuts) for each in zip(whole, at_best, strict=True)]

    def figures(sums: Floats) -> Floats:
        rows = [[[getattr(each, name) for name in FIGURES] for each in scores(row)] for row in sums]
        table = np.array(rows, dtype=np.float64)  # None becomes NaN
        if weights == 2:
            table = np.concatenate([table, table[:, 1:] - table[:, :1]], axis=1)
        return table.reshape(len(sums), -1)

    means, intervals = figure_intervals(values, figures, [SEED], weights * len(FIGURES))
    found = list(map(EdgeFigure, cycle(FIGURES), means, intervals))
    rows = [tuple(found[start : start + len(FIGURES)]) for start in range(0, len(found), len(FIGURES))]
    differences: list[EdgeFigure] = []
    if weights == 2:
        other = [counts[:, ::-1].reshape(images, -1), best[:, ::-1].reshape(images, -1)]
        ps = swap_p(values, np.concatenate(other, axis=1), lambda sums: figures(sums)[:, -len(FIGURES) :], [SEED, 1])
        for each, p, corrected in zip(rows[2], ps, holm(ps), strict=True):
            word = verdict(each.value, each.interval, corrected, subject.images)
            differences.append(replace(each, p=p, holm=corrected, verdict=word))
    whole = scores(values.sum(axis=0).astype(np.float64))
    return EdgesResult(subject, measure, tuple(whole), tuple(rows[:weights]), tuple(differences))


def evaluate_edges(
    options: EvaluateOptions, measure: EdgesMeasure, annotators: Sequence[str], storage: Storage
) -> EdgesResult:
    """Find edges in all images, match them with the label maps' boundaries, and write the results if requested.

    `annotators` are folders with other annotators' label maps of the same images. Raises `UsageError` if an option is
    invalid, and `NothingMeasuredError` if no image can be evaluated.
    """
    _check(measure)
    check_fail_if_worse(options.fail_if_worse, options.model, FIGURES)
    truths = open_truths(options.truth, storage)
    for truth in truths:
        if truth.kind != "label maps":
            raise UsageError(
                f"{truth.name} is a {truth.kind}: edges are measured on label maps, which number every pixel, "
                "so boundaries are complete. Masks may not cover every boundary"
            )
    measure = replace(measure, annotators=tuple(open_annotator(Location(storage, each)) for each in annotators))
    predictions: list[Predictions] = []
    predicted: dict[str, Annotator] = {}
    for name in options.model.predictions:
        maps = open_annotator(Location(storage, name))
        digest = hashlib.sha256()
        for file in sorted(maps.names.values()):
            digest.update(f"{file}\n".encode() + hashlib.sha256((maps.folder / file).read()).digest())
        sha256 = digest.hexdigest()
        predictions.append(Predictions(str(maps.folder), sha256))
        predicted[sha256] = maps
    measure = replace(measure, predicted=predicted)
    task = options.model.task(measure, predictions)
    with OutputFolder(options.output, storage, truths, measure.schema) as output:
        session = EvaluationSession(task, truths, options.model.run, output, lambda row: float(row["f"]))
        counts = gather(session.tables(), len(task.weights))
        answer = edges_result(session.subject(None), measure, counts)
        if options.fail_if_worse is not None:
            change = answer.differences[FIGURES.index(options.fail_if_worse)]
            subject = answer.subject.with_change(change.name, change.value, change.interval)
            answer = replace(answer, subject=subject)
        answer.page().put(output, answer.to_dict(), answer.subject, session.lowest)
    return answer


def _check(measure: EdgesMeasure) -> None:
    for name, value in (("--points-per-side", measure.points_per_side), ("--thresholds", measure.cuts)):
        if value < 1:
            raise UsageError(f"{name} is {value}: expected 1 or more")
    if not 0 < measure.tolerance <= 1:
        raise UsageError(f"--tolerance is {measure.tolerance:g}: expected a share of the diagonal, over 0 and up to 1")
