"""Progress of a dataset, from its commits only: `segmint status`. Needs neither Ray nor the running build.

From top to bottom: the drift check, the status of one or several datasets with its text and JSON, and the reader that
computes it from commits.

The drift check compares the last shards with those before them in four numbers: masks, faces, and plates per image, and
the fraction of rejected rows. The commits contain the masks and rejected rows, so these two numbers cover all earlier
shards. Faces and plates must be read from the `images` tables, so these two numbers only cover a sample, spread evenly
over the earlier shards. A number is unusual if it differs by more than three standard errors. The standard error is
estimated from the variation between shards.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from math import sqrt
from typing import Any

from segmint.catalogs.dataset.commits import NOTHING, Commit, CommitLog, ListedCommit, sums_of
from segmint.catalogs.dataset.manifest import DatasetManifest, ModelWeights, load_manifest
from segmint.catalogs.dataset.reader import Dataset
from segmint.catalogs.layout import DamagedDatasetError
from segmint.catalogs.lineage import HeldOutScores, TrainingRound, describe_rounds
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import NO_TIME
from segmint.infra.units import check_option
from segmint.infra.wording import count, counted, duration, listed, not_checked_lines, number, plural, share
from segmint.operators.rows import AUTOMATIC, SOURCES
from segmint.pipeline.building.totals import (
    NOBODY,
    Gap,
    Pace,
    People,
    Totals,
    count_people,
    find_gaps,
    first_commits,
    last_commits,
    pace_of,
    total,
)

LAST_SHARDS = 20
"""Maximum number of shards that count as the last shards. At most a quarter of all shards do."""

SAMPLED_SHARDS = 100
"""Maximum number of earlier shards to read individually."""

LEAST_SHARDS = 8
"""Minimum number of shards for a comparison."""

LEAST_SAMPLED = LEAST_SHARDS - LEAST_SHARDS // 4
"""Minimum number of earlier shards with a value. If there are fewer, no number counts as unusual."""

UNUSUAL = 3.0
"""Threshold in standard errors."""

SHOWN = 10
"""Maximum number of gaps in the text form. JSON contains all gaps."""

_FARTHEST = timedelta(days=36_500)

NO_VALUE = "-"
"""Text of a cell without a value."""

_THREADS = 16

_KEPT = 4000
"""Number of commits to cache between reads. If the sums of blocks are saved, a read needs fewer commits."""


@dataclass(frozen=True)
class ShardNumbers:
    """Counts of a shard. `faces` and `plates` are None if the shard's table can't be read."""

    rows: int
    images: int
    masks: int
    faces: int | None
    plates: int | None

    @classmethod
    def of(cls, commit: Commit, faces: int | None, plates: int | None) -> "ShardNumbers":
        """Return the counts of a commit. `faces` and `plates` come from the commit's `images` table."""
        counts = commit.counts
        return cls(counts.get("rows", 0), counts.get("images", 0), counts.get("masks", 0), faces, plates)


@dataclass(frozen=True)
class DriftValue:
    """A number in the last shards and in the earlier shards, or None if unknown."""

    name: str
    last: float | None
    before: float | None
    error: float | None  # standard error of the difference, from the variation between shards, if known

    @property
    def unusual(self) -> bool:
        """True if the two values differ by more than `UNUSUAL` standard errors."""
        if self.last is None or self.before is None or self.error is None:
            return False
        return abs(self.last - self.before) > max(UNUSUAL * self.error, 1e-9)


@dataclass(frozen=True)
class Drift:
    """Comparison of the last shards with the earlier shards."""

    shards: int  # number of last shards
    before: int  # number of earlier shards
    sampled: int  # earlier shards that were read individually
    unread: int  # shards whose `images` table could not be read
    compared: Sequence[DriftValue]


