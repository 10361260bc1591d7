"""What a run says at its end beside pytest's own summary: where the time went, and that nothing may be skipped."""

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

CGROUPS = Path("/sys/fs/cgroup")


def machine_seconds() -> float | None:
    """The CPU seconds that the machine (or the container) has spent so far; None where no cgroup counts them.

    `usage_usec` in `cpu.stat` of the unified cgroup, else `cpuacct.usage` of the older one.
    """
    for path in (CGROUPS / "cpu.stat", CGROUPS / "unified" / "cpu.stat"):
        with suppress(OSError, KeyError):
            return int(dict(line.split() for line in path.read_text().splitlines())["usage_usec"]) / 1e6
    with suppress(OSError):
        return int((CGROUPS / "cpuacct" / "cpuacct.usage").read_text()) / 1e9
    return None


_before = machine_seconds()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """With `--durations`, the seconds of the tests by folder; in a run of several processes, of all of them."""
    if config.option.durations is None:
        return
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                path = report.nodeid.partition("::")[0]
                seconds["/".join(path.split("/")[:-1][:2])] += report.duration
    terminalreporter.section("seconds by folder, set-up and teardown included")
    for folder, spent in seconds.most_common():
        terminalreporter.write_line(f"{spent:8.1f} {folder}")
    after = machine_seconds()
    if _before is not None and after is not None:
        text = f"{after - _before:8.1f} CPU seconds of the whole machine during this run, of other programs, too"
        terminalreporter.write_line(text)


OF_THE_CPU = "Skipped: the CPU has no "
"""Start of the reason for a skip that no installation can prevent."""


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run with `SEGMINT_TEST_NO_SKIPS=1` in which a test was skipped, unless the CPU lacks instructions."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("SEGMINT_TEST_NO_SKIPS") != "1" or not reporter:
        return
    reasons = [report.longrepr for report in reporter.stats.get("skipped", [])]
    if any(not (isinstance(each, (tuple, list)) and each[2].startswith(OF_THE_CPU)) for each in reasons):
        reporter.write_line("SEGMINT_TEST_NO_SKIPS is set, and tests were skipped", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
