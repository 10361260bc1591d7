"""What runs beside the stages: progress and stalls, pools of shard writers, and the nodes with detectors.

Shard writers as Ray tasks. A few run at a time, each on one shard's slices of the stream of blocks.

Detector processes on nodes with GPUs. Ray actors of the driver own them, so they end with the run.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import ray
from ray.data import DataContext
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segmint.catalogs.layout import ShardSpan
from segmint.infra.errors import SegmintError
from segmint.infra.metrics import STAGE_ROWS, STAGE_SECONDS, RunMetrics
from segmint.infra.node_groups import gpu_kind
from segmint.infra.progress import Progress
from segmint.infra.ray_internals import ExecutionCallback, call_back, operators_of
from segmint.infra.ray_session import alive_nodes
from segmint.operators.prepare.detector_process import DetectorProcess, DetectorSettings, new_address, require_numerics
from segmint.operators.prepare.prepare import detector_settings
from segmint.operators.shards.write import write_shard
from segmint.pipeline.building.execution.stages import DETECTOR_CPUS, NodeDetectors, Stages

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
        if cls.progress is not None:
            cls.progress.wait()
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
    """Watch one window, and set up Ray Data's context for it.

    Yields the watch; call its `moved` method after each shard. The bars start at `finished`, the number of rows that
    need no other window, or continue from earlier windows. They end `rows` rows later, which includes the rows of later
    windows.

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


ShardWriter = Callable[..., Any]
"""Function that writes one shard from a task and slices of blocks, as `segmint.operators.shards.write.write_shard`."""

LOOK_S = 5.0
"""Seconds between checks while waiting for a writer. Also the grace period for writers if a window ends early."""


@dataclass(frozen=True)
class BlockSlice:
    """Rows `[start, stop)` of a block. `block` is a reference; the driver never fetches its data."""

    block: Any
    start: int
    stop: int


class StreamLengthError(SegmintError):
    """Raised when the stream has more or fewer rows than its shards need. This is a bug. The shard isn't written."""


def cut_at_borders(
    blocks: Iterable[tuple[Any, int]], spans: Iterable[ShardSpan]
) -> Iterator[tuple[ShardSpan, list[BlockSlice]]]:
    """Yield each shard with its slices as soon as the shard's last row has arrived.

    `blocks` yields references to blocks with their row counts. `spans` yields the shards in the stream's order. Raises
    `StreamLengthError` if the stream ends early or continues after the last shard.
    """
    waiting = iter(spans)
    span = next(waiting, None)
    cuts: list[BlockSlice] = []
    need = span.rows if span else 0
    for block, rows in blocks:
        at = 0
        while at < rows:
            if span is None:
                raise StreamLengthError(f"the stream holds {rows - at} rows or more after its last shard")
            take = min(need, rows - at)
            cuts.append(BlockSlice(block, at, at + take))
            at += take
            need -= take
            if need == 0:
                yield span, cuts
                span, cuts = next(waiting, None), []
                need = span.rows if span else 0
    if span is not None:
        raise StreamLengthError(f"the stream ended {need} rows before the end of shard {span.shard}")


