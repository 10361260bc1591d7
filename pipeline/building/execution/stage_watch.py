"""Monitoring of a Ray Data execution: progress bars and metrics per stage, and cancellation when it stalls."""

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

from ray.data import DataContext

from segmint.infra.errors import SegmintError
from segmint.infra.metrics import STAGE_ROWS, STAGE_SECONDS, RunMetrics
from segmint.infra.progress import Progress
from segmint.infra.ray_internals import ExecutionCallback, call_back, operators_of
from segmint.infra.ray_session import alive_nodes

STAGES = {"Prepare": "prepare", "Segment": "segment", "(describe": "describe"}
"""Stages of a build, keyed by a part of their operator's name in Ray Data."""

LOST_NODE_WAIT_S = 120.0
"""Seconds without progress after which a window ends if a node was lost. Work that is pinned to the node may wait
forever."""

NODES_EVERY_S = 10.0
"""Seconds between checks of the nodes."""

STORES_EVERY_S = 20.0
"""Seconds between checks of the stores while no row leaves any stage."""


class StalledError(SegmintError):
    """Raised when no row leaves any stage for too long although the stores respond.

    The window ends, and the next window retries the unfinished shards on the remaining nodes.
    """


class StageWatch(ExecutionCallback):  # type: ignore[misc]
    """Callback that updates the bars at each step of an execution and ends the execution if it stalls.

    Ray Data creates the instance, so the state is in class variables. A test checks that Ray calls the callback.
    """

    progress: ClassVar[Progress | None] = None
    stages: ClassVar[Mapping[str, str]] = STAGES
    metrics: ClassVar[RunMetrics | None] = None
    stall_timeout: ClassVar[float] = math.inf
    rows_before: ClassVar[dict[str, int]] = {}  # rows of earlier windows, minus those that run again, by stage
    rows_seen: ClassVar[dict[str, int]] = {}
    seconds_seen: ClassVar[dict[str, float]] = {}
    last_move: ClassVar[float] = 0.0
    next_look: ClassVar[float] = 0.0  # time of the next check of the stores
    outage: ClassVar[Callable[[], object]] = lambda: False
    last_look: ClassVar[float] = 0.0  # time of the last check of the nodes
    nodes: ClassVar[frozenset[str]] = frozenset()  # IDs of the nodes that were alive when the window started
    resized: ClassVar[Callable[[], None] | None] = None  # called once when the number of nodes has doubled or halved
    grows: ClassVar[bool] = False  # True: the pools use nodes that join, so doubling doesn't end the window
    node_lost: ClassVar[float] = math.inf  # time at which the loss of a node was noticed

    @classmethod
    def moved(cls) -> None:
        """Record progress, which restarts the stall timeout."""
        cls.last_move = time.monotonic()
        cls.next_look = cls.last_move + min(STORES_EVERY_S, cls.stall_timeout)

    @classmethod
    def run_again(cls, rows: int) -> None:
        """Move the bars back by the number of rows that left all stages but will run again in this window."""
        for stage in cls.rows_before:
            cls.rows_before[stage] -= rows

    def on_execution_step(self, executor: Any) -> None:
        """Count the rows that have left each stage. Raises `StalledError`, which ends the execution."""
        if self.progress is None:
            return
        for operator, rows, seconds in operators_of(executor):
            for name, stage in self.stages.items():
                if name in operator and rows != self.rows_seen.get(stage):
                    self._count(stage, rows, seconds)
                    self.rows_seen[stage] = rows
                    self.progress.update(stage, self.rows_before[stage] + rows)
                    self.moved()
        self.check()

    @classmethod
    def check(cls) -> None:
        """Raise `StalledError` if there has been no progress for too long, not counting outages of stores.

        The limit is `stall_timeout` seconds, or `LOST_NODE_WAIT_S` after a node was lost.
        """
        now = time.monotonic()
        if now - cls.last_look > NODES_EVERY_S:
            cls.last_look = now
            nodes = alive_nodes()
            if cls.nodes - nodes:
                cls.node_lost = min(cls.node_lost, now)
            most = math.inf if cls.grows else 2 * len(cls.nodes)
            if cls.resized is not None and not len(cls.nodes) / 2 < len(nodes) < most:
                resized, cls.resized = cls.resized, None
                resized()
        node_missed = now - max(cls.last_move, cls.node_lost) > LOST_NODE_WAIT_S
        if now < cls.next_look and not node_missed:
            return
        if cls.outage():
            cls.moved()
        elif now - cls.last_move >= cls.stall_timeout:
            raise StalledError(f"no row left any stage for stall_timeout = {cls.stall_timeout:g} seconds")
        elif node_missed:
            raise StalledError(f"a node was lost, and no row left any stage in {LOST_NODE_WAIT_S:g} seconds after it")
        else:
            cls.next_look = min(now + STORES_EVERY_S, cls.last_move + cls.stall_timeout)

    def _count(self, stage: str, rows: int, seconds: float) -> None:
        if self.metrics is not None:
            self.metrics.add(STAGE_ROWS, rows - self.rows_seen.get(stage, 0), stage=stage)
            self.metrics.add(STAGE_SECONDS, seconds - self.seconds_seen.get(stage, 0.0), stage=stage)
            self.seconds_seen[stage] = seconds


@contextmanager
def watched(
    progress: Progress,
    rows: int,
    stall_timeout: float,
    metrics: RunMetrics | None = None,
    outage: Callable[[], object] = lambda: False,
    stages: Mapping[str, str] = STAGES,
    resized: Callable[[], None] | None = None,
    grows: bool = False,
    finished: int | None = None,
) -> Iterator[type[StageWatch]]:
    """Watch one window of `rows` rows, and set up Ray Data's context for the window.

    Yields the watch; call its `moved` method after each shard. The bars start at `finished`, the number of rows that
    need no other window, or continue from earlier windows.

    `stall_timeout` is in seconds. `metrics` receives the rows and seconds of each stage. `outage` is called while
    nothing progresses, and returns a true value if a store doesn't respond. `stages` maps parts of operator names to
    bar names. `resized` is called once, when the number of nodes has halved or doubled. If `grows` is set, the pools
    use additional nodes anyway, so doubling doesn't trigger the call.
    """
    context = DataContext.get_current()
    context.execution_options.preserve_order = True
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Ray's own timeout doesn't notice a pool whose node died, and it mistakes a slow image for a dead actor.
    context.execution_no_progress_timeout_s = -1
    call_back(context, StageWatch)
    StageWatch.stages = stages
    StageWatch.rows_before = {}
    for stage in stages.values():
        before = progress.done(stage) if finished is None else finished
        progress.stage(stage, before + rows)
        StageWatch.rows_before[stage] = before
    StageWatch.progress, StageWatch.metrics, StageWatch.stall_timeout = progress, metrics, stall_timeout
    StageWatch.rows_seen, StageWatch.seconds_seen, StageWatch.outage = {}, {}, outage
    StageWatch.resized, StageWatch.grows = resized, grows
    StageWatch.nodes, StageWatch.node_lost = alive_nodes(), math.inf
    StageWatch.moved()
    try:
        yield StageWatch
    finally:
        StageWatch.progress = StageWatch.metrics = None
