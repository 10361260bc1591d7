"""Ledger of the rows that each worker has in flight, which identifies the rows that a worker died with.

A worker may have several rows in flight. It records each row in the ledger, and waits for the reply before it starts
the row. The end of a row is recorded together with the next row's start, or with the end of the row's block.

Ray runs the blocks of a dead worker again. So if a row starts a second time without having been recorded as done, it
was in flight when its worker died. If it was the only such row, it is a suspect: it is barred for the rest of the
window, and the rows around it continue. If there were several, each of them runs again with no other row in flight in
its worker, so that the next death identifies a single row.

The ledger is an actor on the driver's node. This module only imports Ray, so that the actor starts without the model.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segmint.infra.deadline import exit_within
from segmint.infra.errors import SegmintError

MAX_DEATHS = 8
"""Number of worker deaths within `DEATH_ROWS` rows after which a window ends, because the machines may be the cause,
and a new worker has to start after each death."""

DEATH_ROWS = 10_000
"""Number of started rows within which deaths count towards `MAX_DEATHS`."""

EXIT_S = 60.0
"""Seconds after which an exiting worker is killed. In a process that had called an actor, Ray's exit handler has been
seen to hang forever and keep its memory."""

TIMEOUT_S = 60.0
"""Timeout in seconds of a worker's or the driver's calls to the ledger actor."""

STAGE_ROWS = 1 << 53
"""Distance between the numbers of a row in two stages, more than any ordinal. The segment stage's are the ordinals."""

_SUSPECT = "the worker that was processing this image died: it gets a trial in a separate worker"
_ENDING = "the worker of this row is shutting down"


class BarredRowError(SegmintError):
    """A row that must not be processed in this window. This isn't a verdict on its image, so the row's shard waits."""


class DeadlyWindowError(SegmintError):
    """Too many workers died in one window."""


class RowLedger:
    """Ledger of one window, created by the driver on its node and used from any process.

    An instance belongs to the segment stage. `of_stage` returns the ledgers of the custom stages, which share its
    actor. In these, a row's number is its ordinal plus `STAGE_ROWS` times the number of the stage.
    """

    def __init__(self, alone: Iterable[int] = ()) -> None:
        """Create the actor. `alone` contains the numbers of rows that run alone from the start."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # With task events, one call per row would evict all other tasks from the last 100,000 that the cluster's
        # control store keeps.
        apart: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here, "enable_task_events": False}
        self.__setstate__((ray.remote(**apart)(_LedgerActor).remote(frozenset(alone)), 0))

    def of_stage(self, number: int) -> "RowLedger":
        """Return the ledger of a custom stage, whose number is 1 or more."""
        ledger = RowLedger.__new__(RowLedger)
        ledger.__setstate__((self._actor, number * STAGE_ROWS))
        return ledger

    def __getstate__(self) -> tuple[Any, int]:
        """Return only the actor's handle and the first number, because each process tracks its own rows in flight."""
        return self._actor, self._first

    def __setstate__(self, state: tuple[Any, int]) -> None:
        self._actor, self._first = state
        self._in_flight = _InFlight()

    @contextmanager
    def entry(self, spent: Callable[[], Mapping[str, float]] = dict) -> Iterator["BlockEntry"]:
        """Process one block in this process. `spent` returns the seconds per stage so far, to record at the end.

        Raises `DeadlyWindowError` if the window has been ended.
        """
        exit_within(EXIT_S)
        entry = BlockEntry(self._actor, self._in_flight, self._first)
        try:
            yield entry
        finally:
            entry.end(spent())

    def suspects(self) -> list[int]:
        """Return the numbers of the rows that workers died with, on nodes that stayed alive, in the order found.

        The result is empty if the ledger actor is gone, which means that the driver's node failed.
        """
        return list(self._read(self._actor.suspects))

    def alone(self) -> list[int]:
        """Return the rows that run alone: those given, and rows that were in flight together when a worker died.

        Empty if the ledger actor is gone.
        """
        return list(self._read(self._actor.alone))

    def may_read(self, number: int) -> bool:
        """Return whether a window's read may run, which is true unless the window was ended before the read began."""
        return bool(ray.get(self._actor.may_read.remote(number), timeout=TIMEOUT_S))

    def retry_slot(self, number: int) -> list["RetrySlot"]:
        """Return the shards on hold that this read runs again. The first call decides, and later calls agree."""
        slot: list[RetrySlot] = ray.get(self._actor.retry_slot.remote(number), timeout=TIMEOUT_S)
        return slot

    def retry_after(self, wait_s: float, shard: int, runs: Sequence[tuple[int, int]]) -> None:
        """Let the first retry slot after `wait_s` seconds run a shard again unless a row is barred. Returns at once."""
        self._actor.retry_after.remote(wait_s, shard, tuple(runs))

    def stop_reading(self) -> None:
        """End the window after the reads that have begun, and everything before them. Does not wait."""
        self._actor.stop_reading.remote()

    def spent(self) -> dict[str, float]:
        """Return the seconds of each stage inside the workers, as recorded so far, summed over the workers.

        Empty if the ledger actor is gone.
        """
        return dict(self._read(self._actor.spent))

    def report_peak(self, flop_per_s: float) -> None:
        """Record the peak of this actor's device, and wait for confirmation; a restarted actor's last report counts.

        If the ledger actor is gone, the report is lost, because a missing metric never fails a run.
        """
        self._read(self._actor.report_peak, ray.get_runtime_context().get_actor_id(), flop_per_s)

    def peaks(self) -> list[float]:
        """Return the reported peak of each actor in FLOP/s. Empty if the ledger actor is gone."""
        return list(self._read(self._actor.peaks))

    def _read(self, method: Any, *arguments: Any) -> Any:
        try:
            return ray.get(method.remote(*arguments), timeout=TIMEOUT_S)
        except ray.exceptions.RayError:
            return ()


