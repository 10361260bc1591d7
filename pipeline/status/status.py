"""How far a dataset is, from its commits alone: `segmint status`. Needs no Ray, and nothing of the running build."""

from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.dataset.summaries import NOTHING, sums_of
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.pipeline.status.answer import Prices, Status
from segmint.pipeline.status.drift import Counted, Drift, compare, last_and_sample
from segmint.pipeline.status.gaps import find_gaps
from segmint.pipeline.status.pace import Pace, first_commits, last_commits, pace_of
from segmint.pipeline.status.totals import Totals, total

_THREADS = 16

Held = tuple[int, int]
"""A shard and the generation that holds."""


class StatusReader:
    """Reads a dataset's status, again and again; what cannot change is read once.

    It writes nothing but the sums of full thousands of commits (`summaries/`), where it may, as a build does.
    """

    def __init__(self, dataset: Location, prices: Prices) -> None:
        self._dataset = dataset
        self._prices = prices
        self._commits: dict[Held, Commit] = {}
        self._counted: dict[Held, Counted] = {}

    def read(self) -> Status:
        """Return the status now.

        Raises `UsageError` if there is no dataset, and `DamagedDatasetError` for a commit that cannot be read.
        """
        now = datetime.now(UTC)
        written = CommitLog(self._dataset).written()
        manifest = load_manifest(self._dataset)  # after the listing: it then knows of every shard in it
        committed: dict[int, int] = {}
        for shard, generation in sorted(written):
            if shard < manifest.shards:
                committed[shard] = generation
        totals = total(self._dataset, manifest, committed, range(manifest.shards), must_save=False)
        built = first_commits(written, committed)
        return Status(
            dataset=str(self._dataset),
            name=manifest.name,
            time=now,
            totals=totals,
            last_commit=max(written.values(), default=None),
            pace=self._pace(built, written),
            prices=self._prices,
            gaps=find_gaps(manifest, totals.missing, committed, written),
            drift=self._drift(manifest, totals, built, committed),
        )

    def _pace(self, built: Sequence[int], written: Mapping[Held, datetime]) -> Pace | None:
        chosen = last_commits(built, written)
        if chosen is None:
            return None
        commits = self._read((shard, 1) for shard in chosen.shards)
        return pace_of(chosen, sum(map(sums_of, commits), NOTHING))

    def _drift(
        self, manifest: DatasetManifest, totals: Totals, built: Sequence[int], committed: Mapping[int, int]
    ) -> Drift | None:
        chosen = last_and_sample(built, list(committed))
        if chosen is None:
            return None
        last, sample = chosen
        commits = self._read((shard, committed[shard]) for shard in (*last, *sample))
        dataset = Dataset(self._dataset, manifest)
        unknown = [commit for commit in commits if _key(commit) not in self._counted]
        for commit, counted in zip(
            unknown,
            map_ahead(lambda commit: _count(dataset, commit), unknown, _THREADS, _THREADS, "tables"),
            strict=True,
        ):
            self._counted[_key(commit)] = counted
        of_last = [self._counted[_key(commit)] for commit in commits if commit.shard in set(last)]
        of_sample = [self._counted[_key(commit)] for commit in commits if commit.shard not in set(last)]
        return compare(totals, of_last, of_sample)

    def _read(self, wanted: Iterable[Held]) -> list[Commit]:
        """Read these commits; one that a correction removes meanwhile is left out."""
        pairs = list(wanted)
        for commit in CommitLog(self._dataset).read_many(
            [pair for pair in pairs if pair not in self._commits], _THREADS
        ):
            self._commits[_key(commit)] = commit
        return [self._commits[pair] for pair in pairs if pair in self._commits]


def _key(commit: Commit) -> Held:
    return commit.shard, commit.generation


def _count(dataset: Dataset, commit: Commit) -> Counted:
    """Count a shard's faces and plates; they are None where its `images` table cannot be read."""
    faces: int | None = None
    plates: int | None = None
    try:
        table = dataset.table(commit, "images", ["faces", "plates"])
        faces, plates = (sum(table.column(name).drop_null().to_pylist()) for name in ("faces", "plates"))
    except (NotFoundError, DamagedDatasetError, KeyError):
        pass  # a correction has replaced it, or it is damaged: what an audit is for
    return Counted.of(commit, faces, plates)
