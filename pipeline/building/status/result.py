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
            if set(cells) != {NOTHING}:
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
            cells |= dict.fromkeys(("time left", "cost left", "mIoU at 1 click", "measured"), NOTHING)
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
        return NOTHING
    return number(value)


def _time_text(when: datetime | None) -> str | None:
    if when is None:
        return None
    return when.isoformat()
