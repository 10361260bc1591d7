"""If a child process crashes, hangs or runs out of memory, its image is known and the next image is processed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from segmint.catalogs.findings import Reason, RejectedError
from segmint.operators.child import ChildFaultError, Children, SuspectError
from tests.support import child_workers

ROOT = Path(__file__).parents[2]
MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def children() -> Iterator[Children[object]]:
    with Children(child_workers.obedient, timeout_s=3.0, memory_limit=256 * MEBIBYTE) as children:
        yield children


def test_a_system_without_limits_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "resource", None)
    with pytest.raises(ChildFaultError, match="needs Linux or macOS"):
        Children(child_workers.obedient, timeout_s=3.0)


def test_results_and_exceptions_cross_the_process_border(children: Children[object]) -> None:
    assert children.run(b"\x00 any bytes") == b"\x00 any bytes"
    with pytest.raises(RejectedError) as verdict:
        children.run(b"reject no picture")
    assert (verdict.value.reason, verdict.value.detail) == (Reason.CORRUPT, "no picture")
    with pytest.raises(LookupError, match="ours"):
        children.run(b"bug ours")


@pytest.mark.parametrize(
    ("order", "reason", "detail"),
    [
        (b"crash", Reason.KILLED_WORKER, "SIGSEGV"),
        (b"exit", Reason.KILLED_WORKER, "exit code 5"),
        (b"sleep 60", Reason.TIMED_OUT, "3 seconds"),
        (b"allocate 1000000000", Reason.OUT_OF_MEMORY, "more memory"),
    ],
)
def test_an_image_that_ends_its_child_is_named_and_the_next_is_processed(
    children: Children[object], order: bytes, reason: Reason, detail: str
) -> None:
    with pytest.raises(SuspectError, match=detail) as verdict:
        children.run(order)
    assert verdict.value.reason is reason
    assert children.run(b"hello") == b"hello"


def test_a_death_that_does_not_repeat_is_not_a_verdict(children: Children[object], tmp_path: Path) -> None:
    order = f"crash-once {tmp_path / 'mark'}".encode()
    assert children.run(order) == order
    assert (tmp_path / "mark").exists()


def test_what_a_decoder_prints_fills_no_log(capfd: pytest.CaptureFixture[str]) -> None:
    with Children(child_workers.obedient, timeout_s=10.0) as children:
        children.run(b"print Fax4Decode: Bad code word at line 1000000 of strip 0")
    assert capfd.readouterr() == ("", "")


def test_neighbors_of_a_deadly_image_are_processed_in_order(tmp_path: Path) -> None:
    orders = [b"exit" if index == 5 else b"image %d" % index for index in range(12)]

    def outcome(order: bytes) -> object:
        try:
            return children.run(order)
        except SuspectError as verdict:
            return verdict.reason

    with (
        Children(child_workers.obedient, timeout_s=10, processes=2) as children,
        ThreadPoolExecutor(4) as threads,
    ):
        outcomes = list(threads.map(outcome, orders))
    assert outcomes == [Reason.KILLED_WORKER if order == b"exit" else order for order in orders]


def test_starting_does_not_count_towards_the_deadline() -> None:
    with Children(child_workers.slow_to_start, timeout_s=2.0) as children:
        assert children.run(b"hello") == b"hello"


@pytest.mark.parametrize(
    ("factory", "message"),
    [(child_workers.cannot_start, "weights.pt is nowhere"), (child_workers.dies_at_start, "before it took one")],
)
def test_a_child_that_cannot_start_is_a_fault_and_not_a_verdict(factory: object, message: str) -> None:
    with Children(factory, timeout_s=60.0) as children, pytest.raises(ChildFaultError, match=message):  # type: ignore[arg-type]
        children.run(b"hello")


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_child_that_is_stopped_is_a_fault_and_not_a_verdict(how: signal.Signals, tmp_path: Path) -> None:
    with Children(child_workers.obedient, timeout_s=60.0) as children:
        with pytest.raises(ChildFaultError, match="stopped by a signal"):
            children.run(f"signal {how:d}".encode())
        once = f"signal-once {tmp_path / 'stopped'}".encode()
        assert children.run(once) == once


def test_an_idle_child_that_is_killed_is_replaced() -> None:
    with Children(child_workers.obedient, timeout_s=60.0) as children:
        pid = children.run(b"pid")
        assert isinstance(pid, int)
        os.kill(pid, signal.SIGKILL)
        while psutil.pid_exists(pid):  # until the pool has noticed
            time.sleep(0.01)
        assert children.run(b"hello") == b"hello"


def test_a_child_is_replaced_after_max_tasks_images() -> None:
    with Children(child_workers.obedient, timeout_s=60.0, max_tasks=2) as children:
        assert len({children.run(b"pid") for _ in range(5)}) >= 2


def test_children_outlive_the_thread_that_made_them() -> None:
    made: list[tuple[Children[object], object]] = []

    def make() -> None:
        children = Children(child_workers.obedient, timeout_s=60.0)
        made.append((children, children.run(b"pid")))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    children, first = made[0]
    with children:
        time.sleep(0.5)
        assert children.run(b"pid") == first


def test_no_core_dump_and_a_memory_limit_above_what_the_child_has(children: Children[object]) -> None:
    core, data = children.run(b"limits")  # type: ignore[misc]
    assert core == (0, 0)
    assert 256 * MEBIBYTE < data[0] < 2048 * MEBIBYTE
    assert children.run(b"allocate %d" % (100 * MEBIBYTE)) == 100 * MEBIBYTE


def test_an_image_may_use_at_most_half_of_the_memory_of_the_cgroup(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmint.operators.child.memory_here", lambda: 128 * MEBIBYTE)
    with Children(child_workers.obedient, timeout_s=30.0, memory_limit=256 * MEBIBYTE) as children:
        assert children.run(b"allocate %d" % (32 * MEBIBYTE)) == 32 * MEBIBYTE
        with pytest.raises(SuspectError) as verdict:
            children.run(b"allocate %d" % (100 * MEBIBYTE))
    assert verdict.value.reason is Reason.OUT_OF_MEMORY


SCRIPT = """
import sys
from segmint.operators.child import Children
from tests.support import child_workers

print("main module", flush=True)
children = Children(child_workers.obedient, timeout_s=60.0)
print(children.run(b"pid"), flush=True)
children.run(b"sleep 50")
"""


def test_children_of_a_killed_parent_die_and_never_run_its_main_module(tmp_path: Path) -> None:
    script = tmp_path / "unguarded.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert parent.stdout is not None
    assert parent.stdout.readline() == "main module\n"
    child = psutil.Process(int(parent.stdout.readline()))
    time.sleep(0.2)
    parent.kill()
    parent.wait()
    child.wait(timeout=60)
    assert parent.stdout.read() == ""