class BlockEntry:
    """Block that this process works on. Its rows may be in flight concurrently, even with rows of other blocks."""

    def __init__(self, book: Any, in_flight: "_InFlight", first: int = 0) -> None:
        self._actor = book
        self._first = first
        self._in_flight = in_flight
        context = ray.get_runtime_context()
        number = ray.get(book.open.remote(context.get_node_id(), context.get_worker_id()), timeout=TIMEOUT_S)
        if number is None:
            raise DeadlyWindowError(
                f"images killed their workers {MAX_DEATHS} times: these images get trials before the build continues"
            )
        self._number: int = number

    def begin_together(self, ordinals: Sequence[int]) -> list["StartReply"]:
        """Record in one call that these rows start, wait for confirmation, and return the reply for each row.

        Call `leave` when a row is done. A row that neither starts nor is barred must run alone: call `begin`.
        """
        self._in_flight.take(len(ordinals))
        replies: list[StartReply] = []
        try:
            call = self._actor.begin_together.remote(
                self._number, [self._first + ordinal for ordinal in ordinals], self._in_flight.done()
            )
            replies = ray.get(call, timeout=TIMEOUT_S)
        finally:
            for _ in range(len(ordinals) - sum(reply.starts for reply in replies)):
                self._in_flight.give_back()
        return replies

    def begin(self, ordinal: int) -> None:
        """Record that a row starts, and wait for confirmation. Call `leave` when the row is done.

        A row that runs alone waits until no other row is in flight in this process, and other rows wait for it. Raises
        `BarredRowError` for a row with which a worker died, or that broke its device, in this window.
        """
        for alone in (False, True):
            self._in_flight.take(alone=alone)
            reply = StartReply(starts=False)
            try:
                call = self._actor.begin.remote(self._number, self._first + ordinal, self._in_flight.done(), alone)
                reply = ray.get(call, timeout=TIMEOUT_S)
            finally:
                if not reply.starts:
                    self._in_flight.give_back()
            if reply.refused is not None:
                raise BarredRowError(reply.refused)
            if reply.starts:
                return

    def leave(self, ordinal: int) -> None:
        """Note that a row is done. The ledger records this with the process's next start. Does not wait."""
        self._in_flight.give_back((self._number, self._first + ordinal))

    def excuse(self, ordinal: int, why: str) -> None:
        """Record that this process ends for a reason other than an image. Bars the row without making it a suspect."""
        ray.get(self._actor.excuse.remote(self._number, self._first + ordinal, why), timeout=TIMEOUT_S)

    def end(self, spent: Mapping[str, float] = MappingProxyType({})) -> None:
        """Record that all rows of the block are done, and the seconds of this process's stages. Does not wait."""
        self._actor.end.remote(self._number, dict(spent))


