"""`pytest --fast`: only tests that need no Ray, S3 server, browser, child process or published weights.

The fixtures that a test requests decide. A file whose text names a way to start a process is passed over as a whole.
Where the code under test starts one, the test requests `processes`, and `weights` where it needs weights. With `--fast`
a test that starts a process or takes weights fails and names the fixture, so a new test needs no entry anywhere.
"""

import multiprocessing.process
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

SLOW = frozenset({"chromium", "local_ray", "processes", "s3_server", "weights"})
"""Fixtures that make a test slow, requested by itself or by another of its fixtures."""

_STARTS = re.compile(
    r"mark\.(?:ray|s3)\b|\bsubprocess\b|\bmultiprocessing\b|\b(?:segmint|build_dataset|annotate_process|Popen|Run|load_model)\("
)
"""What the text of a test file has if its tests start processes."""


@pytest.fixture(scope="session")
def processes() -> None:
    """For tests that start child processes by other ways than another fixture."""


@pytest.fixture(scope="session")
def weights() -> None:
    """For tests that load published weights by other ways than `mobile_sam_path`."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--fast", action="store_true", help="only tests without Ray, S3, browser, processes and weights")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("fast"):
        config.pluginmanager.register(_Fast(), "segmint-fast")


@cache
def starts_processes(path: Path) -> bool:
    """Whether the text of a test file names a way to start a process or to load a model."""
    return _STARTS.search(path.read_text(encoding="utf-8")) is not None


class _Fast:
    """Chooses the fast tests, and stops one that starts a process or loads weights."""

    def __init__(self) -> None:
        self._stopped: list[str] = []
        self._running = False
        self._guard(subprocess.Popen, "__init__", "processes", lambda _, command, *__, **___: str(command)[:200])
        self._guard(multiprocessing.process.BaseProcess, "start", "processes", repr)
        self._guard(os, "fork", "processes", lambda: "os.fork")

    def pytest_ignore_collect(self, collection_path: Path) -> bool | None:
        """Files that would be passed over are not imported."""
        return True if collection_path.match("test_*.py") and starts_processes(collection_path) else None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[pytest.Item]) -> None:
        slow = {item for item in items if SLOW.intersection(getattr(item, "fixturenames", ()))}
        config.hook.pytest_deselected(items=list(slow))
        items[:] = [item for item in items if item not in slow]
        from segmint.infra import assets as resolve  # every test run loads this file

        known = tuple(resolve.ASSETS.values())  # tests have others of their own, which are small
        self._guard(
            resolve, "_resolve_known", "weights", lambda asset, *_: asset.name, lambda asset, *_: asset in known
        )
        if "torch" in sys.modules:
            self._guard(sys.modules["torch"], "load", "weights", _first, lambda path, *_, **__: _is_installed(path))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self) -> Iterator[None]:
        self._running = True
        yield
        self._running = False

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self) -> Iterator[Any]:
        outcome = yield
        if self._stopped:  # also where the code under test takes the error for something else
            report = outcome.get_result()
            report.outcome, report.longrepr = "failed", "\n".join(self._stopped)
            self._stopped.clear()

    def _guard(
        self,
        owner: Any,
        name: str,
        fixture: str,
        described: Callable[..., str],
        applies: Callable[..., bool] = lambda *_, **__: True,
    ) -> None:
        """Replace a function by one that refuses while a test runs, and names the fixture to request."""
        real = getattr(owner, name)

        def guarded(*arguments: Any, **named: Any) -> Any:
            if not self._running or not applies(*arguments, **named):
                return real(*arguments, **named)
            self._stopped.append(
                f"not a fast test: {described(*arguments, **named)}. Have it request the fixture {fixture!r}, as by "
                f'@pytest.mark.usefixtures("{fixture}")'
            )
            raise RuntimeError(self._stopped[-1])

        setattr(owner, name, guarded)


def _first(value: Any, *_: Any, **__: Any) -> str:
    return str(value)


def _is_installed(path: Any) -> bool:
    """Whether a file comes from a package: a test's is in a temporary folder, and small."""
    return isinstance(path, str | Path) and Path(path).resolve().is_relative_to(sys.prefix)
