"""Locations of local files, as tests need them all over."""

from pathlib import Path

from segmint.catalogs.dataset.manifest import DatasetHandle
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage


def location_of(path: Path | str) -> Location:
    """A local file or folder, with a storage that has no options."""
    return Location(Storage(), str(path))


def handle_of(dataset: Location | Path | str, *, with_images: bool = True) -> DatasetHandle:
    """The handle of a dataset, which needs no manifest yet."""
    location = dataset if isinstance(dataset, Location) else location_of(dataset)
    return DatasetHandle(location=location, with_images=with_images)
