"""Sweep of a dataset: removes files that no commit names. Also finds files that are missing."""

import itertools
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from segmint.catalogs.dataset.commits import CommitLog, generations_of, read_shard_state
from segmint.catalogs.dataset.manifest import load_manifest, manifest_generations, parts_in_use
from segmint.catalogs.dataset.tombstones import FINGERPRINTS, TOMBSTONES
from segmint.catalogs.layout import (
    CATALOG,
    COMMITS,
    DATA_KINDS,
    RESERVATIONS,
    SUMMARIES,
    DataFile,
    commit_path,
    is_part_path,
    parse_data_path,
    parse_reservation_name,
)
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location, store_time
from segmint.infra.storage.stores import TEMPORARY_PREFIX, ObjectInfo
from segmint.infra.uris import join

_FOLDERS = (*DATA_KINDS, RESERVATIONS, COMMITS, CATALOG, SUMMARIES, TOMBSTONES, FINGERPRINTS, "")

GRACE = timedelta(hours=24)
"""Minimum age, by the store's clock, of a file that is deleted because no commit names it.

The delay protects files that a user has just put there. segmint reserves its files before it writes them.
"""


def sweep(
    dataset: Location,
    grace: timedelta = GRACE,
    now: datetime | None = None,
    threads: int = 16,
) -> list[str]:
    """Delete files that don't belong to a dataset, and return their sorted paths relative to the dataset.

    In committed shards, this deletes replaced commits and the data files that only they name. It deletes other data
    files if neither the latest commit nor a reservation names them and they are older than `grace`. Elsewhere in the
    dataset, it deletes temporary files older than `grace`, and catalog parts older than `grace` that neither the
    manifest nor a reservation names.

    This keeps all files of uncommitted shards regardless of their age. A paused writer may still need such files, and
    another writer may be about to write the same bytes. It also keeps reservations, files with unknown names, and
    folders that are links. `now` defaults to the time of the store's clock, because that clock set the files' times.
    """
    found = _listed(dataset)
    found.linked.update(folder for folder in _FOLDERS if folder and (dataset / folder).link_target() is not None)
    doubtful = found.doubtful_shards()
    if now is None:
        now = datetime.now(UTC)
        if found.temporary or found.parts or not found.files.keys().isdisjoint(doubtful):
            now = store_time(dataset)
    limit = now - grace
    doomed = [path for path, modified in found.temporary if modified < limit]
    parts = {path for path, entry in found.parts if entry.modified < limit}
    if parts and manifest_generations(dataset):
        doomed += parts - parts_in_use(dataset)
    doomed = [path for path in doomed if found.in_own_folder(path)]
    for path in doomed:
        (dataset / path).delete()

    def sweep_shard(shard: int) -> list[str]:
        return _sweep_shard(dataset, shard, found, limit)

    swept: Iterable[list[str]] = map(sweep_shard, doubtful)
    if threads > 1:
        swept = map_ahead(sweep_shard, doubtful, threads, 2 * threads, "sweep")
    return sorted([*doomed, *itertools.chain.from_iterable(swept)])


def missing_files(dataset: Location, shards: Container[int]) -> list[str]:
    """Return the paths of missing and empty files: catalog parts, and files of these shards' latest commits.

    At most 10 shards with missing files are reported. This doesn't read data files. If a shard has exactly one nonempty
    file of each kind, this doesn't read its commit either.
    """
    found, log, missing = _listed(dataset), CommitLog(dataset), dict[int, list[str]]()
    for shard in found.doubtful_shards():
        if shard not in shards or len(missing) == 10:
            continue
        commit = log.latest(shard)
        if commit is None:
            continue
        listed = {path: entry.size for path, _, entry in found.files.get(shard, [])}
        absent = []
        for entry in commit.files:
            # A file that exists but isn't in the listing was committed after the listing.
            if not listed.get(entry.path) and (entry.path in listed or not (dataset / entry.path).exists()):
                absent.append(entry.path)
        if absent and log.is_latest(shard, commit.generation):
            missing[shard] = absent
    whole = {path for path, entry in found.parts if entry.size}
    parts = {part.path for part in load_manifest(dataset).catalog if part.path not in whole}
    if parts:  # a correction may have replaced the catalog after the listing
        for listed_part in (dataset / CATALOG).list():
            if listed_part.size:
                parts.discard(f"{CATALOG}/{listed_part.name}")
    return [*sorted(parts), *itertools.chain.from_iterable(missing.values())]


