"""Trial of one row in fresh workers, which shows whether the row kills its worker."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.infra.errors import SegmintError, last_line
from segmint.operators.prepare.prepare import Prepare
from segmint.operators.rows import Row
from segmint.operators.schemas import VERDICT
from segmint.operators.segment.segment_alone import control_table
from segmint.pipeline.building.execution.pools import ActorPool

DEATHS = 2
"""Number of deaths in trials after which a suspect is rejected."""

TRIES = 4
"""Maximum number of trials of a suspect after one window. If a trial's node dies, the trial doesn't count as a
death."""

PROBE_S = 60.0
"""Time limit in seconds for a node to prove that it is alive."""


class UndecidedError(SegmintError):
    """Raised when a trial produces no verdict on a suspect, so its shard must wait."""


class ControlFailedError(UndecidedError):
    """Raised when the machines are at fault: a worker fails on the control image, or none prepares a row in time."""


class StageFailedError(UndecidedError):
    """Raised when the stage raises an error for a row in a trial, which isn't a verdict. The message is the error."""


class NodeDiedError(SegmintError):
    """Raised when a worker dies together with its node or can't be reached, so the suspect may not be at fault."""


@dataclass(frozen=True)
class Trial:
    """Trial of a row in a fresh worker, which first processes a control image."""

    worker: Any  # class of the worker
    arguments: tuple[Any, ...]
    pool: ActorPool  # resources of the worker
    timeout_s: float  # time limit per image
    row: Any  # references to the row's table and to the control image's table
    control: Any
    gpu_kind: str | None  # Ray's name for the GPUs to use
    start_timeout_s: float  # time limit until the worker is ready

    def judge(self, ordinal: int, stage: str) -> RejectedError | None:
        """Try the row until there is a verdict: `DEATHS` deaths reject it, and None means that it passed.

        `stage` is the name of the worker's stage. Raises `UndecidedError` if there is no verdict.
        """
        deaths = 0
        for _ in range(TRIES):
            try:
                reason = self.run()
            except NodeDiedError:
                continue
            if reason is None:
                return None
            deaths += 1
            if deaths == DEATHS:
                return RejectedError(reason, _detail(reason, stage, self.timeout_s))
        raise UndecidedError(f"row {ordinal} killed its worker, and too many nodes died during its trials")

    def run(self) -> Reason | None:
        """Try the row. Return the reason why its worker dies, or None if the worker survives.

        Raises `UndecidedError` and `NodeDiedError`.
        """
        pool, timeout_s = self.pool, self.timeout_s
        kind = self.gpu_kind if pool.num_gpus else None
        worker_class = ray.remote(
            num_cpus=pool.num_cpus, num_gpus=pool.num_gpus, accelerator_type=kind, max_restarts=0
        )(self.worker)
        worker = worker_class.remote(*self.arguments)
        try:
            node = self._start(worker)
            began = time.monotonic()
            try:
                # The worker enforces its own deadline. This timeout applies if the worker fails to do so.
                has_memory = ray.get(worker.has_memory_for.remote(self.row), timeout=3 * timeout_s + PROBE_S)
            except (
                ray.exceptions.RayActorError,
                ray.exceptions.OutOfMemoryError,
                ray.exceptions.GetTimeoutError,
            ) as death:
                if not _answers(node) or (
                    isinstance(death, ray.exceptions.ActorUnavailableError) and not _has_died(worker)
                ):
                    raise NodeDiedError("the node died, or couldn't be reached") from death
                if time.monotonic() - began >= timeout_s:
                    return Reason.TIMED_OUT
                out_of_memory = isinstance(death, ray.exceptions.OutOfMemoryError)
                return Reason.OUT_OF_MEMORY if out_of_memory else Reason.KILLED_WORKER
            except ray.exceptions.RayTaskError as error:
                raise StageFailedError(last_line(error)) from error
            except ray.exceptions.RayError as error:
                raise UndecidedError(f"its worker failed in a trial: {last_line(error)}") from error
            return None if has_memory else Reason.OUT_OF_MEMORY
        finally:
            ray.kill(worker)

    def _start(self, worker: Any) -> str:
        """Let a worker process the control image, and return the worker's node. Raises `ControlFailedError`."""
        advice = (
            "an image killed its worker, and a new worker failed on a control image, so no image is rejected for it: "
            "check the memory and GPUs of the machines"
        )
        try:
            node: str = ray.get(worker.node.remote(), timeout=self.start_timeout_s)
            if ray.get(worker.has_memory_for.remote(self.control), timeout=self.start_timeout_s):
                return node
        except ray.exceptions.RayError as error:
            raise ControlFailedError(f"{advice} ({last_line(error)})") from error
        raise ControlFailedError(f"{advice} (its memory ran out)")


def _detail(reason: Reason, stage: str, timeout_s: float) -> str:
    limit = "resources.segment.timeout_s" if stage == "segment" else "its resources.timeout_s"
    deeds = {
        Reason.TIMED_OUT: f"takes longer than {limit} = {timeout_s:g} s",
        Reason.OUT_OF_MEMORY: "takes more memory than its worker had",
        Reason.KILLED_WORKER: f"ends the process {'that segments it' if stage == 'segment' else f'of {stage}'}",
    }
    return f"{deeds[reason]}, {DEATHS} times alone and each time right after a control image came through"


def apply_alone(
    steps: Sequence[Callable[[], Callable[[pa.Table], pa.Table]]], prepared: pa.Table
) -> tuple[pa.Table, pa.Table, Row]:
    """Apply stages to one prepared row and the control image in a Ray task.

    Returns the row's table, the control image's table, and the row's `VERDICT` columns.
    """
    table = pa.concat_tables([prepared, control_table()], promote_options="default")  # not all builds have prompts
    for step in steps:
        table = step()(table)
        control = table.slice(1)
        for field in VERDICT:  # clear the control image's verdict, so that the next stage processes it in any case
            at = control.schema.get_field_index(field.name)
            control = control.set_column(at, field, pa.nulls(1, field.type))
        table = pa.concat_tables([table.slice(0, 1), control])
    verdict, _ = table.select(VERDICT.names).to_pylist()
    return table.slice(0, 1), table.slice(1), verdict


def prepare_alone(arguments: tuple[Any, ...], rows: pa.Table) -> tuple[pa.Table, list[Row]]:
    """Prepare rows in a Ray task, with the arguments of `Prepare`. Return their table and their `VERDICT` columns."""
    prepare = Prepare(*arguments)
    try:
        prepared = prepare(rows)
    finally:
        prepare.close()
    return prepared, prepared.select(VERDICT.names).to_pylist()


def _answers(node: str) -> bool:
    """Return whether a node still runs tasks.

    Ray may report a dead worker before it notices that the whole node died.
    """
    there = NodeAffinitySchedulingStrategy(node, soft=False)
    probe = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(lambda: None)
    try:
        ray.get(probe.remote(), timeout=PROBE_S)
    except ray.exceptions.RayError:
        return False
    return True


def _has_died(worker: Any) -> bool:
    """Return whether an unreachable worker is dead. Ray may take a while to learn of its death."""
    try:
        ray.get(worker.node.remote(), timeout=PROBE_S)
    except ray.exceptions.ActorDiedError:
        return True
    except ray.exceptions.RayError:
        return False
    return False
