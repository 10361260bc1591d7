"""Recorded versions: the state of a dataset after each build and correction, in files that are put if absent.

A version can be read as long as the files that it lists exist. `read_history` checks that each version's file is
intact, and that each version names the digest of the version before it.
"""

import hashlib
import json
import re
from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, ValidationError

from segmint.catalogs.dataset.commits import Commit, CommitLog, CommitSums, sum_listing
from segmint.catalogs.dataset.digest import (
    Snapshot,
    SnapshotCommits,
    VersionLeaf,
    compare_snapshots,
    short_digest,
    take_snapshot,
)
from segmint.catalogs.dataset.manifest import DatasetManifest, parse_manifest_name
from segmint.catalogs.dataset.tombstones import TOMBSTONES, list_tombstones, read_tombstones
from segmint.catalogs.findings import Code, Finding
from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import (
    DamagedDatasetError,
    bytes_sha256,
    canonical_json,
    commit_path,
    is_known,
    json_sha256,
    parse_commit_path,
)
from segmint.infra.errors import UsageError
from segmint.infra.log import get_logger
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.version import VERSION
from segmint.infra.wording import plural, some

VERSIONS = "versions"

SIGNATURE_NAME = re.compile(r"([1-9]\d*)\.([0-9a-f]{16})\.sig", re.ASCII)
"""Name of a signature's file: the version's number and the key's id."""

_NAME = re.compile(r"([1-9]\d*)\.json", re.ASCII)
FULL_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})", re.ASCII)
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_THREADS = 16
_READ_AHEAD = 512


