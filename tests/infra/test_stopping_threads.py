"""Results of threads in order, no more of them than asked for, and nobody who has to wait for what he gave up."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from segmint.infra.stopping import map_ahead

ROOT = Path(__file__).parents[2]


def test_results_come_in_order() -> None:
    def late(number: int) -> int:
        threading.Event().wait(0.02 * (number % 3 == 0))
        return number * number

    assert list(map_ahead(late, range(50), 4, 8, "late")) == [number * number for number in range(50)]
    assert list(map_ahead(late, [], 4, 8, "none")) == []


def test_no_more_is_begun_than_asked_for() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    for given, _ in enumerate(map_ahead(str, items(), 2, 5, "few"), start=1):
        assert len(taken) <= given + 4
    assert len(taken) == 100


def test_an_error_comes_in_its_place() -> None:
    found: list[float] = []
    with pytest.raises(ZeroDivisionError):
        found.extend(map_ahead(lambda number: 1 / number, [1, 2, 0, 4], 2, 4, "errors"))
    assert found == [1, 0.5]


def test_who_stops_does_not_wait_and_what_is_left_is_not_begun() -> None:
    begun: list[int] = []
    second, go_on, ended = threading.Event(), threading.Event(), threading.Event()

    def work(number: int) -> int:
        begun.append(number)
        if number == 1:
            second.set()
            assert go_on.wait(60)
            ended.set()
        return number

    results = map_ahead(work, range(8), 1, 8, "stopped")
    assert next(results) == 0
    assert second.wait(60)
    results.close()
    assert not ended.is_set()
    go_on.set()
    assert ended.wait(60)
    assert begun == [0, 1]


LEFT_TO_THE_COLLECTOR = """
import gc
from segmint.infra.stopping import map_ahead

class Link:
    pass

def leave(results):
    next(results)
    link = Link()
    link.itself, link.results = link, results

for turn in range(1000):
    gc.set_threshold(40 + turn * 7 % 900, 1, 1)
    leave(map_ahead(str, range(9), 4, 9, "left"))
    assert len(list(map_ahead(str, range(9), 4, 9, "whole"))) == 9
"""


def test_what_the_garbage_collector_ends_stops_no_other_thread() -> None:
    """With executors that wait for their threads, this deadlocks within seconds."""
    subprocess.run([sys.executable, "-c", LEFT_TO_THE_COLLECTOR], cwd=ROOT, check=True, timeout=300)
