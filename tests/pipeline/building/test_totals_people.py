"""The masks of people that a status counts: figures against what was written, and what is not read."""

from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.commits import CommitLog
from segmint.infra.storage.location import Location
from segmint.pipeline.building.status import Prices, Status, StatusReader
from tests.support.committed import of_people, write_dataset, write_generation
from tests.support.locations import location_of


@pytest.fixture
def dataset(tmp_path: Path) -> Location:
    """Three shards, of which people worked on the first."""
    location = location_of(tmp_path)
    write_dataset(location, shards=3)
    write_generation(location, 0, generation=2, make_row=of_people)
    return location


def read(dataset: Location) -> Status:
    return StatusReader(dataset, Prices()).read()


def unlink(dataset: Location, *shards: int) -> None:
    """Remove all that these shards' commits name."""
    for shard in shards:
        commit = CommitLog(dataset).latest(shard)
        assert commit is not None
        for entry in commit.files:
            (dataset / entry.path).delete()


def test_it_counts_what_was_written(dataset: Location) -> None:
    status = read(dataset)
    told = status.to_dict()
    assert told["masks_by_source"] == {"automatic": 9, "assisted": 0, "corrected": 2, "manual": 0, "imported": 1}
    assert told["masks"] == sum(told["masks_by_source"].values()) == 12
    assert (told["masks_per_image"], told["masks_timed"], told["seconds_per_mask"]) == (2, 2, 10.5)
    assert told["unread_tables"] == 0
    assert "annotated  3 masks: 2 corrected and 1 imported; 10.5 s per mask, over 2 timed" in status.lines()


def test_a_time_that_is_no_number_is_no_time(tmp_path: Path) -> None:
    def odd(ordinal: int, refused: bool) -> dict[str, Any]:
        row = of_people(ordinal, refused)
        if row.get("masks") and ordinal == 0:
            row["masks"][0] |= {"seconds": float("nan")}
        return row

    write_dataset(location_of(tmp_path), shards=1)
    write_generation(location_of(tmp_path), 0, generation=2, make_row=odd)
    people = read(location_of(tmp_path)).people
    assert (people.masks, people.timed, people.seconds) == (3, 1, 11.0)


def test_tables_are_read_of_changed_shards_only(dataset: Location) -> None:
    """The tables of the other two shards are gone, and nothing misses them."""
    before = read(dataset)
    unlink(dataset, 1, 2)
    after = read(dataset)
    assert (after.people, after.totals) == (before.people, before.totals)
    assert after.people.masks == 3


def test_a_table_that_cannot_be_read_is_counted(dataset: Location) -> None:
    unlink(dataset, 0)
    status = read(dataset)
    assert (status.people.masks, status.people.unread) == (0, 1)
    assert "not checked: annotated masks of 1 table, unreadable. Run `segmint audit`" in status.lines()


def test_a_table_is_read_once_for_several_looks(dataset: Location) -> None:
    reader = StatusReader(dataset, Prices())
    before = reader.read()
    unlink(dataset, 0)
    assert reader.read().people == before.people
