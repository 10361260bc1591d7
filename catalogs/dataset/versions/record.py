"""Recorded versions: the state of a dataset after each build and correction, in files that are put if absent."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Literal

from pydantic import Field, ValidationError

from segmint.catalogs.dataset.summaries import CommitSums, sum_listing
from segmint.catalogs.dataset.tombstones import TOMBSTONES, list_tombstones
from segmint.catalogs.dataset.versions.digest import (
    Snapshot,
    SnapshotCommits,
    VersionLeaf,
    compare_snapshots,
    short_digest,
    take_snapshot,
)
from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import DamagedDatasetError, canonical_json, commit_path, parse_commit_path
from segmint.infra.errors import UsageError
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.version import VERSION
from segmint.infra.wording import some

VERSIONS = "versions"

SIGNATURE_NAME = re.compile(r"([1-9]\d*)\.([0-9a-f]{16})\.sig", re.ASCII)
"""Name of a signature's file: the version's number and the key's id."""

_NAME = re.compile(r"([1-9]\d*)\.json", re.ASCII)
FULL_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{64})", re.ASCII)
_DIGEST = re.compile(r"(?:sha256:)?([0-9a-f]{6,64})")


class Version(Frozen):
    """Content of `versions/<number>.json`: a digest, the files that it covers, and the command that led to this state.

    `files` maps the paths of manifests, catalog parts, tombstones, and fingerprints to their SHA-256; `commits` are
    (shard, generation, SHA-256 of the commit's file). `before` is the digest of the previous version, or None.
    `checksum` is the SHA-256 of all other fields as canonical JSON.
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
        """Files that the digest covers."""
        files = [VersionLeaf(path, digest) for path, digest in self.files.items()]
        commits = [VersionLeaf(commit_path(shard, number), digest) for shard, number, digest in self.commits]
        return Snapshot.of([*files, *commits])

    @property
    def name(self) -> "VersionName":
        """Digest and number of the version."""
        return VersionName(self.digest, self.number)

    def made_by(self) -> str:
        """Return the version's origin, for messages: `version 2 (takedown of 2026-11-21: asked by its author)`."""
        reason = f": {self.reason}" if self.reason else ""
        return f"version {self.number} ({self.command} of {self.when[:10]}{reason})"

    def to_json(self) -> bytes:
        """Return the bytes of the version's file."""
        value = self.model_dump(mode="json")
        return canonical_json({**value, "checksum": _checksum(value)})

    @classmethod
    def from_json(cls, data: bytes, where: str) -> "Version":
        """Parse a version's file; raises `DamagedDatasetError`, which names `where`, if it isn't intact.

        The checksum must match the other fields, and the digest the files listed.
        """
        try:
            value = json.loads(data)
            checksum = value.pop("checksum")
            version = cls.model_validate(value)
        except (ValidationError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedDatasetError(f"{where} is not a version of a dataset: {error}") from error
        if checksum != _checksum(value) or version.to_json() != data:
            raise DamagedDatasetError(f"{where} was changed: its checksum is not that of its content")
        if version.digest != version.snapshot.digest:
            raise DamagedDatasetError(f"{where} was changed: its digest is not that of the files that it lists")
        return version


@dataclass(frozen=True)
class VersionName:
    """A dataset's state: its digest (64 hexadecimal digits), and the version's number if it is recorded."""

    digest: str
    number: int | None

    def __str__(self) -> str:
        if self.number is None:
            return f"{short_digest(self.digest)} (not recorded as a version)"
        return f"{short_digest(self.digest)} (version {self.number})"

    def line(self) -> str:
        """Return the line that commands print last."""
        return f"dataset digest: {self}"


def version_path(number: int) -> str:
    """Return the path of a version's file below the dataset."""
    return f"{VERSIONS}/{number}.json"


def version_numbers(dataset: Location) -> list[int]:
    """Return the numbers of a dataset's recorded versions, ascending."""
    return recorded_and_signed(dataset)[0]


def recorded_and_signed(dataset: Location) -> tuple[list[int], set[int]]:
    """Return the numbers of the recorded versions, ascending, and of those with a signature, recorded or not."""
    names = [entry.name for entry in (dataset / VERSIONS).list()]
    recorded = (_NAME.fullmatch(name) for name in names)
    signed = (SIGNATURE_NAME.fullmatch(name) for name in names)
    return sorted(int(match[1]) for match in recorded if match), {int(match[1]) for match in signed if match}


def read_version(dataset: Location, number: int) -> Version:
    """Read a recorded version; raises `UsageError` if there is none, `DamagedDatasetError` if it isn't intact."""
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
    """Read the latest recorded version; None if there is none."""
    numbers = version_numbers(dataset)
    return read_version(dataset, numbers[-1]) if numbers else None


def find_version(dataset: Location, wanted: int | str) -> Version:
    """Read a version by its number, or by its digest: in full, or at least the first six digits.

    Raises `UsageError` if there is none, or several, and `DamagedDatasetError` if it may be one that isn't intact.
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
            found += [version] if version.digest.startswith(match[1]) else []
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
    """Return the current digest of a dataset, with the number of the latest version if it has the same digest."""
    digest = take_snapshot(dataset).digest
    try:
        latest = latest_version(dataset)
    except DamagedDatasetError:  # `segmint verify` reports it
        latest = None
    return VersionName(digest, latest.number if latest is not None and latest.digest == digest else None)


def put_version(dataset: Location, command: str, reason: str | None = None, now: datetime | None = None) -> VersionName:
    """Record the current state of a dataset, at the end of a build or correction; return its name.

    Nothing is recorded if the digest is unchanged, a takedown isn't finished, the latest version's file is damaged, or
    files of that version are missing or different, because damage must not become a version. Concurrent calls each take
    the next free number. `command` made the change, and `reason` is the user's reason for it. `now` is the time
    (default: the clock's).
    """
    when = (now or datetime.now(UTC)).strftime("%Y-%m-%dT%H:%M:%SZ")
    while True:
        # The snapshot is taken after the latest version was read, so that the last version includes all changes.
        numbers = version_numbers(dataset)
        try:
            latest = read_version(dataset, numbers[-1]) if numbers else None
        except DamagedDatasetError as error:
            get_logger("versions").warning("damaged", problem=str(error))
            return VersionName(take_snapshot(dataset).digest, None)
        read = SnapshotCommits()
        snapshot = take_snapshot(dataset, save_cache=True, read=read)
        if latest is not None:
            if latest.digest == snapshot.digest:
                return latest.name
            difference = compare_snapshots(latest.snapshot, snapshot)
            if difference.damaged:
                paths = some([*difference.changed, *difference.missing])
                get_logger("versions").warning("not recorded", version=latest.number, changed_or_missing=paths)
                return VersionName(snapshot.digest, None)
        if command != "takedown" and (unfinished := unfinished_takedowns(dataset, latest)):
            get_logger("versions").warning("not recorded", unfinished_takedowns=some(unfinished))
            return VersionName(snapshot.digest, None)
        version = Version(
            number=1 + (numbers[-1] if numbers else 0),
            digest=snapshot.digest,
            before=None if latest is None else latest.digest,
            command=command,
            reason=reason,
            when=when,
            code_version=VERSION,
            counts=_counts(sum_listing(dataset, read.held, read.sums)),
            **_listed(snapshot),
        )
        if (dataset / version.path).put_if_absent(version.to_json()):
            return version.name


def unfinished_takedowns(dataset: Location, latest: Version | None) -> list[str]:
    """Return the paths of tombstones that the latest version doesn't list. Takedowns record a version when they end."""
    paths = (f"{TOMBSTONES}/{entry.name}" for entry in list_tombstones(dataset))
    return [path for path in paths if latest is None or path not in latest.files]


def _listed(snapshot: Snapshot) -> dict[str, Any]:
    """Return the fields `files` and `commits` of a snapshot."""
    files = {leaf.path: leaf.sha256 for leaf in snapshot.leaves if parse_commit_path(leaf.path) is None}
    commits = ((*pair, leaf.sha256) for leaf in snapshot.leaves if (pair := parse_commit_path(leaf.path)) is not None)
    return {"files": files, "commits": tuple(sorted(commits))}


def _counts(sums: CommitSums) -> dict[str, int]:
    """Return the sums that a version contains."""
    counts = {name: sums.counts.get(name, 0) for name in ("rows", "images", "masks", "rejected")}
    return {"shards": sums.shards, "bytes": sums.bytes, **counts}


def _checksum(value: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _known(dataset: Location) -> str:
    numbers = version_numbers(dataset)
    if not numbers:
        return "none is recorded; a build or a correction records one when it ends"
    return f"it has {numbers[0]} to {numbers[-1]}" if len(numbers) > 1 else f"it has only {numbers[0]}"
