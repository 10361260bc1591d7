"""The dataset that `benchmarks/datasets/status.py` measures is one that the status reads as it reads any other."""

from pathlib import Path

from benchmarks.datasets.status import ROWS, begin, images_table, put_commits
from segmint.pipeline.building.status import Prices, StatusReader
from tests.support.locations import location_of


def test_its_commits_and_tables_are_read(tmp_path: Path) -> None:
    dataset = location_of(tmp_path)
    begin(dataset, 12)
    for shards in (range(4), range(4, 9)):
        put_commits(dataset, shards, images_table())
    status = StatusReader(dataset, Prices()).read()
    refused = sum(shard % 7 for shard in range(9))
    assert (status.totals.shards, status.totals.missing_rows) == (9, 3 * ROWS)
    assert (status.totals.written, status.totals.rejected) == (9 * ROWS - refused, {"not_found": refused})
    assert status.drift is not None
    assert (status.drift.unread, [one.name for one in status.drift.compared if one.last is None]) == (0, [])
