"""`segmint build` in the background, to be killed in part or as a whole, and what must be true afterwards."""

import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from tests.support.builds import ROOT, digests, segmint, segmint_here

_MARK = "SEGMINT_TEST_RUN"

_STUBBED = """
import sys
from unittest import mock
from segmint.pipeline.commands.cli import main
import segmint.pipeline.build
from benchmarks.building.stubs import StubbedPrepare, StubbedSegment
sys.argv.insert(1, "build")
with mock.patch.multiple("segmint.pipeline.build", Prepare=StubbedPrepare, Segment=StubbedSegment):
    main()
"""

STUBBED: dict[str, Any] = {"program": ("-c", _STUBBED), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
"""Arguments of `running` for a build in which stubs replace the two stages that process pixels."""


def timed_build(config: Path) -> tuple[dict[str, str], float]:
    """Run a build to its end. Return the digests of its dataset's files, and its duration in seconds."""
    started = time.monotonic()
    segmint("build", config)
    return digests(config.parent / "dataset"), time.monotonic() - started


class BuildProcess:
    """A build as a separate process; a local Ray and all its workers have its mark in their environment."""

    def __init__(
        self,
        config: Path,
        *arguments: str,
        program: Sequence[str] = ("-m", "segmint", "build"),
        prefix: Sequence[str] = (),
        **environment: str,
    ) -> None:
        self._mark = uuid.uuid4().hex
        self._log = config.with_suffix(".log")
        with self._log.open("ab") as stream:
            self._driver = subprocess.Popen(
                [*prefix, sys.executable, *program, str(config), *arguments],
                cwd=ROOT,
                env={**os.environ, **environment, _MARK: self._mark},
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def alive(self) -> bool:
        """Whether the driver still runs."""
        return self._driver.poll() is None

    def driver(self) -> psutil.Process:
        """The driver's process."""
        return psutil.Process(self._driver.pid)

    def below(self) -> list[psutil.Process]:
        """All processes that the driver started and that still run; none on a cluster."""
        with suppress(psutil.NoSuchProcess):
            return psutil.Process(self._driver.pid).children(recursive=True)
        return []

    def kill(self) -> None:
        """SIGKILL to the driver alone."""
        self._driver.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 600) -> int:
        """The exit code, negative for a signal; a run that does not end by itself fails the test, with its output."""
        try:
            return self._driver.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the run did not end within {timeout:g} s:\n{self.told()}") from None

    def told(self) -> str:
        """What it printed."""
        return self._log.read_text(errors="replace")

    def marked(self) -> list[psutil.Process]:
        """Every process with this run's mark, whatever its parent is by now."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(_MARK) == self._mark:
                    found.append(process)
        return found

    def close(self) -> None:
        """End whatever is left."""
        for process in self.marked():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        self._driver.wait()


@contextmanager
def running(
    config: Path,
    *arguments: str,
    program: Sequence[str] = ("-m", "segmint", "build"),
    prefix: Sequence[str] = (),
    **environment: str,
) -> Iterator[BuildProcess]:
    """A build in the background, or another program of Python's arguments; nothing of it is left afterwards.

    `prefix` are the words of a command that runs it somewhere else.
    """
    run = BuildProcess(config, *arguments, program=program, prefix=prefix, **environment)
    try:
        yield run
    finally:
        run.close()


def wait_for(what: str, found: Callable[[], object], run: BuildProcess | None = None, timeout: float = 600) -> None:
    """Return when `found` is true; fail if the run, if any, ends first."""
    deadline = time.monotonic() + timeout
    while not found():
        assert run is None or run.alive(), f"the run ended before there was {what}:\n{run.told()}"
        assert time.monotonic() < deadline, f"there was no {what} in {timeout:g} s:\n{run.told() if run else ''}"
        time.sleep(0.02)


def title(process: psutil.Process) -> str:
    """The title of a process: Ray's workers say what they do. Empty for one that has ended."""
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""


def finish(config: Path, **environment: str) -> int:
    """Build again until nothing is left; return the number of builds, at most two."""
    for attempt in (1, 2):
        with running(config, **environment) as run:
            code = run.wait()
        if code == 0:
            return attempt
        assert code == 3, f"ended with {code}:\n{run.told()}"
    raise AssertionError(f"unfinished after two more builds:\n{run.told()}")


def assert_gone(run: BuildProcess) -> None:
    """Nothing that a run started on this machine is left, or it ends by itself soon."""
    _, left = psutil.wait_procs(run.marked(), timeout=300)
    assert not left, f"left behind: {[title(process) for process in left]}"


def assert_whole(dataset: Path, undisturbed: dict[str, str]) -> None:
    """The files of an undisturbed build, byte for byte, no other but temporary ones, and an audit without findings."""
    standing = {path: digest for path, digest in digests(dataset).items() if not Path(path).name.startswith(".tmp-")}
    assert standing == undisturbed
    segmint_here("audit", dataset, "--integrity-only")
