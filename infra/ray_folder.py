"""The folder of a local Ray: sessions with logs, sockets and spilled objects.

Ray makes its folders writable for every user of the machine. A private folder around them keeps others out.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PREFIX = "segmint-ray-"
_LONGEST_PARENT = 18
"""Characters: a socket's path has 107 at most, of which Ray takes 64 below its folder, and these two folders 23."""

_NEW_S = 60.0  # a folder may be this young without being locked


@contextlib.contextmanager
def private_folder() -> Iterator[Path | None]:
    """Make a folder inside one that only this user may enter, and delete both; None where `RAY_TMPDIR` names one.

    Ray makes the inner one writable for all. The outer one is in the system's folder for temporary files, or in /tmp
    where that has a long path. Folders that killed processes left there are deleted first: a living process holds a
    lock on its folder.
    """
    if os.environ.get("RAY_TMPDIR"):
        yield None
        return
    parent = tempfile.gettempdir()
    if len(parent) > _LONGEST_PARENT:
        parent = "/tmp"
    sweep(Path(parent))
    folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))  # mode 0700
    lock = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        (folder / "r").mkdir()
        yield folder / "r"
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def sweep(parent: Path) -> None:
    """Delete this user's folders in `parent` whose processes are no more."""
    for folder in parent.glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or of another user
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                found = os.fstat(lock)
                if found.st_uid != os.getuid() or time.time() - found.st_mtime < _NEW_S:
                    continue
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(lock)
