"""The ledger knows the rows that a worker died with, from workers that really die."""

import ctypes
import os
import pickle
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import psutil
import pytest
import ray

from segmint.infra import row_ledger
from segmint.infra.ray_session import Cluster
from segmint.infra.row_ledger import (
    MAX_DEATHS,
    STAGE_ROWS,
    BarredRowError,
    BlockEntry,
    DeadlyWindowError,
    InFlight,
    LedgerActor,
    RowLedger,
)

pytestmark = pytest.mark.ray


def walk(ledger: RowLedger, ordinals: list[int], deadly: int | None = None) -> dict[int, str]:
    """Goes through a block as a worker does; ends the process at the row `deadly`. The barred rows, with why."""
    refused = {}
    with ledger.entry() as entry:
        for ordinal in ordinals:
            try:
                entry.begin(ordinal)
            except BarredRowError as error:
                refused[ordinal] = str(error)
                continue
            if ordinal == deadly:
                os._exit(1)
            entry.leave(ordinal)
    return refused


def walk_together(ledger: RowLedger, ordinals: list[int], deadly: Sequence[int]) -> tuple[list[int], list[list[int]]]:
    """Goes through a block with a thread a row, all of which are in flight before one ends the process or leaves.

    Returns the barred rows, and for each other row those that were in flight with it, as far as they were seen.
    """
    inside: set[int] = set()
    seen: dict[int, set[int]] = {}
    refused = []
    in_time = threading.Barrier(len(ordinals))

    def process(entry: BlockEntry, ordinal: int) -> None:
        try:
            entry.begin(ordinal)
        except BarredRowError:
            refused.append(ordinal)
            in_time.abort()
            return
        inside.add(ordinal)
        with suppress(threading.BrokenBarrierError):
            in_time.wait(1)
        seen[ordinal] = inside - {ordinal}
        with suppress(threading.BrokenBarrierError):
            in_time.wait(1)
        if ordinal in deadly:
            os._exit(1)
        inside.discard(ordinal)
        entry.leave(ordinal)

    with ledger.entry() as entry, ThreadPoolExecutor(len(ordinals)) as threads:
        list(threads.map(process, [entry] * len(ordinals), ordinals))
    return sorted(refused), [sorted(seen[ordinal]) for ordinal in ordinals if ordinal in seen]


def worker(retries: int = 0, function: Callable[..., object] = walk) -> Any:
    return ray.remote(num_cpus=0, max_retries=retries)(function)


def test_a_row_that_a_worker_died_with_is_barred_and_the_rows_around_it_are_not(local_ray: Cluster) -> None:
    ledger = RowLedger()
    refused = ray.get(worker(retries=3).remote(ledger, [4, 5, 6], deadly=5), timeout=120)
    assert list(refused) == [5]
    assert "gets a trial" in refused[5]
    assert ledger.suspects() == [5]


def test_rows_that_were_in_flight_together_are_run_again_one_at_a_time(local_ray: Cluster) -> None:
    ledger = RowLedger()
    run = worker(retries=3, function=walk_together)
    refused, together = ray.get(run.remote(ledger, [3, 4, 5, 6], deadly=[5]), timeout=120)
    assert (refused, together) == ([5], [[], [], []])
    assert ledger.suspects() == [5]
    assert ledger.alone() == [3, 4, 5, 6]


def test_rows_that_no_worker_dies_with_alone_are_no_suspects(local_ray: Cluster) -> None:
    ledger = RowLedger()
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(worker(function=walk_together).remote(ledger, [1, 2], deadly=[1, 2]), timeout=120)
    assert walk_together(ledger, [1, 2], deadly=[]) == ([], [[], []])
    assert ledger.suspects() == []
    assert ledger.alone() == [1, 2]


def test_the_next_window_runs_them_one_at_a_time_from_the_start(local_ray: Cluster) -> None:
    ledger = RowLedger(alone=[1, 2])
    assert walk_together(ledger, [1, 2], deadly=[]) == ([], [[], []])
    assert walk_together(ledger, [8, 9], deadly=[]) == ([], [[9], [8]])


