"""The commit log, which defines the content of a dataset: exactly the files that its latest commits name.

A writer puts a commit only if its file is absent, and nothing changes it afterward. If a shard has several commits,
readers use the one with the highest generation.
"""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segmint.catalogs.layout import (
    COMMITS,
    RESERVATIONS,
    DamagedDatasetError,
    canonical_json,
    commit_name,
    fingerprint,
    parse_commit_name,
    parse_data_path,
    parse_reservation_name,
    reservation_name,
    shard_name,
    wrong_fields,
)
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import NO_TIME
from segmint.infra.threads import map_ahead
from segmint.infra.uris import AZURE, scheme

REJECTED = "rejected:"
"""Prefix of the keys in a commit's counts that count rejected rows by reason."""

PRIVACY_COUNTS = ("unconfirmed", "left_alone", "highly_redacted")
"""Keys of a commit's counts about redaction. A commit of format 3 lacks them, and so does one that counts none."""

MOST_REDACTED = 5
"""Maximum number of images in `most_redacted`."""

_READ_AHEAD = 512
_LISTED_DIGITS = 3  # a listing by all digits but these returns 1,000 shards, which is one page


@dataclass(frozen=True)
class FileEntry:
    """Data file that a commit names: its path below the dataset, its size in bytes, and its SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Commit:
    """One generation of one shard. It contains no time, host, or attempt, so the same work produces the same bytes.

    `ordinals` is the shard's range [start, stop). `numerics` is the fingerprint of the numerics that produced the
    shard. `build_sha256` is the manifest's hash of the settings that it was built with. `counts` contains sums over the
    shard's rows: `rows` (`images` + `rejected`), `images`, `rejected`, `masks`, and one `rejected:<reason>` for each
    reason. It may also contain `PRIVACY_COUNTS`: unconfirmed detections, detections that a person wanted left alone,
    and images of which a high share is redacted. `most_redacted` lists the ids and shares of the worst of these images.
    """

    shard: int
    generation: int
    ordinals: tuple[int, int]
    numerics: str
    build_sha256: str
    counts: Mapping[str, int]
    files: tuple[FileEntry, ...]
    most_redacted: tuple[tuple[int, float], ...] = ()

    def file(self, kind: str) -> FileEntry:
        """Return the file that the commit names in the folder `kind`. Raises `DamagedDatasetError` if there is none."""
        for entry in self.files:
            if entry.path.startswith(f"{kind}/"):
                return entry
        raise DamagedDatasetError(f"the commit {commit_name(self.shard, self.generation)} names no file in {kind}/")

    def to_json(self) -> bytes:
        """Return the bytes of the commit's file: canonical JSON, with files sorted by path."""
        files = sorted(self.files, key=lambda entry: entry.path)
        value = {**vars(self), "counts": dict(self.counts), "files": [vars(entry) for entry in files]}
        if not self.most_redacted:
            del value["most_redacted"]
        return canonical_json(value)

    @classmethod
    def from_json(cls, data: bytes, where: str = "a commit") -> "Commit":
        """Parse a commit's file. Raises `DamagedDatasetError`, which names `where`, if it isn't valid."""
        try:
            value = _CommitFile.model_validate_json(data)
        except ValidationError as error:
            raise DamagedDatasetError(f"{where} is not a commit: {wrong_fields(error)}") from error
        files = tuple(FileEntry(**vars(entry)) for entry in value.files)
        return cls(**{**vars(value), "files": files, "most_redacted": tuple(value.most_redacted)})


