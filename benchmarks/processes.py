"""Memory and CPU of a program and its child processes, sampled while it runs."""

import re
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import psutil

MIB = 1 << 20

_ROLES = {
    r"stubbed_build\.py|plain_pipeline\.py": "driver",
    r"/gcs_server": "gcs_server",
    r"/raylet/raylet": "raylet",
    r"dashboard/agent\.py|ray::DashboardAgent": "dashboard agent",
    r"runtime_env.*/main\.py|ray::RuntimeEnvAgent": "runtime environment agent",
    r"_private/log_monitor\.py": "log monitor",
    r"dashboard/dashboard\.py": "dashboard",
    r"ray::.*Prepare": "prepare actor",
    r"ray::.*Segment": "segment actor",
    r"ray::.*AuditShards": "audit worker",
    r"ray::.*LedgerActor": "ledger actor",
    r"ray::(_StatsActor|ActorLocationTracker|_AutoscalingCoordinator)": "Ray Data's own actors",
    r"spawn_main": "prepare child",
    r"ray::.*": "task worker",
}
"""Roles of processes, by a pattern of the command line. The first match wins."""


@dataclass
class TracedProcess:
    """Process with its role, and its memory at each sample."""

    role: str
    seconds: list[float] = field(default_factory=list)  # since the trace started
    rss_mib: list[float] = field(default_factory=list)  # includes shared pages of the object store
    own_mib: list[float] = field(default_factory=list)  # excludes shared pages
    cpu_s: float = 0.0  # at the last sample


class Trace:
    """Trace of all descendants of a process, by process id."""

    def __init__(self, root: int) -> None:
        self._root = psutil.Process(root)
        self._began = time.monotonic()
        self.processes: dict[tuple[int, float], TracedProcess] = {}

    def look(self) -> None:
        """Sample every running process. Processes that end meanwhile are skipped."""
        now = time.monotonic() - self._began
        for process in self._living():
            with suppress(psutil.Error):
                key = process.pid, process.create_time()
                role = role_of(" ".join(process.cmdline()))
                memory, times = process.memory_info(), process.cpu_times()
                traced = self.processes.setdefault(key, TracedProcess(role or "other"))
                # A worker starts before Ray assigns its role, and Ray renames it for each task.
                if traced.role in ("other", "task worker") and role is not None:
                    traced.role = role
                traced.seconds.append(round(now, 1))
                traced.rss_mib.append(round(memory.rss / MIB, 1))
                traced.own_mib.append(round((memory.rss - memory.shared) / MIB, 1))
                traced.cpu_s = times.user + times.system

    def _living(self) -> Iterator[psutil.Process]:
        with suppress(psutil.Error):
            yield self._root
            yield from self._root.children(recursive=True)


def role_of(command: str) -> str | None:
    """Return the role of a process, given its command line, or None if it is unknown."""
    return next((role for pattern, role in _ROLES.items() if re.search(pattern, command)), None)
