"""A ledger of the rows that each worker is processing, so that it is known which rows a worker died with.

A worker may have several rows in flight. It records a row before it starts it, and waits for the answer; that the row
is done is recorded with the next one that starts in the worker, or with the end of the row's visit. Ray runs the blocks
of a dead worker again, and a row that starts there a second time without being done was in flight when its worker died.
If it was the only one there, it is a suspect: it is barred for the rest of the window, and the rows around it go on.
If there were others, each of them is run again with no other row in flight in its worker; one that dies then is the
only one. The ledger is an actor on the driver's node. Imports only Ray: the actor starts without the model.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segmint.infra.deadline import exit_within
from segmint.infra.errors import SegmintError

MAX_DEATHS = 8
"""The number of workers' deaths that ends a window: the cause may be the machines, and each costs a worker's start."""

EXIT_S = 60.0
"""Seconds within which an exiting worker must be gone. Ray's exit handler may hang in a process that has called an
actor: this was seen, and the processes kept their memory forever."""

TIMEOUT_S = 60.0
"""Seconds that a worker or the driver waits for the actor that keeps the ledger."""

_SUSPECT = "the worker that segmented this image died with it: it is tried alone, in a separate worker"
_ENDING = "the worker of this row is being ended"


class BarredRowError(SegmintError):
    """A row that must not be processed in this window. Not a verdict on its image: its shard waits."""


class DeadlyWindowError(SegmintError):
    """Too many workers died in one window."""


class RowLedger:
    """The ledger of one window; created by the driver on its own node, and used from any process."""

    def __init__(self, alone: Iterable[int] = ()) -> None:
        """`alone` are the ordinals of rows that are run alone from the start."""
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # One call a row would push all other tasks out of the last 100,000 that a cluster's control store keeps.
        apart: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here, "enable_task_events": False}
        self.__setstate__(ray.remote(**apart)(_LedgerActor).remote(frozenset(alone)))

    def __getstate__(self) -> Any:
        """The actor's handle: each process has its own turns."""
        return self._actor

    def __setstate__(self, book: Any) -> None:
        self._actor = book
        self._in_flight = _InFlight()

    @contextmanager
    def entry(self, spent: Callable[[], Mapping[str, float]] = dict) -> Iterator["BlockEntry"]:
        """Process one block in this process; `spent` returns the seconds of its stages so far, recorded at the end.

        Raises `DeadlyWindowError` if the window has been ended.
        """
        exit_within(EXIT_S)
        entry = BlockEntry(self._actor, self._in_flight)
        try:
            yield entry
        finally:
            entry.end(spent())

    def suspects(self) -> list[int]:
        """Ordinals of the rows that workers died with, on nodes that were alive afterwards, in the order found.

        Empty if the actor that keeps the ledger is gone: its node was the driver's.
        """
        return self._read(self._actor.suspects)

    def alone(self) -> list[int]:
        """Ordinals of the rows that are run alone: given at the start, or found together in a worker that died.

        Empty if the actor that keeps the ledger is gone.
        """
        return self._read(self._actor.alone)

    def spent(self) -> dict[str, float]:
        """Seconds of each stage inside the workers, summed over the workers, as far as they recorded them.

        Empty if the actor that keeps the ledger is gone.
        """
        try:
            seconds: dict[str, float] = ray.get(self._actor.spent.remote(), timeout=TIMEOUT_S)
        except ray.exceptions.RayError:
            return {}
        return seconds

    def _read(self, method: Any) -> list[int]:
        try:
            ordinals: list[int] = ray.get(method.remote(), timeout=TIMEOUT_S)
        except ray.exceptions.RayError:
            return []
        return ordinals


class BlockEntry:
    """The processing of one block in this process; its rows may be in flight together, and with other visits'."""

    def __init__(self, book: Any, in_flight: "_InFlight") -> None:
        self._actor = book
        self._in_flight = in_flight
        context = ray.get_runtime_context()
        number = ray.get(book.open.remote(context.get_node_id(), context.get_worker_id()), timeout=TIMEOUT_S)
        if number is None:
            raise DeadlyWindowError(
                f"{MAX_DEATHS} times images ended the workers that segmented them: these images are tried alone "
                "before others are"
            )
        self._number: int = number

    def begin(self, ordinal: int) -> None:
        """Record that a row starts; returns once that is confirmed. Call `leave` when the row is done.

        A row that is run alone waits until no other row is in flight in this process, and keeps others waiting. Raises
        `BarredRowError` for a row that a worker died with, or that broke its device, in this window.
        """
        if not self._enter(ordinal, alone=False):
            self._enter(ordinal, alone=True)

    def _enter(self, ordinal: int, *, alone: bool) -> bool:
        """Record the row's start; False if it has not started, because it must be alone."""
        self._in_flight.take(alone=alone)
        started = False
        try:
            left = self._in_flight.done()
            answer: _StartReply = ray.get(
                self._actor.begin.remote(self._number, ordinal, left, alone), timeout=TIMEOUT_S
            )
            if answer.refused is not None:
                raise BarredRowError(answer.refused)
            started = answer.starts
        finally:
            if not started:
                self._in_flight.give_back()
        return started

    def leave(self, ordinal: int) -> None:
        """Note that a row is done, which is recorded with the next row of this process that starts. Does not wait."""
        self._in_flight.give_back((self._number, ordinal))

    def excuse(self, ordinal: int, why: str) -> None:
        """Record that this process ends, but not because of an image: this row is barred, and no row is a suspect."""
        ray.get(self._actor.excuse.remote(self._number, ordinal, why), timeout=TIMEOUT_S)

    def end(self, spent: Mapping[str, float] = MappingProxyType({})) -> None:
        """Record that all rows of the block are done, and the seconds of this process's stages; does not wait."""
        self._actor.end.remote(self._number, dict(spent))


