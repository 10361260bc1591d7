"""`segmint evaluate proposals`: average recall of weights on truths, as text, as JSON, and as a page.

Object proposals as a measure, with a row for each image, set of weights, and kind of category.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa

from segmint.infra.arrays import Floats, Ints
from segmint.infra.errors import UsageError
from segmint.infra.storage.storage import Storage
from segmint.infra.wording import counted, listed
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.sam.predictor import Predictor
from segmint.operators.evaluate.instances import (
    AREAS,
    IOU_THRESHOLDS,
    LIMITS,
    PredictedMask,
    RecallCounts,
    TrueMask,
    proposal_settings,
    propose_objects,
    recall_counts,
)
from segmint.operators.intervals import Interval, basis, figure_intervals, holm, swap_p
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.page import ComparedScore, FiguresPage, Table, comparison, text_lines
from segmint.pipeline.engine.evaluate.result import (
    HEAD,
    WEIGHTS,
    EvaluationSubject,
    Model,
    OutputFolder,
    PredictedResult,
    Predictions,
    cell,
    check_matched,
    read_predictions,
    verdict,
)
from segmint.pipeline.engine.evaluate.run import (
    SEED,
    EvaluateOptions,
    EvaluationSession,
    check_fail_if_worse,
    open_truths,
)
from segmint.pipeline.engine.evaluate.truth import TruthImage, TruthMask

ALL = "all"

KINDS: Mapping[str, str] = {"r": "rare", "c": "common", "f": "frequent"}
"""Names of the values of `frequency` in LVIS's categories."""


@dataclass(frozen=True)
class ProposalsMeasure:
    """Measure that proposes objects in each image and counts how many true masks the proposals find.

    `frequencies` maps each truth and category id of an LVIS file to a key of `KINDS`. Each kind of category is then
    also counted separately, as if its masks were the only true masks.
    """

    points_per_side: int = 64
    frequencies: Mapping[int, Mapping[int, str]] = field(default_factory=dict)

    name = "proposals"

    @property
    def schema(self) -> pa.Schema:
        """`HEAD`, the weights, the kind, the numbers of proposals and true masks, and the image's average recall.

        `true_masks` and `found` are the flattened arrays of `RecallCounts`.
        """
        return pa.schema(
            [
                *HEAD,
                WEIGHTS,
                pa.field("kind", pa.string(), nullable=False),  # kind of category: all, rare, common, or frequent
                pa.field("proposals", pa.int32(), nullable=False),
                pa.field("true_masks", pa.list_(pa.int64()), nullable=False),
                pa.field("found", pa.list_(pa.int64()), nullable=False),
                *(pa.field(f"ar_{limit}", pa.float64()) for limit in LIMITS),
            ]
        )

    def rows(self, models: Sequence[Model], image: TruthImage) -> list[Row]:
        """Propose objects with each model."""
        rows = []
        for weights, model in enumerate(models):
            if isinstance(model, Predictions):
                found = best_first(model.results_for(image))
            else:
                found = propose_objects(_generator(model, self.points_per_side), image.pixels)
            for kind, masks in self._by_kind(image).items():
                rows.append({"weights": weights, "kind": kind, "proposals": len(found), **_counted(masks, found)})
        return rows

    def _by_kind(self, image: TruthImage) -> dict[str, list[TruthMask]]:
        # COCOeval sorts masks by category and then in the file's order. The order breaks ties between equal overlaps.
        masks = sorted(image.masks, key=lambda mask: -1 if mask.category is None else mask.category)
        kinds = {ALL: masks}
        if self.frequencies:
            known = self.frequencies.get(image.truth, {})
            for key, kind in KINDS.items():
                kinds[kind] = [mask for mask in masks if mask.category is not None and known.get(mask.category) == key]
        return kinds


def true_masks(masks: Sequence[TruthMask]) -> list[TrueMask]:
    """Convert masks for matching. A mask's area is taken from its file if the file states it."""
    return [
        TrueMask(mask.rle, mask.area if mask.stated_area is None else mask.stated_area, mask.crowd) for mask in masks
    ]


