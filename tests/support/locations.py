"""Locations of local files, as tests need them all over."""

from pathlib import Path

from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage


def location_of(path: Path | str) -> Location:
    """A local file or folder, with a storage that has no options."""
    return Location(Storage(), str(path))
