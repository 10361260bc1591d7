"""Ledger of the rows that each worker has in flight, which identifies the rows that a worker died with.

A worker can process several rows at the same time. Before it starts a row, it records the row in the ledger and waits
for the reply. When a row is done, the worker reports this together with the next row's start, or at the end of the
block.

When a worker dies, Ray runs its blocks again on another worker. If a row starts a second time but was never recorded as
done, it was in flight when its worker died. What happens next depends on how many rows were in flight:

- If there was only one, the row is a suspect. The ledger bars it for the rest of the window, and all other rows
  continue.
- If there were several, any of them may have killed the worker. Each of them runs again with no other row in flight in
  its worker, so the next death identifies a single row.

The ledger is an actor on the driver's node. This module imports Ray but not the model, so the actor doesn't have to
load the model.
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

from segmint.infra.errors import SegmintError
from segmint.infra.stopping import exit_within

MAX_DEATHS = 8
"""Number of worker deaths within `DEATH_ROWS` rows that ends a window. This many deaths suggest a problem with the
machines, and each death costs the start of a new worker."""

DEATH_ROWS = 10_000
"""Number of started rows over which deaths count toward `MAX_DEATHS`."""

EXIT_S = 60.0
"""Seconds after which segmint kills a worker that is exiting. In processes that called an actor, Ray's exit handler
sometimes hangs forever, and the process never frees its memory."""

TIMEOUT_S = 60.0
"""Timeout in seconds for calls from a worker or the driver to the ledger actor."""

STAGE_ROWS = 1 << 53
"""Offset between a row's numbers in two consecutive stages, which is larger than any ordinal. In the segment stage, a
row's number is its ordinal."""

_SUSPECT = "the worker that was processing this image died: it gets a trial in a separate worker"
_ENDING = "the worker of this row is shutting down"


class BarredRowError(SegmintError):
    """Raised for a row that must not run again in this window.

    This isn't a verdict on the image, so the row's shard is put on hold.
    """


class DeadlyWindowError(SegmintError):
    """Raised when a window ends early because too many of its workers died."""


class RowLedger:
    """Ledger of one window. The driver creates it on its own node, and any process can use it.

    Each instance belongs to one stage. The constructor returns the ledger of the segment stage, and `of_stage` returns
    ledgers of custom stages that share the same actor. In a custom stage, a row's number is its ordinal plus
    `STAGE_ROWS` times the number of the stage.
    """

    def __init__(self, alone: Iterable[int] = ()) -> None:
        """Start the actor. `alone` contains the numbers of rows that must run alone from the start."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # Ray's control store keeps only the last 100,000 task events of the cluster. The ledger makes one call per row,
        # so its events would evict those of all other tasks.
        apart: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here, "enable_task_events": False}
        self.__setstate__((ray.remote(**apart)(LedgerActor).remote(frozenset(alone)), 0))

    def of_stage(self, number: int) -> "RowLedger":
        """Return the ledger of a custom stage. `number` is at least 1."""
        ledger = RowLedger.__new__(RowLedger)
        ledger.__setstate__((self.actor, number * STAGE_ROWS))
        return ledger

    def __getstate__(self) -> tuple[Any, int]:
        """Return the actor's handle and the stage's first number. Each process tracks its own rows in flight."""
        return self.actor, self._first

    def __setstate__(self, state: tuple[Any, int]) -> None:
        self.actor, self._first = state
        self._in_flight = InFlight()

    @contextmanager
    def entry(
        self, spent: Callable[[], Mapping[str, float]] = dict, ordinals: Sequence[int] = ()
    ) -> Iterator["BlockEntry"]:
        """Enter a block in this process, and record its end when the context exits.

        The rows in `ordinals` start together with the block, in a single call, as in `BlockEntry.begin_together`. On
        exit, the ledger records the seconds per stage so far, which `spent` returns. Raises `DeadlyWindowError` if too
        many workers have died in the window.
        """
        exit_within(EXIT_S)
        entry = BlockEntry(self.actor, self._in_flight, self._first, ordinals)
        try:
            yield entry
        finally:
            entry.end(spent())

    def suspects(self) -> list[int]:
        """Return the numbers of the suspect rows, in the order in which their workers died.

        If a worker died because its node failed, its rows aren't suspects. If the ledger actor is gone, the driver's
        node has failed, and the result is empty.
        """
        return list(self._read(self.actor.suspects))

    def alone(self) -> list[int]:
        """Return the numbers of the rows that run alone.

        These are the rows passed to the constructor, and rows that were in flight together when a worker died. If the
        ledger actor is gone, the result is empty.
        """
        return list(self._read(self.actor.alone))

    def may_read(self, number: int) -> bool:
        """Return whether a read of the window may run. If the window has ended, only earlier reads may."""
        return bool(ray.get(self.actor.may_read.remote(number), timeout=TIMEOUT_S))

    def retry_slot(self, number: int) -> list["RetrySlot"]:
        """Return the shards on hold that this read runs again. Repeated calls for a read return the same shards."""
        slot: list[RetrySlot] = ray.get(self.actor.retry_slot.remote(number), timeout=TIMEOUT_S)
        return slot

    def retry_after(self, wait_s: float, shard: int, runs: Sequence[tuple[int, int]]) -> None:
        """Schedule another run of a shard, unless one of its rows is barred. Returns immediately.

        The first retry slot at least `wait_s` seconds from now runs the shard.
        """
        self.actor.retry_after.remote(wait_s, shard, tuple(runs))

    def stop_reading(self) -> None:
        """End the window after the reads that have begun. Reads that begin later don't run. Returns immediately."""
        self.actor.stop_reading.remote()

    def spent(self) -> dict[str, float]:
        """Return the seconds that the workers have spent in each stage, summed over all workers, as recorded so far.

        If the ledger actor is gone, the result is empty.
        """
        return dict(self._read(self.actor.spent))

    def report_peak(self, flop_per_s: float) -> None:
        """Record the peak FLOP/s of the calling actor's device, and wait for the reply.

        If an actor restarts and reports again, only its last report counts. If the ledger actor is gone, the report is
        lost without an error, because a missing metric must never fail a run.
        """
        self._read(self.actor.report_peak, ray.get_runtime_context().get_actor_id(), flop_per_s)

    def peaks(self) -> list[float]:
        """Return the peak FLOP/s that each actor reported, or an empty list if the ledger actor is gone."""
        return list(self._read(self.actor.peaks))

    def _read(self, method: Any, *arguments: Any) -> Any:
        try:
            return ray.get(method.remote(*arguments), timeout=TIMEOUT_S)
        except ray.exceptions.RayError:
            return ()


