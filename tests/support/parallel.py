"""Runs of several processes (`pytest -n`): which tests go together, and what they share."""

import fcntl
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

try:
    from xdist.scheduler import LoadScopeScheduling
except ImportError:  # a run in one process needs no xdist
    LoadScopeScheduling = object


IN_PARALLEL = "PYTEST_XDIST_WORKER" in os.environ
if IN_PARALLEL:
    # Each process has a core: two threads of torch in each would wait for one another. Ray's workers, which are polite
    # by 15 levels, would hardly get to run.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("RAY_worker_niceness", "0")

QUICK = {"catalogs", "infra"}
"""Folders whose files, all of them short, go last, so that the processes end together."""


class ByFile(LoadScopeScheduling):
    """The tests of a file run in one process, in their order, for they share fixtures.

    All files that start Ray are one group: a local Ray is several processes of a gigabyte, and two of them beside each
    other would take turns on two cores.
    """

    def __init__(self, config: pytest.Config, log: Any) -> None:
        super().__init__(config, log)
        config.option.loadscopereorder = False  # the order is that of the collection

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0]
        return "ray" if starts_ray(self.config.rootpath / path) else path


@cache
def starts_ray(path: Path) -> bool:
    """Whether tests of a file are marked `ray`."""
    return "mark.ray" in path.read_text(encoding="utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if IN_PARALLEL:
        items.sort(key=_turn)


def _turn(item: pytest.Item) -> int:
    """Ray first, which is the longest."""
    return -1 if starts_ray(item.path) else item.nodeid.split("/")[1] in QUICK


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder that `make` has filled, in the first process of a run that asks for it; all others read it."""
    root = factory.getbasetemp()
    if IN_PARALLEL:
        root = root.parent  # of all processes of this run
    folder, done = root / name, root / f"{name}.made"
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()  # where the first one failed, this says so
            make(folder)
            done.touch()
    return folder
