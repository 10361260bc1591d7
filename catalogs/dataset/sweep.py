"""Files that no commit names: which ones there are, and the sweep that removes them."""

import itertools
import re
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

from segmint.catalogs.dataset.commits import CommitLog, generations_of, read_shard_state, reserved_paths
from segmint.catalogs.dataset.manifest import load_manifest, manifest_generations, parse_manifest_name, parts_in_use
from segmint.catalogs.dataset.tombstones import FINGERPRINTS, TOMBSTONES, by_shard, read_tombstones, removed_images
from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import (
    CATALOG,
    COMMITS,
    DATA_KINDS,
    IMAGE_ENDINGS,
    REPORT,
    RESERVATIONS,
    SUMMARIES,
    DamagedDatasetError,
    DataFile,
    commit_path,
    is_known,
    is_part_path,
    parse_commit_path,
    parse_data_path,
    parse_reservation_name,
)
from segmint.infra.errors import UsageError
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location, store_time
from segmint.infra.storage.stores import TEMPORARY_PREFIX, ObjectInfo
from segmint.infra.uris import base_name, join

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


_MOST_BYTES = 1_000_000
"""Maximum size in bytes of a file that segmint didn't put there and that isn't a finding."""

_NAMED = (*DATA_KINDS, COMMITS, CATALOG)
"""Folders in which every file must be named by a commit or the manifest."""

