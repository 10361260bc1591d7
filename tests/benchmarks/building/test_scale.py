"""The figures of a build: how much each kind of process grew, and that no row may be missing."""

from pathlib import Path

import pytest

from benchmarks.building import scale
from benchmarks.building.scale import largest, rise, summary, thinned
from benchmarks.processes import TracedProcess


def traced(start: float, sizes: list[float], shared: float = 10.0, role: str = "worker") -> TracedProcess:
    times = [start + 5 * index for index in range(len(sizes))]
    return TracedProcess(role, times, [size + shared for size in sizes], sizes, cpu_s=2.0)


def test_growth_counts_from_the_middle_of_a_life() -> None:
    steady = traced(0, [50, 80, 100, 100, 101, 100.5, 100])
    leaking = traced(0, [100, 110, 120, 130, 140, 150, 160])
    assert rise([steady], "own_mib") == 0.5
    assert rise([steady, leaking], "own_mib") == 30
    assert rise([traced(0, [50, 90])], "own_mib") == 0


def test_the_curve_is_that_of_the_largest_and_halves_are_of_the_whole_run() -> None:
    first, second = traced(0, [10, 20]), traced(10, [15, 12])
    assert largest([second, first]) == [(0, 20, 10), (5, 30, 20), (10, 25, 15), (15, 22, 12)]
    found = summary("worker", [first, second], rows=1000)
    assert found["most_mib"] == {"rss": [30, 25], "own": [20, 15]}
    assert (found["processes"], found["cpu_ms_a_row"]) == (2, 4.0)


def test_a_long_curve_is_thinned_and_keeps_its_end() -> None:
    curve = [(float(index), 2.0, 1.0) for index in range(1003)]
    kept = thinned(curve)["seconds"]
    assert (kept[0], kept[-1]) == (0, 1002)
    assert scale.POINTS <= len(kept) <= scale.POINTS + 5


@pytest.mark.long
@pytest.mark.ray
def test_every_row_is_counted(tmp_path: Path) -> None:
    result = scale.measure(tmp_path, 200, every=0.2, images_per_shard=60)
    assert result["build"]["shards"] == 4
    assert result["build"]["masks"] == 3 * 196
    assert sum(each["cpu_ms_a_row"] for each in result["roles"]) > 0