def counts_of(row: Row) -> RecallCounts:
    """Return the counts of a row."""
    truth = np.array(row["true_masks"], dtype=np.int64)
    return RecallCounts(np.array(row["found"], dtype=np.int64).reshape(len(LIMITS), len(truth), -1), truth)


def best_first(results: Sequence[PredictedResult]) -> list[PredictedMask]:
    """Return the masks with the highest scores, best first."""
    found = [PredictedMask(each.rle, each.score or 0.0) for each in results]
    return sorted(found, key=lambda mask: -mask.score)[: LIMITS[-1]]


def _counted(masks: Sequence[TruthMask], found: Sequence[PredictedMask]) -> Row:
    counts = recall_counts(true_masks(masks), found, LIMITS)
    averages = (areas[0] for areas in counts.average_recall())
    return {
        "true_masks": counts.truth.tolist(),
        "found": counts.found.reshape(-1).tolist(),
        **{f"ar_{limit}": average for limit, average in zip(LIMITS, averages, strict=True)},
    }


@lru_cache(maxsize=2)
def _generator(model: Predictor, points_per_side: int) -> MaskGenerator:
    """Return a model's mask generator. Its threads live as long as the process."""
    return MaskGenerator(model, proposal_settings(points_per_side))


_CELLS = len(LIMITS) * len(AREAS)


@dataclass(frozen=True)
class Recall:
    """Average recall of the best proposals, up to a limit, for true masks of one kind and size range.

    `value` is None if there are no true masks. In a difference, it is the second weights' recall minus the first's.
    """

    kind: str
    limit: int
    area: str
    value: float | None
    interval: Interval | None
    p: float | None = None  # only for a difference; the test swaps the models in whole images
    holm: float | None = None  # p after Holm's correction over all differences
    verdict: str | None = None  # only for a difference

    @property
    def measure(self) -> str:
        """Name for `--fail-if-worse`."""
        return measure_name(self.kind, self.limit, self.area)


def measure_name(kind: str, limit: int, area: str) -> str:
    """Return the name of an average recall for `--fail-if-worse`, such as `ar_1000` or `ar_100_rare_small`."""
    return "_".join(["ar", str(limit), *(each for each in (kind, area) if each != ALL)])


@dataclass(frozen=True)
class ProposalCounts:
    """Counts of I images for one kind of category: found (I, W, limits, areas, thresholds), truth (I, areas)."""

    found: Ints
    truth: Ints
    proposals: Ints  # (I, W)


