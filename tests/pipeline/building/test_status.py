"""A dataset's status beside the accounting of a run, and as it changes between two looks."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from segmint.catalogs.dataset import commits
from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import load_manifest
from segmint.infra.errors import UsageError
from segmint.infra.metrics import RunMetrics
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import NO_TIME, ObjectInfo
from segmint.pipeline.building.dataset import BuildDataset
from segmint.pipeline.building.execution.accounting import RunRecord, account
from segmint.pipeline.building.status import Prices, Status, StatusReader
from tests.support.builds import segmint_and_modules
from tests.support.committed import write_dataset, write_generation
from tests.support.locations import location_of

SHARDS = 12


@pytest.fixture
def dataset(tmp_path: Path) -> Location:
    """Twelve shards of three rows, put ten minutes apart; 3, 7, 8 and 11 are not committed, and 5 was corrected."""
    location = location_of(tmp_path / "dataset")
    write_dataset(location, SHARDS)
    write_generation(location, shard=5, generation=2, refuse=3)
    for shard in (3, 7, 8, 11):
        (location / "commits" / f"{shard:06d}.g1.json").delete()
    noon = datetime(2026, 5, 1, 12, tzinfo=UTC).timestamp()
    for file in (tmp_path / "dataset/commits").iterdir():
        os.utime(file, (noon + 600 * int(file.name[:6]),) * 2)
    return location


def status_of(dataset: Location) -> Status:
    return StatusReader(dataset, Prices()).read()


def test_its_numbers_are_those_of_the_accounting(dataset: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "SUMMARY_SHARDS", 2)
    told = status_of(dataset).to_dict()
    run = BuildDataset(dataset, load_manifest(dataset), Path())
    accounting = account(run, run.shards(), RunRecord(RunMetrics("small")), 1.0).to_dict()
    assert {name: told[name] for name in ("rows", "written", "masks", "rejected", "shards", "missing_rows")} == {
        name: accounting[name] for name in ("rows", "written", "masks", "rejected", "shards", "missing_rows")
    }
    assert told["missing_shards"] == len(accounting["missing"]) == 4
    assert (told["written"], told["rejected"], told["rows"]) == (14, {"not_an_image": 10}, 36)


def test_what_is_left_and_held_back_and_when_it_ends(dataset: Location) -> None:
    status = StatusReader(dataset, Prices(price=3.0, devices=2)).read()
    assert [gap.name for gap in status.gaps] == ["3", "7-8"]
    assert status.pace is not None
    # Shards 4, 5, which was corrected, 6, 9 and 10 since shard 2: too few are of the last hour.
    assert (status.pace.shards, status.pace.rows, status.pace.seconds) == (5, 15, 4800.0)
    assert status.seconds_left == pytest.approx(12 / 15 * 4800)
    assert status.cost_left == pytest.approx(12 / 15 * 4800 / 3600 * 6)
    text = "\n".join(status.lines())
    assert "8 of 12 shards (66.7%): 14 images with 28 masks" in text
    assert "rejected   10 rows (41.7%)" in text
    assert "on hold    3 shards with 9 rows, passed over by a later commit: 3 (" in text
    assert "or lost their commits" in text  # by somebody who deleted them
    assert "cost left  6.4, at 3 per hour for each of 2 devices" in text
    json.dumps(status.to_dict(), allow_nan=False)


def test_a_dataset_without_commits_and_a_whole_one(tmp_path: Path) -> None:
    none = location_of(tmp_path / "begun")
    manifest = write_dataset(none, 0)
    catalog = (manifest.catalog[0].model_copy(update={"rows": 9}),)
    (none / "dataset.json").put(manifest.model_copy(update={"catalog": catalog}).to_json())
    begun = status_of(none)
    assert (begun.totals.missing_rows, begun.pace, begun.seconds_left, begun.drift, begun.gaps) == (
        9,
        None,
        None,
        None,
        [],
    )
    assert "time left  unknown" in "\n".join(begun.lines())
    whole = location_of(tmp_path / "whole")
    write_dataset(whole, 1)
    assert (status_of(whole).complete, status_of(whole).seconds_left) == (True, 0.0)
    assert "complete: nothing left to build (the files weren't read)" in "\n".join(status_of(whole).lines())
    with pytest.raises(UsageError, match="is not a segmint dataset"):
        status_of(location_of(tmp_path / "nowhere"))


def test_a_second_look_reads_only_what_is_new(dataset: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commits, "SUMMARY_SHARDS", 2)
    reader = StatusReader(dataset, Prices())
    first = reader.read()
    write_generation(dataset, shard=8)
    read: list[tuple[int, int]] = []
    original = CommitLog.read

    def counted(self: CommitLog, shard: int, generation: int) -> object:
        read.append((shard, generation))
        return original(self, shard, generation)

    monkeypatch.setattr(CommitLog, "read", counted)
    second = reader.read()
    assert (first.totals.shards, second.totals.shards) == (8, 9)
    assert {(0, 1), (1, 1), (4, 1), (5, 2)}.isdisjoint(read), "their sums are saved, and the sample is known"
    assert read.count((8, 1)) == 1, "for the sums, and for pace and drift"


def test_a_dataset_that_cannot_be_written_to_has_the_same_status(
    dataset: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commits, "SUMMARY_SHARDS", 2)

    def refused(self: Location, data: bytes) -> None:
        raise StorageFaultError("access denied")

    with monkeypatch.context() as patch:
        patch.setattr(Location, "put", refused)
        without = status_of(dataset).totals
    assert not (dataset / "summaries").list()
    assert without == status_of(dataset).totals
    assert (dataset / "summaries").list()


def test_a_damaged_table_is_counted_and_not_fatal(dataset: Location) -> None:
    commit = CommitLog(dataset).latest(0)
    assert commit is not None
    (dataset / commit.file("images").path).put(b"junk")
    drift = status_of(dataset).drift
    assert drift is not None
    assert drift.unread == 1
    assert "not checked: drift of 1 table, unreadable. Run `segmint audit`" in status_of(dataset).lines()
    assert status_of(dataset).to_dict()["not_checked"] == ["drift of 1 table, unreadable. Run `segmint audit`"]


def test_a_correction_that_lands_after_the_listing_leaves_no_shard_out(
    dataset: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = status_of(dataset)
    original = CommitLog.listed

    def listed(self: CommitLog, shards: int | None = None) -> object:
        found = original(self, shards)
        for shard in (4, 6):
            if CommitLog(dataset).read(shard, 1) is not None:
                write_generation(dataset, shard=shard, generation=2, refuse=2)
                CommitLog(dataset).location(shard, 1).delete()
        return found

    monkeypatch.setattr(CommitLog, "listed", listed)
    now = status_of(dataset)
    assert (now.totals.shards, now.totals.written) == (before.totals.shards, before.totals.written - 2)
    assert sum(now.totals.rejected.values()) == sum(before.totals.rejected.values()) + 2
    assert now.pace is not None
    assert before.pace is not None
    assert (now.pace.shards, now.pace.rows) == (before.pace.shards, before.pace.rows)


def test_what_is_held_back_keeps_its_time_when_the_next_shard_is_corrected(dataset: Location) -> None:
    before = status_of(dataset).gaps
    for shard in (4, 9, 10):
        write_generation(dataset, shard=shard, generation=2)
        CommitLog(dataset).location(shard, 1).delete()
    status = status_of(dataset)
    assert [gap.since for gap in status.gaps] == [before[0].since, None]  # evenly between the shards 2 and 6
    assert "7-8 (time unknown)" in "\n".join(status.lines())
    assert status.to_dict()["on_hold"][1]["since"] is None


def test_a_store_without_times_has_a_status_without_pace(dataset: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = status_of(dataset).totals
    original = Location.list

    def timeless(self: Location, include_temporary: bool = False, beginning: str = "") -> list[ObjectInfo]:
        return [replace(entry, modified=NO_TIME) for entry in original(self, include_temporary, beginning)]

    monkeypatch.setattr(Location, "list", timeless)
    status = status_of(dataset)
    assert (status.totals, status.pace, status.last_commit, status.seconds_left) == (counts, None, None, None)
    text = "\n".join(status.lines())
    assert "last       a commit at an unknown time: the store reports no times" in text
    assert "3 (time unknown), 7-8 (time unknown)" in text
    json.dumps(status.to_dict(), allow_nan=False)


@pytest.mark.parametrize(("prices", "said"), [((-1.0, 1), "--price is -1"), ((1.0, 0), "--gpus is 0")])
def test_prices_without_sense_are_refused(prices: tuple[float, int], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Prices(*prices)


@pytest.mark.usefixtures("processes")
def test_it_loads_neither_ray_nor_torch(dataset: Location) -> None:
    done, loaded = segmint_and_modules("status", dataset.uri)
    assert (done.returncode, {"ray", "torch", "duckdb"} & loaded) == (0, set()), done.stderr
    assert "8 of 12 shards" in done.stdout
