"""The price of a curation."""

import pytest

from segmint.pipeline.building.plan_rates import Estimate, price_curation


def test_a_curation_is_priced_by_rows_size_and_sample() -> None:
    bare = price_curation(3_600_000, 16.0, 0, None)
    assert bare.core_hours == pytest.approx(37.0)
    assert "37 core-hours once, for all 3,600,000 rows: 0.037 s per image, recorded on another CPU" in bare.line()
    sampled = price_curation(1000, 100.0, 1, Estimate(2e6, 1e6, 3e6))
    assert sampled.seconds_an_image == pytest.approx(0.112)
    assert "rows, reading 2 GB: 0.11 s per image, and 1 scorer of unknown cost, rec" in sampled.line()