class _InFlight:
    """Rows in flight in this process: any number, or a single one that must run alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rows = 0
        self._alone = False
        self._waiting = 0  # rows that must run alone
        self._done: list[tuple[int, int]] = []  # block entry and ordinal of rows that are done but not recorded yet

    def take(self, rows: int = 1, *, alone: bool = False) -> None:
        """Wait until a row, or these rows together, may start."""
        with self._changed:
            if alone:
                self._waiting += 1
                self._changed.wait_for(lambda: self._rows == 0)
                self._waiting -= 1
            else:
                self._changed.wait_for(lambda: not (self._alone or self._waiting))
            self._rows += rows
            self._alone = alone

    def give_back(self, done: tuple[int, int] | None = None) -> None:
        """Release a row. `done` is the block entry and ordinal if the row is done."""
        with self._changed:
            self._rows -= 1
            self._alone = False
            if done is not None:
                self._done.append(done)
            self._changed.notify_all()

    def done(self) -> list[tuple[int, int]]:
        """Return and clear the rows to record as done."""
        with self._changed:
            done, self._done = self._done, []
        return done


class StartReply(NamedTuple):
    """Reply to a start: whether the row starts, and the reason if it is barred. Otherwise, it must run alone."""

    starts: bool
    refused: str | None = None


class RetrySlot(NamedTuple):
    """Shard on hold that a window runs again, with its runs of ordinals."""

    shard: int
    runs: Sequence[tuple[int, int]]


class _LedgerActor:
    """Actor that keeps the ledger. A worker is identified by its node and process. Reads are numbered in order."""

    def __init__(self, alone: Iterable[int]) -> None:
        self._last = -1  # the last read that has begun
        self._stopped = False
        self._waiting: dict[int, tuple[float, RetrySlot]] = {}  # with the earliest time, by shard
        self._slots: dict[int, list[RetrySlot]] = {}
        self._opened = 0
        self._started = 0
        self._workers: dict[int, tuple[str, str]] = {}  # by block entry
        self._entries: dict[int, int] = {}  # block entries of the rows in flight, by ordinal
        self._deaths: deque[int] = deque(maxlen=MAX_DEATHS)  # rows started before each of the last deaths
        self._deadly = False
        self._alone = set(alone)
        self._suspects: list[int] = []
        self._refused: dict[int, str] = {}  # reasons, by ordinal
        self._spent: dict[tuple[str, str], dict[str, float]] = {}  # seconds per stage, by worker
        self._peaks: dict[str, float] = {}  # by actor

    def may_read(self, number: int) -> bool:
        if self._stopped:
            return number <= self._last
        self._last = max(self._last, number)
        return True

    def retry_slot(self, number: int) -> list[RetrySlot]:
        if number not in self._slots:
            now = time.monotonic()
            due = [each for earliest, each in self._waiting.values() if earliest <= now]
            self._slots[number] = due if self.may_read(number) else []
            for each in self._slots[number]:
                del self._waiting[each.shard]
        return self._slots[number]

    def retry_after(self, wait_s: float, shard: int, runs: Sequence[tuple[int, int]]) -> None:
        if not any(start <= row % STAGE_ROWS < stop for row in self._refused for start, stop in runs):
            self._waiting[shard] = time.monotonic() + wait_s, RetrySlot(shard, runs)

    def stop_reading(self) -> None:
        self._stopped = True

    def open(self, node: str, process: str) -> int | None:
        if self._deadly:
            return None
        self._opened += 1
        self._workers[self._opened] = node, process
        return self._opened

    def begin(self, entry: int, ordinal: int, left: list[tuple[int, int]], alone: bool) -> StartReply:
        for its_entry, row in left:
            if self._entries.get(row) == its_entry:
                del self._entries[row]
        earlier = self._entries.get(ordinal)
        if earlier is not None:  # that worker has died, because Ray never runs a block twice at the same time
            self._died(earlier, asking=entry)
        why = self._refused.get(ordinal)
        if why is None and entry not in self._workers:
            why = _ENDING
        if why is not None:
            return StartReply(starts=False, refused=why)
        if ordinal in self._alone and not alone:
            return StartReply(starts=False)
        self._entries[ordinal] = entry
        self._started += 1
        return StartReply(starts=True)

    def begin_together(self, entry: int, ordinals: list[int], left: list[tuple[int, int]]) -> list[StartReply]:
        return [self.begin(entry, ordinal, left if at == 0 else [], False) for at, ordinal in enumerate(ordinals)]

    def excuse(self, entry: int, ordinal: int, why: str) -> None:
        if entry in self._workers:
            self._refused[ordinal] = why
            self._close(entry)

    def end(self, entry: int, spent: Mapping[str, float] = MappingProxyType({})) -> None:
        worker = self._workers.pop(entry, None)
        if worker is not None and spent:
            before = self._spent.get(worker, {})  # from another call, which may have ended after this one
            self._spent[worker] = before | {stage: max(s, before.get(stage, 0.0)) for stage, s in spent.items()}
        for row in [row for row, its_entry in self._entries.items() if its_entry == entry]:
            del self._entries[row]

    def spent(self) -> dict[str, float]:
        return dict(sum(map(Counter, self._spent.values()), Counter()))

    def report_peak(self, actor: str, flop_per_s: float) -> None:
        self._peaks[actor] = flop_per_s

    def peaks(self) -> list[float]:
        return list(self._peaks.values())

    def suspects(self) -> list[int]:
        return self._suspects

    def alone(self) -> list[int]:
        return sorted(self._alone)

    def _died(self, entry: int, asking: int) -> None:
        """Record the rows in flight in the entry's dead worker, unless its node is dead too."""
        node, _ = self._workers[entry]
        rows = self._close(entry, asking)
        if not any(each["NodeID"] == node and each["Alive"] for each in ray.nodes()):
            return
        self._deaths.append(self._started)
        self._deadly |= len(self._deaths) == MAX_DEATHS and self._started - self._deaths[0] <= DEATH_ROWS
        if len(rows) > 1:
            self._alone.update(rows)
            return
        self._suspects += rows
        self._refused |= dict.fromkeys(rows, _SUSPECT)

    def _close(self, entry: int, asking: int | None = None) -> list[int]:
        """End all entries of an entry's worker except `asking`; return the rows that were in flight there."""
        worker = self._workers[entry]
        entries = [one for one, its_worker in self._workers.items() if its_worker == worker and one != asking]
        rows = [row for row, its_entry in self._entries.items() if its_entry in entries]
        for one in entries:
            self.end(one)
        return rows
