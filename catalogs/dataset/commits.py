"""Commits, reservations, and what is derived from commits: sums per block of shards, and the index of tars.

The commits define the content of a dataset: exactly the files that its latest commits name. From top to bottom: the
commit and the log of commits, reservations and what they protect, sums, and the index.

A writer puts a commit only if its file is absent, and nothing changes it afterward. If a shard has several commits,
readers use the one with the highest generation.
"""

import json
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from itertools import chain, groupby
from types import MappingProxyType
from typing import Annotated, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from segmint.catalogs.layout import (
    COMMITS,
    RESERVATIONS,
    SHARDS_INDEX,
    SUMMARIES,
    DamagedDatasetError,
    canonical_json,
    commit_name,
    fingerprint,
    json_with_digest,
    parse_commit_name,
    parse_data_path,
    parse_reservation_name,
    reservation_name,
    shard_name,
    wrong_fields,
)
from segmint.infra.errors import SegmintError
from segmint.infra.log import get_logger
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import NO_TIME
from segmint.infra.uris import AZURE, scheme

REJECTED = "rejected:"
"""Prefix of the keys in a commit's counts that count rejected rows by reason."""

PRIVACY_COUNTS = ("unconfirmed", "left_alone", "highly_redacted")
"""Keys of a commit's counts about redaction. A commit of format 3 lacks them, and so does one that counts none."""

MOST_REDACTED = 5
"""Maximum number of images in `most_redacted`."""

_READ_AHEAD = 512
_LISTED_DIGITS = 3  # a listing by all digits but these returns 1,000 shards, which is one page

SUMMARY_SHARDS = 250
"""Maximum number of shards in a block. Each block has one summary.

With 40,000 shards, summing takes 160 summaries and, on average, the commits of half a block. The cached leaves of
versions use the same blocks.
"""

PROGRESS_FROM = 2000
"""Number of commits from which a log line announces that commits are read one by one."""

_THREADS = 16


@dataclass(frozen=True)
class FileEntry:
    """Data file that a commit names: its path below the dataset, its size in bytes, and its SHA-256."""

    path: Annotated[str, Field(pattern=r"\A[ -~]*\z")]  # characters that every store accepts
    size: Annotated[int, Field(ge=0)]
    sha256: str

    @property
    def kind(self) -> str:
        """Name of the folder that contains the file."""
        return self.path.partition("/")[0]


@dataclass(frozen=True)
class Commit:
    """One generation of one shard. It contains no time, host, or attempt, so the same work produces the same bytes.

    `ordinals` is the shard's range [start, stop). `numerics` is the fingerprint of the numerics that produced the
    shard. `build_sha256` is the manifest's hash of the settings that it was built with. `counts` contains sums over the
    shard's rows: `rows` (`images` + `rejected`), `images`, `rejected`, `masks`, and one `rejected:<reason>` for each
    reason. It may also contain `PRIVACY_COUNTS`: unconfirmed detections, detections that a person wanted left alone,
    and images of which a high share is redacted. `most_redacted` lists the ids and shares of the worst of these images.
    """

    shard: Annotated[int, Field(ge=0)]
    generation: Annotated[int, Field(ge=1)]
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
            return _COMMIT.validate_json(data, strict=True)
        except ValidationError as error:
            raise DamagedDatasetError(f"{where} is not a commit: {wrong_fields(error)}") from error


_COMMIT = TypeAdapter(Commit)


def worst(images: Iterable[tuple[int, float]]) -> tuple[tuple[int, float], ...]:
    """Return the `MOST_REDACTED` images with the highest shares, from pairs of id and share."""
    return tuple(sorted(images, key=lambda image: (-image[1], image[0]))[:MOST_REDACTED])


class _ReservationFile(BaseModel):
    """JSON content of a reservation's file, limited to the field that other processes need."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

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

    def replaced_since(self, committed: Mapping[int, int]) -> list[int]:
        """Return the shards whose generation isn't the one in `committed` anymore, from an earlier call."""
        now = self.committed()
        return [shard for shard, generation in committed.items() if now.get(shard) != generation]

    def generations(self) -> dict[int, list[int]]:
        """Return the generations of each committed shard, ascending. Files with other names are ignored."""
        return generations_of(entry.name for entry in self._folder.list())

    def listed(self, shards: int | None = None) -> list[ListedCommit]:
        """List the files of all commits, ordered by shard and generation.

        If `shards` is given, only shards below that number are included. With this limit, the folder in a bucket is
        listed in parallel.
        """
        found = self._listed(None if shards is None else range(0, shards, 10**_LISTED_DIGITS))
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

    def _listed(self, firsts: Iterable[int] | None) -> list[ListedCommit]:
        """List the files of commits, ordered by shard and generation.

        In a bucket, `firsts` restricts the listing to the blocks of a thousand shards that start with these numbers.
        The result may also contain other shards.
        """
        names = [""]
        if firsts is not None and scheme(self._folder.uri) in {"s3", *AZURE}:
            names = [shard_name(first)[:-_LISTED_DIGITS] for first in firsts]
        listed = map_ahead(lambda name: self._folder.list(beginning=name), names, _THREADS, _THREADS, "commits")
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

    def is_replaced(self, shard: int, generation: int) -> bool:
        """Return whether a shard has a higher generation. If so, this generation's files may have been removed."""
        return max(self.generations_of(shard), default=0) > generation

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
        raise DamagedDatasetError(
            f"{file} is not a reservation ({wrong_fields(error)}); if no command is writing to the dataset, delete "
            "this file and run the command again"
        ) from error


