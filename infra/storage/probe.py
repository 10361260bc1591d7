"""Probes of a folder in a store, which test whether it is suitable for a dataset and read the store's clock."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import redact

_RACERS = 8
_TRIES = 3  # a concurrent sweep of temporary files may delete a probe


def probe(folder: Location) -> None:
    """Test every operation that a dataset needs from its store, and leave nothing behind in the folder.

    The probe writes an object, reads it back, and tries to overwrite it with put-if-absent. Then several writers race
    for one name. Finally, the probe lists and deletes its objects. Raises `UsageError` if put-if-absent replaces an
    object, and `StorageFaultError` if the store fails or refuses access.
    """
    name = f"{TEMPORARY_PREFIX}probe-{uuid.uuid4().hex}"
    once, raced = folder / f"{name}-once", folder / f"{name}-raced"
    try:
        _put_twice(once)
        _race(raced)
        listed = {entry.name for entry in folder.list(include_temporary=True)}
        if not {once.name, raced.name} <= listed:
            raise UsageError(f"the store of {redact(folder.uri)} does not list what was just written there")
    finally:
        with suppress(SegmintError):
            once.delete()
            raced.delete()
    if once.exists() or raced.exists():
        raise UsageError(f"the store of {redact(folder.uri)} still shows what was deleted there")


def _put_twice(file: Location) -> None:
    if not file.put_if_absent(b"first") or file.read() != b"first":
        raise UsageError(f"the store returns different bytes than were written to {redact(file.uri)}")
    if file.put_if_absent(b"second") or file.read() != b"first":
        raise _not_exclusive(file)


def _race(file: Location) -> None:
    start = threading.Barrier(_RACERS)

    def contend(index: int) -> bool:
        start.wait()
        return file.put_if_absent(b"racer %d" % index)

    with ThreadPoolExecutor(_RACERS) as pool:
        won = list(pool.map(contend, range(_RACERS)))
    if won.count(True) != 1 or file.read() != b"racer %d" % won.index(True):
        raise _not_exclusive(file)


def _not_exclusive(file: Location) -> UsageError:
    return UsageError(
        f"the store of {redact(file.uri)} let a second writer replace an object that was put if absent, so shards "
        "could be written twice there: choose a store with conditional puts (If-None-Match) or hard links"
    )


def store_time(folder: Location) -> datetime:
    """Write an object and return its modification time as the store's current time.

    Ages are relative to this time, never to the local clock.
    """
    for _ in range(_TRIES):
        name = f"{TEMPORARY_PREFIX}clock-{uuid.uuid4().hex}"
        file = folder / name
        file.put(b"")
        try:
            for entry in folder.list(include_temporary=True, beginning=name):
                return entry.modified
        finally:
            file.delete()
    raise SegmintError(f"the store of {folder} does not list what was just written there")
