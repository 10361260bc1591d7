"""Three stages at once: what waits for what, how much is under way, and what an error leaves."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from segmint.operators.segment import overlap
from segmint.operators.segment.overlap import STAGES, HostThreads, OverlappedStages

WAIT_S = 60.0
"""Until something happens that must: only a failing test waits so long."""

SETTLE_S = 0.2
"""In which something that must not happen would."""


def until(happened: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not happened():
        assert time.monotonic() < end
        time.sleep(0.001)


class GatedStage:
    """A stage whose items wait until they are let go; it notes which are in it, and its threads."""

    def __init__(self, held: bool = True) -> None:
        self.entered: list[int] = []
        self.threads: set[int] = set()
        self._go = threading.Event()
        if not held:
            self.let_go()

    def let_go(self) -> None:
        self._go.set()

    def __call__(self, item: int, *_: object) -> int:
        self.entered.append(item)
        self.threads.add(threading.get_ident())
        assert self._go.wait(WAIT_S)
        return item


def each(compute: Callable[[int, Any], int]) -> Callable[[Iterator[tuple[int, Any] | None]], Iterator[int | Exception]]:
    """Computes the items of a stream one after another."""

    def compute_all(stream: Iterator[tuple[int, Any] | None]) -> Iterator[int | Exception]:
        for pair in stream:
            if pair is not None:
                try:
                    yield compute(*pair)
                except Exception as error:  # noqa: BLE001 - the item's result
                    yield error

    return compute_all


def submit(stages: OverlappedStages[int, Any, Any, Any], item: int) -> "Future[int]":
    stages.take_room(1)
    return stages.start(item)


def submit_all(stages: OverlappedStages[int, Any, Any, Any], items: int) -> "Future[list[int]]":
    """Submits items from another thread, which waits for room; its result are theirs."""

    def work() -> list[int]:
        return [future.result() for future in [submit(stages, item) for item in range(items)]]

    return ThreadPoolExecutor(1).submit(work)


THREADS = HostThreads(decoders=2, finishers=3, waiting=1)


def test_items_are_decoded_while_the_device_is_busy_as_far_as_there_is_room() -> None:
    decode, compute, finish = GatedStage(held=False), GatedStage(), GatedStage(held=False)
    results = submit_all(OverlappedStages(decode, each(compute), finish, THREADS), 20)
    until(lambda: len(decode.entered) == 1 + 2 + 1)  # the device has one, two decoders are done, and one waits
    time.sleep(SETTLE_S)
    assert (len(decode.entered), len(compute.entered)) == (4, 1)
    compute.let_go()
    assert results.result(WAIT_S) == list(range(20))
    assert len(compute.threads) == 1
    assert not compute.threads & (decode.threads | finish.threads | {threading.get_ident()})


def test_the_device_goes_on_while_items_are_finished_as_far_as_there_is_room() -> None:
    compute, finish = GatedStage(held=False), GatedStage()
    results = submit_all(OverlappedStages(GatedStage(held=False), each(compute), finish, THREADS), 20)
    until(lambda: len(compute.entered) == 3 + 1 + 1)  # three are finished, one waits, and one waits for room
    time.sleep(SETTLE_S)
    assert (len(compute.entered), len(finish.entered)) == (5, 3)
    finish.let_go()
    assert results.result(WAIT_S) == list(range(20))


def test_decoders_and_finishers_work_side_by_side() -> None:
    """A barrier lets nobody on before all threads of a pool are there."""
    two, three = threading.Barrier(2), threading.Barrier(3)
    stages = OverlappedStages(
        lambda item: (two.wait(WAIT_S), item)[1],
        each(lambda item, decoded: decoded),
        lambda item, computed: (three.wait(WAIT_S), computed)[1],
        THREADS,
    )
    assert submit_all(stages, 6).result(WAIT_S) == list(range(6))


def test_the_device_takes_the_first_image_that_is_decoded() -> None:
    slow = threading.Event()
    computed: list[int] = []
    stages: OverlappedStages[int, int, int, int] = OverlappedStages(
        lambda item: item if item else int(slow.wait(WAIT_S)) - 1,
        each(lambda item, decoded: computed.append(item) or decoded),
        lambda item, value: value,
        THREADS,
    )
    results = submit_all(stages, 4)
    until(lambda: len(computed) == 3)
    slow.set()
    assert results.result(WAIT_S) == list(range(4)), "results are in the order of the items all the same"
    assert computed == [1, 2, 3, 0]


@pytest.mark.parametrize("threads", [HostThreads(), THREADS])
@pytest.mark.parametrize("broken", [0, 1, 2])
def test_an_error_is_its_item_s_and_makes_room_for_the_next(threads: HostThreads, broken: int) -> None:
    reached: list[list[int]] = [[], [], []]

    def stage(number: int) -> Callable[..., int]:
        def work(item: int, *_: object) -> int:
            reached[number].append(item)
            if number == broken and item % 10:
                raise KeyError(item)
            return item

        return work

    stages: OverlappedStages[int, int, int, int] = OverlappedStages(stage(0), each(stage(1)), stage(2), threads)
    started = [submit(stages, item) for item in range(31)]
    for item, future in enumerate(started):
        if item % 10:
            assert isinstance(future.exception(WAIT_S), KeyError)
        else:
            assert future.result(WAIT_S) == item
    for number, items in enumerate(reached):
        assert sorted(items) == (list(range(31)) if number <= broken else [0, 10, 20, 30])


def test_a_stream_is_computed_in_order_while_items_come_and_errors_are_its_items() -> None:
    """The device begins an item before it ends the one before, unless none is ready."""
    steps: list[str] = []

    def compute_many(stream: Iterator[tuple[int, int] | None]) -> Iterator[int | BaseException]:
        begun: list[int] = []
        for pair in stream:
            if pair is not None:
                steps.append(f"begin {pair[0]}")
                begun.append(pair[1])
            if begun and (pair is None or len(begun) > 1):
                steps.append(f"end {begun[0]}")
                item = begun.pop(0)
                yield KeyError(item) if item % 10 == 3 else item
        yield from begun

    decode, finish = GatedStage(), GatedStage(held=False)
    stages: OverlappedStages[int, int, int, int] = OverlappedStages(decode, compute_many, finish, HostThreads(2, 2, 2))
    started = [submit(stages, item) for item in range(3)]
    decode.let_go()
    started += [submit(stages, item) for item in range(3, 31)]
    for item, future in enumerate(started):
        if item % 10 == 3:
            assert isinstance(future.exception(WAIT_S), KeyError)
        else:
            assert future.result(WAIT_S) == item
    assert len(steps) >= 31
    assert submit(stages, 1).result(WAIT_S) == 1, "after the stream was empty"

    def failing(stream: Iterator[Any]) -> Iterator[int]:
        next(stream)
        raise ZeroDivisionError
        yield 0

    broken: OverlappedStages[int, int, int, int] = OverlappedStages(
        GatedStage(held=False), failing, finish, HostThreads(1, 1, 1)
    )
    assert isinstance(submit(broken, 1).exception(WAIT_S), ZeroDivisionError)
    assert isinstance(submit(broken, 2).exception(WAIT_S), ZeroDivisionError)


def test_without_threads_the_caller_does_one_item_after_the_other() -> None:
    steps: list[tuple[str, int]] = []
    inside = threading.Lock()
    callers = set()

    def step(name: str) -> Callable[..., int]:
        def work(item: int, *_: object) -> int:
            assert inside.acquire(blocking=False), "two items at a time"
            steps.append((name, item))
            callers.add(threading.get_ident())
            time.sleep(0.001)
            inside.release()
            return item

        return work

    stages: OverlappedStages[int, int, int, int] = OverlappedStages(
        step("decode"), each(step("compute")), step("finish"), HostThreads()
    )
    assert submit(stages, 7).done()
    assert steps == [("decode", 7), ("compute", 7), ("finish", 7)]
    assert callers == {threading.get_ident()}
    one, other = submit_all(stages, 10), submit_all(stages, 10)
    assert one.result(WAIT_S) == other.result(WAIT_S) == list(range(10))
    items = [item for _, item in steps]
    assert all(len(set(items[start : start + 3])) == 1 for start in range(0, len(items), 3))


@pytest.mark.parametrize("threads", [HostThreads(), THREADS])
def test_the_device_s_thread_takes_other_work_too(threads: HostThreads) -> None:
    compute = GatedStage(held=False)
    stages: OverlappedStages[int, int, int, int] = OverlappedStages(
        GatedStage(held=False), each(compute), GatedStage(held=False), threads
    )
    assert submit(stages, 1).result(WAIT_S) == 1
    assert stages.on_device(threading.get_ident) in compute.threads
    with pytest.raises(ZeroDivisionError):
        stages.on_device(lambda: 1 // 0)


class Clock:
    """In place of the module `time`: stands still unless told."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("slow", "item", "expected"),
    [
        ("decode", 2, {"decode": 1, "idle": 1}),  # the device is done with items 0 and 1
        ("compute", 2, {"compute": 1}),
        ("finish", 0, {"finish": 1, "blocked": 1}),  # item 1 waits for a finisher, and 2 for room
    ],
)
def test_the_time_of_each_stage_and_of_the_device_s_waiting_is_measured(
    slow: str, item: int, expected: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The clock moves by one second, while the one item is in the slow stage and nothing else can happen."""
    clock = Clock()
    monkeypatch.setattr(overlap, "time", clock)
    results: list[Future[int]] = []

    def stage(name: str) -> Callable[..., int]:
        def work(this: int, *_: object) -> int:
            if (name, this) == (slow, item):
                until(lambda: all(result.done() for result in results[:item]))
                time.sleep(SETTLE_S)
                clock.now += 1
            return this

        return work

    stages: OverlappedStages[int, int, int, int] = OverlappedStages(
        stage("decode"), each(stage("compute")), stage("finish"), HostThreads(1, 1, 1)
    )
    for this in range(3):
        results.append(submit(stages, this))
    assert [result.result(WAIT_S) for result in results] == [0, 1, 2]
    assert stages.seconds() == {**dict.fromkeys(STAGES, 0), **expected}


def test_a_cpu_has_no_threads_beside_and_a_gpu_at_least_two_of_each() -> None:
    assert HostThreads.of("cpu", 16) == HostThreads()
    assert HostThreads.of("cuda") == HostThreads(2, 2, 2)
    assert HostThreads.of("cuda:1", 1) == HostThreads(2, 2, 2)
    assert HostThreads.of("cuda", 6.5) == HostThreads(6, 6, 2)
    assert HostThreads.of("cuda", 2, 8) == HostThreads(2, 2, 8)


def test_so_many_calls_run_at_once_that_the_stages_are_never_short_of_items() -> None:
    assert HostThreads().items == HostThreads().calls(1) == HostThreads().calls(16) == 1
    assert HostThreads(2, 2, 2).items == 9
    assert [HostThreads(2, 2, 2).calls(rows) for rows in (1, 4, 8, 9, 16)] == [11, 5, 4, 3, 3]
