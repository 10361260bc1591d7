"""Whether the last shards look like those before them."""

from itertools import pairwise
from typing import Any

import pytest

from segmint.pipeline.building.status import (
    LAST_SHARDS,
    SAMPLED_SHARDS,
    DriftValue,
    ShardNumbers,
    compare,
    last_and_sample,
)
from segmint.pipeline.building.totals import Totals

EARLY = [
    ShardNumbers(rows=10, images=8 + shard % 2, masks=800 + shard, faces=4 + shard % 3, plates=0) for shard in range(30)
]


def compared(late: list[ShardNumbers], early: list[ShardNumbers] = EARLY) -> dict[str, DriftValue]:
    both = [*late, *early]
    images = sum(shard.images for shard in both)
    totals = Totals(
        rows=1000,
        written=images,
        rejected={"not_found": sum(shard.rows for shard in both) - images},
        masks=sum(shard.masks for shard in both),
        shards=len(both),
        missing=[],
        missing_rows=0,
    )
    drift = compare(totals, late, early)
    assert (drift.shards, drift.before, drift.sampled) == (len(late), len(early), len(early))
    return {one.name: one for one in drift.compared}


def unusual(*late: ShardNumbers) -> list[str]:
    return [name for name, one in compared(list(late)).items() if one.unusual]


def test_shards_like_those_before_are_not_unusual() -> None:
    assert unusual(*EARLY[7:12]) == []
    masks = compared(EARLY[7:12])["masks per image"]
    assert masks.before == pytest.approx(sum(s.masks for s in EARLY) / sum(s.images for s in EARLY))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"masks": 400}, "masks per image"),
        ({"faces": 0}, "faces per image"),
        ({"plates": 3}, "plates per image"),
        ({"rows": 30}, "share rejected"),
    ],
)
def test_a_number_that_changes_is_called_unusual_alone(change: dict[str, int], name: str) -> None:
    fields: dict[str, Any] = {"rows": 10, "images": 8, "masks": 830, "faces": 5, "plates": 0, **change}
    late = [ShardNumbers(**fields), ShardNumbers(**{**fields, "images": 9})]
    assert unusual(*late) == [name]


def test_tables_that_cannot_be_read_are_left_out() -> None:
    broken = ShardNumbers(rows=10, images=8, masks=830, faces=None, plates=None)
    drift = compared([broken])
    assert (drift["faces per image"].last, drift["faces per image"].unusual) == (None, False)
    assert drift["masks per image"].last == 830 / 8


def test_a_spread_of_few_tables_calls_nothing_unusual() -> None:
    unread = [ShardNumbers(shard.rows, shard.images, shard.masks, faces=None, plates=None) for shard in EARLY]
    late = [ShardNumbers(rows=10, images=8, masks=830, faces=80, plates=0)] * 2
    for read, said in ((2, False), (5, False), (6, True)):
        assert compared(late, [*EARLY[:read], *unread[read:]])["faces per image"].unusual is said


def test_the_last_shards_are_by_time_and_the_others_are_sampled_evenly() -> None:
    assert last_and_sample(range(7), range(7)) is None, "too few"
    assert last_and_sample([5, 2], range(8)) == ([2, 5], [0, 1, 3, 4, 6, 7])
    found = last_and_sample(range(1000), range(1000))
    assert found is not None
    last, sample = found
    assert last == list(range(1000 - LAST_SHARDS, 1000))
    assert len(set(sample)) == SAMPLED_SHARDS
    assert (sample[0], sample[-1], max(b - a for a, b in pairwise(sample))) == (0, 970, 10)
