"""Shards that a build would still write, and their rows."""

from collections.abc import Sequence
from dataclasses import dataclass

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.shard_ranges import ShardPart, choose_shards
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.config.config import Config


@dataclass(frozen=True)
class ShardRun:
    """Shards of one part of the catalog. All shards are full except for the last shard of the part."""

    shards: Sequence[int]  # ascending
    rows: int


@dataclass(frozen=True)
class RemainingShards:
    """Shards that a run would build."""

    images_per_shard: int
    pieces: Sequence[ShardRun]  # one per part of the catalog, in order
    committed: int  # committed shards among the requested ones
    pinned_rows: int | None  # rows of the dataset; None if it doesn't exist yet

    @property
    def shards(self) -> int:
        return sum(len(piece.shards) for piece in self.pieces)

    @property
    def rows(self) -> int:
        """Number of rows to build."""
        return sum(piece.rows for piece in self.pieces)

    def ordinal(self, position: int) -> int:
        """Return the ordinal of the row at `position` among the rows to build.

        Raises `IndexError` after the last row.
        """
        for piece in self.pieces:
            if position < piece.rows:
                shard, row = divmod(position, self.images_per_shard)
                return piece.shards[shard] * self.images_per_shard + row
            position -= piece.rows
        raise IndexError("position is beyond the last row to build")


def find_remaining(
    config: Config,
    storage: Storage,
    shards: tuple[int, int] | ShardPart | None,
    catalog_rows: int,
    manifest: DatasetManifest | None,
) -> RemainingShards:
    """Return the requested shards that aren't committed.

    The rows come from the dataset's catalog. If the dataset doesn't exist yet, `manifest` is None, and `catalog_rows`
    is the number of rows.
    """
    size = config.images_per_shard
    parts, done, pinned = [(0, catalog_rows)], dict[int, int](), None
    if manifest is not None:
        parts = [(part.first_shard, part.rows) for part in manifest.catalog]
        pinned = sum(part.rows for part in manifest.catalog)
        done = CommitLog(Location(storage, config.output)).committed()
    wanted = choose_shards(parts[-1][0] - (-parts[-1][1] // size), shards)
    pieces = []
    for first, count in parts:
        stop = first - (-count // size)
        inside = range(max(first, wanted.start), min(stop, wanted.stop))
        left: Sequence[int] = inside
        if done:
            left = [shard for shard in inside if shard not in done]
        rows = len(left) * size
        if left and left[-1] == stop - 1:
            rows -= (stop - first) * size - count
        pieces.append(ShardRun(left, rows))
    return RemainingShards(size, pieces, len(wanted) - sum(len(piece.shards) for piece in pieces), pinned)
