"""The ledger knows the row that a worker died with, from workers that really die."""

import ctypes
import os
from contextlib import suppress
from typing import Any

import psutil
import pytest
import ray

from segmint.infra import row_ledger
from segmint.infra.ray_session import Cluster
from segmint.infra.row_ledger import MAX_SUSPECTS, BarredRowError, DeadlyWindowError, RowLedger, Visit, _Book

pytestmark = pytest.mark.ray


def walk(ledger: RowLedger, ordinals: list[int], deadly: int | None = None) -> dict[int, str]:
    """Goes through a block as a worker does; ends the process at the row `deadly`. The barred rows, with why."""
    barred = {}
    with ledger.visit() as visit:
        for ordinal in ordinals:
            try:
                visit.begin(ordinal)
            except BarredRowError as error:
                barred[ordinal] = str(error)
                continue
            if ordinal == deadly:
                os._exit(1)
    return barred


def worker(retries: int = 0) -> Any:
    return ray.remote(num_cpus=0, max_retries=retries)(walk)


def test_a_row_that_a_worker_died_with_is_barred_and_the_rows_around_it_are_not(local_ray: Cluster) -> None:
    ledger = RowLedger()
    barred = ray.get(worker(retries=3).remote(ledger, [4, 5, 6], deadly=5), timeout=120)
    assert list(barred) == [5]
    assert "tried alone" in barred[5]
    assert ledger.suspects() == [5]


def test_rows_that_left_are_no_suspects_when_their_block_runs_again(local_ray: Cluster) -> None:
    ledger = RowLedger()
    for _ in range(2):
        assert walk(ledger, [1, 2, 3]) == {}
    assert ledger.suspects() == []


def test_another_window_knows_nothing_of_it(local_ray: Cluster) -> None:
    with pytest.raises(ray.exceptions.WorkerCrashedError):
        ray.get(worker().remote(RowLedger(), [1, 2], deadly=2), timeout=120)
    assert walk(RowLedger(), [1, 2]) == {}


def test_a_row_whose_node_died_is_no_suspect(local_ray: Cluster) -> None:
    book = _Book()
    here = ray.get_runtime_context().get_node_id()
    lost, alive, later = book.open("0" * len(here), 1), book.open(here, 2), book.open(here, 3)
    assert None not in (lost, alive, later)
    assert book.begin(lost, 7) is None
    assert book.begin(alive, 7) is None
    assert book.suspects() == []
    assert book.begin(later, 7) is not None, "the second worker's node is alive"
    assert book.suspects() == [7]


def test_a_worker_that_ends_for_no_image_s_fault_leaves_no_suspects(local_ray: Cluster) -> None:
    ledger = RowLedger()
    with ledger.visit() as one, ledger.visit() as other:  # two calls at once in one process
        one.begin(1)
        other.begin(2)
        one.excuse("the GPU failed")
        with ledger.visit() as again, pytest.raises(BarredRowError, match="the GPU failed"):
            again.begin(1)
        assert walk(ledger, [2]) == {}
    assert ledger.suspects() == []


def test_a_window_with_too_many_suspects_is_at_its_end(local_ray: Cluster) -> None:
    ledger = RowLedger()
    for ordinal in range(MAX_SUSPECTS):
        Visit(ledger._book).begin(ordinal)  # and it never leaves
        assert list(walk(ledger, [ordinal])) == [ordinal]
    with pytest.raises(DeadlyWindowError, match=f"{MAX_SUSPECTS} images"):
        walk(ledger, [99])
    assert ledger.suspects() == list(range(MAX_SUSPECTS))


def test_a_ledger_that_is_gone_has_no_suspects(local_ray: Cluster) -> None:
    ledger = RowLedger()
    ray.kill(ledger._book)
    assert ledger.suspects() == []


class Worker:
    """Visits a ledger; Ray's exit handlers never return in its process."""

    def visit(self, ledger: RowLedger, exit_s: float) -> int:
        native: Any = ctypes.CDLL(None)
        native["__cxa_atexit"](native.pause, None, None)
        row_ledger.EXIT_S = exit_s
        walk(ledger, [1])
        return os.getpid()


def test_a_worker_that_hangs_at_its_exit_leaves_nothing(local_ray: Cluster) -> None:
    actor = ray.remote(num_cpus=0)(Worker).remote()
    process = psutil.Process(ray.get(actor.visit.remote(RowLedger(), 0.5), timeout=120))
    try:
        actor.__ray_terminate__.remote()  # as when a pool gets smaller
        process.wait(timeout=120)
    finally:
        with suppress(psutil.NoSuchProcess):
            process.kill()
