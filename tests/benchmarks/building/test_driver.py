"""The cost of a build's driver: what a block costs, and which code the driver spends its time in."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from benchmarks.building.driver import Build, costs, set_pace
from benchmarks.building.driver_profile import shares
from benchmarks.building.pace import EVENTS, PACE, image_s, note
from benchmarks.processes import Trace, TracedProcess


def traced(role: str, cpu_s: float, *sizes: float) -> TracedProcess:
    return TracedProcess(role, [10.0 * n for n in range(len(sizes))], [size + 100 for size in sizes], [*sizes], cpu_s)


def trace_of(*processes: TracedProcess) -> Trace:
    return cast("Trace", SimpleNamespace(processes={(n, 0.0): each for n, each in enumerate(processes)}))


def test_a_block_costs_what_each_role_spent_since_the_start() -> None:
    trace = trace_of(traced("driver", 5, 200, 230, 220), traced("worker", 1, 50), traced("worker", 2, 60, 70))
    found = costs(trace, {(0, 0.0): 2.0, (2, 0.0): 1.5}, 100, 50.0)
    assert found["driver_cpu_ms_per_block"] == 30
    assert found["driver_cpu_share"] == 0.06
    assert found["cpu_ms_per_block"] == {"driver": 30, "worker": 15}
    assert found["blocks_per_s"] == 2
    assert found["driver_own_mib"] == {"start": 200, "end": 220, "most": 230}
    assert found["driver_rss_mib"] == {"start": 300, "end": 320, "most": 330}
    assert (found["most_mib"], found["processes"]) == ({"driver": 230, "worker": 70}, {"driver": 1, "worker": 2})


def test_a_run_without_blocks_has_no_cost() -> None:
    with pytest.raises(SystemExit, match="no block left the segment actors in 50 s"):
        costs(trace_of(traced("driver", 5, 200)), {}, 0, 50.0)


def test_actors_read_the_pace_and_note_their_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PACE, str(tmp_path / "pace"))
    monkeypatch.setenv(EVENTS, str(tmp_path / "events"))
    build = Build(cast("Any", None), tmp_path, actors=1, rows_per_block=1)
    assert (build.started(), build.rows()) == (0, 0)
    set_pace(tmp_path, 0.25)
    assert image_s() == 0.25
    note("start")
    note("image")
    note("image")
    assert (build.started(), build.rows()) == (1, 2)


def test_a_profile_leaves_out_the_main_thread_s_sleep() -> None:
    loop = "thread (2): StreamingExecutor;run (a.py:1);StreamingExecutor._scheduling_loop_step (a.py:2)"
    found = shares(
        [
            "thread (1): MainThread;run_rows (build.py:1);OpState.get_output_blocking (b.py:567) 900",
            "thread (1): MainThread;ShardWriters.submit (stage_watch.py:1);remote (ray.py:2) 5",
            f"{loop};ResourceManager.update_usages (c.py:3) 60",
            f"{loop};StageWatch.on_execution_step (stage_watch.py:1) 5",
            "thread (3): other;listen (d.py:1) 30",
        ]
    )
    assert found["samples"] == 100
    assert found["Ray Data's loop"] == 0.65
    assert found["loop: usage and budgets"] == 0.6
    assert (found["segmint: shard writers"], found["segmint: progress and stalls"]) == (0.05, 0.05)
    with pytest.raises(SystemExit, match="no sample"):
        shares([])