class _InFlight:
    """Which rows may be in flight in this process: any number, or a single one that must be alone."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._rows = 0
        self._alone = False
        self._waiting = 0  # rows that must be alone
        self._done: list[tuple[int, int]] = []  # visit and ordinal of rows that are done, not recorded yet

    def take(self, *, alone: bool) -> None:
        """Wait for a turn."""
        with self._changed:
            if alone:
                self._waiting += 1
                self._changed.wait_for(lambda: self._rows == 0)
                self._waiting -= 1
            else:
                self._changed.wait_for(lambda: not (self._alone or self._waiting))
            self._rows += 1
            self._alone = alone

    def give_back(self, done: tuple[int, int] | None = None) -> None:
        """End a turn; `done` is the visit and ordinal of a row that is done."""
        with self._changed:
            self._rows -= 1
            self._alone = False
            if done is not None:
                self._done.append(done)
            self._changed.notify_all()

    def done(self) -> list[tuple[int, int]]:
        """Take what is to be recorded."""
        with self._changed:
            done, self._done = self._done, []
        return done


class _StartReply(NamedTuple):
    """Whether a row starts, and if it must not in this window, why. If neither, it must be alone."""

    starts: bool
    refused: str | None = None


class _LedgerActor:
    """The actor that keeps the ledger. A worker is a node and a process there."""

    def __init__(self, alone: Iterable[int] = ()) -> None:
        self._opened = 0
        self._workers: dict[int, tuple[str, str]] = {}  # by visit
        self._entries: dict[int, int] = {}  # of the rows in flight, by ordinal
        self._deaths = 0
        self._alone = set(alone)
        self._suspects: list[int] = []
        self._refused: dict[int, str] = {}  # why, by ordinal
        self._spent: dict[tuple[str, str], dict[str, float]] = {}  # seconds of stages, by worker

    def open(self, node: str, process: str) -> int | None:
        if self._deaths >= MAX_DEATHS:
            return None
        self._opened += 1
        self._workers[self._opened] = node, process
        return self._opened

    def begin(self, entry: int, ordinal: int, left: list[tuple[int, int]], alone: bool) -> _StartReply:
        for its_entry, row in left:
            if self._entries.get(row) == its_entry:
                del self._entries[row]
        earlier = self._entries.get(ordinal)
        if earlier is not None:  # that worker died: Ray never runs a block twice at a time
            self._died(earlier, asking=entry)
        why = self._refused.get(ordinal)
        if why is None and entry not in self._workers:
            why = _ENDING
        if why is not None:
            return _StartReply(starts=False, refused=why)
        if ordinal in self._alone and not alone:
            return _StartReply(starts=False)
        self._entries[ordinal] = entry
        return _StartReply(starts=True)

    def excuse(self, entry: int, ordinal: int, why: str) -> None:
        if entry in self._workers:
            self._refused[ordinal] = why
            self._close(entry)

    def end(self, entry: int, spent: Mapping[str, float] = MappingProxyType({})) -> None:
        worker = self._workers.pop(entry, None)
        if worker is not None and spent:
            before = self._spent.get(worker, {})  # of another call, which may have ended after this one
            self._spent[worker] = before | {stage: max(s, before.get(stage, 0.0)) for stage, s in spent.items()}
        for row in [row for row, its_entry in self._entries.items() if its_entry == entry]:
            del self._entries[row]

    def spent(self) -> dict[str, float]:
        return dict(sum(map(Counter, self._spent.values()), Counter()))

    def suspects(self) -> list[int]:
        return self._suspects

    def alone(self) -> list[int]:
        return sorted(self._alone)

    def _died(self, entry: int, asking: int) -> None:
        """Find out which rows the visit's worker died with; they count only if its node is alive."""
        node, _ = self._workers[entry]
        rows = self._close(entry, asking)
        if not _is_alive(node):
            return
        self._deaths += 1
        if len(rows) > 1:
            self._alone.update(rows)
            return
        self._suspects += rows
        self._refused |= dict.fromkeys(rows, _SUSPECT)

    def _close(self, entry: int, asking: int | None = None) -> list[int]:
        """End all visits of a visit's worker but the one that is asking; return the rows that were in flight there."""
        worker = self._workers[entry]
        entries = [one for one, its_worker in self._workers.items() if its_worker == worker and one != asking]
        rows = [row for row, its_entry in self._entries.items() if its_entry in entries]
        for one in entries:
            self.end(one)
        return rows


def _is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