class Version(Frozen):
    """Content of `versions/<number>.json`: a digest, the files that it covers, and the command that led to this state.

    `files` maps the path of each manifest, catalog part, tombstone, and fingerprints file to its SHA-256. `commits`
    contains (shard, generation, SHA-256) for each commit's file. `before` is the digest of the previous version, or
    None for the first one. In the file, `checksum` is the SHA-256 of all other fields as canonical JSON.
    """

    schema_version: Literal[1] = 1
    number: int = Field(ge=1)
    digest: str
    before: str | None
    command: str
    reason: str | None
    when: str  # UTC, YYYY-MM-DDTHH:MM:SSZ
    code_version: str
    counts: dict[str, int]
    files: dict[str, str]
    commits: tuple[tuple[int, int, str], ...]

    @property
    def path(self) -> str:
        """Path of the version's file below the dataset."""
        return version_path(self.number)

    @cached_property
    def snapshot(self) -> Snapshot:
        """The files that the digest covers."""
        leaves = [VersionLeaf(path, digest) for path, digest in self.files.items()]
        for shard, number, digest in self.commits:
            leaves.append(VersionLeaf(commit_path(shard, number), digest))
        return Snapshot.of(leaves)

    @property
    def name(self) -> "VersionName":
        """Digest and number of the version."""
        return VersionName(self.digest, self.number)

    def made_by(self) -> str:
        """Return the version's origin, for messages: `version 2 (takedown of 2026-11-21: asked by its author)`."""
        origin = f"{self.command} of {self.when[:10]}"
        if self.reason:
            origin += f": {self.reason}"
        return f"version {self.number} ({origin})"

    def to_json(self) -> bytes:
        value = self.model_dump(mode="json")
        return canonical_json({**value, "checksum": json_sha256(value)})

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Version":
        """Parse a version's file and check that it is intact.

        The checksum must match the other fields, and the digest must match the listed files. Otherwise, this raises
        `DamagedDatasetError`, which names `where`.
        """
        try:
            value = json.loads(data)
            checksum = value.pop("checksum")
            version = cls.model_validate(value)
        except (ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedDatasetError(f"{where} is not a version of a dataset: {error}") from error
        if checksum != json_sha256(value) or version.to_json() != data:
            raise DamagedDatasetError(f"{where} was changed: its checksum is not that of its content")
        if version.digest != version.snapshot.digest:
            raise DamagedDatasetError(f"{where} was changed: its digest is not that of the files that it lists")
        return version


@dataclass(frozen=True)
class VersionName:
    """Name of a dataset's state.

    It contains the state's digest (64 hexadecimal digits) and, if a version records the state, the version's number.
    """

    digest: str
    number: int | None

    def __str__(self) -> str:
        if self.number is None:
            return f"{short_digest(self.digest)} (not recorded as a version)"
        return f"{short_digest(self.digest)} (version {self.number})"

    def line(self) -> str:
        """Return the text that commands print as their last line."""
        return f"dataset digest: {self}"


def version_path(number: int) -> str:
    """Return the path of a version's file below the dataset."""
    return f"{VERSIONS}/{number}.json"


def version_numbers(dataset: Location) -> list[int]:
    """Return the numbers of a dataset's recorded versions, ascending."""
    return recorded_and_signed(dataset)[0]


def recorded_and_signed(dataset: Location) -> tuple[list[int], set[int]]:
    """Return the numbers of all recorded versions, ascending, and those of all signed versions, recorded or not."""
    recorded, signed = [], set()
    for entry in (dataset / VERSIONS).list():
        if match := _NAME.fullmatch(entry.name):
            recorded.append(int(match[1]))
        if match := SIGNATURE_NAME.fullmatch(entry.name):
            signed.add(int(match[1]))
    return sorted(recorded), signed


def read_version(dataset: Location, number: int) -> Version:
    """Read a recorded version.

    Raises `UsageError` if the version doesn't exist, and `DamagedDatasetError` if its file isn't intact.
    """
    file = dataset / version_path(number)
    try:
        data = file.read()
    except NotFoundError as error:
        raise UsageError(f"{dataset} has no version {number}: {_known(dataset)}") from error
    version = Version.from_json(data, str(file))
    if version.number != number:
        raise DamagedDatasetError(f"{file} contains version {version.number}")
    return version


def latest_version(dataset: Location) -> Version | None:
    """Read the latest recorded version. Returns None if no version is recorded."""
    numbers = version_numbers(dataset)
    if not numbers:
        return None
    return read_version(dataset, numbers[-1])


def find_version(dataset: Location, wanted: int | str) -> Version:
    """Find a version by its number, or by the first six or more digits of its digest, and read it.

    Text of six or more digits is always taken for a digest, and shorter text for a number.

    Raises `UsageError` if no version or more than one matches. If no intact version matches but some versions are
    damaged, raises `DamagedDatasetError`, because the requested version may be one of them.
    """
    text = str(wanted)
    if text.isdecimal() and len(text) < 6:
        return read_version(dataset, int(text))
    match = _DIGEST.fullmatch(text)
    if match is None:
        raise UsageError(f"{text!r} is not a version: expected its number, or at least six digits of its digest")
    found, damaged = [], []
    for number in version_numbers(dataset):
        try:
            version = read_version(dataset, number)
            if version.digest.startswith(match[1]):
                found.append(version)
        except DamagedDatasetError as error:
            damaged.append(error)
    if damaged and not found:
        raise damaged[0]
    if not found:
        raise UsageError(f"{dataset} has no version with the digest {text}: {_known(dataset)}")
    if len({version.digest for version in found}) > 1:
        raise UsageError(f"several versions of {dataset} have a digest that starts with {text}: add more digits")
    return found[-1]


def name_now(dataset: Location) -> VersionName:
    """Return the name of a dataset's current state.

    It includes the number of the latest version if that version has the same digest.
    """
    digest = take_snapshot(dataset).digest
    try:
        latest = latest_version(dataset)
    except DamagedDatasetError:  # `segmint verify` reports it
        latest = None
    if latest is None or latest.digest != digest:
        return VersionName(digest, None)
    return latest.name


def put_version(
    dataset: Location,
    command: str,
    reason: str | None = None,
    now: datetime | None = None,
    applied: Collection[str] = (),
) -> VersionName:
    """Record the current state of a dataset as a new version, and return the version's name.

    Builds and corrections call this when they end. `command` is the command that changed the dataset, `reason` is the
    user's reason, and `now` defaults to the current time. `applied` contains the names of the tombstones that this
    command has completely applied. If several processes call this function at the same time, each takes the next free
    number.

    No version is recorded if the digest hasn't changed, if a takedown isn't finished, if the latest version's file is
    damaged, or if files that the latest version lists are missing or changed. In the last two cases, a new version
    would present the damage as a regular state.
    """
    when = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    while True:
        # The latest version is read before the snapshot is taken. If another process records a version in between, the
        # new number is already in use. The loop then takes a new snapshot, so the last version includes all changes.
        numbers = version_numbers(dataset)
        latest = before = None
        try:
            if numbers:
                latest = read_version(dataset, numbers[-1])
        except DamagedDatasetError as error:
            get_logger("versions").warning("damaged", problem=str(error))
            return VersionName(take_snapshot(dataset).digest, None)
        read = SnapshotCommits()
        snapshot = take_snapshot(dataset, save_cache=True, read=read)
        if latest is not None:
            if latest.digest == snapshot.digest:
                return latest.name
            before = latest.digest
            difference = compare_snapshots(latest.snapshot, snapshot)
            if difference.damaged:
                paths = some([*difference.changed, *difference.missing])
                get_logger("versions").warning("not recorded", version=latest.number, changed_or_missing=paths)
                return VersionName(snapshot.digest, None)
        if unfinished := unfinished_takedowns(dataset, latest, applied):
            get_logger("versions").warning("not recorded", unfinished_takedowns=some(unfinished))
            return VersionName(snapshot.digest, None)
        version = Version(
            number=1 + max(numbers, default=0),
            digest=snapshot.digest,
            before=before,
            command=command,
            reason=reason,
            when=when,
            code_version=VERSION,
            counts=_counts(sum_listing(dataset, read.held, read.sums)),
            **_listed(snapshot),
        )
        if (dataset / version.path).put_if_absent(version.to_json()):
            return version.name


def unfinished_takedowns(dataset: Location, latest: Version | None, applied: Collection[str] = ()) -> list[str]:
    """Return the paths of the tombstones of unfinished takedowns.

    A takedown ends by recording a version that lists its tombstone. Therefore, it's unfinished if the latest version
    doesn't list the tombstone. Tombstones in `applied` don't count, because the current command has applied them.
    """
    unfinished = []
    for entry in list_tombstones(dataset):
        path = f"{TOMBSTONES}/{entry.name}"
        if entry.name not in applied and (latest is None or path not in latest.files):
            unfinished.append(path)
    return unfinished


def _listed(snapshot: Snapshot) -> dict[str, Any]:
    """Return the values of the fields `files` and `commits` for a snapshot."""
    files, commits = {}, []
    for leaf in snapshot.leaves:
        pair = parse_commit_path(leaf.path)
        if pair is None:
            files[leaf.path] = leaf.sha256
        else:
            commits.append((*pair, leaf.sha256))
    return {"files": files, "commits": tuple(sorted(commits))}


def _counts(sums: CommitSums) -> dict[str, int]:
    """Return the counts that a version records."""
    counts = {name: sums.counts.get(name, 0) for name in ("rows", "images", "masks", "rejected")}
    return {"shards": sums.shards, "bytes": sums.bytes, **counts}


def _known(dataset: Location) -> str:
    numbers = version_numbers(dataset)
    if not numbers:
        return "none is recorded; a build or a correction records one when it ends"
    if len(numbers) == 1:
        return f"it has only {numbers[0]}"
    return f"it has {numbers[0]} to {numbers[-1]}"


class RemovedVersionError(UsageError):
    """A recorded version can't be read anymore, because a correction replaced some of its shards."""


def check_readable(dataset: Location, version: Version) -> None:
    """Check that all commits of a version still exist.

    Raises `RemovedVersionError`, which names the later versions that are responsible, if corrections replaced some of
    the commits. Raises `DamagedDatasetError` if commits are gone although nothing replaced them.
    """
    generations = CommitLog(dataset).generations()
    gone = {shard: number for shard, number, _ in version.commits if number not in generations.get(shard, ())}
    if not gone:
        return
    lost = [shard for shard, number in gone.items() if max(generations.get(shard, [0])) < number]
    if lost:
        paths = some([commit_path(shard, gone[shard]) for shard in lost])
        raise DamagedDatasetError(f"{dataset} is damaged: {paths} are gone, and no later generation replaced them")
    raise RemovedVersionError(
        f"version {version.number} of {dataset} can no longer be read:\n  "
        + "\n  ".join(_who_replaced(dataset, version, gone))
        + "\nOpen a later version, or omit the version to open the dataset's current state"
    )


def manifest_of(dataset: Location, version: Version) -> DatasetManifest:
    """Return a version's latest manifest. Raises `DamagedDatasetError` if its file is gone or was changed."""
    names = [path for path in version.files if parse_manifest_name(path) is not None]
    name = max(names, key=lambda path: parse_manifest_name(path) or 0)
    return DatasetManifest.from_json(_recorded(dataset, name, version.files[name]), f"{dataset}/{name}")


def read_commits(dataset: Location, version: Version, only: Container[int] | None = None) -> Iterator[Commit]:
    """Yield the commits of a version in shard order, or only those of the shards in `only`.

    Raises `DamagedDatasetError` if a commit is gone or was changed.
    """

    def read(entry: tuple[int, int, str]) -> Commit:
        path = commit_path(entry[0], entry[1])
        return Commit.from_json(_recorded(dataset, path, entry[2]), f"{dataset}/{path}")

    wanted = (entry for entry in version.commits if only is None or entry[0] in only)
    return map_ahead(read, wanted, _THREADS, _READ_AHEAD, "commits")


def list_files(dataset: Location, snapshot: Snapshot) -> Iterator[VersionLeaf]:
    """Yield every committed file of a snapshot with its SHA-256: its leaves and, after each commit, its data files.

    The same snapshot yields the same files in the same order. Raises `DamagedDatasetError` if a commit is gone or was
    changed, or if a path or hash isn't one that segmint writes.
    """

    def read(leaf: VersionLeaf) -> list[VersionLeaf]:
        files = [leaf]
        if parse_commit_path(leaf.path) is not None:
            commit = Commit.from_json(_recorded(dataset, leaf.path, leaf.sha256), f"{dataset}/{leaf.path}")
            for entry in commit.files:
                files.append(VersionLeaf(entry.path, entry.sha256))
        for file in files:
            if not is_known(file.path) or _SHA256.fullmatch(file.sha256) is None:
                raise DamagedDatasetError(f"{dataset / leaf.path} is damaged: not a file of a dataset: {file.line()!r}")
        return files

    for files in map_ahead(read, snapshot.leaves, _THREADS, _READ_AHEAD, "files"):
        yield from files


def files_sha256(dataset: Location, snapshot: Snapshot) -> str:
    """Return the SHA-256 of the list of a snapshot's files in the format of `sha256sum`. See `list_files`."""
    digest = hashlib.sha256()
    for file in list_files(dataset, snapshot):
        digest.update(f"{file.line()}\n".encode())
    return digest.hexdigest()


def _recorded(dataset: Location, path: str, sha256: str) -> bytes:
    """Read a file that a version lists, and check its SHA-256."""
    try:
        data = (dataset / path).read()
    except NotFoundError as error:
        raise DamagedDatasetError(f"{dataset / path} is gone since the version was recorded") from error
    if bytes_sha256(data) != sha256:
        raise DamagedDatasetError(f"{dataset / path} was changed since the version was recorded")
    return data


def _shards(numbers: Sequence[int]) -> str:
    """Name shards in a sentence, such as `shard 3`."""
    return f"{plural(len(numbers), 'shard')} {some(numbers)}"


def _who_replaced(dataset: Location, version: Version, gone: dict[int, int]) -> Iterator[str]:
    """Yield one line of text for each later version that replaced some of these shards."""
    waiting = dict(gone)
    known = set(version.files)
    reasons = {f"{TOMBSTONES}/{tombstone.name}": tombstone.reason for tombstone in read_tombstones(dataset)}
    for number in version_numbers(dataset):
        if number <= version.number:
            continue
        later = read_version(dataset, number)
        generations = {shard: generation for shard, generation, _ in later.commits}
        replaced = [shard for shard, generation in waiting.items() if generations.get(shard, 0) > generation]
        why = [f"; {path}: {reasons[path]}" for path in later.files if path in reasons and path not in known]
        known.update(later.files)
        if replaced:
            yield f"{later.made_by()} replaced {_shards(replaced)}{''.join(why)}"
            waiting = {shard: number for shard, number in waiting.items() if shard not in replaced}
    if waiting:
        yield f"a correction that recorded no version replaced {_shards(list(waiting))}"


@dataclass(frozen=True)
class VersionHistory:
    """Result of `read_history`: the latest intact version, or None, and the problems of all versions."""

    latest: Version | None
    problems: tuple[Finding, ...]


def read_history(dataset: Location) -> VersionHistory:
    """Read and check all recorded versions of a dataset. Only one of them is in memory at a time.

    A later version or a signature reveals that a version is missing. Consecutive missing versions are reported as one
    problem.
    """
    recorded, signed = recorded_and_signed(dataset)
    numbers = set(recorded)
    last = max(numbers, default=0)
    problems = []
    latest: Version | None = None
    done = 0
    for number in sorted({*numbers, *(n for n in signed if n > last)}):
        if number - 1 > done and number <= last:
            first = version_path(done + 1)
            which = f"version {done + 1}"
            if number - 1 > done + 1:
                which = f"versions {done + 1} to {number - 1}"
            problems.append(Finding(Code.BAD_VERSION, first, f"{which}, because later ones exist", "no such file"))
        done = number
        path = version_path(number)
        if number not in numbers:
            expected = f"version {number}, because its signature exists"
            problems.append(Finding(Code.BAD_VERSION, path, expected, "no such file"))
            continue
        try:
            version = read_version(dataset, number)
        except DamagedDatasetError as error:
            problems.append(Finding(Code.BAD_VERSION, path, "a version as it was recorded", str(error)))
            continue
        problems += _breaks(version, latest)
        latest = version
    return VersionHistory(latest, tuple(problems))


def _breaks(version: Version, earlier: Version | None) -> Iterator[Finding]:
    """Yield a finding if a version doesn't follow the version before it, as far as that version is known."""
    named = "no digest" if version.before is None else f"sha256:{version.before}"
    if version.number == 1 and version.before is not None:
        yield Finding(Code.BAD_VERSION, version.path, "no digest before the first version", named)
    elif earlier is not None and earlier.number == version.number - 1 and version.before != earlier.digest:
        expected = f"sha256:{earlier.digest} before it, the digest of version {earlier.number}"
        yield Finding(Code.BAD_VERSION, version.path, expected, named)
    elif version.number > 1 and version.before is None:
        yield Finding(Code.BAD_VERSION, version.path, f"the digest of version {version.number - 1} before it", named)
