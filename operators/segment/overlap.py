"""Three stages of work for each item that overlap: threads decode, one thread owns the device, threads finish.

The device has its next item while others are decoded and finished. How many items are in a stage or between two is
bounded, and so is the memory that they take.
"""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Decoded = TypeVar("Decoded")
Computed = TypeVar("Computed")
Result = TypeVar("Result")
Value = TypeVar("Value")

WAITING = 2
"""Decoded items that wait for the device, and computed ones that wait for a finisher: enough for uneven images."""


@dataclass(frozen=True)
class HostThreads:
    """The threads beside the one that owns the device; without any, the caller's thread does all stages in turn."""

    decoders: int = 0
    finishers: int = 0
    waiting: int = 0  # the most items that wait for the device, and the most that wait for a finisher

    def __post_init__(self) -> None:
        """Raise ValueError if only one of the pools has threads, or a number is negative."""
        if min(self.decoders, self.finishers, self.waiting) < 0 or (self.decoders == 0) != (self.finishers == 0):
            raise ValueError(f"{self}: expected at least one decoder and one finisher, or none of both")

    @classmethod
    def of(cls, device: str, num_cpus: float = 2) -> "HostThreads":
        """Return the threads for a device: none on a CPU, which is busy anyway; on a GPU both pools have `num_cpus`.

        A GPU's pools have at least two threads each: an image takes longer to decode than a device may need for it.
        """
        if not device.startswith("cuda"):
            return cls()
        threads = max(2, int(num_cpus))
        return cls(threads, threads, WAITING)

    @property
    def items(self) -> int:
        """The most items in all stages and between them."""
        return max(1, self.decoders + self.waiting + 1 + self.finishers + self.waiting)

    def calls(self, items_per_call: int) -> int:
        """Return how many calls of so many items must run at once for the first stage always to have a next item.

        One call hands its items over, and one is ready to follow; the items of earlier calls are in the stages.
        """
        return 2 + -(-self.items // items_per_call) if self.decoders else 1


@dataclass(frozen=True)
class StageSeconds:
    """Where time went, in seconds; decoding and finishing are sums over their threads."""

    decode: float = 0.0
    compute: float = 0.0
    finish: float = 0.0
    idle: float = 0.0  # of the device's thread: from the first item to the last, without a decoded one
    blocked: float = 0.0  # of the device's thread: with a computed item for which the finishers had no room


class OverlappedStages(Generic[Item, Decoded, Computed, Result]):
    """Takes items through `decode(item)`, `compute(item, decoded)` and `finish(item, computed)`.

    All calls of `compute` are made by one thread, in the order in which items are decoded. Any number of threads may
    submit items.
    """

    def __init__(
        self,
        decode: Callable[[Item], Decoded],
        compute: Callable[[Item, Decoded], Computed],
        finish: Callable[[Item, Computed], Result],
        threads: HostThreads,
    ) -> None:
        self._functions = decode, compute, finish
        self._decoders = _pool(threads.decoders, "segmint-decode-image")
        self._device = _pool(min(1, threads.decoders), "segmint-device")
        self._finishers = _pool(threads.finishers, "segmint-finish-image")
        self._room_before = threading.Semaphore(max(1, threads.decoders + threads.waiting))
        self._room_after = threading.Semaphore(max(1, threads.finishers + threads.waiting))
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._computed_at: float | None = None  # when the device's thread was last busy

    def submit(self, item: Item) -> "Future[Result]":
        """Start an item as soon as there is room for it, for which this waits; return its result to come.

        An error of a stage is the result's, and the item goes no further.
        """
        self._room_before.acquire()
        result: Future[Result] = Future()
        self._decoders.submit(self._decode, item, result)
        return result

    def on_device(self, function: Callable[[], Value]) -> Value:
        """Call a function in the thread that owns the device, after the items that are decoded; return its result."""
        result: Future[Value] = Future()

        def call() -> None:
            try:
                result.set_result(function())
            except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
                result.set_exception(error)

        self._device.submit(call)
        return result.result()

    def seconds(self) -> StageSeconds:
        """Return what the stages took so far."""
        with self._lock:
            return StageSeconds(**self._seconds)

    def _decode(self, item: Item, result: "Future[Result]") -> None:
        started = time.monotonic()
        try:
            decoded = self._functions[0](item)
        except BaseException as error:  # noqa: BLE001 - it is the result of the item
            self._room_before.release()
            result.set_exception(error)
            return
        self._add("decode", time.monotonic() - started)
        self._device.submit(self._compute, item, decoded, result)

    def _compute(self, item: Item, decoded: Decoded, result: "Future[Result]") -> None:
        self._room_before.release()
        started = time.monotonic()
        if self._computed_at is not None:
            self._add("idle", started - self._computed_at)
        try:
            computed = self._functions[1](item, decoded)
        except BaseException as error:  # noqa: BLE001 - it is the result of the item
            self._computed_at = time.monotonic()
            result.set_exception(error)
            return
        done = time.monotonic()
        self._add("compute", done - started)
        self._room_after.acquire()
        self._computed_at = time.monotonic()
        self._add("blocked", self._computed_at - done)
        self._finishers.submit(self._finish, item, computed, result)

    def _finish(self, item: Item, computed: Computed, result: "Future[Result]") -> None:
        started = time.monotonic()
        try:
            finished = self._functions[2](item, computed)
        except BaseException as error:  # noqa: BLE001 - it is the result of the item
            result.set_exception(error)
        else:
            self._add("finish", time.monotonic() - started)
            result.set_result(finished)
        finally:
            self._room_after.release()

    def _add(self, stage: str, seconds: float) -> None:
        with self._lock:
            self._seconds[stage] = self._seconds.get(stage, 0.0) + seconds


class _CallerPool:
    """In place of a pool: the thread that submits does the work, one piece at a time."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> None:
        with self._one_at_a_time:
            function(*arguments)


def _pool(threads: int, name: str) -> ThreadPoolExecutor | _CallerPool:
    return ThreadPoolExecutor(threads, thread_name_prefix=name) if threads else _CallerPool()