@dataclass(frozen=True)
class ProposalsResult:
    """Average recall of each set of weights, and the differences between two sets."""

    subject: EvaluationSubject
    points_per_side: int
    proposals: tuple[float, ...]  # mean number of proposals per image, for each set of weights
    truth: dict[str, dict[str, int]]  # number of true masks by kind and size range
    recalls: tuple[tuple[Recall, ...], ...]
    differences: tuple[Recall, ...]

    def to_dict(self) -> dict[str, Any]:
        recalls = []
        for weights, own in enumerate(self.recalls):
            recalls += [{"weights": weights, **asdict(each)} for each in own]
        return {
            **self.subject.to_dict(),
            "settings": {
                "points_per_side": self.points_per_side,
                "limits": list(LIMITS),
                "iou_thresholds": list(IOU_THRESHOLDS),
            },
            "true_masks": self.truth,
            "proposals_an_image": list(self.proposals),
            "recalls": recalls,
            "differences": list(map(asdict, self.differences)),
        }

    def lines(self) -> list[str]:
        side = self.points_per_side
        grid = ""
        if self.subject.runs_weights:
            grid = f" from a grid of {side} x {side} points, without filters"
        return [
            self.subject.head(),
            f"{self._proposals()} proposals per image{grid}; average recall (AR) over IoU 0.5 to 0.95 in percent, "
            f"{basis(self.subject.images)}",
            *text_lines([self._scores()]),
            *self.subject.closing_lines(),
        ]

    def table(self, recalls: Sequence[Recall]) -> Iterator[tuple[str, list[Recall]]]:
        """Yield the rows of a table: a row for each kind and limit, with a cell for each size range."""
        for kind in dict.fromkeys(each.kind for each in recalls):
            for limit in LIMITS:
                cells = [each for each in recalls if (each.kind, each.limit) == (kind, limit)]
                name = f"AR@{limit}"
                if kind != ALL:
                    name += f", {kind} ({', '.join(f'{self.truth[kind][area]:,}' for area in AREAS)})"
                yield name, cells

    def page(self) -> FiguresPage:
        """Return the contents of the page."""
        names = self.subject.names
        tiles = []
        for weights, recalls in zip(names, self.recalls, strict=True):
            for name, cells in self.table(recalls):
                if len(names) > 1:
                    name = f"{weights}, {name}"
                if cells[0].kind == ALL:
                    tiles.append((name, cell(cells[0].value)[0]))
        facts = [("Proposals per image", self._proposals())]
        if self.subject.runs_weights:
            grid = f"{self.points_per_side} x {self.points_per_side} points"
            facts = [("Grid", grid), ("NMS", "0.9, no other filter"), *facts]
        return FiguresPage(
            "Weights evaluated by object proposals",
            "Average recall of ground truth masks among the masks that the model proposes without prompts, "
            "over IoU from 0.5 to 0.95, in percent.",
            f"Ground truth masks in parentheses; {basis(self.subject.images)}.",
            "AR@1000",
            tiles,
            [self._scores()],
            facts,
        )

    def _scores(self) -> Table:
        """Return the table of all scores, which compares two models if there are two."""
        if self.differences:
            return comparison(self.subject, "Average recall", list(self._compared()))
        rows = []
        for name, cells in self.table(self.recalls[0]):
            rows.append((name, [cell(each.value, each.interval) for each in cells]))
        title = f"{self.subject.names[0]}, {counted(self.subject.images, 'image')}"
        sizes = [f"{area} ({self.truth[ALL][area]:,})" for area in AREAS]
        return Table(title, "Average recall", sizes, rows)

    def _proposals(self) -> str:
        return listed(f"{each:.0f}" for each in self.proposals)

    def _compared(self) -> Iterator[ComparedScore]:
        for first, second, change in zip(*self.recalls, self.differences, strict=True):
            kind = ""
            if change.kind != ALL:
                kind = f"{change.kind} masks, "
            name = f"AR@{change.limit}, {kind}{change.area} ({self.truth[change.kind][change.area]:,})"
            cells = [cell(first.value, first.interval), cell(second.value, second.interval)]
            yield ComparedScore(name, cells, change.value, change.interval, change.holm, change.verdict)


def gather(tables: Iterable[Sequence[Row]], weights: int) -> dict[str, ProposalCounts]:
    """Collect the rows of `ProposalsMeasure`, which are grouped by image, into counts by kind."""
    found: dict[str, list[list[Ints]]] = {}
    truth: dict[str, list[Ints]] = {}
    proposals: dict[str, list[list[int]]] = {}
    for rows in tables:
        for row in rows:
            kind, counts = row["kind"], counts_of(row)
            if row["weights"] == 0:
                found.setdefault(kind, []).append([])
                proposals.setdefault(kind, []).append([])
                truth.setdefault(kind, []).append(counts.truth)
            found[kind][-1].append(counts.found)
            proposals[kind][-1].append(row["proposals"])
    shape = (weights, len(LIMITS), len(AREAS), len(IOU_THRESHOLDS))
    gathered = {}
    for kind in found:
        gathered[kind] = ProposalCounts(
            np.array(found[kind], dtype=np.int64).reshape(-1, *shape),
            np.array(truth[kind], dtype=np.int64),
            np.array(proposals[kind], dtype=np.int64),
        )
    return gathered


