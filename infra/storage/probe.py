"""Tries a store before anything is entrusted to it."""

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import base_name, join, redact

_RACERS = 8


def probe(storage: Storage, uri: str) -> None:
    """Tries, in the folder `uri`, all that a dataset needs of its store, and leaves nothing behind.

    Writes, reads back, is refused a second put of other bytes, has several writers race for one name,
    lists and deletes. Raises `UsageError` where a store is not exclusive, `StorageFaultError` where it
    fails or refuses us.
    """
    name = f"{TEMPORARY_PREFIX}probe-{uuid.uuid4().hex}"
    once, raced = join(uri, f"{name}-once"), join(uri, f"{name}-raced")
    try:
        _put_twice(storage, once)
        _race(storage, raced)
        listed = {entry.name for entry in storage.list(uri, include_temporary=True)}
        if not {base_name(once), base_name(raced)} <= listed:
            raise UsageError(f"the store of {redact(uri)} does not list what was just written there")
    finally:
        with suppress(SegmintError):
            storage.delete(once)
            storage.delete(raced)
    if storage.exists(once) or storage.exists(raced):
        raise UsageError(f"the store of {redact(uri)} still shows what was deleted there")


def _put_twice(storage: Storage, uri: str) -> None:
    if not storage.put_if_absent(uri, b"first") or storage.read(uri) != b"first":
        raise UsageError(f"the store does not give back what was written to {redact(uri)}")
    if storage.put_if_absent(uri, b"second") or storage.read(uri) != b"first":
        raise _not_exclusive(uri)


def _race(storage: Storage, uri: str) -> None:
    start = threading.Barrier(_RACERS)

    def contend(index: int) -> bool:
        start.wait()
        return storage.put_if_absent(uri, b"racer %d" % index)

    with ThreadPoolExecutor(_RACERS) as pool:
        won = list(pool.map(contend, range(_RACERS)))
    if won.count(True) != 1 or storage.read(uri) != b"racer %d" % won.index(True):
        raise _not_exclusive(uri)


def _not_exclusive(uri: str) -> UsageError:
    return UsageError(
        f"the store of {redact(uri)} let a second writer replace an object that was put if absent, so shards "
        "could be written twice there: choose a store with conditional puts (If-None-Match) or hard links"
    )
