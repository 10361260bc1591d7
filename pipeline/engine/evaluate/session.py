"""Run of a measure, which collects its rows as they arrive and describes the evaluation at the end."""

import heapq
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from segmint.catalogs.lineage import lineage_of
from segmint.infra.log import get_logger
from segmint.infra.wording import listed
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.measure import EvaluateTask, PartResult
from segmint.pipeline.engine.evaluate.output import OutputFolder
from segmint.pipeline.engine.evaluate.result import EvaluationSubject, check_measured
from segmint.pipeline.engine.evaluate.run import RunOptions, loaded, run_measure
from segmint.pipeline.engine.evaluate.setup import ModelOptions, TruthOptions
from segmint.pipeline.engine.evaluate.truth import SkippedTruth, Truth

SEED = 0
"""Seed for resampling. It is fixed, so equal results always have equal intervals."""

SHOWN = 12
"""Number of lowest scores that a page lists for each set of weights."""


@dataclass(frozen=True)
class EvaluateOptions:
    """Options of an evaluation. `output` is the folder for the results, or None.

    `fail_if_worse` names the measure by which the second weights must not be worse than the first ones, or is None.
    """

    truth: TruthOptions
    model: ModelOptions = field(default_factory=ModelOptions)
    output: str | None = None
    fail_if_worse: str | None = None


@dataclass(frozen=True, order=True)
class LowestScore:
    """Low score, with the image or mask that it belongs to."""

    score: float
    where: str


class EvaluationSession:
    """Evaluation of a task over its truths. `score_of` extracts the score of a row that `lowest` ranks."""

    def __init__(
        self,
        task: EvaluateTask,
        truths: Sequence[Truth],
        options: RunOptions,
        output: OutputFolder,
        score_of: Callable[[Row], float | None] = lambda row: None,
    ) -> None:
        """Store the task, and the output, which receives the rows as they arrive.

        Logs a warning if weights were trained on one of the truths.
        """
        warn_if_trained_on(task, truths)
        self._task = task
        self._truths = tuple(truths)
        self._options = options
        self._output = output
        self._score_of = score_of
        self._skipped: list[SkippedTruth] = [each for truth in truths for each in truth.skipped]
        self._images = 0
        self._seconds = 0.0
        self._computed_on: set[str] = set()
        self._lowest: list[list[LowestScore]] = [[] for _ in task.weights]

    def results(self) -> Iterator[PartResult]:
        """Yield each part's results in order. Raises `NothingMeasuredError` at the end if no image was measured."""
        for result in run_measure(self._task, self._truths, self._options):
            self._skipped += result.skipped
            self._images += result.images
            self._seconds += result.seconds
            self._computed_on.add(result.computed_on)
            yield result
        check_measured(self._images, self._skipped)

    def tables(self) -> Iterator[list[Row]]:
        """Yield the rows of `results` and add them to the output."""
        for result in self.results():
            self._output.add(result.table)
            rows: list[Row] = result.table.to_pylist()
            for row in rows:
                self._look_at(row)
            yield rows

    @property
    def lowest(self) -> list[list[LowestScore]]:
        """Lowest scores of each set of weights. The lists are complete once `tables` has ended."""
        return self._lowest

    def subject(self, masks: int | None) -> EvaluationSubject:
        """Describe the evaluation after all results. `masks` is the number of masks, or None for whole images."""
        return EvaluationSubject(
            self._task.measure.name,
            self._truths,
            self._task.weights,
            listed(sorted(self._computed_on)),
            self._images,
            masks,
            tuple(self._skipped),
            self._seconds,
            self._output.page,
        )

    def _look_at(self, row: Row) -> None:
        score = self._score_of(row)
        if score is not None:
            where = f"{row['image']}, mask {row['mask']}" if "mask" in row else row["image"]
            home = self._lowest[row["weights"]]
            self._lowest[row["weights"]] = heapq.nsmallest(SHOWN, [*home, LowestScore(score, where)])


def warn_if_trained_on(task: EvaluateTask, truths: Sequence[Truth]) -> None:
    """Log a warning for weights whose `training.json` names the digest of a dataset among the truths."""
    for truth in truths:
        if truth.dataset is None:
            continue
        for weights in loaded(task):
            rounds = lineage_of(weights.name, weights.sha256, truth.dataset.storage)
            if truth.facts["digest"] in [each.digest for link in rounds for each in link.datasets]:
                get_logger("evaluate").warning(
                    "trained_on_truth",
                    weights=weights.label,
                    dataset=truth.name,
                    note="scores on images that weights were trained on are too high: use held-out data",
                )
