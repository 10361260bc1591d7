"""Sums over a dataset's commits, saved by the thousand so that summing again stays cheap."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.layout import SUMMARIES, canonical_json, fingerprint, shard_name
from segmint.infra.storage.location import Location

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


def sums_of(commit: Commit) -> CommitSums:
    """Return the sums of one commit."""
    size = sum(entry.size for entry in commit.files)
    return CommitSums(1, len(commit.files), size, commit.counts, {commit.numerics: 1})


def sum_commits(dataset: Location, wanted: range | None = None, threads: int = 16) -> CommitSums:
    """Sum a dataset's commits that hold; only those of the shards in `wanted` (step 1) if it is given.

    The sums of each full thousand of shards are saved in `summaries/`, under a name that is a hash of the generations
    they were made from: an outdated summary is not found, and is made again.
    """
    log = CommitLog(dataset)
    folder = dataset / SUMMARIES
    existing = {entry.name for entry in folder.list()}
    committed = {s: g for s, g in log.committed().items() if wanted is None or s in wanted}
    total = NOTHING
    for block, pairs in groupby(committed.items(), key=lambda pair: pair[0] // SUMMARY_SHARDS):
        members = list(pairs)
        prefix = f"{shard_name(block * SUMMARY_SHARDS)}-"
        name = summary_name(members)
        full = len(members) == SUMMARY_SHARDS
        if full and name in existing:
            total += CommitSums(**json.loads((folder / name).read()))
            continue
        part = NOTHING
        for commit in log.read_many(members, threads):
            part += sums_of(commit)
        if full and part.shards == SUMMARY_SHARDS:
            (folder / name).put(canonical_json(vars(part)))
            for old in existing:
                if old.startswith(prefix):
                    (folder / old).delete()
        total += part
    return total


def summary_name(members: Sequence[tuple[int, int]]) -> str:
    """Return the name of the summary of a full thousand of shards, as pairs of shard and generation, in order."""
    first = members[0][0] // SUMMARY_SHARDS * SUMMARY_SHARDS
    return f"{shard_name(first)}-{fingerprint(members)}.json"


def _added(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    total = Counter(one)
    total.update(other)  # unlike `+`, this keeps a count of zero
    return dict(total)
