"""Three overlapping stages per item: some threads decode, one thread owns the device, and other threads finish.

While the device works on one item, other threads decode the next items and finish the previous ones, so the device
rarely waits. The number of items in and between the stages is bounded, which bounds their memory.
"""

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Decoded = TypeVar("Decoded")
Computed = TypeVar("Computed")
Result = TypeVar("Result")
Value = TypeVar("Value")

WAITING = 2
"""Maximum number of decoded items that wait for the device, and of computed items that wait for a finisher.

This is enough to compensate for images that take different amounts of time.
"""


@dataclass(frozen=True)
class HostThreads:
    """Threads besides the one that owns the device: at least one of each kind, or 0 of both.

    Without threads, the caller's thread runs one stage at a time.
    """

    decoders: int = 0
    finishers: int = 0
    waiting: int = 0  # maximum items that wait for the device, and for a finisher

    @classmethod
    def of(cls, device: str, num_cpus: float = 2, images_per_batch: int = 1) -> "HostThreads":
        """Return two pools of `num_cpus` threads for a GPU, or no threads for a CPU, which is busy anyway.

        Each pool has at least two threads, because decoding an image may take longer than processing it on the device.
        Between the stages, there is room for a batch of images.
        """
        if not device.startswith("cuda"):
            return cls()
        threads = max(2, int(num_cpus))
        return cls(threads, threads, max(WAITING, images_per_batch))

    @property
    def items(self) -> int:
        """Maximum number of items in all stages and between them."""
        return max(1, self.decoders + self.waiting + 1 + self.finishers + self.waiting)

    @property
    def together(self) -> int:
        """Number of items that start together: half of the items that fit before the device, or one without threads."""
        return max(1, min(self.decoders, (self.decoders + self.waiting) // 2))

    def calls(self, items_per_call: int) -> int:
        """Return how many concurrent calls of `items_per_call` items keep the first stage supplied.

        While the items of earlier calls are in the stages, one call submits its items, and another waits for its turn.
        """
        return 2 + -(-self.items // items_per_call) if self.decoders else 1


STAGES = ("decode", "compute", "finish", "idle", "blocked")
"""Names of the measured times. `decode` and `finish` are sums over their threads. `idle` is the time that the device's
thread waits for a decoded item between its first and last item, and `blocked` the time that it waits until the
finishers have room for its item."""


class OverlappedStages(Generic[Item, Decoded, Computed, Result]):
    """Pipeline that runs `decode(item)`, `compute`, and `finish(item, computed)` for each item.

    Any number of threads may submit items. A single thread calls `compute`, which receives a stream of items with their
    decoded values, in the order in which they finish decoding. None in the stream means that no item is ready yet.
    `compute` yields values or exceptions in the same order.
    """

    def __init__(
        self,
        decode: Callable[[Item], Decoded],
        compute: Callable[[Iterator[tuple[Item, Decoded] | None]], Iterator[Computed | BaseException]],
        finish: Callable[[Item, Computed], Result],
        threads: HostThreads,
    ) -> None:
        self._decoded: queue.SimpleQueue[tuple[Item, Decoded, Future[Result]]] = queue.SimpleQueue()
        self._functions = decode, compute, finish
        self._decoders = _pool(threads.decoders, "segmint-decode-image")
        self._device = _pool(min(1, threads.decoders), "segmint-device")
        self._finishers = _pool(threads.finishers, "segmint-finish-image")
        self._room_before = threading.Semaphore(max(1, threads.decoders + threads.waiting))
        self._room_after = threading.Semaphore(max(1, threads.finishers + threads.waiting))
        self._lock = threading.Lock()
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._computed_at: float | None = None  # when the device's thread was last busy

    def take_room(self, items: int) -> None:
        """Wait until there is room for these items, then reserve it. Only one thread may call this at a time.

        `items` is at most `HostThreads.together`. Afterward, call either `start` or `give_room` for each item.
        """
        for _ in range(items):
            self._room_before.acquire()

    def give_room(self) -> None:
        """Release the room that was reserved for an item that doesn't start."""
        self._room_before.release()

    def start(self, item: Item) -> "Future[Result]":
        """Start an item whose room is reserved. Return a future of its result.

        If a stage raises an exception, the future raises it, and the item skips the remaining stages.
        """
        result: Future[Result] = Future()
        self._decoders.submit(self._decode, item, result)
        return result

    def on_device(self, function: Callable[[], Value]) -> Value:
        """Call a function in the thread that owns the device, after all items decoded so far, and return its result."""
        return self._device.submit(function).result()

    def seconds(self) -> dict[str, float]:
        """Return the seconds spent so far, with the names in `STAGES`."""
        with self._lock:
            return dict(self._seconds)

    def _decode(self, item: Item, result: "Future[Result]") -> None:
        started = time.monotonic()
        try:
            decoded = self._functions[0](item)
        except BaseException as error:  # noqa: BLE001 - it is the result of the item
            self._room_before.release()
            result.set_exception(error)
            return
        self._add("decode", time.monotonic() - started)
        self._decoded.put((item, decoded, result))
        self._device.submit(self._compute)

    def _compute(self) -> None:
        """Compute decoded items until none are left. An earlier call may already have computed this call's item."""
        begun: deque[tuple[Item, Future[Result]]] = deque()

        def stream() -> Iterator[tuple[Item, Decoded] | None]:
            while begun or not self._decoded.empty():
                try:
                    item, decoded, result = self._decoded.get_nowait()
                except queue.Empty:
                    yield None
                    continue
                self._room_before.release()
                begun.append((item, result))
                yield item, decoded

        if self._decoded.empty():
            return
        started = time.monotonic()
        if self._computed_at is not None:
            self._add("idle", started - self._computed_at)
        try:
            for computed in self._functions[1](stream()):
                item, result = begun.popleft()
                if isinstance(computed, BaseException):
                    result.set_exception(computed)
                    continue
                done = time.monotonic()
                self._add("compute", done - started)
                self._room_after.acquire()
                started = time.monotonic()
                self._add("blocked", started - done)
                self._finishers.submit(self._finish, item, computed, result)
        except BaseException as error:  # noqa: BLE001 - it is the result of all items in progress
            for _, result in begun:
                result.set_exception(error)
        self._computed_at = time.monotonic()

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
            self._seconds[stage] += seconds


class _CallerPool:
    """Replacement for a thread pool. The submitting thread does the work, and other threads wait."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()

    def submit(self, function: Callable[..., Value], *arguments: Any) -> "Future[Value]":
        result: Future[Value] = Future()
        with self._one_at_a_time:
            result.set_result(function(*arguments))
        return result


def _pool(threads: int, name: str) -> ThreadPoolExecutor | _CallerPool:
    return ThreadPoolExecutor(threads, thread_name_prefix=name) if threads else _CallerPool()
