"""Temporary folders that the next process cleans up if their own process was killed."""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from pathlib import Path

PREFIX = "segmint-scratch-"
_NEW_S = 60.0  # a younger folder may belong to a process that hasn't locked it yet


class ScratchFolder(tempfile.TemporaryDirectory[str]):
    """Temporary folder that only this user can enter, and that stays locked while its process runs.

    The folder is created in `dir`, or in the system's temporary folder by default. Creating a folder also deletes this
    user's folders with the same prefix whose processes have ended.
    """

    def __init__(self, dir: str | Path | None = None, prefix: str = PREFIX) -> None:
        sweep(Path(dir or tempfile.gettempdir()), prefix)
        super().__init__(prefix=prefix, dir=dir, ignore_cleanup_errors=True)
        self._lock = contextlib.ExitStack()
        lock = os.open(self.name, os.O_RDONLY)
        self._lock.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)

    def cleanup(self) -> None:
        """Delete the folder."""
        super().cleanup()
        self._lock.close()


def sweep(parent: Path, prefix: str = PREFIX) -> None:
    """Delete this user's folders in `parent` whose processes have ended."""
    for folder in parent.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):  # already deleted, locked by its process, or owned by another user
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                found = os.fstat(lock)
                if found.st_uid != os.getuid() or time.time() - found.st_mtime < _NEW_S:
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