@dataclass
class _SweepListing:
    """Files that a sweep may delete."""

    generations: dict[int, list[int]]
    reserved: set[int]  # shards with reservations
    files: dict[int, list[tuple[str, DataFile, ObjectInfo]]]  # by shard
    temporary: list[tuple[str, datetime]]
    parts: list[tuple[str, ObjectInfo]]
    linked: set[str] = field(default_factory=set)  # folders

    def doubtful_shards(self) -> list[int]:
        """Return the committed shards that may contain files to delete.

        If a shard has one generation, no reservation, and one nonempty file of each kind, these files are assumed to be
        those that its commit names. Such a shard is not doubtful, so its commit doesn't have to be read.
        """
        doubtful = []
        for shard, numbers in sorted(self.generations.items()):
            kinds = sorted(file.kind for _, file, entry in self.files.get(shard, []) if entry.size)
            if len(numbers) > 1 or shard in self.reserved or kinds != sorted(DATA_KINDS):
                doubtful.append(shard)
        return doubtful

    def in_own_folder(self, path: str) -> bool:
        """Return whether a path is in a folder that isn't a link."""
        return path.partition("/")[0] not in self.linked


def _listed(dataset: Location) -> _SweepListing:
    found = _SweepListing({}, set(), {}, [], [])
    commit_names: list[str] = []
    for path, entry in _entries(dataset):
        folder = path.partition("/")[0]
        data_file = parse_data_path(path)
        if data_file is not None:
            found.files.setdefault(data_file.shard, []).append((path, data_file, entry))
        elif is_part_path(path):
            found.parts.append((path, entry))
        elif entry.name.startswith(TEMPORARY_PREFIX):
            found.temporary.append((path, entry.modified))
        elif folder == COMMITS:
            commit_names.append(entry.name)
        elif folder == RESERVATIONS and (reservation := parse_reservation_name(entry.name)) is not None:
            found.reserved.add(reservation[0])
    found.generations = generations_of(commit_names)
    return found


def _sweep_shard(dataset: Location, shard: int, found: _SweepListing, limit: datetime) -> list[str]:
    """Delete what earlier writers left in a committed shard, after reading its reservations and commits again."""
    state = read_shard_state(dataset, shard)
    if state.commit is None:
        return []  # it was deleted in the meantime
    log = CommitLog(dataset)
    replaced_files = set[str]()
    for generation in state.replaced:
        commit = log.read(shard, generation)
        if commit is not None:
            replaced_files.update(file.path for file in commit.files)
    doomed = []
    for path, _, entry in found.files.get(shard, []):
        if path not in state.kept and (entry.modified < limit or path in replaced_files):
            doomed.append(path)
    # Commits are deleted last. Until then, a replaced commit shows that the files that it names don't belong to an
    # active writer.
    for generation in state.replaced:
        doomed.append(commit_path(shard, generation))
    doomed = [path for path in doomed if found.in_own_folder(path)]
    for path in doomed:
        (dataset / path).delete()
    return doomed


def _entries(dataset: Location) -> Iterator[tuple[str, ObjectInfo]]:
    """Yield the files in the dataset's folders.

    A store returns 1,000 names at a time, so the folders are listed in parallel.
    """

    def listed(folder: str) -> list[ObjectInfo]:
        return (dataset / folder).list(include_temporary=True)

    # Data files are listed before commits and manifests. If a file is committed in between, the listing includes its
    # commit.
    for folders in (tuple(DATA_KINDS), _FOLDERS[len(DATA_KINDS) :]):
        listings = map_ahead(listed, folders, threads=len(folders), ahead=len(folders), name="sweep")
        for folder, entries in zip(folders, listings, strict=True):
            for entry in entries:
                yield join(folder, entry.name), entry
