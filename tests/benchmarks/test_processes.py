"""Processes are known by their command lines, and a program's own and all below it are looked at."""

import subprocess
import sys

import pytest

from benchmarks.processes import Trace, role_of

PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "held = b'x' * (60 << 20); print('up', flush=True); input()"], stdin=-1)
child.wait()
"""


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("/venv/bin/python benchmarks/building/stubbed_build.py build.yaml answer.json", "driver"),
        ("/venv/ray/core/src/ray/gcs/gcs_server --log_dir=/tmp", "gcs_server"),
        ("/venv/ray/core/src/ray/raylet/raylet --raylet_socket_name=/tmp", "raylet"),
        ("ray::MapWorker(MapBatches(StubbedPrepare))", "prepare actor"),
        ("ray::MapBatches(StubbedSegment)", "segment actor"),
        ("ray::LedgerActor.begin", "ledger actor"),
        ("ray::_StatsActor", "Ray Data's own actors"),
        ("ray::write_shard()", "task worker"),
        ("ray::DashboardAgent", "dashboard agent"),
        ("ray::IDLE", "task worker"),
        ("sleep 5", None),
    ],
)
def test_a_process_is_known_by_its_command_line(command: str, role: str | None) -> None:
    assert role_of(command) == role


def test_a_child_is_seen_with_its_size_and_its_end() -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        try:
            assert parent.stdout is not None
            assert parent.stdout.readline() == "up\n"
            trace = Trace(parent.pid)
            trace.look()
            trace.look()
            assert len(trace.processes) == 2
            child = max(trace.processes.values(), key=lambda process: process.own_mib[-1])
            assert len(child.seconds) == 2
            assert 60 < child.own_mib[-1] <= child.rss_mib[-1] < 120
            assert child.cpu_s > 0
        finally:
            for pid, _ in trace.processes:
                subprocess.run(["kill", "-9", str(pid)], check=False)
    trace.look()
    assert [len(process.seconds) for process in trace.processes.values()] == [2, 2]
