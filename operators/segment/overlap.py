"""Three overlapping stages of work per item: threads decode, one thread owns the device, threads finish.

While the device works on one item, other items are decoded and finished, so the next item is always ready. The number
of items in and between the stages is bounded, and so is their memory.
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
"""Maximum decoded items waiting for the device, and computed items waiting for a finisher; enough for uneven images."""


@dataclass(frozen=True)
class HostThreads:
    """Threads besides the one that owns the device; if there are none, the caller's thread runs one stage at a time."""

    decoders: int = 0
    finishers: int = 0
    waiting: int = 0  # maximum items that wait for the device, and for a finisher

    def __post_init__(self) -> None:
        """Raise ValueError if only one of the pools has threads or a number is negative."""
        if min(self.decoders, self.finishers, self.waiting) < 0 or (self.decoders == 0) != (self.finishers == 0):
            raise ValueError(f"{self}: expected at least one decoder and one finisher, or neither")

    @classmethod
    def of(cls, device: str, num_cpus: float = 2, images_per_batch: int = 1) -> "HostThreads":
        """Return the threads for a device: none on a CPU, which is busy anyway; two pools of `num_cpus` on a GPU.

        Each pool has at least two threads, because an image may take longer to decode than to process on the device.
        Between the stages, there is room for a batch of images.
        """
        if not device.startswith("cuda"):
            return cls()
        threads = max(2, int(num_cpus))
        return cls(threads, threads, max(WAITING, images_per_batch))

    @property
    def items(self) -> int:
        """Maximum number of items in and between all stages."""
        return max(1, self.decoders + self.waiting + 1 + self.finishers + self.waiting)

    @property
    def together(self) -> int:
        """Number of items that start together: one if there are no threads, else half of those before the device."""
        return max(1, min(self.decoders, (self.decoders + self.waiting) // 2))

    def calls(self, items_per_call: int) -> int:
        """Return how many calls of `items_per_call` items must run concurrently to keep the first stage supplied.

        While earlier calls' items are in the stages, one call submits its items and another waits to do so.
        """
        return 2 + -(-self.items // items_per_call) if self.decoders else 1


@dataclass(frozen=True)
class StageSeconds:
    """Seconds spent per stage; decoding and finishing are summed over their threads."""

    decode: float = 0.0
    compute: float = 0.0
    finish: float = 0.0
    idle: float = 0.0  # of the device's thread: between the first and last item, without a decoded item
    blocked: float = 0.0  # of the device's thread: with a computed item that the finishers had no room for


class OverlappedStages(Generic[Item, Decoded, Computed, Result]):
    """Pipeline of items through `decode(item)`, `compute(item, decoded)`, and `finish(item, computed)`.

    One thread makes all calls of `compute`, in the order in which items finish decoding. Any number of threads may
    submit items. With threads, `compute_many` replaces `compute` if given. It receives a stream of items with their
    decoded values, where None means that no item is ready yet, and yields values or exceptions in the same order.
    """

    def __init__(
        self,
        decode: Callable[[Item], Decoded],
        compute: Callable[[Item, Decoded], Computed],
        finish: Callable[[Item, Computed], Result],
        threads: HostThreads,
        compute_many: Callable[[Iterator[tuple[Item, Decoded] | None]], Iterator[Computed | BaseException]]
        | None = None,
    ) -> None:
        self._compute_many = compute_many if threads.decoders else None
        self._decoded: queue.SimpleQueue[tuple[Item, Decoded, Future[Result]]] = queue.SimpleQueue()
        self._functions = decode, compute, finish
        self._decoders = _pool(threads.decoders, "segmint-decode-image")
        self._device = _pool(min(1, threads.decoders), "segmint-device")
        self._finishers = _pool(threads.finishers, "segmint-finish-image")
        self._room_before = threading.Semaphore(max(1, threads.decoders + threads.waiting))
        self._room_after = threading.Semaphore(max(1, threads.finishers + threads.waiting))
        self._lock = threading.Lock()
        self._seconds: dict[str, float] = {}
        self._computed_at: float | None = None  # when the device's thread was last busy

    def take_room(self, items: int) -> None:
        """Wait until there is room for these items, at most `HostThreads.together`, and take it. One thread at a time.

        Afterward, call either `start` or `give_room` for each item.
        """
        for _ in range(items):
            self._room_before.acquire()

    def give_room(self) -> None:
        """Release the room of an item that doesn't start."""
        self._room_before.release()

    def submit(self, item: Item) -> "Future[Result]":
        """Wait until there is room for an item, then start it; return a future of its result."""
        self.take_room(1)
        return self.start(item)

    def start(self, item: Item) -> "Future[Result]":
        """Start an item that has room; return a future of its result.

        An error in a stage becomes the result, and the item skips the remaining stages.
        """
        result: Future[Result] = Future()
        self._decoders.submit(self._decode, item, result)
        return result

    def on_device(self, function: Callable[[], Value]) -> Value:
        """Call a function in the thread that owns the device, after all items decoded so far; return its result."""
        return self._device.submit(function).result()

    def seconds(self) -> StageSeconds:
        """Return the seconds spent per stage so far."""
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
        if self._compute_many is None:
            self._device.submit(self._compute, item, decoded, result)
        else:
            self._decoded.put((item, decoded, result))
            self._device.submit(self._compute_stream, self._compute_many)

    def _compute_stream(
        self, compute_many: Callable[[Iterator[tuple[Item, Decoded] | None]], Iterator[Computed | BaseException]]
    ) -> None:
        """Compute decoded items until none are left; an earlier call may already have computed this call's items."""
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
            for computed in compute_many(stream()):
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
    """Replacement for a pool: the submitting thread does the work, one call at a time."""

    def __init__(self) -> None:
        self._one_at_a_time = threading.Lock()

    def submit(self, function: Callable[..., Value], *arguments: Any) -> "Future[Value]":
        result: Future[Value] = Future()
        with self._one_at_a_time:
            result.set_result(function(*arguments))
        return result


def _pool(threads: int, name: str) -> ThreadPoolExecutor | _CallerPool:
    return ThreadPoolExecutor(threads, thread_name_prefix=name) if threads else _CallerPool()
