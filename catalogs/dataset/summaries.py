"""Sums over a dataset's commits, saved by the thousand so that summing again stays cheap."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.layout import SUMMARIES, DamagedDatasetError, canonical_json, fingerprint, shard_name
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError, StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead

SUMMARY_SHARDS = 1000
"""The number of shards that a summary covers."""


@dataclass(frozen=True)
class CommitSums:
    """Sums over a set of commits: counts, files and their bytes, shards by the fingerprint of their numerics."""

    shards: int
    files: int
    bytes: int
    counts: Mapping[str, int]
    numerics: Mapping[str, int]

    def __add__(self, other: "CommitSums") -> "CommitSums":
        return CommitSums(
            self.shards + other.shards,
            self.files + other.files,
            self.bytes + other.bytes,
            _added(self.counts, other.counts),
            _added(self.numerics, other.numerics),
        )


NOTHING = CommitSums(0, 0, 0, {}, {})
"""The sums over no commits."""


_SUMS = TypeAdapter(CommitSums)


def sums_of(commit: Commit) -> CommitSums:
    """Return the sums of one commit."""
    size = sum(entry.size for entry in commit.files)
    return CommitSums(1, len(commit.files), size, commit.counts, {commit.numerics: 1})


def sums_in(data: bytes, shard: int, generation: int) -> CommitSums | None:
    """Return the sums of the commit in a file with these bytes; None if it is damaged, as reading the commit says."""
    try:
        commit = Commit.from_json(data)
    except DamagedDatasetError:
        return None
    return sums_of(commit) if (commit.shard, commit.generation) == (shard, generation) else None


def sum_commits(dataset: Location, wanted: range | None = None, threads: int = 16) -> CommitSums:
    """Sum a dataset's commits that hold; only those of the shards in `wanted` (step 1) if it is given."""
    committed = CommitLog(dataset).committed().items()
    return sum_listed(dataset, [pair for pair in committed if wanted is None or pair[0] in wanted], threads=threads)


def sum_listed(
    dataset: Location,
    committed: Iterable[tuple[int, int]],
    known: Mapping[str, CommitSums] = MappingProxyType({}),
    threads: int = 16,
    *,
    must_save: bool = True,
) -> CommitSums:
    """Sum these commits, as pairs of shard and generation in order of shards.

    `known` has sums of each thousand of shards that were read already, by the name of their summary.

    The sums of each full thousand of shards are saved in `summaries/`, under a name that is a hash of the generations
    they were made from: an outdated summary is not found, and is made again, as is one that is damaged. Without
    `must_save` the answer is the same where the dataset cannot be written to.
    """
    log = CommitLog(dataset)
    folder = dataset / SUMMARIES
    existing = {entry.name for entry in folder.list()}
    blocks = _blocks(committed)

    def saved(members: list[tuple[int, int]]) -> CommitSums | None:
        name = summary_name(members) if len(members) == SUMMARY_SHARDS else None
        return _saved(folder / name) if name in existing else None

    total = NOTHING
    for members, sums in zip(blocks, map_ahead(saved, blocks, threads, threads, "summaries"), strict=True):
        if sums is not None:
            total += sums
            continue
        name, full = summary_name(members), len(members) == SUMMARY_SHARDS
        part = known.get(name, NOTHING)
        if name not in known:
            for commit in log.read_many(members, threads):
                part += sums_of(commit)
        if full and part.shards == SUMMARY_SHARDS:
            try:
                _save(folder, name, part, existing)
            except (StorageFaultError, UsageError, OSError):
                if must_save:
                    raise
        total += part
    return total


def save_full_blocks(dataset: Location, committed: Iterable[tuple[int, int]]) -> None:
    """Save the sums of each full thousand of these commits that has none yet: a long build does so as it goes.

    Then a status meanwhile reads few commits one by one. What cannot be saved is left for the next time.
    """
    full = [pair for members in _blocks(committed) if len(members) == SUMMARY_SHARDS for pair in members]
    if full:
        with suppress(StorageFaultError, DamagedDatasetError):
            sum_listed(dataset, full, must_save=False)


def _blocks(committed: Iterable[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Cut pairs of shard and generation, in order of shards, at each thousand of shards."""
    return [list(members) for _, members in groupby(committed, key=lambda pair: pair[0] // SUMMARY_SHARDS)]


def _save(folder: Location, name: str, sums: CommitSums, existing: Iterable[str]) -> None:
    """Save the sums of a full thousand, and delete those that it had before."""
    (folder / name).put(canonical_json(vars(sums)))
    prefix = name.partition("-")[0]
    for old in existing:
        if old.startswith(f"{prefix}-") and old != name:
            (folder / old).delete()


def summary_name(members: Sequence[tuple[int, int]]) -> str:
    """Return the name of the summary of a full thousand of shards, as pairs of shard and generation, in order."""
    first = members[0][0] // SUMMARY_SHARDS * SUMMARY_SHARDS
    return f"{shard_name(first)}-{fingerprint(members)}.json"


def _saved(file: Location) -> CommitSums | None:
    """Read a summary; None for any other file."""
    try:
        return _SUMS.validate_json(file.read(), strict=True)
    except (NotFoundError, ValidationError):
        return None


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    total = Counter(one)
    total.update(other)  # unlike `+`, this keeps a count of zero
    return dict(total)