def last_and_sample(built: Sequence[int], committed: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """Choose the last shards and a sample of the earlier shards. Return None if there are too few shards.

    `built` contains the shards with known build times, in chronological order. `committed` contains all shards in
    ascending order.
    """
    count = min(LAST_SHARDS, len(committed) // 4, len(built))
    if len(committed) < LEAST_SHARDS or not count:
        return None
    last = set(built[-count:])
    before = [shard for shard in committed if shard not in last]
    taken = min(SAMPLED_SHARDS, len(before))
    return sorted(last), [before[index * len(before) // taken] for index in range(taken)]


def compare(totals: Totals, late: Sequence[ShardNumbers], early: Sequence[ShardNumbers]) -> Drift:
    """Compare the last shards, `late`, with `early`, a sample of the earlier shards. `totals` covers all shards."""
    images = totals.written - sum(shard.images for shard in late)
    masks = totals.masks - sum(shard.masks for shard in late)
    refused = sum(totals.rejected.values()) - sum(shard.rows - shard.images for shard in late)
    compared = [
        _compare("masks per image", late, early, lambda shard: (shard.masks, shard.images), _ratio(masks, images)),
        _compare("faces per image", late, early, lambda shard: (shard.faces, shard.images)),
        _compare("plates per image", late, early, lambda shard: (shard.plates, shard.images)),
        _compare(
            "share rejected",
            late,
            early,
            lambda shard: (shard.rows - shard.images, shard.rows),
            _ratio(refused, images + refused),
        ),
    ]
    unread = sum(shard.faces is None for shard in (*late, *early))
    return Drift(len(late), totals.shards - len(late), len(early), unread, compared)


def _compare(
    name: str,
    late: Sequence[ShardNumbers],
    early: Sequence[ShardNumbers],
    part: Callable[[ShardNumbers], tuple[int | None, int]],
    before: float | None = None,
) -> DriftValue:
    """Compare a ratio of sums. `before` is the ratio over all earlier shards, or None if only a sample is available."""
    last, of_late = _ratios(map(part, late))
    sampled, of_early = _ratios(map(part, early))
    if before is None:
        before = sampled
    error = None
    if len(of_early) >= LEAST_SAMPLED and of_late:
        error = statistics.stdev(of_early) * sqrt(1 / len(of_late) + 1 / len(of_early))
    return DriftValue(name, last, before, error)


def _ratios(pairs: Iterable[tuple[int | None, int]]) -> tuple[float | None, list[float]]:
    """Return the ratio of the sums, and the ratio of each pair.

    Pairs whose first number is unknown, or whose second is 0, don't count.
    """
    tops = belows = 0
    ratios = []
    for top, below in pairs:
        if top is not None and below:
            tops += top
            belows += below
            ratios.append(top / below)
    return _ratio(tops, belows), ratios


def _ratio(top: float, below: float) -> float | None:
    if not below:
        return None
    return top / below


@dataclass(frozen=True)
class Prices:
    """Price of an hour of computing. Raises `UsageError` for invalid numbers."""

    price: float | None = None  # price per device-hour, as in `segmint plan`
    devices: int = 1  # number of devices of the build, which a dataset doesn't record

    def __post_init__(self) -> None:
        check_option("--price", self.price, "the price per hour, 0 or more", 0)
        check_option("--gpus", self.devices, "at least 1", 1)

    def of(self, seconds: float) -> float | None:
        """Return the price of using all devices for `seconds` seconds, or None without an hourly price."""
        if self.price is None:
            return None
        return seconds / 3600 * self.price * self.devices


@dataclass(frozen=True)
class Status:
    """Progress of a dataset."""

    dataset: str
    name: str
    time: datetime  # when it was read
    totals: Totals
    last_commit: datetime | None  # commit of a build or correction; None without a commit or a known time
    pace: Pace | None  # None: too few commits, or all at the same time
    prices: Prices
    gaps: Sequence[Gap]
    drift: Drift | None  # None: too few shards
    round: int  # number of trainings that led to the weights
    weights: ModelWeights
    trainings: tuple[TrainingRound, ...]  # lineage of the weights; empty in round 0
    people: People

    @property
    def complete(self) -> bool:
        """True if every shard is committed."""
        return not self.totals.missing

    @property
    def seconds_left(self) -> float | None:
        """Remaining seconds at the pace of the last commits, or None if the pace is unknown."""
        if self.complete:
            return 0.0
        if self.pace and self.pace.rows:
            return self.totals.missing_rows / self.pace.rows_per_s
        return None

    @property
    def cost_left(self) -> float | None:
        """Cost of the remaining work, or None if the price or the pace is unknown."""
        if self.seconds_left is None:
            return None
        return self.prices.of(self.seconds_left)

    @property
    def held_out(self) -> HeldOutScores | None:
        """Held-out scores before and after the weights' last training, or None if they weren't measured."""
        if self.trainings:
            return self.trainings[-1].held_out
        return None

    @property
    def masks_by_source(self) -> Mapping[str, int]:
        """Number of masks by source. Masks without an annotator count as automatic."""
        automatic = {AUTOMATIC: self.totals.masks - self.people.masks}
        return {**dict.fromkeys(SOURCES, 0), **automatic, **self.people.by_source}

    @property
    def masks_per_image(self) -> float | None:
        """Masks per image, or None without images."""
        if self.totals.written:
            return self.totals.masks / self.totals.written
        return None

    @property
    def not_checked(self) -> list[str]:
        """Tables that couldn't be read, as text."""
        unread = {"annotated masks": self.people.unread}
        if self.drift is not None:
            unread["drift"] = self.drift.unread
        return [f"{what} of {counted(n, 'table')}, unreadable. Run `segmint audit`" for what, n in unread.items() if n]

    def to_dict(self) -> dict[str, Any]:
        totals = self.totals
        pace = drift = held_out = None
        if self.pace is not None:
            pace = {
                **asdict(self.pace),
                "since": self.pace.since.isoformat(),
                "last": self.pace.last.isoformat(),
                "seconds": self.pace.seconds,
                "rows_per_s": self.pace.rows_per_s,
                "images_per_s": self.pace.images_per_s,
                "masks_per_s": self.pace.masks_per_s,
            }
        if self.drift is not None:
            compared = [{**asdict(one), "unusual": one.unusual} for one in self.drift.compared]
            drift = {**asdict(self.drift), "compared": compared}
        if self.held_out is not None:
            held_out = self.held_out.model_dump(mode="json")
        return {
            "dataset": self.dataset,
            "name": self.name,
            "time": self.time.isoformat(),
            "complete": self.complete,
            "shards": totals.shards,
            "shards_of": totals.shards + len(totals.missing),
            "rows": totals.rows,
            "written": totals.written,
            "masks": totals.masks,
            "rejected": dict(totals.rejected),
            "redactions": asdict(totals.redactions),
            "missing_shards": len(totals.missing),
            "missing_rows": totals.missing_rows,
            "last_commit": _time_text(self.last_commit),
            "pace": pace,
            "seconds_left": self.seconds_left,
            "price": self.prices.price,
            "devices": self.prices.devices,
            "cost_left": self.cost_left,
            "on_hold": [{**asdict(gap), "since": _time_text(gap.since)} for gap in self.gaps],
            "drift": drift,
            "masks_by_source": self.masks_by_source,
            "masks_per_image": self.masks_per_image,
            "masks_timed": self.people.timed,
            "seconds_per_mask": self.people.seconds_per_mask,
            "unread_tables": self.people.unread,
            "not_checked": self.not_checked,
            "round": self.round,
            "weights": self.weights.model_dump(mode="json"),
            "trainings": [link.model_dump(mode="json") for link in self.trainings],
            "held_out": held_out,
        }

    def lines(self) -> list[str]:
        totals = self.totals
        refused = sum(totals.rejected.values())
        done = totals.shards / max(1, totals.shards + len(totals.missing))
        return [
            f"{self.name}: {self.dataset}, {self.time:%Y-%m-%d %H:%M:%S} UTC",
            f"done       {totals.shards:,} of {totals.shards + len(totals.missing):,} shards ({share(done)}): "
            f"{counted(totals.written, 'image')} with {counted(totals.masks, 'mask')}",
            f"rejected   {counted(refused, 'row')} ({share(refused / max(1, totals.written + refused))})",
            *(f"  {reason:<24} {count:>10,}" for reason, count in sorted(totals.rejected.items())),
            *totals.redactions.lines(width=11),
            *self._pace_lines(),
            *self._gap_lines(),
            *self._drift_lines(),
            *self._people_lines(),
            *describe_rounds(self.trainings),
            *not_checked_lines(self.not_checked),
        ]

    def _pace_lines(self) -> list[str]:
        totals, pace = self.totals, self.pace
        lines = []
        if not self.complete:
            lines.append(f"left       {counted(totals.missing_rows, 'row')} in {counted(len(totals.missing), 'shard')}")
        if self.last_commit is not None:
            lines.append(f"last       a commit {self._ago(self.last_commit)}")
        elif totals.shards:
            lines.append("last       a commit at an unknown time: the store reports no times")
        if pace is not None:
            lines.append(
                f"pace       {number(pace.images_per_s)} images/s, {number(pace.masks_per_s)} masks/s: the last "
                f"{counted(pace.shards, 'commit')}, in {duration(pace.seconds)} by the store's file times"
            )
        if self.complete:
            return [*lines, "           complete: nothing left to build (the files weren't read)"]
        if self.seconds_left is None:
            return [*lines, "time left  unknown: too few commits to estimate the pace"]
        end = self.time + min(timedelta(seconds=self.seconds_left), _FARTHEST)
        lines.append(f"time left  {duration(self.seconds_left)} at that pace: {end:%Y-%m-%d %H:%M} UTC")
        if self.cost_left is not None:
            lines.append(
                f"cost left  {number(self.cost_left)}, at {number(self.prices.price)} per hour for each of "
                f"{counted(self.prices.devices, 'device')}"
            )
        return lines

    def _gap_lines(self) -> list[str]:
        if not self.gaps:
            return []
        shards = rows = 0
        for gap in self.gaps:
            shards += gap.shards
            rows += gap.rows
        names = ", ".join(f"{gap.name} ({self._ago(gap.since)})" for gap in self.gaps[:SHOWN])
        if len(self.gaps) > SHOWN:
            names += f", and {len(self.gaps) - SHOWN:,} more gaps"
        return [
            f"on hold    {counted(shards, 'shard')} with {counted(rows, 'row')}, "
            f"passed over by a later commit: {names}",
            "           they have faults (see the build's log; `segmint build` retries them), "
            "are being written, are in another --shards range, or lost their commits",
        ]

    def _ago(self, when: datetime | None) -> str:
        if when is None:
            return "time unknown"
        return f"{duration(max(0.0, (self.time - when).total_seconds()))} ago"

    def _drift_lines(self) -> list[str]:
        drift = self.drift
        if drift is None:
            return []
        return [
            f"drift      the last {counted(drift.shards, 'shard')} compared with the {drift.before:,} before "
            f"({drift.sampled:,} {plural(drift.sampled, 'table')} read)",
            *map(_drift_line, drift.compared),
        ]

    def _people_lines(self) -> list[str]:
        people = self.people
        if not people.masks:
            return []
        sources = listed(f"{people.by_source[source]:,} {source}" for source in SOURCES if source in people.by_source)
        line = f"annotated  {counted(people.masks, 'mask')}: {sources}"
        if people.timed:
            line += f"; {number(people.seconds_per_mask)} s per mask, over {people.timed:,} timed"
        return [line]


def _drift_line(one: DriftValue) -> str:
    last, before = number(one.last), number(one.before)
    if one.name.startswith("share"):
        last, before = share(one.last), share(one.before)
    line = f"  {one.name:<24} {last:>10}, before {before}"
    if one.unusual:
        line += "  UNUSUAL: check these shards"
    return line


@dataclass(frozen=True)
class StatusTable:
    """Status of several datasets."""

    rows: Sequence[Status]

    @property
    def complete(self) -> bool:
        """True if every shard of every dataset is committed."""
        return all(row.complete for row in self.rows)

    @property
    def not_checked(self) -> list[str]:
        """Tables that couldn't be read, as text."""
        return [f"{row.name}: {each}" for row in self.rows for each in row.not_checked]

    def to_dict(self) -> dict[str, Any]:
        return {"datasets": [row.to_dict() for row in self.rows], "not_checked": self.not_checked}

    def lines(self) -> list[str]:
        """Return the table as lines of text, followed by the trainings of the weights. Empty columns are omitted."""
        rows = list(self._cells())
        columns = []
        for head in rows[0]:
            cells = [row[head] for row in rows]
            if set(cells) != {NO_VALUE}:
                columns.append([head, *cells])
        widths = [max(map(len, column)) for column in columns]
        table = []
        for first, *others in zip(*columns, strict=True):
            line = first.ljust(widths[0])
            for cell, width in zip(others, widths[1:], strict=True):
                line += f"  {cell:>{width}}"
            table.append(line.rstrip())
        trainings: dict[str, None] = {}
        for dataset in self.rows:
            trainings |= dict.fromkeys(describe_rounds(dataset.trainings))
        return [*table, *trainings, *self._notes(), *not_checked_lines(self.not_checked)]

    def _cells(self) -> Iterator[dict[str, str]]:
        """Yield the cells of each dataset by column."""
        names = {row.name for row in self.rows}
        sources = [source for source in SOURCES if any(row.masks_by_source.get(source) for row in self.rows)]
        for row in self.rows:
            totals = row.totals
            cells = {
                "dataset": row.name,
                "round": str(row.round),
                "shards": f"{totals.shards:,} of {totals.shards + len(totals.missing):,}",
                "images": count(totals.written),
                "rejected": count(sum(totals.rejected.values())),
                "masks": count(totals.masks),
            }
            if len(names) < len(self.rows):
                cells["dataset"] = row.dataset
            for source in sources:
                cells[source] = count(row.masks_by_source.get(source, 0))
            cells["masks/image"] = _number(row.masks_per_image)
            cells["s/mask"] = _number(row.people.seconds_per_mask)
            cells |= dict.fromkeys(("time left", "cost left", "mIoU at 1 click", "measured"), NO_VALUE)
            if not row.complete:
                cells["time left"] = duration(row.seconds_left)
                cells["cost left"] = _number(row.cost_left)
            if row.held_out is not None:
                scores = row.held_out
                cells["mIoU at 1 click"] = f"{scores.before:.3f} → {scores.after:.3f}"
                cells["measured"] = f"{counted(scores.masks, 'mask')} of {counted(scores.measured, 'image')}"
            yield cells

    def _notes(self) -> Iterator[str]:
        for row in self.rows:
            people = row.people
            if 0 < people.timed < people.masks:
                yield f"{row.name}: {people.timed:,} of {counted(people.masks, 'annotated mask')} have a time"
            noted = []
            on_hold = sum(gap.shards for gap in row.gaps)
            if on_hold:
                noted.append(f"{counted(on_hold, 'shard')} on hold")
            if row.drift is not None:
                noted += [f"{one.name} unusual" for one in row.drift.compared if one.unusual]
            if noted:
                yield f"{row.name}: {listed(noted)}; see `segmint status {row.dataset}`"


def _number(value: float | None) -> str:
    if value is None:
        return NO_VALUE
    return number(value)


def _time_text(when: datetime | None) -> str | None:
    if when is None:
        return None
    return when.isoformat()


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
        for commit in commits:
            if commit.shard in last:
                of_last.append(self._counted[commit])
            else:
                of_sample.append(self._counted[commit])
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
        for commit in CommitLog(self._dataset).read_latest_of(each.key for each in new.values()):
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
