"""Trials of rows that keep their shards on hold: images that kill their worker, and persistent faults.

When a worker of the segment stage or a custom stage dies, the ledger shows which image the worker was processing. This
image becomes a suspect. A suspect is only rejected after it kills two more workers in trials. Each trial starts a fresh
worker, which first processes a control image. The worker's death only counts if its node is still alive afterward. If
the worker fails on the control image, the machine is at fault and no image is rejected.

A row that causes a fault in three attempts gets one trial per run. The trial either produces a verdict, or the run
reports the row and the cause of its fault. If the configuration's `max_faults` allows it, such a row is rejected
instead, but only after another row has passed the same stage, which shows that the fault isn't an outage.

Trial of one row in fresh workers, which shows whether the row kills its worker.
"""

import functools
import sys
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.layout import ShardSpan
from segmint.infra.errors import SegmintError, last_line
from segmint.infra.log import get_logger
from segmint.infra.row_ledger import STAGE_ROWS, RowLedger
from segmint.infra.uris import (
    LOCAL,
    UriNotAllowedError,
    catalog_folder,
    is_below,
    parent,
    relative_to,
    scheme,
    store_name,
)
from segmint.operators.describe import describe_table
from segmint.operators.prepare.prepare import Prepare
from segmint.operators.rows import VERDICT, Row, faulted, given_up, named, rejected
from segmint.operators.segment.segment import Segment
from segmint.operators.segment.segment_alone import SegmentAlone, control_table
from segmint.operators.shards.write import ShardResult
from segmint.pipeline.building.execution.row_source import RowSource, count_rows
from segmint.pipeline.building.execution.stages import ActorPool, Stages

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


FAULTY_ATTEMPTS = 3
"""Number of faulty attempts after which a row gets a trial."""

MOST_SINGLE_TRIALS = 8
"""Maximum number of suspects that get a trial after one window. The same limit applies to rows with faults."""

RETRY_WAIT_S = 200.0
"""Seconds that a shard on hold waits before it may run again in the same window."""

MOST_RUNS = FAULTY_ATTEMPTS
"""Maximum number of times that a shard runs in one window. A fault that persists after this many runs needs a trial or
more time. Without the limit, shards with persistent faults would use up the time of all other shards."""

WITNESS_ROWS = 2000
"""Number of rows before and after a row with a persistent fault among which others are chosen that must work."""

MOST_WITNESSES = 8
"""Maximum number of other rows that are processed to show that a stage works."""


class PersistentFaultError(UndecidedError):
    """Raised when a row has a fault in a trial as well. The message is the fault, beginning with its stage."""


@dataclass(frozen=True)
class Trials:
    """Results of a window's trials."""

    verdicts: int  # rows with a verdict, or that passed a trial after a fault; their shards needn't wait
    on_hold: dict[int, str]  # why one of the shard's rows has no verdict, by shard


