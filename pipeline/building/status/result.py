"""Status of one or several datasets: the values, and their text and JSON forms."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from segmint.catalogs.dataset.manifest import ModelWeights
from segmint.catalogs.lineage import HeldOutScores, TrainingRound, describe_rounds
from segmint.infra.units import check_option
from segmint.infra.wording import count, counted, duration, listed, not_checked_lines, number, plural, share
from segmint.operators.schemas import AUTOMATIC, SOURCES
from segmint.pipeline.building.status.drift import Drift, DriftValue
from segmint.pipeline.building.status.pace import Pace
from segmint.pipeline.building.status.people import People
from segmint.pipeline.building.status.totals import Gap, Totals

SHOWN = 10
"""Maximum number of gaps in the text form. JSON contains all gaps."""

_FARTHEST = timedelta(days=36_500)

NOTHING = "-"
"""Text of a cell without a value."""


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
        return None if self.price is None else seconds / 3600 * self.price * self.devices


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
        return self.totals.missing_rows / self.pace.rows_per_s if self.pace and self.pace.rows else None

    @property
    def cost_left(self) -> float | None:
        """Cost of the remaining work, or None if the price or the pace is unknown."""
        return None if self.seconds_left is None else self.prices.of(self.seconds_left)

    @property
    def held_out(self) -> HeldOutScores | None:
        """Held-out scores before and after the weights' last training, or None if they weren't measured."""
        return self.trainings[-1].held_out if self.trainings else None

    @property
    def masks_by_source(self) -> Mapping[str, int]:
        """Number of masks by source. Masks without an annotator count as automatic."""
        automatic = {AUTOMATIC: self.totals.masks - self.people.masks}
        return {**dict.fromkeys(SOURCES, 0), **automatic, **self.people.by_source}

    @property
    def masks_per_image(self) -> float | None:
        """Masks per image, or None without images."""
        return self.totals.masks / self.totals.written if self.totals.written else None

    @property
    def not_checked(self) -> list[str]:
        """Tables that couldn't be read, as text."""
        unread = {"annotated masks": self.people.unread, "drift": 0 if self.drift is None else self.drift.unread}
        return [f"{what} of {counted(n, 'table')}, unreadable. Run `segmint audit`" for what, n in unread.items() if n]

    def to_dict(self) -> dict[str, Any]:
        totals, pace, drift = self.totals, self.pace, self.drift
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
            "last_commit": None if self.last_commit is None else self.last_commit.isoformat(),
            "pace": None
            if pace is None
            else {
                **asdict(pace),
                "since": pace.since.isoformat(),
                "last": pace.last.isoformat(),
                "seconds": pace.seconds,
                "rows_per_s": pace.rows_per_s,
                "images_per_s": pace.images_per_s,
                "masks_per_s": pace.masks_per_s,
            },
            "seconds_left": self.seconds_left,
            "price": self.prices.price,
            "devices": self.prices.devices,
            "cost_left": self.cost_left,
            "on_hold": [
                {**asdict(gap), "since": None if gap.since is None else gap.since.isoformat()} for gap in self.gaps
            ],
            "drift": None
            if drift is None
            else {**asdict(drift), "compared": [{**asdict(one), "unusual": one.unusual} for one in drift.compared]},
            "masks_by_source": self.masks_by_source,
            "masks_per_image": self.masks_per_image,
            "masks_timed": self.people.timed,
            "seconds_per_mask": self.people.seconds_per_mask,
            "unread_tables": self.people.unread,
            "not_checked": self.not_checked,
            "round": self.round,
            "weights": self.weights.model_dump(mode="json"),
            "trainings": [link.model_dump(mode="json") for link in self.trainings],
            "held_out": None if self.held_out is None else self.held_out.model_dump(mode="json"),
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
        shards, rows = sum(gap.shards for gap in self.gaps), sum(gap.rows for gap in self.gaps)
        names = [f"{gap.name} ({self._ago(gap.since) if gap.since else 'time unknown'})" for gap in self.gaps[:SHOWN]]
        more = f", and {len(self.gaps) - SHOWN:,} more gaps" if len(self.gaps) > SHOWN else ""
        return [
            f"on hold    {counted(shards, 'shard')} with {counted(rows, 'row')}, passed over by a later commit: "
            f"{', '.join(names)}{more}",
            "           they have faults (see the build's log; `segmint build` retries them), "
            "are being written, are in another --shards range, or lost their commits",
        ]

    def _ago(self, when: datetime) -> str:
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
        sources = listed(f"{people.by_source[source]:,} {source}" for source in SOURCES if source in people.by_source)
        timed = f"; {number(people.seconds_per_mask)} s per mask, over {people.timed:,} timed" * bool(people.timed)
        return [f"annotated  {counted(people.masks, 'mask')}: {sources}{timed}"] if people.masks else []


