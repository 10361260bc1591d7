"""Inventory of a dataset: the files that its commits name, what storage contains, and how the two differ."""

import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry, ListedCommit, reserved_paths
from segmint.catalogs.dataset.manifest import load_manifest, parse_manifest_name, parts_in_use
from segmint.catalogs.dataset.tombstones import by_shard, read_tombstones, removed_images
from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import (
    CATALOG,
    COMMITS,
    DATA_KINDS,
    IMAGE_ENDINGS,
    REPORT,
    RESERVATIONS,
    DamagedDatasetError,
    is_known,
    is_part_path,
    parse_commit_path,
    parse_data_path,
)
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import TEMPORARY_PREFIX, ObjectInfo
from segmint.infra.uris import base_name

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
    rf"(?:[a-z0-9]+/)*)?{re.escape(TEMPORARY_PREFIX)}(?:[^/]+-)?[0-9a-f]{{32}}"
)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")  # a URI contains no control characters
_UNREADABLE = re.compile(r"(?:^|/)\.{0,2}(?:/|$)")  # keys with empty segments, `.`, or `..`, which can't be read
_OF_STORES = re.compile(r"\.DS_Store|\.gitattributes|\..*\.crc|_SUCCESS", re.ASCII | re.DOTALL)


@dataclass(frozen=True)
class FoundFile:
    """File that a commit names, and what storage contains at its path."""

    entry: FileEntry
    size: int | None  # in bytes; None if there is no file
    sha256: str = ""  # empty if the file wasn't read

    @property
    def intact(self) -> bool:
        """True if the file was read and is the one that the commit names."""
        return (self.size, self.sha256) == (self.entry.size, self.entry.sha256)


@dataclass(frozen=True)
class Inventory:
    """Files in a dataset's storage at one time.

    `unnamed` contains, by path, the files that are only legitimate if a commit or the manifest names them, and files
    with unknown names. If a shard has several commits, it contains all of them. Remove the files that the manifest and
    the commits name, and pass the rest to `judge_unnamed`.
    """

    dataset: Location
    commits: list[ListedCommit]  # of all generations, by shard and generation
    unnamed: dict[str, ObjectInfo]

    @property
    def latest(self) -> list[ListedCommit]:
        """The latest commit of each shard, in shard order."""
        return list({commit.shard: commit for commit in self.commits}.values())

    def find_files(self, commit: Commit) -> Iterator[FoundFile]:
        """Yield each file that a commit names with its size, unread, and remove it from `unnamed`."""
        for entry in commit.files:
            listed = self.unnamed.pop(entry.path, None)
            if listed is not None:
                yield FoundFile(entry, listed.size)
                continue
            try:  # the listing doesn't contain files that were written after it
                yield FoundFile(entry, (self.dataset / entry.path).size())
            except NotFoundError:
                yield FoundFile(entry, None)


@dataclass(frozen=True)
class UnaccountedFiles:
    """Files of a dataset that no commit or manifest names: findings, files that may be in use, and harmless files."""

    findings: tuple[Finding, ...]
    recent: tuple[str, ...]  # paths of files that a running command may still name or delete
    others: tuple[str, ...]  # paths of small files of users and stores


def read_files(dataset: Location, commit: Commit) -> Iterator[FoundFile]:
    """Read and hash each file that a commit names. Each file is streamed."""
    for entry in commit.files:
        try:
            size, sha256 = (dataset / entry.path).size_and_sha256()
        except NotFoundError:
            yield FoundFile(entry, None)
        else:
            yield FoundFile(entry, size, sha256)


def unknown_files(dataset: Location) -> list[str]:
    """Return the sorted paths of all files outside `report/` whose names aren't part of the dataset format.

    Such files are links, temporary files, or files from other programs. In a bucket, the result includes deleted files
    that still have older versions.
    """
    return [path for path in dataset.walk_ever() if not path.startswith(f"{REPORT}/") and not is_known(path)]


def take_inventory(dataset: Location) -> Inventory:
    """List the files of a dataset, and then its commits.

    Read the manifest and the commits afterward. A file that is committed in the meantime then counts as named.
    """
    unnamed: dict[str, ObjectInfo] = {}
    before, shard = None, None  # the previous commit
    for entry in dataset.walk(include_temporary=True, on_skip=lambda *_: None):  # a circular link is judged as a link
        commit = parse_commit_path(entry.name)
        if commit is None and (entry.name.partition("/")[0] in _NAMED or not is_known(entry.name)):
            unnamed[entry.name] = entry
        elif commit is not None:
            if before is not None and commit[0] == shard:
                unnamed |= {before.name: before, entry.name: entry}
            before, shard = entry, commit[0]
    return Inventory(dataset, CommitLog(dataset).listed(), unnamed)


def judge_unnamed(inventory: Inventory, limit: datetime, doubtful: Collection[int] = ()) -> UnaccountedFiles:
    """Decide which of the files that are left in `unnamed` are findings.

    This first reads the commits, reservations, and manifest again. A link is always a finding.

    A file that segmint wrote is a finding if its shard is committed, and if both the file and the commit or manifest
    that doesn't name it are older than `limit`. A running command may still need newer files, so they are findings only
    if an image of their shard was taken down. Shards in `doubtful`, whose commits can't be read, are skipped.

    Any other file is a finding if it is large, has the name of an archive, image, or table, or is in a folder of data.
    Such files aren't read.
    """
    dataset, listed = inventory.dataset, inventory.unnamed
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
