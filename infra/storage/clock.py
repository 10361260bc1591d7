"""The clock of a store: ages of objects are counted by it, never by this machine's."""

import uuid
from datetime import datetime

from segmint.infra.errors import SegmintError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX

_TRIES = 3  # a sweep that removes temporary files at once may take a probe


def store_time(folder: Location) -> datetime:
    """Return the time that the store gives to an object put now; a probe is put into the folder and deleted."""
    for _ in range(_TRIES):
        name = f"{TEMPORARY_PREFIX}clock-{uuid.uuid4().hex}"
        probe = folder / name
        probe.put(b"")
        try:
            for entry in folder.list(include_temporary=True, beginning=name):
                return entry.modified
        finally:
            probe.delete()
    raise SegmintError(f"the store of {folder} does not list what was just written there")
