"""Replacement of catalog parts by corrections, with the manifest generation that names them."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.manifest import (
    LatestManifest,
    load_latest_manifest,
    load_manifest,
    parts_in_use,
    put_with_parts,
)
from segmint.catalogs.layout import CATALOG, is_part_path, part_number, part_path
from segmint.infra.assets.cache import sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import base_name


def put_parts(
    dataset: Location, latest: LatestManifest, changed: Mapping[int, Path], **fields: Any
) -> LatestManifest | None:
    """Put changed parts of the catalog, and the next manifest generation, which names the parts.

    `changed` maps part numbers to local files. `fields` contains further changes to the manifest. Returns None if
    another command put this generation first.
    """
    parts = list(latest.manifest.catalog)
    files = {}  # local files, keyed by their path in the dataset
    for number, file in changed.items():
        digest = sha256_of(file)
        path = part_path(number, digest)
        files[path] = file
        parts[number] = parts[number].model_copy(update={"path": path, "sha256": digest})
    manifest = latest.manifest.model_copy(update={"catalog": tuple(parts), **fields})
    generation = latest.generation + 1
    won = put_with_parts(dataset, manifest, generation, files)
    if not won or load_latest_manifest(dataset).generation != generation:
        return None
    return LatestManifest(manifest, generation)


def has_replaced_parts(dataset: Location) -> bool:
    """Return whether a part remains that the manifest doesn't name, because a correction was interrupted.

    Older versions count if the store can list them.
    """
    try:
        names = (dataset / CATALOG).walk_ever()
    except (UsageError, StorageFaultError):  # where older versions can't be listed, nothing is amended
        names = tuple(entry.name for entry in (dataset / CATALOG).walk())
    return bool(_replaced(dataset, names))


def remove_parts(dataset: Location) -> None:
    """Remove all catalog parts that the manifest doesn't name, including their older versions.

    Parts that other commands have reserved are kept. Parts with higher numbers than the manifest's are kept as well,
    because they belong to a build that grows the dataset.
    """
    names = (dataset / CATALOG).walk_ever()
    temporary = [f"{CATALOG}/{name}" for name in names if base_name(name).startswith(TEMPORARY_PREFIX)]
    for path in (*_replaced(dataset, names), *temporary):
        (dataset / path).purge()


def _replaced(dataset: Location, names: Iterable[str]) -> list[str]:
    parts = len(load_manifest(dataset).catalog)
    kept = parts_in_use(dataset)
    paths = [f"{CATALOG}/{name}" for name in names]
    return [path for path in paths if is_part_path(path) and part_number(path) < parts and path not in kept]