class BlockEntry:
    """Block that this process is working on.

    Several rows of the block can be in flight at once, together with rows of other blocks. `replies` contains the
    ledger's replies to the rows that started together with the block.
    """

    def __init__(self, book: Any, in_flight: "InFlight", first: int = 0, ordinals: Sequence[int] = ()) -> None:
        self._actor = book
        self._first = first
        self._in_flight = in_flight
        context = ray.get_runtime_context()
        self._number, self.replies = self._begin((context.get_node_id(), context.get_worker_id()), ordinals)

    def start(
        self, ordinals: Sequence[int], replies: Sequence["StartReply"] | None = None
    ) -> Iterator[tuple[list[int], Exception | None]]:
        """Record the start of rows. Yield their positions in `ordinals`, and the error of those that don't start.

        Rows that start together come before those that must run alone, which come one by one. Each of the latter waits
        until this process isn't working on any other row. Call `leave` for each started row when it's done. If the rows
        have started together already, pass `replies`.
        """
        try:
            replies = self.begin_together(ordinals) if replies is None else replies
        except Exception as error:  # noqa: BLE001 - a fault of these rows, as in a stage
            yield list(range(len(ordinals))), error
            return
        together, alone = [], []
        for place, reply in enumerate(replies):
            if reply.refused is not None:
                yield [place], BarredRowError(reply.refused)
            elif reply.starts:
                together.append(place)
            else:
                alone.append(place)
        if together:
            yield together, None
        for place in alone:
            failure = None
            try:
                self.begin(ordinals[place])
            except Exception as error:  # noqa: BLE001 - a fault of this row, as in a stage
                failure = error
            yield [place], failure

    def begin_together(self, ordinals: Sequence[int]) -> list["StartReply"]:
        """Record the start of several rows in one call, wait for the ledger, and return its reply for each row.

        Call `leave` for each started row when it's done. If a row doesn't start but isn't barred either, it must run
        alone, so call `begin` for it.
        """
        return self._begin(self._number, ordinals)[1]

    def _begin(self, entry: int | tuple[str, str], ordinals: Sequence[int]) -> tuple[int, list["StartReply"]]:
        if ordinals:
            self._in_flight.take(len(ordinals))
        replies: list[StartReply] = []
        try:
            numbers = [self._first + ordinal for ordinal in ordinals]
            left = self._in_flight.done() if ordinals else []
            call = self._actor.begin_together.remote(entry, numbers, left)
            opened: tuple[int, list[StartReply]] | None = ray.get(call, timeout=TIMEOUT_S)
            if opened is None:
                raise DeadlyWindowError(
                    f"images killed their workers {MAX_DEATHS} times: these images get trials before the build "
                    "continues"
                )
            number, replies = opened
        finally:
            for _ in range(len(ordinals) - sum(reply.starts for reply in replies)):
                self._in_flight.give_back()
        return number, replies

    def begin(self, ordinal: int) -> None:
        """Record the start of a row, and wait for the ledger's reply. Call `leave` when the row is done.

        If the row must run alone, this method waits until no other row is in flight in this process, and other rows
        wait until the row is done. Raises `BarredRowError` if the row killed a worker or broke its device in this
        window.
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
        """Mark a row as done. The process reports this to the ledger with the next start. Returns immediately."""
        self._in_flight.give_back((self._number, self._first + ordinal))

    def excuse(self, ordinal: int, why: str) -> None:
        """Bar a row without making it a suspect, because this process is ending for a reason other than the image."""
        ray.get(self._actor.excuse.remote(self._number, self._first + ordinal, why), timeout=TIMEOUT_S)

    def end(self, spent: Mapping[str, float] = MappingProxyType({})) -> None:
        """Record that all rows of the block are done, and how long each stage took here. Returns immediately."""
        self._actor.end.remote(self._number, dict(spent))


class InFlight:
    """Rows in flight in this process: any number of rows, or a single row that must run alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rows = 0
        self._alone = False
        self._waiting = 0  # rows that must run alone
        self._done: list[tuple[int, int]] = []  # block entry and ordinal of rows that are done but not recorded yet

    def take(self, rows: int = 1, *, alone: bool = False) -> None:
        """Wait until `rows` rows may start together. With `alone`, wait until no other row is in flight."""
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
        """Release one row. If the row is done, `done` is its block entry and ordinal."""
        with self._changed:
            self._rows -= 1
            self._alone = False
            if done is not None:
                self._done.append(done)
            self._changed.notify_all()

    def done(self) -> list[tuple[int, int]]:
        """Return the rows that are done but not recorded yet, and forget them."""
        with self._changed:
            done, self._done = self._done, []
        return done


