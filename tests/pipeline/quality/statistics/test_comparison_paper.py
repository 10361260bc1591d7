"""The paper's figures add up, and have the names that ours have."""

import pytest

from segmint.catalogs.licenses import INCOMES, REGIONS
from segmint.pipeline.quality.statistics.comparison import MASKS_PER_IMAGE, PAPER


def test_shares_add_up_and_groups_are_ours() -> None:
    regions, income = PAPER.regions, PAPER.income
    assert tuple(row.name for row in regions) == REGIONS
    assert tuple(row.name for row in income) == INCOMES
    assert sum(row.share for row in regions) == pytest.approx(1, abs=0.002)
    assert sum(row.share for row in income) == pytest.approx(1, abs=0.002)


def test_each_number_of_masks_is_in_one_bin() -> None:
    for masks in range(300):
        assert sum(bin.holds(masks) for bin in MASKS_PER_IMAGE) == 1
    assert [masks for masks in range(1, 300) if MASKS_PER_IMAGE[2].holds(masks)] == list(range(51, 101))