def worst(images: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Return the `MOST_REDACTED` images with the highest shares, from pairs of id and share."""
    return tuple(sorted(images, key=lambda image: (-image[1], image[0]))[:MOST_REDACTED])


class _StrictModel(BaseModel):
    """Model that ignores unknown fields and doesn't convert text to numbers."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)


class _FileEntryModel(_StrictModel):
    path: str = Field(pattern=r"\A[ -~]*\z")  # characters that every store accepts
    size: int = Field(ge=0)
    sha256: str


class _CommitFile(_StrictModel):
    """JSON content of a commit's file."""

    shard: int = Field(ge=0)
    generation: int = Field(ge=1)
    ordinals: tuple[int, int]
    numerics: str
    build_sha256: str
    counts: dict[str, int]
    files: list[_FileEntryModel]
    most_redacted: list[tuple[int, float]] = []


class _ReservationFile(_StrictModel):
    """JSON content of a reservation's file, limited to the field that other processes need."""

    paths: list[str]


class ListedCommit(NamedTuple):
    """A commit's file, as a listing shows it.

    A commit contains no time, so `modified` is the time of the file. In a copy of a dataset, it is the time of copying.
    """

    shard: int
    generation: int
    size: int  # bytes
    modified: datetime  # when the store received it; `NO_TIME` if the store doesn't report it

    @property
    def key(self) -> tuple[int, int]:
        """The shard and the generation."""
        return self.shard, self.generation


class CommitLog:
    """The commits of one dataset. Instances are cheap to create and thread-safe."""

    def __init__(self, dataset: Location) -> None:
        self._folder = dataset / COMMITS

    def committed(self) -> dict[int, int]:
        """Return the highest generation of each committed shard, in shard order. This takes one listing."""
        generations = self.generations()
        return {shard: max(generations[shard]) for shard in sorted(generations)}

    def generations(self) -> dict[int, list[int]]:
        """Return the generations of each committed shard, ascending. Files with other names are ignored."""
        return generations_of(entry.name for entry in self._folder.list())

    def listed(self, shards: int | None = None, threads: int = 16) -> list[ListedCommit]:
        """List the files of all commits, ordered by shard and generation.

        If `shards` is given, only shards below that number are included. With this limit, the folder in a bucket is
        listed in parallel.
        """
        found = self._listed(None if shards is None else range(0, shards, 10**_LISTED_DIGITS), threads)
        return [commit for commit in found if shards is None or commit.shard < shards]

    def latest_around(self, shards: Iterable[int]) -> list[ListedCommit]:
        """List the latest commits of all shards in the blocks of a thousand that contain these shards, in shard order.

        In a bucket, this takes about one listing per block, regardless of the total number of commits.
        """
        thousands = sorted({shard // 10**_LISTED_DIGITS for shard in shards})
        if not thousands:
            return []
        found = self._listed([thousand * 10**_LISTED_DIGITS for thousand in thousands])
        wanted = set(thousands)
        latest = {commit.shard: commit for commit in found if commit.shard // 10**_LISTED_DIGITS in wanted}
        return list(latest.values())

    def _listed(self, firsts: Iterable[int] | None, threads: int = 16) -> list[ListedCommit]:
        """List the files of commits, ordered by shard and generation.

        In a bucket, `firsts` restricts the listing to the blocks of a thousand shards that start with these numbers.
        The result may also contain other shards.
        """
        names = [""]
        if firsts is not None and scheme(self._folder.uri) in {"s3", *AZURE}:
            names = [shard_name(first)[:-_LISTED_DIGITS] for first in firsts]
        listed = map_ahead(lambda name: self._folder.list(beginning=name), names, threads, threads, "commits")
        entries = {entry.name: entry for entries in listed for entry in entries}  # "1000" is a prefix of 100000, too
        found = ((parse_commit_name(name), entry) for name, entry in entries.items())
        return sorted(
            ListedCommit(*parsed, entry.size, entry.modified) for parsed, entry in found if parsed is not None
        )

    def latest_commits(self) -> list[ListedCommit]:
        """Return the files of the latest commits, in shard order. This takes one listing."""
        return list({commit.shard: commit for commit in self.listed()}.values())

    def location(self, shard: int, generation: int) -> Location:
        """Return the location of a commit's file."""
        return self._folder / commit_name(shard, generation)

    def read(self, shard: int, generation: int) -> Commit | None:
        """Read one commit. Returns None if it doesn't exist.

        Raises `DamagedDatasetError` if the file contains another commit.
        """
        file = self.location(shard, generation)
        try:
            data = file.read()
        except NotFoundError:
            return None
        commit = Commit.from_json(data, str(file))
        if (commit.shard, commit.generation) != (shard, generation):
            raise DamagedDatasetError(
                f"{file} is the commit of shard {commit.shard}, generation {commit.generation}, by its content"
            )
        return commit

    def generations_of(self, shard: int) -> list[int]:
        """Return the generations of one shard, ascending."""
        names = (entry.name for entry in self._folder.list(beginning=f"{shard_name(shard)}."))
        return generations_of(names).get(shard, [])

    def is_latest(self, shard: int, generation: int) -> bool:
        """Return whether this generation is the latest commit of the shard."""
        return self.generations_of(shard)[-1:] == [generation]

    def latest(self, shard: int) -> Commit | None:
        """Read the latest commit of a shard. Returns None if the shard isn't committed."""
        generations = self.generations_of(shard)
        return self._read_newest(shard, generations[-1]) if generations else None

    def read_latest_of(self, wanted: Iterable[tuple[int, int]], threads: int = 16) -> Iterator[Commit]:
        """Yield the commits for these (shard, generation) pairs, in the given order.

        If a newer commit has replaced one of them, the newer one is yielded instead. At most a few hundred commits are
        in memory at a time.
        """
        for commit in map_ahead(lambda pair: self._read_newest(*pair), wanted, threads, _READ_AHEAD, "commits"):
            if commit is not None:
                yield commit

    def read_all(self, threads: int = 16, only: Container[int] | None = None) -> Iterator[Commit]:
        """Yield the latest commits in shard order, or only those of the shards in `only`.

        If a commit is replaced in the meantime, the newer one is yielded instead.
        """
        committed = self.committed().items()
        wanted = (pair for pair in committed if only is None or pair[0] in only)
        return self.read_latest_of(wanted, threads)

    def put(self, commit: Commit) -> bool:
        """Put a commit if its generation is free. Returns False if a different commit already uses the generation."""
        return self.location(commit.shard, commit.generation).put_if_absent(commit.to_json())

    def _read_newest(self, shard: int, generation: int) -> Commit | None:
        """Read a listed commit. If another commit has replaced it since, read that one, so that no shard is missed."""
        commit = self.read(shard, generation)
        while commit is None:
            newer = max(self.generations_of(shard), default=generation)
            if newer <= generation:
                return None
            generation = newer
            commit = self.read(shard, generation)
        return commit


@dataclass(frozen=True)
class Reservation:
    """List of the files that a writer is about to commit as a generation. No other process may delete these files.

    The writer puts the reservation before the files. It deletes the reservation after it has committed the generation
    and applied the tombstones. Once the generation or a higher one is committed, the reservation has no effect: its
    writer has either committed the files or lost the race.
    """

    shard: int
    generation: int
    paths: tuple[str, ...]

    def to_json(self) -> bytes:
        return canonical_json({"shard": self.shard, "generation": self.generation, "paths": sorted(self.paths)})

    def location(self, dataset: Location) -> Location:
        """Return the location of the reservation's file. Equal reservations have the same location."""
        digest = fingerprint(sorted(self.paths))
        return dataset / RESERVATIONS / reservation_name(self.shard, self.generation, digest)


class ShardState(NamedTuple):
    """Files and commits of a shard, divided into what must be kept and what earlier writers left."""

    commit: Commit | None  # the latest one
    replaced: tuple[int, ...]  # lower generations whose commits still exist
    kept: frozenset[str]  # paths of files that are committed, or reserved for an uncommitted generation


def read_shard_state(dataset: Location, shard: int) -> ShardState:
    """Read the reservations and commits of a shard, to find out which of its files may be deleted.

    A writer deletes its reservation only after it has put its commit. Therefore, this function reads the reservations
    before the commits. To delete files of a shard, list them first, then call this function, and delete immediately
    afterward.

    Raises `DamagedDatasetError` if a commit can't be read, or if a hash in the commit doesn't match the name of its
    file. Without the second check, one corrupted character would make the shard's own files look like leftovers.
    """
    log, beginning = CommitLog(dataset), f"{shard_name(shard)}."
    while True:
        reservations = [
            (parsed[1], reserved_in(dataset / RESERVATIONS / entry.name))
            for entry in (dataset / RESERVATIONS).list(beginning=beginning)
            if (parsed := parse_reservation_name(entry.name)) is not None and parsed[0] == shard
        ]
        generations = log.generations_of(shard)
        commit = log.read(shard, generations[-1]) if generations else None
        if generations and commit is None:
            continue  # another writer replaced it in the meantime
        for entry in commit.files if commit is not None else ():
            parsed_path = parse_data_path(entry.path)
            if parsed_path is None or parsed_path.shard != shard or not entry.sha256.startswith(parsed_path.digest):
                raise DamagedDatasetError(
                    f"{log.location(shard, generations[-1])} names {entry.path}, which is not a file of shard {shard} "
                    f"with SHA-256 {entry.sha256}: nothing is deleted until `segmint repair` has restored the commit"
                )
        named = {entry.path for entry in commit.files} if commit is not None else set()
        newest = max(generations, default=0)
        reserved = {path for generation, paths in reservations if generation > newest for path in paths}
        return ShardState(commit, tuple(generations[:-1]), frozenset(named | reserved))


def reserved_paths(dataset: Location, committed: Mapping[int, int], since: datetime = NO_TIME) -> set[str]:
    """Return the paths that writers have reserved at `since` or later.

    `committed` maps each shard to its latest generation. A reservation counts only if its generation is higher.
    """
    paths: set[str] = set()
    for entry in (dataset / RESERVATIONS).list():
        parsed = parse_reservation_name(entry.name)
        new = parsed is not None and parsed[1] > committed.get(parsed[0], 0)
        if new and not NO_TIME < entry.modified < since:
            paths |= reserved_in(dataset / RESERVATIONS / entry.name)
    return paths


def reserved_in(file: Location) -> set[str]:
    """Return the paths that a reservation lists, or an empty set if its file is gone.

    Raises `DamagedDatasetError` if the file is invalid.
    """
    try:
        return set(_ReservationFile.model_validate_json(file.read()).paths)
    except NotFoundError:
        return set()  # its writer has committed, or lost the race
    except ValidationError as error:
        raise DamagedDatasetError(f"{file} is not a reservation: {wrong_fields(error)}") from error


def generations_of(names: Iterable[str]) -> dict[int, list[int]]:
    """Parse the names of files in `commits/`, and return the generations of each shard, ascending."""
    found: dict[int, list[int]] = {}
    for name in names:
        parsed = parse_commit_name(name)
        if parsed is not None:
            found.setdefault(parsed[0], []).append(parsed[1])
    return {shard: sorted(numbers) for shard, numbers in found.items()}