_ENDINGS = (
    "zip tar tgz gz bz2 xz zst lz4 7z rar cab iso dmg parquet arrow feather npz npy h5 hdf5 sqlite db pdf "
    "psd jpe jxl j2k svg ico cr2 cr3 nef arw dng raf orf rw2 ppm pgm pbm pnm exr qoi mp4 mov"
)
_MEDIA = re.compile(rf".*\.(?:{_ENDINGS.replace(' ', '|')})", re.IGNORECASE | re.ASCII | re.DOTALL)
_TEMPORARY = re.compile(
    rf"(?:(?:{'|'.join(_NAMED)}|annotations|fingerprints|outputs|report|reservations|summaries|tombstones|versions)/"
    rf"(?:[a-z0-9]+/)*)?{re.escape(TEMPORARY_PREFIX)}(?:(?:probe|clock)-)?[0-9a-f]{{32}}"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # a URI contains no control characters
_UNREADABLE = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")  # keys with empty segments, `.`, or `..`, which can't be read
_OF_STORES = re.compile(r"\.DS_Store|\.gitattributes|\..*\.crc|_SUCCESS", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class UnaccountedFiles:
    """Files of a dataset that no commit or manifest names: findings, files that may be in use, and harmless files."""

    findings: tuple[Finding, ...]
    recent: tuple[str, ...]  # paths of files that a running command may still name or delete
    others: tuple[str, ...]  # paths of small files of users and stores


def unknown_files(dataset: Location) -> list[str]:
    """Return the sorted paths of all files outside `report/` whose names aren't part of the dataset format.

    Such files are links, temporary files, or files from other programs. In a bucket, the result includes deleted files
    that still have older versions.
    """
    return [path for path in dataset.walk_ever() if not path.startswith(f"{REPORT}/") and not is_known(path)]


def list_doubtful(dataset: Location) -> dict[str, ObjectInfo]:
    """List the files that are only legitimate if a commit or the manifest names them, and files with unknown names.

    The result is keyed by path. If a shard has several commits, the result includes all of them.

    After this call, read the manifest and the commits. Remove the files that they name from the result, and pass the
    other files to `judge_doubtful`.
    """
    listed: dict[str, ObjectInfo] = {}
    before, shard = None, None  # the previous commit
    for entry in dataset.walk(include_temporary=True, on_skip=lambda *_: None):  # a circular link is judged as a link
        commit = parse_commit_path(entry.name)
        if commit is None and (entry.name.partition("/")[0] in _NAMED or not is_known(entry.name)):
            listed[entry.name] = entry
        elif commit is not None:
            if before is not None and commit[0] == shard:
                listed |= {before.name: before, entry.name: entry}
            before, shard = entry, commit[0]
    return listed


def judge_doubtful(
    dataset: Location, listed: Mapping[str, ObjectInfo], limit: datetime, doubtful: Collection[int] = ()
) -> UnaccountedFiles:
    """Decide which of the remaining files from `list_doubtful` are findings.

    This first reads the commits, reservations, and manifest again. A link is always a finding.

    A file that segmint wrote is a finding if its shard is committed, and if both the file and the commit or manifest
    that doesn't name it are older than `limit`. A running command may still need newer files, so they are findings only
    if an image of their shard was taken down. Shards in `doubtful`, whose commits can't be read, are skipped.

    Any other file is a finding if it is large, has the name of an archive, image, or table, or is in a folder of data.
    Such files aren't read.
    """
    links = dataset.storage.links(dataset.uri)
    unnamable = {path for path in {*links, *listed} if _CONTROL.search(unquote(path))}
    findings = [_stray(ascii(path), "a name with a control character") for path in sorted(unnamable)]
    for path in sorted(links - unnamable):
        target = (dataset / path).link_target()
        findings.append(_stray(path, f"a link to {target}" if target else "a special file"))
    ours, theirs = {}, {}
    for path, entry in sorted(listed.items()):
        if path in links or path in unnamable:
            continue
        if is_known(path) or _TEMPORARY.fullmatch(path):
            ours[path] = entry
        else:
            theirs[path] = entry
    judged = dict[str, Finding | None]()
    try:
        if ours:
            judged.update(_judge_ours(dataset, ours, limit, doubtful))
    except UsageError:
        pass  # an unreadable manifest, which callers report
    except DamagedDatasetError as error:
        findings.append(FindingLocation(RESERVATIONS).finding(Code.STRAY_FILE, "readable reservations", error))
    recent, others = [], []
    for path, finding in judged.items():
        if finding is None:
            recent.append(path)
        else:
            findings.append(finding)
    for path, entry in theirs.items():
        suspicion = _suspicion(path, entry.size)
        if suspicion is None:
            others.append(path)
        else:
            findings.append(_stray(path, suspicion))
    return UnaccountedFiles(tuple(findings), tuple(recent), tuple(others))


def _judge_ours(
    dataset: Location, files: Mapping[str, ObjectInfo], limit: datetime, doubtful: Collection[int]
) -> Iterator[tuple[str, Finding | None]]:
    """Yield each unreferenced file of segmint with a finding, or with None if the file may still be in use."""
    log = CommitLog(dataset)
    newest = {commit.shard: commit for commit in log.latest_commits()}
    kept = reserved_paths(dataset, {shard: commit.generation for shard, commit in newest.items()}, limit)
    kept |= parts_in_use(dataset, limit)
    latest_time = datetime.now(UTC) + timedelta(hours=1)  # no writer's file has a later time
    manifest = load_manifest(dataset)
    named = {part.path for part in manifest.catalog}
    shards = {data.shard for path in files if (data := parse_data_path(path)) is not None}.difference(doubtful)
    for each in log.read_latest_of(newest[shard].key for shard in sorted(shards & newest.keys())):
        for file in each.files:
            named.add(file.path)
    removed = set[int]()
    with suppress(DamagedDatasetError):  # callers report damaged tombstones
        removed = set(by_shard(removed_images(read_tombstones(dataset)), manifest.images_per_shard))
    manifested = max(entry.modified for entry in dataset.list() if parse_manifest_name(entry.name) is not None)
    for path, entry in files.items():
        data, commit = parse_data_path(path), parse_commit_path(path)
        shard = latest = None
        if data is not None:
            shard = data.shard
        elif commit is not None:
            shard = commit[0]
        if shard is not None:
            latest = newest.get(shard)
        if (
            path in named
            or shard in doubtful
            or (commit is not None and (latest is None or latest.generation <= commit[1]))
        ):
            continue
        if data is not None and data.shard >= manifest.shards:
            yield path, _stray(path, f"{entry.size:,} bytes of a shard that the dataset doesn't have")
            continue
        changed = entry.modified
        if latest is not None:
            changed = latest.modified
        elif is_part_path(path):
            changed = manifested
        if commit is not None and latest is not None:
            # A correction only replaces older commits. If a commit is newer than its replacement, somebody copied it
            # here.
            at_work = entry.modified <= changed >= limit and shard not in removed
            code, expected = Code.REPLACED_GENERATION, f"only generation {latest.generation}"
        else:
            recent = shard not in removed and any(limit <= time <= latest_time for time in (entry.modified, changed))
            at_work = recent or path in kept or (data is not None and latest is None)
            code, expected = Code.LEFTOVER_FILE, "no unreferenced file"
        found = f"{entry.size:,} bytes of {entry.modified:%Y-%m-%d %H:%M} UTC"
        if at_work:
            yield path, None
        elif (dataset / path).exists():  # a correction may have deleted it since the listing
            yield path, FindingLocation(path, shard).finding(code, expected, found)


def _suspicion(path: str, size: int) -> str | None:
    """Return the reason why a file that segmint didn't put there is a finding, judged by its name and size.

    Returns None for a small file that belongs to a user or a store.
    """
    name, of = base_name(path), f"of {size:,} bytes"
    if size > _MOST_BYTES or _UNREADABLE.search(path):
        return f"a file {of}"
    if not size:
        return None
    if _MEDIA.fullmatch(name) or name.lower().endswith(IMAGE_ENDINGS):
        return f"an archive, image, or table, by its name, {of}"
    if path.partition("/")[0] in _NAMED and _OF_STORES.fullmatch(name) is None:
        return f"a file {of} in a folder of data"
    return None


def _stray(path: str, found: str) -> Finding:
    return FindingLocation(path).finding(Code.STRAY_FILE, "no file that segmint didn't put there", found)