def proposals_result(
    subject: EvaluationSubject, points_per_side: int, counts: dict[str, ProposalCounts]
) -> ProposalsResult:
    """Compute the result from the counts. Each resample draws the same images for all weights."""
    recalls: list[list[Recall]] = [[] for _ in subject.weights]
    differences: list[Recall] = []
    for place, (kind, each) in enumerate(counts.items()):
        images, weights = each.found.shape[:2]
        values = np.concatenate([each.truth, each.found.reshape(images, -1)], axis=1)
        shape = each.found.shape[1:]

        def averages(sums: Floats, shape: tuple[int, ...] = shape) -> Floats:
            truth, found = sums[:, : len(AREAS)], sums[:, len(AREAS) :].reshape(-1, *shape)
            with np.errstate(invalid="ignore", divide="ignore"):
                recall = (found / truth[:, None, None, :, None]).mean(axis=-1)
            if shape[0] == 2:
                recall = np.concatenate([recall, recall[:, 1:] - recall[:, :1]], axis=1)
            flat: Floats = recall.reshape(len(sums), -1)
            return flat

        value, intervals = figure_intervals(values, averages, [SEED, place], weights * _CELLS)
        ps: list[float | None] = [None] * len(value)
        if weights == 2:
            other = np.concatenate([each.truth, each.found[:, ::-1].reshape(images, -1)], axis=1)
            ps[2 * _CELLS :] = swap_p(values, other, partial(_last, averages, 2 * _CELLS), [SEED, place, 1])
        rows = np.ndindex(len(value) // _CELLS, len(LIMITS), len(AREAS))
        for (row, limit, area), mean, interval, p in zip(rows, value, intervals, ps, strict=True):
            home = recalls[row] if row < weights else differences
            home.append(Recall(kind, LIMITS[limit], AREAS[area], mean, interval, p))
    judged = []
    for change, corrected in zip(differences, holm([change.p for change in differences]), strict=True):
        word = verdict(change.value, change.interval, corrected, subject.images)
        judged.append(replace(change, holm=corrected, verdict=word))
    return ProposalsResult(
        subject,
        points_per_side,
        tuple(counts[ALL].proposals.mean(axis=0).tolist()),
        {kind: dict(zip(AREAS, each.truth.sum(axis=0).tolist(), strict=True)) for kind, each in counts.items()},
        tuple(map(tuple, recalls)),
        tuple(judged),
    )


def _last(figures: Callable[[Floats], Floats], first: int, sums: Floats) -> Floats:
    return figures(sums)[:, first:]


def evaluate_proposals(options: EvaluateOptions, points_per_side: int, storage: Storage) -> ProposalsResult:
    """Propose objects in all images, count the true masks that they find, and write the results to the output, if any.

    Raises `UsageError` if an option is invalid, and `NothingMeasuredError` if no image can be evaluated.
    """
    if points_per_side < 1:
        raise UsageError(f"--points-per-side is {points_per_side}: expected 1 or more")
    truths = open_truths(options.truth, storage)
    frequencies = {number: truth.frequencies for number, truth in enumerate(truths) if truth.frequencies}
    measure = ProposalsMeasure(points_per_side, frequencies)
    kinds = [ALL, *(KINDS.values() if frequencies else ())]
    names = [measure_name(kind, limit, area) for kind in kinds for limit in LIMITS for area in AREAS]
    check_fail_if_worse(options.fail_if_worse, options.model, names)
    task = options.model.task(measure, read_predictions(options.model.predictions, truths, storage, ("score",)))
    with OutputFolder(options.output, storage, truths, measure.schema) as output:
        session = EvaluationSession(task, truths, options.model.run, output, _score)
        counts = gather(session.tables(), len(task.weights))
        check_matched(task.weights, counts[ALL].proposals.any(axis=0))
        subject = session.subject(int(counts[ALL].truth[:, 0].sum()))
        answer = proposals_result(subject, points_per_side, counts)
        if options.fail_if_worse is not None:
            change = {each.measure: each for each in answer.differences}[options.fail_if_worse]
            subject = subject.with_change(change.measure, change.value, change.interval)
            answer = replace(answer, subject=subject)
        answer.page().put(output, answer.to_dict(), subject, session.lowest)
    return answer


def _score(row: Row) -> float | None:
    score: float | None = row[f"ar_{LIMITS[-1]}"] if row["kind"] == ALL else None
    return score
