"""Sums over a dataset's commits, saved per block of shards so that repeated summing stays cheap."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain, groupby
from types import MappingProxyType

from pydantic import TypeAdapter, ValidationError

from segmint.catalogs.dataset.commits import Commit, CommitLog, ListedCommit, worst
from segmint.catalogs.layout import SUMMARIES, DamagedDatasetError, fingerprint, json_with_digest, shard_name
from segmint.infra.errors import SegmintError
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead

SUMMARY_SHARDS = 250
"""Maximum number of shards in a block. Each block has one summary.

With 40,000 shards, summing takes 160 summaries and, on average, the commits of half a block. The cached leaves of
versions use the same blocks.
"""

PROGRESS_FROM = 2000
"""Number of commits from which a log line announces that commits are read one by one."""

_THREADS = 16

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
        return CommitLog(dataset).read_latest_of((member.key for member in members), _THREADS)

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