def test_another_window_knows_nothing_of_it_and_rows_that_left_are_no_suspects_when_they_run_again(
    local_ray: Cluster,
) -> None:
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(worker().remote(RowLedger(), [1, 2], deadly=2), timeout=120)
    ledger = RowLedger()
    for _ in range(2):
        assert walk(ledger, [1, 2, 3]) == {}
    assert ledger.suspects() == []


def start(book: LedgerActor, entry: int | None, ordinal: int, *, alone: bool = False) -> str:
    """What the book says when a row begins."""
    assert entry is not None
    answer = book.begin(entry, ordinal, [], alone)
    return "starts" if answer.starts else answer.refused or "alone"


def test_a_row_whose_node_died_is_no_suspect(local_ray: Cluster) -> None:
    book = LedgerActor([])
    here = ray.get_runtime_context().get_node_id()
    lost, alive, later = book.open("0" * len(here), "1"), book.open(here, "2"), book.open(here, "3")
    assert start(book, lost, 7) == "starts"
    assert start(book, alive, 7) == "starts"
    assert book.suspects() == book.alone() == []
    assert "gets a trial" in start(book, later, 7), "the second worker's node is alive"
    assert book.suspects() == [7]


def test_all_rows_of_a_dead_worker_are_found_with_the_first_of_them(local_ray: Cluster) -> None:
    book = LedgerActor([])
    here = ray.get_runtime_context().get_node_id()
    one, other, elsewhere, later = (book.open(here, process) for process in ("1", "1", "2", "3"))
    for entry, ordinal in ((one, 1), (one, 2), (other, 3), (other, 4), (elsewhere, 5)):
        assert start(book, entry, ordinal) == "starts"
    assert book.begin(other or 0, 6, [(one or 0, 1), (other or 0, 3)], alone=False).starts, "1 and 3 are done"
    assert start(book, later, 2) == "alone"
    assert book.alone() == [2, 4, 6]
    assert start(book, later, 2, alone=True) == "starts"
    assert start(book, later, 1) == start(book, later, 3) == "starts"
    assert "shutting down" in start(book, one, 9), "a worker that was taken for dead does nothing more"
    assert book.suspects() == []


def test_a_row_that_is_done_late_does_not_end_its_next_start(local_ray: Cluster) -> None:
    book = LedgerActor([])
    here = ray.get_runtime_context().get_node_id()
    first, again, last = (book.open(here, process) for process in ("1", "2", "3"))
    book.end(first or 0)
    assert start(book, again, 7) == "starts"
    assert book.begin(last or 0, 8, [(first or 0, 7)], alone=False).starts
    assert "gets a trial" in start(book, last, 7)


def test_a_worker_that_ends_for_no_image_s_fault_leaves_no_suspects(local_ray: Cluster) -> None:
    ledger = RowLedger()
    with ledger.entry() as one, ledger.entry() as other:  # two calls at once in one process
        one.begin(1)
        other.begin(2)
        other.begin(3)
        one.excuse(1, "the GPU failed")
        other.excuse(2, "and again, for the row of another thread")
        with pytest.raises(BarredRowError, match="shutting down"):
            other.begin(4)
        with ledger.entry() as again, pytest.raises(BarredRowError, match="the GPU failed"):
            again.begin(1)
        assert walk(ledger, [2, 3]) == {}
    assert ledger.suspects() == ledger.alone() == []


def test_a_window_with_too_many_deaths_is_at_its_end(local_ray: Cluster) -> None:
    """Deaths count, and not the rows that were in flight."""
    ledger = RowLedger()
    for ordinal in range(MAX_DEATHS):
        rows = [ordinal] if ordinal % 2 else [ordinal, 100 + ordinal]
        entry = BlockEntry(ledger.actor, InFlight())
        for row in rows:
            entry.begin(row)  # and it never leaves
        found = walk(ledger, [ordinal])
        assert list(found) == ([ordinal] if ordinal % 2 else [])
    with pytest.raises(DeadlyWindowError, match=f"{MAX_DEATHS} times: these images get trials"):
        walk(ledger, [99])
    assert ledger.suspects() == [1, 3, 5, 7]
    assert ledger.alone() == [0, 2, 4, 6, 100, 102, 104, 106]