def generations_of(names: Iterable[str]) -> dict[int, list[int]]:
    """Parse the names of files in `commits/`, and return the generations of each shard, ascending."""
    found: dict[int, list[int]] = {}
    for name in names:
        parsed = parse_commit_name(name)
        if parsed is not None:
            found.setdefault(parsed[0], []).append(parsed[1])
    return {shard: sorted(numbers) for shard, numbers in found.items()}


ReadCommits = Callable[[Sequence[ListedCommit]], Iterable[Commit]]
"""Function that yields these commits in order. If one was replaced in the meantime, it yields the newer commit."""


@dataclass(frozen=True)
class CommitSums:
    """Sums over a set of commits.

    They contain the number of shards, the number of files and their bytes, the commits' counts, the number of shards
    per fingerprint of numerics, and the most redacted images.
    """

    shards: int
    files: int
    bytes: int
    counts: Mapping[str, int]
    numerics: Mapping[str, int]
    most_redacted: tuple[tuple[int, float], ...] = ()

    def __add__(self, other: "CommitSums") -> "CommitSums":
        return CommitSums(
            self.shards + other.shards,
            self.files + other.files,
            self.bytes + other.bytes,
            _added(self.counts, other.counts),
            _added(self.numerics, other.numerics),
            worst((*self.most_redacted, *other.most_redacted)),
        )


NOTHING = CommitSums(0, 0, 0, {}, {})
"""Sums over no commits."""


_SUMS = TypeAdapter(CommitSums)


def sums_of(commit: Commit) -> CommitSums:
    """Return the sums of one commit."""
    size = sum(entry.size for entry in commit.files)
    return CommitSums(1, len(commit.files), size, commit.counts, {commit.numerics: 1}, commit.most_redacted)


def sums_in(data: bytes, shard: int, generation: int) -> CommitSums | None:
    """Return the sums of the commit with these bytes, or None if the commit is damaged, which its readers report."""
    try:
        commit = Commit.from_json(data)
    except DamagedDatasetError:
        return None
    return sums_of(commit) if (commit.shard, commit.generation) == (shard, generation) else None


def sum_listing(
    dataset: Location,
    held: Iterable[ListedCommit],
    known: Mapping[str, CommitSums] = MappingProxyType({}),
    read: ReadCommits | None = None,
    wanted: range | None = None,
) -> CommitSums:
    """Sum the latest commits, or only those of the shards in `wanted`, a range with step 1.

    `held` lists the files of all latest commits, in shard order. `known` contains the sums of blocks that were already
    read, keyed by the names of their summaries. `read` reads all other commits; by default, they come from the dataset.
    If a correction replaces a commit in the meantime, the newer commit is summed.

    This function saves the sums of a block in `summaries/` once the block is full, or once a later block has started.
    The second condition is needed because a block with a shard on hold may never become full. A summary's file name
    contains a hash of the commits' files, so a summary of outdated commits is never found. A damaged summary is
    rewritten. If saving fails, only a warning is logged.
    """
    folder = dataset / SUMMARIES
    existing = {entry.name for entry in folder.list()}
    blocks: dict[str, list[ListedCommit]] = {}
    settled = set()
    listed = [block for _, block in blocks_of(held)]
    for block in listed:
        members = [commit for commit in block if wanted is None or commit.shard in wanted]
        if members:
            name = summary_name(members)
            blocks[name] = members
            if len(members) == len(block) and (len(block) == SUMMARY_SHARDS or block is not listed[-1]):
                settled.add(name)

    def from_dataset(members: Sequence[ListedCommit]) -> Iterable[Commit]:
        return CommitLog(dataset).read_latest_of(member.key for member in members)

    def saved(name: str) -> CommitSums | None:
        return _saved(folder / name) if name in existing else None

    found = dict(zip(blocks, map_ahead(saved, blocks, _THREADS, _THREADS, "summaries"), strict=True))
    unread = sum(len(blocks[name]) for name, sums in found.items() if sums is None and name not in known)
    if unread > PROGRESS_FROM:
        get_logger("summaries").info("commits without saved sums are read one by one", commits=unread)
    total, saving = NOTHING, True
    for name, members in blocks.items():
        sums = found[name]
        if sums is None:
            sums, as_listed = (known[name], True) if name in known else _sum(members, read or from_dataset)
            if saving and as_listed and name in settled:
                saving = save_block(folder, name.partition("-")[0] + "-", name, summary_json(sums), existing)
        total += sums
    return total


