"""What is on hold: missing shards below a committed one."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from segmint.pipeline.building.totals import find_gaps
from tests.support.committed import write_dataset
from tests.support.locations import location_of

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def test_gaps_are_what_a_later_shard_has_passed_over(tmp_path: Path) -> None:
    whole = write_dataset(location_of(tmp_path), shards=0)
    manifest = whole.model_copy(update={"catalog": (whole.catalog[0].model_copy(update={"rows": 35}),)})
    committed = {1, 2, 5, 6, 9}
    first = {shard: NOON + timedelta(hours=shard) for shard in committed if shard != 5}
    missing = [shard for shard in range(manifest.shards) if shard not in committed]
    assert missing == [0, 3, 4, 7, 8, 10, 11]
    gaps = find_gaps(manifest, missing, committed, first)
    assert [(gap.name, gap.shards, gap.rows) for gap in gaps] == [("0", 1, 3), ("3-4", 2, 6), ("7-8", 2, 6)]
    assert [gap.since for gap in gaps] == [NOON + timedelta(hours=1), None, NOON + timedelta(hours=9)]
    assert find_gaps(manifest, [], committed, first) == []