def _drift_line(one: DriftValue) -> str:
    write = share if one.name.startswith("share") else number
    unusual = "  UNUSUAL: check these shards" if one.unusual else ""
    return f"  {one.name:<24} {write(one.last):>10}, before {write(one.before)}{unusual}"


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
        columns = [[head, *cells] for head, cells in self._columns() if set(cells) != {NOTHING}]
        first, *others = ([cell.rjust(max(map(len, cells))) for cell in cells] for cells in columns)
        names = [cell.strip().ljust(len(cell)) for cell in first]
        table = ["  ".join(cells).rstrip() for cells in zip(names, *others, strict=True)]
        trainings = dict.fromkeys(line for row in self.rows for line in describe_rounds(row.trainings))
        return [*table, *trainings, *self._notes(), *not_checked_lines(self.not_checked)]

    def _columns(self) -> Iterator[tuple[str, list[str]]]:
        rows = self.rows
        names = {row.name for row in rows}
        yield "dataset", [row.name if len(names) == len(rows) else row.dataset for row in rows]
        yield "round", [str(row.round) for row in rows]
        yield "shards", [f"{row.totals.shards:,} of {row.totals.shards + len(row.totals.missing):,}" for row in rows]
        yield "images", [count(row.totals.written) for row in rows]
        yield "rejected", [count(sum(row.totals.rejected.values())) for row in rows]
        yield "masks", [count(row.totals.masks) for row in rows]
        for source in SOURCES:
            if any(row.masks_by_source.get(source) for row in rows):
                yield source, [count(row.masks_by_source.get(source, 0)) for row in rows]
        yield "masks/image", [_number(row.masks_per_image) for row in rows]
        yield "s/mask", [_number(row.people.seconds_per_mask) for row in rows]
        yield "time left", [NOTHING if row.complete else duration(row.seconds_left) for row in rows]
        yield "cost left", [NOTHING if row.complete else _number(row.cost_left) for row in rows]
        held = [row.held_out for row in rows]
        yield "mIoU at 1 click", [NOTHING if one is None else f"{one.before:.3f} → {one.after:.3f}" for one in held]
        sizes = [() if one is None else (counted(one.masks, "mask"), counted(one.measured, "image")) for one in held]
        yield "measured", [" of ".join(each) or NOTHING for each in sizes]

    def _notes(self) -> Iterator[str]:
        for row in self.rows:
            people = row.people
            if 0 < people.timed < people.masks:
                yield f"{row.name}: {people.timed:,} of {counted(people.masks, 'annotated mask')} have a time"
            on_hold = sum(gap.shards for gap in row.gaps)
            noted = [f"{counted(on_hold, 'shard')} on hold"] if on_hold else []
            noted += [f"{one.name} unusual" for one in (row.drift.compared if row.drift else ()) if one.unusual]
            if noted:
                yield f"{row.name}: {listed(noted)}; see `segmint status {row.dataset}`"


def _number(value: float | None) -> str:
    return NOTHING if value is None else number(value)
