"""Files that a command writes where there is none, and never over another one."""

from pathlib import Path

from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location


def refuse_existing(file: Location) -> None:
    """Raise `UsageError` if the file is there: it may hold work that was done by hand."""
    if file.exists():
        raise _taken(file)


def put_new_file(file: Location, path: Path) -> None:
    """Put a local file; raise `UsageError` if another one was put there meanwhile."""
    if not file.put_file_if_absent(path):
        raise _taken(file)


def _taken(file: Location) -> UsageError:
    return UsageError(f"{file} exists already, and is not overwritten: name another file, or delete it first")
