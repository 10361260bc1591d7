"""What is on hold: missing shards below a committed one, which builds commit in order.

Why a shard is on hold is not stored in a dataset: a run keeps it in memory and in its log. The gaps say which.
"""

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import zip_longest

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.pipeline.building.status.totals import rows_of


@dataclass(frozen=True)
class Gap:
    """Neighboring shards that are missing while the next one is committed."""

    first: int
    last: int
    rows: int
    since: datetime | None  # when the shard after them was first committed; None: not known

    @property
    def shards(self) -> int:
        """The number of shards."""
        return self.last - self.first + 1

    @property
    def name(self) -> str:
        """The shards in words: `17`, or `40-41`."""
        return str(self.first) if self.first == self.last else f"{self.first}-{self.last}"


def find_gaps(
    manifest: DatasetManifest,
    missing: Sequence[int],
    committed: Container[int],
    first_commits: Mapping[int, datetime],
) -> list[Gap]:
    """Return the runs of missing shards that a committed one follows, in order; `missing` is ascending.

    `first_commits` has the time of each shard's first commit, as far as it is known.
    """
    gaps = []
    first = None
    for shard, following in zip_longest(missing, missing[1:]):
        first = shard if first is None else first
        if following == shard + 1:
            continue
        if shard + 1 in committed:
            rows = rows_of(manifest, range(first, shard + 1))
            gaps.append(Gap(first, shard, rows, first_commits.get(shard + 1)))
        first = None
    return gaps