def test_deaths_far_apart_do_not_end_a_window(local_ray: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_ledger, "DEATH_ROWS", 100)
    here = ray.get_runtime_context().get_node_id()
    for between, ends in ((20, False), (10, True)):
        book, ordinal = LedgerActor([]), 0
        for death in range(2 * MAX_DEATHS):
            entry, again = book.open(here, f"{death}"), book.open(here, f"{death} again")
            if entry is None:
                break
            for _ in range(between):
                ordinal += 1
                assert book.begin(entry, ordinal, [(entry, ordinal - 1)], alone=False).starts
            assert "gets a trial" in start(book, again, ordinal)
        assert (book.open(here, "last") is None) is ends


def test_rows_that_start_together_get_the_replies_of_rows_that_start_alone(local_ray: Cluster) -> None:
    ledger = RowLedger(alone=[3])
    with ledger.entry() as entry:
        assert [tuple(reply) for reply in entry.begin_together([1, 2, 3])] == [
            (True, None),
            (True, None),
            (False, None),
        ]
        for ordinal in (1, 2):
            entry.leave(ordinal)
        entry.begin(3)
        entry.leave(3)
    dying = BlockEntry(ledger.actor, InFlight())
    dying.begin(5)
    with ledger.entry() as entry:
        replies = entry.begin_together([4, 5])
        assert replies[0].starts
        assert "gets a trial" in (replies[1].refused or "")
        entry.leave(4)
        entry.begin(6)


def test_rows_start_together_with_their_block(local_ray: Cluster) -> None:
    ledger = RowLedger(alone=[3])
    dying = BlockEntry(ledger.actor, InFlight())
    dying.begin(5)
    with ledger.entry(ordinals=[1, 2, 3, 5]) as entry:
        assert [reply.starts for reply in entry.replies] == [True, True, False, False]
        assert "gets a trial" in (entry.replies[3].refused or "")
        for ordinal in (1, 2):
            entry.leave(ordinal)
        entry.begin(3)
        entry.leave(3)
    assert walk(ledger, [1, 2, 3]) == {}, "the end of the block is recorded at once"
    assert ledger.suspects() == [5]


def test_a_custom_stage_has_rows_of_its_own_with_the_same_ordinals(local_ray: Cluster) -> None:
    ledger = RowLedger(alone=[2 * STAGE_ROWS + 6])
    custom = pickle.loads(pickle.dumps(ledger.of_stage(2)))
    dying = BlockEntry(ledger.actor, InFlight(), 2 * STAGE_ROWS)
    dying.begin(4)
    with custom.entry() as entry:
        assert [reply.starts for reply in entry.begin_together([4, 5, 6])] == [False, True, False]
        entry.leave(5)
        entry.begin(6)
        entry.leave(6)
    assert ledger.suspects() == [2 * STAGE_ROWS + 4]
    with ledger.entry() as entry:
        entry.begin(4)
        entry.leave(4)
    ledger.retry_after(0, 7, [(0, 5)])
    ledger.retry_after(0, 8, [(5, 9)])
    assert [slot.shard for slot in ledger.retry_slot(0)] == [8], "a row of the other shard waits for its trial"


def test_a_window_that_is_ended_reads_what_it_has_begun_and_no_more() -> None:
    book = LedgerActor([])
    assert book.may_read(0)
    assert book.may_read(3)
    book.stop_reading()
    assert [book.may_read(number) for number in (1, 2, 3, 4)] == [True, True, True, False]
    book.retry_after(0, 7, [(70, 80)])
    assert book.retry_slot(5) == []


def test_a_shard_on_hold_runs_in_the_first_slot_after_its_wait() -> None:
    book = LedgerActor([])
    assert book.retry_slot(2) == []
    book.retry_after(60, 8, [(80, 90)])
    book.retry_after(0, 7, [(70, 75), (77, 78)])
    assert book.retry_slot(2) == [], "what a slot runs never changes"
    assert book.retry_slot(5) == book.retry_slot(5) == [(7, [(70, 75), (77, 78)])]
    assert book.retry_slot(9) == []
    book.stop_reading()
    assert book.may_read(9)


