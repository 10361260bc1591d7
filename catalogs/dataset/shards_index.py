"""`shards.json`: the committed tars as an index for WebDataset's `wids`. A convenience; the commits decide."""

from collections.abc import Iterable

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.layout import SHARDS_INDEX, canonical_json
from segmint.infra.storage.location import Location


def shards_index(name: str, commits: Iterable[Commit]) -> bytes:
    """Return the index of these commits' tars: for each its URL relative to the index, samples and bytes.

    Tars without an image are left out: a loader could draw nothing from them.
    """
    shards = []
    for commit in commits:
        tar = commit.file("shards")
        samples = commit.counts.get("images", 0)
        if samples:
            shards.append({"url": tar.path, "nsamples": samples, "filesize": tar.size})
    return canonical_json({"__kind__": "wids-shard-index-v1", "wids_version": 1, "name": name, "shardlist": shards})


def write_shards_index(dataset: Location, name: str, threads: int = 16) -> None:
    """Write the index of the commits that hold now, over an older one."""
    data = shards_index(name, CommitLog(dataset).read_all(threads))
    (dataset / SHARDS_INDEX).put(data)