class ShardWriters:
    """Shard writers, at most `limit` at a time. The limit also bounds the number of blocks in the object store.

    If a writer's node dies, Ray retries the writer. If a writer raises an error, Ray doesn't retry it, and the window
    ends.

    If blocks are lost with a node, Ray waits forever for another node to recompute them. Therefore, while this class
    waits for a writer, it calls `check` every `LOOK_S` seconds. `check` raises an error if the wait takes too long.
    """

    def __init__(self, limit: int, check: Callable[[], None], write: ShardWriter = write_shard) -> None:
        self._limit = limit
        self._check = check
        self._remote: Callable[..., Any] = ray.remote(num_cpus=1, max_retries=3)(write).remote
        self.in_flight: list[Any] = []

    def submit(self, task: Any, cuts: list[BlockSlice]) -> Iterator[Any]:
        """Start a shard's writer once fewer than `limit` are running. Yield the results that arrive in the meantime."""
        yield from self._finished()
        while len(self.in_flight) >= self._limit:
            yield self._next()
        self.in_flight.append(self._remote(task, [(cut.start, cut.stop) for cut in cuts], *[cut.block for cut in cuts]))

    def drain(self) -> Iterator[Any]:
        """Wait for all running writers and yield their results."""
        while self.in_flight:
            yield self._next()

    def close(self) -> None:
        """Wait up to `LOOK_S` seconds for the running writers, then cancel the rest. Does nothing after `drain`.

        If a window ends early, a writer may still be waiting for lost blocks, which Ray would recompute later.
        Canceling the writer prevents this.
        """
        if self.in_flight:
            _, late = ray.wait(self.in_flight, num_returns=len(self.in_flight), timeout=LOOK_S)
            for writer in late:
                ray.cancel(writer)
            self.in_flight = []

    def _finished(self) -> Iterator[Any]:
        if self.in_flight:
            done, self.in_flight = ray.wait(self.in_flight, num_returns=len(self.in_flight), timeout=0)
            yield from ray.get(done)

    def _next(self) -> Any:
        done: list[Any] = []
        while not done:
            done, self.in_flight = ray.wait(self.in_flight, num_returns=1, timeout=LOOK_S)
            if not done:
                self._check()
        return ray.get(done[0])


_RESTARTS = 3
"""Maximum number of restarts of the actor. Restarts are rare, because the actor restarts its process itself."""


class _DetectorActor:
    """Actor that owns a node's detector process. When the actor dies, the process ends."""

    def __init__(self, settings: DetectorSettings, address: str) -> None:
        self._process = DetectorProcess(settings, address)

    def ready(self) -> None:
        """Wait until the process accepts connections; see `DetectorProcess.ready`."""
        self._process.ready()

    def answer(self) -> None:
        """Show that the actor is alive."""


def check_detectors(stages: Stages) -> None:
    """Raise `UsageError` if this machine's GPU differs from the GPU in the dataset's detector numerics."""
    config = stages.prepare_arguments[0]
    if stages.detectors_share:
        require_numerics(config.deidentify.device, config.detector_numerics)


def start_detectors(stages: Stages, before: Stages | None = None) -> Stages:
    """Start a detector process on each GPU node. Return the stages with `prepare` restricted to these nodes.

    If detectors run on CPUs, returns the stages unchanged. Nodes that are still alive keep their processes from
    `before`.
    """
    if not stages.detectors_share:
        return stages
    config, storage, _, _, assets, *_ = stages.prepare_arguments
    settings = detector_settings(config, storage, assets)
    held = {} if before is None or before.detectors is None else before.detectors.holders
    nodes = [node for node in ray.nodes() if node["Alive"]]
    holders = {}
    for node in nodes:
        if node["Resources"].get("GPU", 0) > 0 and stages.gpus.name in (None, gpu_kind(node["Resources"])):
            holder = held.get(node["NodeID"])
            if holder is None or _is_dead(holder[0]):
                holder = _start(stages.detectors_share, settings, node["NodeID"])
            holders[node["NodeID"]] = holder
    if not holders and before is not None:  # Ray refuses an empty selector; other nodes may join
        return replace(stages, detectors=before.detectors, prepare_nodes=before.prepare_nodes)
    selector = {"ray.io/node-id": f"in({','.join(sorted(holders))})"}
    return replace(stages, detectors=NodeDetectors(holders), prepare_nodes=selector)


def _is_dead(holder: Any) -> bool:
    """Return whether a node's actor died more often than it may restart."""
    try:
        ray.get(holder.answer.remote(), timeout=LOOK_S)
    except ray.exceptions.ActorDiedError:
        return True
    except ray.exceptions.RayError:  # it is busy, or restarts
        return False
    return False


def _start(share: float, settings: DetectorSettings, node: str) -> tuple[Any, str]:
    address = new_address()
    holder = ray.remote(
        num_gpus=share,
        num_cpus=DETECTOR_CPUS,
        max_restarts=_RESTARTS,
        max_task_retries=_RESTARTS,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )(_DetectorActor)
    return holder.remote(settings, address), address