def test_a_shard_with_a_barred_row_does_not_run_again_in_its_window(local_ray: Cluster) -> None:
    book = LedgerActor([])
    here = ray.get_runtime_context().get_node_id()
    dead, later = book.open(here, "1"), book.open(here, "2")
    assert start(book, dead, 75) == "starts"
    assert "gets a trial" in start(book, later, 75)
    book.retry_after(0, 7, [(70, 75), (75, 80)])
    book.retry_after(0, 8, [(80, 90)])
    assert book.retry_slot(1) == [(8, [(80, 90)])]


def test_the_seconds_of_a_worker_s_stages_are_recorded_and_summed(local_ray: Cluster) -> None:
    ledger = RowLedger()
    for seconds in ({"decode": 1.0, "compute": 3.0}, {"decode": 2.5, "compute": 4.0}):
        with ledger.entry(lambda seconds=seconds: seconds):
            pass
    assert ledger.spent() == {"decode": 2.5, "compute": 4.0}, "of one worker, the last"
    book = LedgerActor([])
    for process, seconds in (("1", {"decode": 2.0}), ("2", {"decode": 3.0, "finish": 1.0}), ("2", {"decode": 2.0})):
        entry = book.open("here", process)
        assert entry is not None
        book.end(entry, seconds)
    assert book.spent() == {"decode": 5.0, "finish": 1.0}


class Worker:
    """Visits a ledger; Ray's exit handlers never return in its process."""

    def entry(self, ledger: RowLedger, exit_s: float) -> int:
        native: Any = ctypes.CDLL(None)
        native["__cxa_atexit"](native.pause, None, None)
        row_ledger.EXIT_S = exit_s
        walk(ledger, [1])
        return os.getpid()


def test_a_worker_that_hangs_at_its_exit_leaves_nothing(local_ray: Cluster) -> None:
    actor = ray.remote(num_cpus=0)(Worker).remote()
    process = psutil.Process(ray.get(actor.entry.remote(RowLedger(), 0.5), timeout=120))
    try:
        actor.__ray_terminate__.remote()  # as when a pool gets smaller
        process.wait(timeout=120)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()


class MeasuringActor:
    """Actor that reports a peak when it starts, as a segment actor does, and dies when it is told to."""

    def __init__(self, ledger: RowLedger, peak: float) -> None:
        ledger.report_peak(peak)

    def end(self) -> None:
        os._exit(1)

    def wait(self) -> None:
        pass


@pytest.mark.long
def test_an_actor_that_starts_again_is_one_device(local_ray: Cluster) -> None:
    ledger = RowLedger()
    assert ledger.peaks() == []
    actors = [ray.remote(num_cpus=0, max_restarts=1)(MeasuringActor).remote(ledger, peak) for peak in (1e12, 3e12)]
    ray.get([each.wait.remote() for each in actors], timeout=120)
    actors[0].end.remote()
    end = time.monotonic() + 120
    while time.monotonic() < end:
        with suppress(ray.exceptions.RayActorError):
            ray.get(actors[0].wait.options(max_task_retries=0).remote(), timeout=120)
            break
        time.sleep(0.1)
    assert sorted(ledger.peaks()) == [1e12, 3e12]


def test_a_ledger_that_is_gone_has_no_suspects_and_no_peaks(local_ray: Cluster) -> None:
    ledger = RowLedger()
    ray.get(ledger.actor.report_peak.remote("an actor", 1e12))
    ray.kill(ledger.actor)
    end = time.monotonic() + 30
    while ledger.peaks() and time.monotonic() < end:  # Ray kills when it gets to it
        time.sleep(0.1)
    assert ledger.peaks() == []
    ledger.report_peak(2e12)
    assert ledger.suspects() == ledger.alone() == []
    assert ledger.spent() == {}
