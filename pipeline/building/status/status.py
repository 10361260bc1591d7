"""Progress of a dataset, from its commits only: `segmint status`. Needs neither Ray nor the running build."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from segmint.catalogs.dataset.commits import Commit, CommitLog, ListedCommit
from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.summaries import NOTHING, sums_of
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import NO_TIME
from segmint.infra.threads import map_ahead
from segmint.pipeline.building.status.drift import Drift, ShardNumbers, compare, last_and_sample
from segmint.pipeline.building.status.pace import Pace, first_commits, last_commits, pace_of
from segmint.pipeline.building.status.people import NOBODY, People, count_people
from segmint.pipeline.building.status.result import Prices, Status
from segmint.pipeline.building.status.totals import Totals, find_gaps, total

_THREADS = 16

_KEPT = 4000
"""Number of commits to cache between reads. If the sums of blocks are saved, a read needs fewer commits."""


class StatusReader:
    """Reader of a dataset's status that caches immutable data between reads.

    If it has write access, the reader saves sums of commit blocks to `summaries/`, like a build. It writes nothing
    else.
    """

    def __init__(self, dataset: Location, prices: Prices) -> None:
        self._dataset = dataset
        self._prices = prices
        self._commits: dict[ListedCommit, Commit] = {}
        self._counted: dict[ListedCommit, ShardNumbers] = {}
        self._people: dict[ListedCommit, People] = {}

    def read(self) -> Status:
        """Return the current status.

        Raises `UsageError` if there is no dataset, and `DamagedDatasetError` for a commit that can't be read.
        """
        now = datetime.now(UTC)
        manifest = load_manifest(self._dataset)
        listed = CommitLog(self._dataset).listed(manifest.shards)
        held = {commit.shard: commit for commit in listed}  # the latest generation of each shard
        first = first_commits(listed)
        times = [commit.modified for commit in listed if commit.modified != NO_TIME]
        commits = list(held.values())
        shards = range(manifest.shards)
        totals = total(self._dataset, manifest, commits, shards, lambda wanted: list(self._read(wanted).values()))
        return Status(
            dataset=str(self._dataset),
            name=manifest.name,
            time=now,
            totals=totals,
            last_commit=max(times, default=None),
            pace=self._pace(first, held),
            prices=self._prices,
            gaps=find_gaps(manifest, totals.missing, held, first),
            drift=self._drift(manifest, totals, list(first), held),
            round=manifest.round,
            weights=manifest.weights,
            trainings=manifest.lineage,
            people=self._people_of(manifest, held.values()),
        )

    def _pace(self, first: Mapping[int, datetime], held: Mapping[int, ListedCommit]) -> Pace | None:
        chosen = last_commits(first)
        if chosen is None:
            return None
        commits = self._read(held[shard] for shard in chosen.shards)
        return pace_of(chosen, sum(map(sums_of, commits.values()), NOTHING))

    def _drift(
        self, manifest: DatasetManifest, totals: Totals, built: Sequence[int], held: Mapping[int, ListedCommit]
    ) -> Drift | None:
        chosen = last_and_sample(built, list(held))
        if chosen is None:
            return None
        last, sample = chosen
        commits = self._read(held[shard] for shard in (*last, *sample))
        dataset = Dataset(self._dataset, manifest)
        new = [listed for listed in commits if listed not in self._counted]
        counted = map_ahead(lambda listed: _count(dataset, commits[listed]), new, _THREADS, _THREADS, "tables")
        self._counted.update(zip(new, counted, strict=True))
        of_last, of_sample = [], []
        for listed in commits:
            if listed.shard in last:
                of_last.append(self._counted[listed])
            else:
                of_sample.append(self._counted[listed])
        return compare(totals, of_last, of_sample)

    def _people_of(self, manifest: DatasetManifest, held: Iterable[ListedCommit]) -> People:
        """Count the annotated masks.

        Shards that haven't changed since their build contain none, so they aren't read.
        """
        changed = [listed for listed in held if listed.generation > 1]
        new = self._read(listed for listed in changed if listed not in self._people)
        dataset = Dataset(self._dataset, manifest)
        counted = map_ahead(lambda commit: count_people(dataset, commit), new.values(), _THREADS, _THREADS, "people")
        self._people.update(zip(new, counted, strict=True))
        return sum((self._people[listed] for listed in changed if listed in self._people), NOBODY)

    def _read(self, wanted: Iterable[ListedCommit]) -> dict[ListedCommit, Commit]:
        """Read these commits in order. If a correction has replaced a commit, read the newer commit instead."""
        listed = list(wanted)
        new = {commit.shard: commit for commit in listed if commit not in self._commits}
        for commit in CommitLog(self._dataset).read_latest_of((each.key for each in new.values()), _THREADS):
            self._commits[new[commit.shard]] = commit
        found = {commit: self._commits[commit] for commit in listed if commit in self._commits}
        for old in list(self._commits)[:-_KEPT]:
            del self._commits[old]
        return found


def _count(dataset: Dataset, commit: Commit) -> ShardNumbers:
    """Return the counts of a shard. If its `images` table can't be read, faces and plates are None."""
    faces: int | None = None
    plates: int | None = None
    try:
        table = dataset.table(commit, "images", ["faces", "plates"])
        found = sum(table.column("faces").drop_null().to_pylist()), sum(table.column("plates").drop_null().to_pylist())
        faces, plates = found
    except (NotFoundError, DamagedDatasetError, KeyError):
        pass  # a correction replaced the table, or it's damaged, which an audit reports
    return ShardNumbers.of(commit, faces, plates)