def save_full_blocks(dataset: Location, held: Iterable[ListedCommit]) -> None:
    """Save the sums of each full block of these commits that doesn't have a summary yet.

    A long build calls this function while it runs, so that `status` has to read only a few commits one by one. If
    saving fails, only a warning is logged, and the next call tries again.
    """
    full = [members for _, members in blocks_of(held) if len(members) == SUMMARY_SHARDS]
    if not full:
        return
    try:
        existing = {entry.name for entry in (dataset / SUMMARIES).list()}
        new = [members for members in full if summary_name(members) not in existing]
        sum_listing(dataset, chain.from_iterable(new))
    except (SegmintError, OSError) as error:
        _log_once(f"{dataset / SUMMARIES}", str(error))


def save_block(folder: Location, block: str, name: str, data: bytes, existing: Iterable[str]) -> bool:
    """Save data about a block of commits in `summaries/`, and delete the block's earlier files.

    `block` is the prefix of the block's file names. Returns whether this worked. The data can be rebuilt, so a fault is
    only logged.
    """
    try:
        (folder / name).put(data)
        for old in existing:
            if old.startswith(block) and old != name:
                (folder / old).delete()
    except (SegmintError, OSError) as error:
        _log_once(str(folder), str(error))
        return False
    return True


@cache
def _log_once(folder: str, problem: str) -> None:
    """Log the reason why sums aren't saved.

    A build tries to save them in each window, so repeated messages are dropped.
    """
    get_logger("summaries").warning("sums of commits are not saved", folder=folder, problem=problem)


def _sum(members: Sequence[ListedCommit], read: ReadCommits) -> tuple[CommitSums, bool]:
    """Read and sum commits. Also returns whether all of them are still the commits that were listed."""
    listed = {member.key for member in members}
    sums, as_listed = NOTHING, 0
    for commit in read(members):
        sums += sums_of(commit)
        as_listed += (commit.shard, commit.generation) in listed
    return sums, as_listed == len(members)


def blocks_of(held: Iterable[ListedCommit]) -> list[tuple[int, list[ListedCommit]]]:
    """Group commits into blocks of shards, numbered from 0. The commits must be in shard order."""
    return [(block, list(found)) for block, found in groupby(held, key=lambda commit: commit.shard // SUMMARY_SHARDS)]


def summary_name(members: Sequence[ListedCommit]) -> str:
    """Return the file name of a block's summary. `members` are the files of the block's commits, in order."""
    first = members[0].shard // SUMMARY_SHARDS * SUMMARY_SHARDS
    return f"{shard_name(first)}-{files_fingerprint(members)}.json"


def files_fingerprint(members: Sequence[ListedCommit]) -> str:
    """Return a hash of these commits' files, which covers their sizes and their times in seconds.

    Generations aren't enough, because they would be the same after a dataset was deleted and built again.
    """
    return fingerprint([(*commit.key, commit.size, int(commit.modified.timestamp())) for commit in members])


def summary_json(sums: CommitSums) -> bytes:
    """Return the bytes of a summary's file. Its field `digest` covers all other fields."""
    return json_with_digest({name: value for name, value in vars(sums).items() if name != "most_redacted" or value})


def _saved(file: Location) -> CommitSums | None:
    """Read a summary. Returns None if its file is missing or invalid."""
    try:
        data = file.read()
        sums = _SUMS.validate_json(data, strict=True)
    except (NotFoundError, ValidationError):
        return None
    return sums if data == summary_json(sums) else None


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    total = Counter(one)
    total.update(other)  # unlike `+`, this keeps counts of zero
    return dict(total)


def shards_index(name: str, commits: Iterable[Commit]) -> bytes:
    """Return the index of these commits' tars: the relative URL, number of samples, and size in bytes of each tar.

    Tars without images are omitted, because a loader couldn't read anything from them.
    """
    shards = []
    for commit in commits:
        tar = commit.file("shards")
        samples = commit.counts.get("images", 0)
        if samples:
            shards.append({"url": tar.path, "nsamples": samples, "filesize": tar.size})
    return canonical_json({"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": shards})


def write_shards_index(dataset: Location, name: str, threads: int = 16) -> None:
    """Write the index of the latest commits. This replaces an existing index."""
    data = shards_index(name, CommitLog(dataset).read_all(threads))
    (dataset / SHARDS_INDEX).put(data)


def index_problem(dataset: Location, name: str, commits: Sequence[Commit], *, finished: bool) -> str | None:
    """Return the first difference between a dataset's index and `commits`, its latest commits, or None if they match.

    A build writes the index at its end. Therefore, a missing or incomplete index is only a problem if the build is
    known to be `finished`.
    """
    try:
        data = (dataset / SHARDS_INDEX).read()
    except NotFoundError:
        return "no such file, but all shards are committed: run the same build again" if finished else None
    if data == shards_index(name, commits):
        return None
    try:
        listed = {entry["url"] for entry in json.loads(data)["shardlist"]}
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        return f"not an index of tars: {type(error).__name__}: {error}"
    held = [commit for commit in commits if commit.file("shards").path in listed]
    if not finished and data == shards_index(name, held):
        return None
    unknown = sorted(str(url) for url in listed - {commit.file("shards").path for commit in held})
    if unknown:
        return f"{unknown[0]} is listed, but no latest commit names it"
    return f"{len(listed)} tars are listed, but their names, sizes, or image counts differ from the commits"
