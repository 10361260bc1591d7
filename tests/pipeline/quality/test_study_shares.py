"""Shares of pairs over a threshold."""

from collections.abc import Sequence

import pytest

from segmint.operators.intervals import share_interval
from segmint.pipeline.engine.study.score import share_over


@pytest.mark.parametrize(
    ("threshold", "over"),
    [(0.90, 2), (0.75, 4)],  # a mask at the threshold is not over it
)
def test_shares_count_pairs_and_deletions(threshold: float, over: int) -> None:
    ious: Sequence[Sequence[float]] = [[1.0, 0.9, 0.75], [0.95, 0.76], []]
    share = share_over(threshold, ious, deleted=3)
    assert (share.over, share.pairs, share.share, share.of_all) == (over, 5, over / 5, over / 8)
    assert (share.images, share.interval) == (2, None)  # too few images
    many = share_over(threshold, ious * 5, deleted=0)
    by_image = {0.90: [1, 1], 0.75: [2, 2]}[threshold]
    assert many.interval == share_interval(by_image * 5, [3, 2] * 5) is not None
    assert share.paper == {0.90: 0.94, 0.75: 0.97}[threshold]