class Quarantine:
    """Suspects of a run and the verdicts on them. The driver keeps both until the suspects' shards are committed."""

    def __init__(self, stages: Stages, start_timeout_s: float, max_faults: int = 0) -> None:
        """Prepare for trials. Each trial's worker must be scheduled and ready within `start_timeout_s` seconds.

        Up to `max_faults` rows of a shard are rejected if their faults persist.
        """
        self.stages = stages  # layout for the current nodes
        self._start_timeout_s = start_timeout_s
        self._max_faults = max_faults
        self.known: dict[int, Row] = {}  # verdict columns by ordinal; undecided suspects have a fault
        self._killed: dict[int, int] = {}  # number of the stage whose worker died, by the suspect's ordinal
        self.rows: RowSource | None = None  # of the last window
        self._ledger: RowLedger | None = None
        self.ended = False  # True if `end_window` ended the last window
        self._died_with_others: set[int] = set()  # ledger's numbers of rows whose dead worker also ran others
        self._attempts: Counter[int] = Counter()  # attempts in which a row's fault put its shard on hold, by ordinal
        self.faulted: dict[int, None] = {}  # rows with faults in the last window, in order
        self._held: Counter[int] = Counter()  # number of times that a shard was put on hold in the last window
        self.alone: dict[int, str] = {}  # trial result of a row with a fault, by ordinal
        self._persistent: dict[int, str] = {}  # faults that persisted in a trial, by ordinal
        self._kept: dict[int, str] = {}  # why such a row wasn't rejected although `max_faults` allows it

    @property
    def _catalog(self) -> str:
        """URI of the source catalog."""
        catalog: str = self.stages.prepare_arguments[3]
        return catalog

    def note(self, result: ShardResult) -> int:
        """Record the rows whose faults put a shard on hold, and schedule the shard to run again in the current window.

        A shard runs at most `MOST_RUNS` times in a window. Returns the number of rows that will run again.
        """
        self.faulted |= dict.fromkeys(result.faulted)
        self._attempts.update(result.faulted)
        if result.status == "on_hold" and self._ledger is not None and self.rows is not None:
            self._held[result.shard] += 1
            if self._held[result.shard] < MOST_RUNS:
                runs = self.rows.runs_of_shard(result.shard)
                self._ledger.retry_after(RETRY_WAIT_S, result.shard, runs)
                return count_rows(runs)
        return 0

    def open_window(self, rows: RowSource, retry_rows: int | None = None) -> tuple[RowSource, RowLedger]:
        """Return a window's rows and its ledger. If there are verdicts on suspects, the rows include verdict columns.

        About every `retry_rows` rows, the window retries all shards that were put on hold since the last retry.
        """
        self.rows, self.faulted, self._held, self.ended = rows, {}, Counter(), False
        self._ledger = RowLedger(alone=[row for row in self._died_with_others if row % STAGE_ROWS in rows])
        return rows.opened(dict(self.known) or None, self._ledger, retry_rows), self._ledger

    def end_window(self) -> None:
        """End the open window after the rows that were already read. Does nothing if no window is open."""
        if self._ledger is not None:
            self._ledger.stop_reading()
            self.ended = True

    def spent(self) -> dict[str, float]:
        """Return the busy seconds in the open window, by stage, for the stages that overlap inside segment actors."""
        if self._ledger is not None:
            return self._ledger.spent()
        return {}

    def peaks(self) -> list[float]:
        """Return the peak FLOP/s that each segment actor of the open window measured on its device."""
        if self._ledger is not None:
            return self._ledger.peaks()
        return []

    def run_trials(self, spans: Sequence[ShardSpan]) -> Trials:
        """Run the trials of a window's suspects and persistent faults. `spans` are the window's unfinished shards."""
        suspects, persistent = self.try_suspects(spans), self._try_persistent(spans)
        return Trials(suspects.verdicts + persistent.verdicts, suspects.on_hold | persistent.on_hold)

    def try_suspects(self, spans: Sequence[ShardSpan]) -> Trials:
        """Run the trials of the last window's suspects, one after another.

        If the machines turn out to be at fault, no more trials run until the next window has ended.
        """
        ledger, self._ledger = self._ledger, None
        if ledger is not None:
            self._died_with_others.update(ledger.alone())
            for row in ledger.suspects():
                number, ordinal = divmod(row, STAGE_ROWS)
                untried = UndecidedError("its worker died, and it has had no trial")
                self._killed[ordinal] = number
                self.known[ordinal] = faulted({}, self._stage_name(number), untried)
        verdicts = 0
        on_hold: dict[int, str] = {}
        here = []
        for ordinal, known in self.known.items():
            if known["fault"] is not None and self.rows is not None and ordinal in self.rows:
                here.append(ordinal)
        for ordinal in here[:MOST_SINGLE_TRIALS]:
            number = self._killed.get(ordinal, 0)
            stage = self._stage_name(number)
            try:
                prepared = self._prepare(ordinal)
                verdict = None if prepared is None else self.segment_singly(ordinal, prepared, number)
            except UndecidedError as error:
                del self.known[ordinal]  # move the suspect to the end, so that the next trials start elsewhere
                self.known[ordinal] = faulted({}, stage, error)
                on_hold |= _of_its_shard(spans, ordinal, str(error))
                if isinstance(error, ControlFailedError):
                    break
                continue
            if verdict is None:
                del self.known[ordinal]
            else:
                self.known[ordinal] = rejected({}, stage, verdict)
                verdicts += 1
            get_logger("build").warning("tried alone", ordinal=ordinal, verdict=str(verdict or "none: it passed"))
        return Trials(verdicts, on_hold)

    def _try_persistent(self, spans: Sequence[ShardSpan]) -> Trials:
        """Run one trial for each row that had faults in `FAULTY_ATTEMPTS` attempts.

        Stop if the machines are at fault.
        """
        unfinished = sorted((span.start, span.stop) for span in spans)
        waiting = [
            row
            for row in self.faulted
            if self._attempts[row] >= FAULTY_ATTEMPTS and row not in self.known and _is_inside(row, unfinished)
        ]
        fresh = [ordinal for ordinal in waiting if ordinal not in self.alone][:MOST_SINGLE_TRIALS]
        verdicts = 0
        machines_work = True
        for ordinal in fresh:
            name = self._name(ordinal)
            try:
                verdict = self._judge_singly(ordinal)
            except UndecidedError as error:
                self.alone[ordinal] = (
                    f"{name} had a fault in {self._attempts[ordinal]} attempts and in a trial: {error}. The "
                    "other rows of its shard are waiting for it. Fix the cause and build again, or reject such rows "
                    "with max_faults"
                )
                get_logger("build").warning("tried alone", row=name, fault=str(error))
                if isinstance(error, PersistentFaultError):
                    self._persistent[ordinal] = str(error)
                if isinstance(error, ControlFailedError):
                    machines_work = False
                    break
                continue
            verdicts += 1
            if verdict is not None:
                self.known[ordinal] = verdict
            self.alone[ordinal] = f"{name} passed its trial, but has faults among other rows: build again"
            found = "none: it passed" if verdict is None else f"{verdict['reason']}: {verdict['detail']}"
            get_logger("build").warning("tried alone", row=name, verdict=found)
        if machines_work:
            verdicts += self._give_up([ordinal for ordinal in waiting if ordinal in self._persistent], spans)
        on_hold: dict[int, str] = {}
        for ordinal in waiting:
            if ordinal in self.alone and ordinal not in self.known:
                on_hold |= _of_its_shard(spans, ordinal, self.alone[ordinal] + self._kept.get(ordinal, ""))
        return Trials(verdicts, on_hold)

    def _give_up(self, ordinals: Sequence[int], spans: Sequence[ShardSpan]) -> int:
        """Reject rows whose faults persisted in their trials, and return the number of rejected rows.

        A row is only rejected if its shard contains at most `max_faults` rows with faults, and if another row passes
        the same stage now, after all of the row's attempts.
        """
        earlier = [ordinal for ordinal, row in self.known.items() if row["reason"] == Reason.PERSISTENT_FAULT]
        faulty = {*self.faulted, *earlier}
        works: dict[Any, bool] = {}
        count = 0
        for ordinal in ordinals:
            ranges = [(span.start, span.stop) for span in spans if span.start <= ordinal < span.stop]
            if sum(_is_inside(each, ranges) for each in faulty) > self._max_faults:
                continue
            fault = self._persistent[ordinal]
            stage, _, _ = fault.partition(": ")
            others, access = self.others(ordinal, stage)
            if (stage, access) not in works:
                works[stage, access] = self._any_passes(others, stage)
            if works[stage, access]:
                folder = catalog_folder(self._catalog)  # isn't published
                self.known[ordinal] = given_up(fault if folder == "/" else fault.replace(folder, ""))
                count += 1
                get_logger("build").warning("gave up", row=self._name(ordinal), fault=fault)
            else:
                where = f" from {access[0]}" if access else ""
                self._kept[ordinal] = (
                    f" (max_faults doesn't apply, because no other row{where} passed {stage} after the trial)"
                )
        return count

    def others(self, ordinal: int, stage: str) -> tuple[list[int], tuple[str, ...]]:
        """Return the nearest rows without faults, and their `_access`.

        For a fault in `prepare`, only rows with the same access count. For other stages, which don't read the row's
        object, the access is empty.
        """
        assert self.rows is not None
        near = self.rows.uris_near(ordinal, WITNESS_ROWS)
        used = {near[each] for each in (*self.faulted, *self.known) if each in near}
        fitting = [each for each, uri in near.items() if uri not in used]
        access: tuple[str, ...] = ()
        if stage == "prepare":
            access = self._access(near[ordinal])
            fitting = [each for each in fitting if self._access(near[each]) == access]
        fitting.sort(key=lambda each: abs(each - ordinal))
        return sorted(fitting[:MOST_WITNESSES]), access

    def _access(self, entry: str) -> tuple[str, ...]:
        """Return what must work to read a URI of the catalog: its bucket or local folder, and prefixes with options.

        A local folder counts as a store, because it may be on a separate file system. The result is empty for a URI
        that isn't allowed.
        """
        try:
            uri = relative_to(self._catalog, entry)
            store = parent(uri) if scheme(uri) == LOCAL else store_name(uri)
        except UriNotAllowedError:
            return ()
        return store, *sorted(prefix for prefix in self.stages.segment.storage_options if is_below(uri, prefix))

    def _any_passes(self, ordinals: Sequence[int], stage: str) -> bool:
        """Return whether one of these rows is accepted by `prepare`, or for a later stage, by all stages."""
        if not ordinals:
            return False
        try:
            _, verdicts = self.prepare_singly(ordinals)
            for ordinal, verdict in zip(ordinals, verdicts, strict=True):
                accepted = verdict["reason"] is None and verdict["fault"] is None
                if accepted and (stage == "prepare" or self._judge_singly(ordinal) is None):
                    return True
        except UndecidedError:
            return False
        return False

    def _name(self, ordinal: int) -> str:
        return named(self._read([ordinal]).select(["ordinal", "image_id", "uri"]).to_pylist()[0])

    def _read(self, ordinals: Sequence[int]) -> pa.Table:
        """Read rows from the catalog. Raises `UndecidedError` if no window has started yet."""
        if self.rows is None:
            raise UndecidedError(f"row {ordinals[0]} belongs to no window yet")
        return self.rows.read_rows(ordinals)

    def _judge_singly(self, ordinal: int) -> Row | None:
        """Return the verdict on a row with a fault, or None if the row passes all stages.

        Raises `PersistentFaultError` if the row has a fault again, and `UndecidedError` if the trial fails otherwise.
        """
        prepared, (verdict,) = self.prepare_singly([ordinal])
        if verdict["fault"] is not None:
            raise PersistentFaultError(verdict["fault"])
        if verdict["reason"] is not None:
            return verdict
        try:
            segmenter = self.stages.segmenter
            death = self.segment_singly(ordinal, prepared, 0 if segmenter is None else segmenter.number)
        except StageFailedError as error:
            raise PersistentFaultError(f"{self.stages.maker_of_masks}: {error}") from error
        if death is not None:
            return rejected({}, self.stages.maker_of_masks, death)
        verdict = self.through(prepared)[2]
        if verdict["fault"] is not None:
            raise PersistentFaultError(verdict["fault"])
        if verdict["reason"] is None:
            return None
        return verdict

    def _stage_name(self, number: int) -> str:
        if number:
            return self.stages.own[number - 1].spec.label
        return "segment"

    def segment_singly(self, ordinal: int, prepared: Any, number: int = 0) -> RejectedError | None:
        """Return the verdict on a row in the segment stage, or in the custom stage with this number."""
        segment = self.stages.segment_pool, self.stages.segment_timeout_s
        start = self.stages.gpus.name, self._start_timeout_s
        trial = Trial(SegmentAlone, (self.stages.segment, segment[1]), *segment, prepared, control_table(), *start)
        if number:
            custom = self.stages.own[number - 1]
            row, control, _ = self.through(prepared, number)
            trial = Trial(custom.actor(), custom.arguments(None), custom.pool, custom.timeout_s, row, control, *start)
        return trial.judge(ordinal, self._stage_name(number))

    def through(self, prepared: Any, until: int = 0) -> tuple[Any, Any, Row]:
        """Run a prepared row and the control image through all stages in a fresh worker.

        If `until` is the number of a custom stage, only the stages before it run. Returns a reference to the row's
        table, a reference to the control image's table, and the row's `VERDICT` columns.
        """
        stages = self.stages
        built_in: dict[str, Any] = {"segment": lambda: describe_table}
        if stages.segmenter is None:
            built_in["prepare"] = functools.partial(Segment, stages.segment)
        steps: list[tuple[int, Any]] = []
        for position in ("prepare", "segment", "describe"):
            for each in stages.own:
                if each.after == position:
                    steps.append((each.number, functools.partial(each.actor(), *each.arguments(None))))
            if position in built_in:
                steps.append((0, built_in[position]))
        if until:
            steps = steps[: [number for number, _ in steps].index(until)]
        pools = [stages.segment_pool, *(each.pool for each in stages.custom)]
        gpus = max(pool.num_gpus for pool in pools)
        task = ray.remote(
            num_cpus=max(pool.num_cpus for pool in pools),
            num_gpus=gpus,
            accelerator_type=stages.gpus.name if gpus else None,
            num_returns=3,
            max_retries=3,
        )(apply_alone)
        row, control, verdict = task.remote([step for _, step in steps], prepared)
        return row, control, _wait_for(verdict, self._start_timeout_s, UndecidedError)

    def _prepare(self, ordinal: int) -> Any:
        """Prepare a suspect again. Return a reference to its `PREPARED` table, or None if the row is rejected."""
        try:
            prepared, (verdict,) = self.prepare_singly([ordinal])
            if verdict["fault"] is not None:
                raise UndecidedError(verdict["fault"])
        except UndecidedError as error:
            raise type(error)(f"row {ordinal} killed its worker and can't be prepared again: {error}") from error
        if verdict["reason"] is None:
            return prepared
        return None

    def prepare_singly(self, ordinals: Sequence[int]) -> tuple[Any, list[Row]]:
        """Prepare rows in a fresh worker. Return a reference to their `PREPARED` table, and their `VERDICT` columns."""
        rows = self._read(ordinals)
        where = {}
        if self.stages.prepare_nodes:
            where["label_selector"] = dict(self.stages.prepare_nodes)
        cpus = self.stages.prepare_pool.num_cpus
        task = ray.remote(num_cpus=cpus, num_returns=2, max_retries=3, **where)(prepare_alone)
        prepared, verdicts = task.remote(self.stages.prepare_call, rows)
        return prepared, _wait_for(verdicts, self._start_timeout_s, ControlFailedError)


def _wait_for(reference: Any, timeout_s: float, late: type[UndecidedError]) -> Any:
    """Return a task's result. Raises `late` if there is none in time, and `UndecidedError` if the task fails."""
    try:
        return ray.get(reference, timeout=timeout_s)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(reference)
        raise late(f"no worker finished it within {timeout_s:g} seconds: check the machines and stores") from error
    except ray.exceptions.RayError as error:
        raise UndecidedError(last_line(error)) from error


def _is_inside(ordinal: int, ranges: Sequence[tuple[int, int]]) -> bool:
    """Return whether an ordinal lies in one of the ranges `[start, stop)`. The ranges must be in ascending order."""
    at = bisect_right(ranges, (ordinal, sys.maxsize)) - 1
    return at >= 0 and ordinal < ranges[at][1]


def _of_its_shard(spans: Sequence[ShardSpan], ordinal: int, why: str) -> dict[int, str]:
    return {span.shard: why for span in spans if span.start <= ordinal < span.stop}
