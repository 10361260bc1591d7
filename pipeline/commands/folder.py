"""Folders of photographs with masks, for `segmint view` and `segmint annotate`."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.wording import counted
from segmint.pipeline.commands.console import print_message

if TYPE_CHECKING:
    from segmint.pipeline.corrections.folder import WorkingDataset
    from segmint.pipeline.masks.outputs import PhotographTask

_STOP_S = 15.0


def check_place(name: str) -> None:
    """Raise `UsageError` if the local path of a dataset or photograph folder doesn't exist or is a photograph."""
    from segmint.catalogs.layout import IMAGE_ENDINGS
    from segmint.infra.uris import local_path
    from segmint.pipeline.masks.images import is_local

    if is_local(name) and not os.path.lexists(local_path(name)):
        raise UsageError(f"no such folder: {name}")
    if name.lower().endswith(IMAGE_ENDINGS) and is_local(name) and not os.path.isdir(local_path(name)):  # noqa: PTH112
        raise UsageError(f"{name} is a photograph: pass its folder")


@contextmanager
def folder_to_correct(folder: str) -> Iterator["WorkingDataset"]:
    """Update a folder's working dataset from its files, and yield the dataset.

    No other process may use the dataset until the context exits.
    """
    from segmint.infra.uris import local_path
    from segmint.pipeline.corrections.folder import WORKING, locked

    root = local_path(folder) / WORKING
    working = _working(folder, root)
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(root))
        except OSError as error:
            raise UsageError(f"the masks of {folder} can't be corrected: {error.strerror}: {root}") from error
        _update(working, folder)
        yield working


@contextmanager
def folder_to_view(folder: str) -> Iterator["WorkingDataset"]:
    """Yield a folder's working dataset. It's up to date unless an annotator is using it.

    If the folder isn't writable, the dataset is created in a temporary folder.
    """
    from segmint.infra.scratch import ScratchFolder
    from segmint.infra.uris import local_path
    from segmint.pipeline.corrections.folder import WORKING, FolderInUseError, locked

    root = local_path(folder) / WORKING
    try:
        with locked(root):
            _update(working := _working(folder, root), folder)
    except FolderInUseError:
        if not (root / "dataset").exists():
            raise
        print_message("note: an annotator has this folder open. The masks are shown as they were when it started.")
        working = _working(folder, root)
    except OSError as error:  # not writable
        with ScratchFolder() as scratch:
            print_message(f"note: {error.strerror}: {root}. The photographs are prepared again at every start.")
            _update(working := _working(folder, Path(scratch)), folder)
            yield working
        return
    yield working


@contextmanager
def photographs_to_view(tasks: "tuple[PhotographTask, ...]") -> Iterator["WorkingDataset"]:
    """Yield a temporary dataset of photographs and their masks. The files may be anywhere."""
    from segmint.infra.scratch import ScratchFolder
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.corrections.folder import WorkingDataset

    with ScratchFolder() as scratch:
        working = WorkingDataset(Path(scratch), {task.image.name: task for task in tasks}, Storage())
        _update(working, "masks")
        yield working


def _working(folder: str, root: Path) -> "WorkingDataset":
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.corrections.folder import WorkingDataset, find_images

    images, skipped = find_images(folder)
    for line in skipped:
        print_message(f"ignored: {line}")
    return WorkingDataset(root, images, Storage())


def _update(working: "WorkingDataset", folder: str) -> None:
    from segmint.catalogs.layout import DamagedDatasetError
    from segmint.infra.storage.errors import NotFoundError
    from segmint.infra.uris import parent

    print_message(f"reading the masks of {counted(len(working), 'photograph')}")
    try:
        problems = working.update(Path(folder).resolve().name or "photographs")
    except (DamagedDatasetError, NotFoundError) as error:
        copy = parent(working.location.uri)
        raise UsageError(f"{error}. {copy} is only a copy: delete it, and run the command again.") from error
    for problem in problems:
        print_message(f"skipped: {problem}")
    if len(problems) == len(working):
        raise UsageError(f"none of the photographs in {folder} can be used")


class FolderAnnotator:
    """Process of `segmint annotate` for a folder. The viewer starts the process, and `stop` ends it. Thread-safe."""

    def __init__(self, folder: str) -> None:
        self._command = [sys.executable, "-m", "segmint", "annotate", folder, "--no-browser", "--port", "0"]
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._address = ""

    def start(self) -> str:
        """Return the annotator's URL.

        Start the annotator if it isn't running, and raise `SegmintError` if that fails.
        """
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = subprocess.Popen(self._command, stdout=subprocess.PIPE, text=True)
                assert self._process.stdout is not None
                self._address = self._process.stdout.readline().strip()
            if not self._address:
                raise SegmintError("The annotator didn't start. See the terminal of the viewer for the reason.")
            return self._address

    def stop(self) -> None:
        """Stop the annotator if it's starting or running."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
