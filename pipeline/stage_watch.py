"""Watches over an execution of Ray Data: a progress bar and metrics a stage, and an end to one that has stalled."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from ray.data import DataContext
from ray.data._internal.execution.execution_callback import ExecutionCallback

from infra.errors import SegmintError
from infra.metrics import STAGE_ROWS, STAGE_SECONDS, RunMetrics
from infra.progress import Progress

STAGES = {"Prepare": "prepare", "Segment": "segment", "describe": "describe"}
"""What an operator's name in Ray Data contains, and the stage that it is."""


class StalledError(SegmintError):
    """No row left any stage for longer than `stall_timeout`: the window is ended, and the rest is tried again."""


class StageWatch(ExecutionCallback):  # type: ignore[misc]
    """Moves the bars at each step of an execution, and ends one that brings nothing any more.

    Ray Data makes its own instance, so what it watches stands on the class. The hook is not public: Ray is pinned,
    and a test checks that it is called.
    """

    progress: ClassVar[Progress | None] = None
    metrics: ClassVar[RunMetrics | None] = None
    stall_timeout: ClassVar[float] = math.inf
    rows_seen: ClassVar[dict[str, int]] = {}
    seconds_seen: ClassVar[dict[str, float]] = {}
    last_move: ClassVar[float] = 0.0

    @classmethod
    def moved(cls) -> None:
        """Starts the time without progress anew."""
        cls.last_move = time.monotonic()

    def on_execution_step(self, executor: Any) -> None:
        """Reads how many rows have left each stage. Raises `StalledError`, which ends the execution."""
        if self.progress is None:
            return
        for operator in executor._topology:
            for name, stage in STAGES.items():
                rows = operator.metrics.row_outputs_taken
                if name in operator.name and rows != self.rows_seen.get(stage):
                    self._count(stage, rows, operator.metrics.block_generation_time)
                    self.rows_seen[stage] = rows
                    self.progress.update(stage, rows)
                    self.moved()
        if time.monotonic() - self.last_move > self.stall_timeout:
            raise StalledError(f"no row left any stage for stall_timeout = {self.stall_timeout:g} seconds")

    def _count(self, stage: str, rows: int, seconds: float) -> None:
        if self.metrics is not None:
            self.metrics.add(STAGE_ROWS, rows - self.rows_seen.get(stage, 0), stage=stage)
            self.metrics.add(STAGE_SECONDS, seconds - self.seconds_seen.get(stage, 0.0), stage=stage)
            self.seconds_seen[stage] = seconds


@contextmanager
def watched(
    progress: Progress, rows: int, stall_timeout: float, metrics: RunMetrics | None = None
) -> Iterator[type[StageWatch]]:
    """Sets up Ray Data's context for one window of so many rows, and watches over it.

    Yields the watch, which wants to be told of each shard written. `stall_timeout` in seconds; `metrics` are told of
    the rows and seconds of each stage.
    """
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray's own time-out does not notice a pool whose node died, and takes a long image for a dead one.
    context.execution_no_progress_timeout_s = -1
    context.custom_execution_callback_classes = [StageWatch]
    for stage in STAGES.values():
        progress.stage(stage, rows)
    StageWatch.progress, StageWatch.metrics, StageWatch.stall_timeout = progress, metrics, stall_timeout
    StageWatch.rows_seen, StageWatch.seconds_seen = {}, {}
    StageWatch.moved()
    try:
        yield StageWatch
    finally:
        StageWatch.progress = StageWatch.metrics = None
