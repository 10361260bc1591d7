"""Deadlines end their process, whatever holds the interpreter, and leave alone what is done in time."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

HOLD_THE_INTERPRETER = "import ctypes; ctypes.PyDLL(None).usleep(60_000_000)"  # PyDLL keeps the interpreter's lock


def run(script: str) -> int:
    script = f"import threading, time\nfrom segmint.infra.stopping import Deadline\n{script}"
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, timeout=50, check=False).returncode


@pytest.mark.parametrize("hang", ["while True: pass", HOLD_THE_INTERPRETER])
def test_work_that_hangs_is_ended_by_the_kernel(hang: str) -> None:
    assert run(f"with Deadline(0.2).running():\n    {hang}") == -signal.SIGALRM


IN_TIME = """
from signal import ITIMER_REAL, getitimer

deadline = Deadline(60.0)
with deadline.running():
    first = getitimer(ITIMER_REAL)[0]
    assert 50 < first <= 60
    with deadline.running():
        assert getitimer(ITIMER_REAL)[0] <= first, "the piece that ends first counts"
    assert 0 < getitimer(ITIMER_REAL)[0] <= first
with deadline.running(3):
    assert 170 < getitimer(ITIMER_REAL)[0] <= 180, "several pieces have as much time as they would have alone"
try:
    with deadline.running():
        raise LookupError
except LookupError:
    pass
assert getitimer(ITIMER_REAL) == (0.0, 0.0), "what is done, or raises, leaves no timer"
with Deadline(None).running():
    assert getitimer(ITIMER_REAL) == (0.0, 0.0), "None is no deadline"
"""


def test_work_that_is_done_in_time_leaves_no_timer() -> None:
    assert run(IN_TIME) == 0


def test_of_two_pieces_at_once_each_has_its_own_end() -> None:
    one_hangs = """
deadline = Deadline(0.5)
def hang():
    with deadline.running():
        while True:
            time.sleep(0.01)
threading.Thread(target=hang, daemon=True).start()
while True:
    with deadline.running():
        time.sleep(0.01)
"""
    assert run(one_hangs) == -signal.SIGALRM


HANGS_AT_ITS_END = """
import ctypes
from segmint.infra.stopping import exit_within
native = ctypes.CDLL(None)
native.__cxa_atexit(native.pause, None, None)  # a native exit handler that never returns
"""


def test_an_exit_that_hangs_is_ended_by_the_kernel() -> None:
    assert run(f"{HANGS_AT_ITS_END}\nexit_within(0.5)") == -signal.SIGALRM


def test_an_exit_in_time_is_left_alone() -> None:
    assert run("from segmint.infra.stopping import exit_within\nexit_within(60.0)\nraise SystemExit(7)") == 7
