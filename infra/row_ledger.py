"""A ledger of the row that each worker is processing, so that it is known which row a worker died with.

A worker records a row before it starts it, and waits for the answer; the row is done when the worker records the next
one or ends its visit. Ray runs the block of a dead worker again, and a row that starts there a second time without
being done is a suspect: it is barred for the rest of the window, and the rows around it go on. The ledger is an actor
on the driver's node. Imports only Ray: the actor starts without the model.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segmint.infra.deadline import exit_within
from segmint.infra.errors import SegmintError

MAX_SUSPECTS = 8
"""The number of suspects that ends a window: the cause may be the machines, and each death costs a worker's start."""

EXIT_S = 60.0
"""Seconds within which an exiting worker must be gone. Ray's exit handler may hang in a process that has called an
actor: this was seen, and the processes kept their memory forever."""

TIMEOUT_S = 60.0
"""Seconds that a worker or the driver waits for the actor that keeps the ledger."""

_SUSPECT = "the worker that segmented this image died with it: it is tried alone, in a separate worker"


class BarredRowError(SegmintError):
    """A row that must not be processed in this window. Not a verdict on its image: its shard waits."""


class DeadlyWindowError(SegmintError):
    """Too many images of one window ended their workers."""


class RowLedger:
    """The ledger of one window; created by the driver on its own node, and used from any process."""

    def __init__(self) -> None:
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        # One call a row would push all other tasks out of the last 100,000 that a cluster's control store keeps.
        alone: dict[str, Any] = {"num_cpus": 0, "scheduling_strategy": here, "enable_task_events": False}
        self._book = ray.remote(**alone)(_Book).remote()

    @contextmanager
    def visit(self) -> Iterator["Visit"]:
        """Process one block in this process. Raises `DeadlyWindowError` if the window has been ended."""
        exit_within(EXIT_S)
        visit = Visit(self._book)
        try:
            yield visit
        finally:
            visit.end()

    def suspects(self) -> list[int]:
        """Ordinals of the rows that workers died with, on nodes that were alive afterwards, in the order found.

        Empty if the actor that keeps the ledger is gone: its node was the driver's.
        """
        try:
            suspects: list[int] = ray.get(self._book.suspects.remote(), timeout=TIMEOUT_S)
        except ray.exceptions.RayError:
            return []
        return suspects


class Visit:
    """The processing of one block in this process, one row at a time."""

    def __init__(self, book: Any) -> None:
        self._book = book
        node = ray.get_runtime_context().get_node_id()
        number = ray.get(book.open.remote(node, os.getpid()), timeout=TIMEOUT_S)
        if number is None:
            raise DeadlyWindowError(
                f"{MAX_SUSPECTS} images ended the workers that segmented them: these are tried alone before others are"
            )
        self._number: int = number

    def begin(self, ordinal: int) -> None:
        """Record that the previous row is done and this one starts; returns once that is confirmed.

        Raises `BarredRowError` for a row that a worker died with, or that broke its device, in this window.
        """
        why = ray.get(self._book.begin.remote(self._number, ordinal), timeout=TIMEOUT_S)
        if why is not None:
            raise BarredRowError(why)

    def excuse(self, why: str) -> None:
        """Record that this process ends, but not because of an image: its row is barred, and no row is a suspect."""
        ray.get(self._book.excuse.remote(self._number, why), timeout=TIMEOUT_S)

    def end(self) -> None:
        """Record that all rows of the block are done; does not wait."""
        self._book.end.remote(self._number)


class _Book:
    """The actor that keeps the ledger. A worker is a node and a process there."""

    def __init__(self) -> None:
        self._opened = 0
        self._workers: dict[int, tuple[str, int]] = {}  # by visit
        self._rows: dict[int, int] = {}  # the ordinal that a visit is processing
        self._visits: dict[int, int] = {}  # the visit that an ordinal is in
        self._suspects: list[int] = []
        self._barred: dict[int, str] = {}  # why, by ordinal

    def open(self, node: str, process: int) -> int | None:
        if len(self._suspects) >= MAX_SUSPECTS:
            return None
        self._opened += 1
        self._workers[self._opened] = node, process
        return self._opened

    def begin(self, visit: int, ordinal: int) -> str | None:
        """Why the row is barred; None: it is not, and has started."""
        self._leave(visit)
        earlier = self._visits.get(ordinal)
        if earlier is not None:  # that worker died: Ray never runs a block twice at a time
            node, _ = self._workers[earlier]
            self.end(earlier)
            if _is_alive(node):
                self._suspects.append(ordinal)
                self._barred[ordinal] = _SUSPECT
        why = self._barred.get(ordinal)
        if why is None:
            self._rows[visit] = ordinal
            self._visits[ordinal] = visit
        return why

    def excuse(self, visit: int, why: str) -> None:
        self._barred[self._rows[visit]] = why
        worker = self._workers[visit]
        for other in [other for other, its_worker in self._workers.items() if its_worker == worker]:
            self._leave(other)

    def end(self, visit: int) -> None:
        self._leave(visit)
        self._workers.pop(visit, None)

    def suspects(self) -> list[int]:
        return self._suspects

    def _leave(self, visit: int) -> None:
        ordinal = self._rows.pop(visit, None)
        if ordinal is not None:
            del self._visits[ordinal]


def _is_alive(node_id: str) -> bool:
    return any(node["NodeID"] == node_id and node["Alive"] for node in ray.nodes())
