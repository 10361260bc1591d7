"""A run of a measure: its rows as they come, and what was evaluated, once all have come."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from segmint.operators.rows import Row
from segmint.pipeline.evaluate.answer import Subject, check_measured
from segmint.pipeline.evaluate.measure import EvaluateTask
from segmint.pipeline.evaluate.output import OutputFolder
from segmint.pipeline.evaluate.run import RunOptions, run_measure
from segmint.pipeline.evaluate.setup import ModelOptions, TruthOptions
from segmint.pipeline.evaluate.truth import LeftOut, Truth

SEED = 0
"""Of resampling: the same results always have the same intervals."""


@dataclass(frozen=True)
class EvaluateOptions:
    """What is evaluated, and the folder for the results, which may be left out."""

    truth: TruthOptions
    model: ModelOptions = field(default_factory=ModelOptions)
    output: str | None = None


class Session:
    """Runs a task over its truths."""

    def __init__(self, task: EvaluateTask, truths: Sequence[Truth], options: RunOptions, output: OutputFolder) -> None:
        """Take where the rows are kept: they are put there as they come."""
        self._task = task
        self._truths = tuple(truths)
        self._options = options
        self._output = output
        self._left_out: list[LeftOut] = [each for truth in truths for each in truth.left_out]
        self._images = 0
        self._seconds = 0.0

    def tables(self) -> Iterator[list[Row]]:
        """The rows of each part, in order."""
        for result in run_measure(self._task, self._truths, self._options):
            self._left_out += result.left_out
            self._images += result.images
            self._seconds += result.seconds
            table: pa.Table = result.table
            self._output.add(table)
            yield table.to_pylist()
        check_measured(self._images, self._left_out)

    def subject(self, masks: int | None) -> Subject:
        """What was evaluated, once `tables` has ended; `masks` are those that counted, None for whole images."""
        return Subject(
            self._task.measure.name,
            self._truths,
            self._task.weights,
            self._task.device,
            self._task.precision,
            self._images,
            masks,
            tuple(self._left_out),
            self._seconds,
        )