class StartReply(NamedTuple):
    """Ledger's reply to the start of a row. If the row is barred, `refused` is the reason.

    If `starts` is False and `refused` is None, the row must run alone.
    """

    starts: bool
    refused: str | None = None


class RetrySlot(NamedTuple):
    """Shard on hold that a window runs again. `runs` contains its runs of ordinals."""

    shard: int
    runs: Sequence[tuple[int, int]]


class LedgerActor:
    """Actor behind `RowLedger`, which identifies a worker by its node and process.

    Reads have consecutive numbers.
    """

    def __init__(self, alone: Iterable[int]) -> None:
        self._last = -1  # number of the last read that has begun
        self._stopped = False
        self._waiting: dict[int, tuple[float, RetrySlot]] = {}  # by shard, with the earliest time to run it
        self._slots: dict[int, list[RetrySlot]] = {}
        self._opened = 0
        self._started = 0
        self._workers: dict[int, tuple[str, str]] = {}  # by block entry
        self._entries: dict[int, int] = {}  # block entries of the rows in flight, by ordinal
        self._deaths: deque[int] = deque(maxlen=MAX_DEATHS)  # rows started before each of the most recent deaths
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
        if earlier is not None:  # Ray never runs a block twice at the same time, so the earlier worker has died
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

    def begin_together(
        self, entry: int | tuple[str, str], ordinals: list[int], left: list[tuple[int, int]]
    ) -> tuple[int, list[StartReply]] | None:
        """Start rows of a block. If the block has no entry yet, `entry` is its node and process."""
        number = self.open(*entry) if isinstance(entry, tuple) else entry
        if number is None:
            return None
        replies = [self.begin(number, each, left if at == 0 else [], False) for at, each in enumerate(ordinals)]
        return number, replies

    def excuse(self, entry: int, ordinal: int, why: str) -> None:
        if entry in self._workers:
            self._refused[ordinal] = why
            self._close(entry)

    def end(self, entry: int, spent: Mapping[str, float] = MappingProxyType({})) -> None:
        worker = self._workers.pop(entry, None)
        if worker is not None and spent:
            before = self._spent.get(worker, {})  # another call of the same worker may have ended after this one
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
        """Record the rows that were in flight in a dead worker, unless the worker's whole node died."""
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
        """End all entries of the worker behind `entry`, except `asking`. Return the rows that were in flight there."""
        worker = self._workers[entry]
        entries = [one for one, its_worker in self._workers.items() if its_worker == worker and one != asking]
        rows = [row for row, its_entry in self._entries.items() if its_entry in entries]
        for one in entries:
            self.end(one)
        return rows
