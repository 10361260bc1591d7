"""Access to recorded versions of a dataset: reading one while its files exist, and checking their history.

The history consists of all recorded versions, each checked for being intact and following the one before it.
"""

import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest, parse_manifest_name
from segmint.catalogs.dataset.tombstones import TOMBSTONES, read_tombstones
from segmint.catalogs.dataset.versions.record import (
    Version,
    read_version,
    recorded_and_signed,
    version_numbers,
    version_path,
)
from segmint.catalogs.findings import Code, Finding
from segmint.catalogs.layout import DamagedDatasetError, commit_path
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.infra.wording import some

_THREADS = 16
_READ_AHEAD = 512


class RemovedVersionError(UsageError):
    """A recorded version can't be read anymore because a correction replaced shards of it."""


def check_readable(dataset: Location, version: Version) -> None:
    """Raise `RemovedVersionError`, which names the responsible versions, if commits of a version were replaced.

    Raises `DamagedDatasetError` if commits are gone that nothing replaced.
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
    """Return the latest manifest as of a version; raises `DamagedDatasetError` if it is gone or was changed."""
    names = [path for path in version.files if parse_manifest_name(path) is not None]
    name = max(names, key=lambda path: parse_manifest_name(path) or 0)
    return DatasetManifest.from_json(_recorded(dataset, name, version.files[name]), f"{dataset}/{name}")


def read_commits(dataset: Location, version: Version, only: Container[int] | None = None) -> Iterator[Commit]:
    """Yield the commits of a version in shard order; `only` selects shards.

    Raises `DamagedDatasetError` if one is gone or was changed.
    """

    def read(entry: tuple[int, int, str]) -> Commit:
        path = commit_path(entry[0], entry[1])
        return Commit.from_json(_recorded(dataset, path, entry[2]), f"{dataset}/{path}")

    wanted = (entry for entry in version.commits if only is None or entry[0] in only)
    return map_ahead(read, wanted, _THREADS, _READ_AHEAD, "commits")


def _recorded(dataset: Location, path: str, sha256: str) -> bytes:
    """Return the bytes of a file that a version lists."""
    try:
        data = (dataset / path).read()
    except NotFoundError as error:
        raise DamagedDatasetError(f"{dataset / path} is gone since the version was recorded") from error
    if hashlib.sha256(data).hexdigest() != sha256:
        raise DamagedDatasetError(f"{dataset / path} was changed since the version was recorded")
    return data


def _who_replaced(dataset: Location, version: Version, gone: dict[int, int]) -> Iterator[str]:
    """Yield a line for each later version that replaced some of these shards."""
    waiting = dict(gone)
    known = set(version.files)
    reasons = {f"{TOMBSTONES}/{tombstone.name}": tombstone.reason for tombstone in read_tombstones(dataset)}
    for number in (number for number in version_numbers(dataset) if number > version.number):
        later = read_version(dataset, number)
        generations = {shard: generation for shard, generation, _ in later.commits}
        replaced = [shard for shard, generation in waiting.items() if generations.get(shard, 0) > generation]
        why = [f"; {path}: {reasons[path]}" for path in later.files if path in reasons and path not in known]
        known.update(later.files)
        if replaced:
            yield f"{later.made_by()} replaced the shards {some([str(shard) for shard in replaced])}{''.join(why)}"
            waiting = {shard: number for shard, number in waiting.items() if shard not in replaced}
    if waiting:
        yield f"a correction that recorded no version replaced the shards {some([str(shard) for shard in waiting])}"


@dataclass(frozen=True)
class VersionHistory:
    """The latest intact version, or None, and the problems of all versions."""

    latest: Version | None
    problems: tuple[Finding, ...]


def read_history(dataset: Location) -> VersionHistory:
    """Read all recorded versions of a dataset, with one in memory at a time.

    A missing version is detected from later ones or from its signature; several missing in a row are one problem.
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
            which = f"version {done + 1}" if number - 2 == done else f"versions {done + 1} to {number - 1}"
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
    """Yield the problem of a version that does not follow the previous one, unless that one is unknown."""
    if version.before is None or (earlier is None and version.number > 1):
        return
    if earlier is None:
        yield Finding(Code.BAD_VERSION, version.path, "no digest before the first version", f"sha256:{version.before}")
    elif earlier.number == version.number - 1 and version.before != earlier.digest:
        expected = f"sha256:{earlier.digest} before it, the digest of version {earlier.number}"
        yield Finding(Code.BAD_VERSION, version.path, expected, f"sha256:{version.before}")
