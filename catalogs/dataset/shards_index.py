"""The index `shards.json` of committed tars for WebDataset's `wids`, which is derived from the commits."""

import json
from collections.abc import Iterable, Sequence

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.layout import SHARDS_INDEX, canonical_json
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location


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
