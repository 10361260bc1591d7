"""The sample of masks to rate: as many of each source, the same for the same seed, another order for each rater."""

from pathlib import Path

import pytest

from segmint.catalogs.dataset.ratings import LEAST_AREA
from segmint.infra.errors import UsageError
from segmint.pipeline.engine.annotate.rating import SampleOptions, draw_sample, order_for, quotas
from segmint.pipeline.quality.statistics.masks import open_tables
from tests.support.locations import location_of


@pytest.mark.parametrize(
    ("counts", "wanted", "expected"),
    [
        ({"automatic": 1000, "manual": 1000}, 200, {"automatic": 100, "manual": 100}),
        ({"automatic": 1000, "manual": 7, "corrected": 60}, 200, {"manual": 7, "corrected": 60, "automatic": 133}),
        ({"automatic": 3}, 200, {"automatic": 3}),
        ({"automatic": 10, "assisted": 10, "manual": 10}, 2, {"assisted": 0, "automatic": 1, "manual": 1}),
        ({"automatic": 10, "assisted": 10, "manual": 10}, 31, {"automatic": 10, "assisted": 10, "manual": 10}),
    ],
)
def test_each_source_has_its_share_and_what_one_lacks_others_get(
    counts: dict[str, int], wanted: int, expected: dict[str, int]
) -> None:
    assert quotas(counts, wanted) == expected
    assert sum(expected.values()) == min(wanted, sum(counts.values()))


def test_a_sample_follows_from_its_seed_and_has_no_tiny_masks(dataset: Path) -> None:
    with open_tables(location_of(dataset)) as tables:
        rows = tables.query(f"SELECT annotation_id AS mask, id FROM masks WHERE area >= {LEAST_AREA}").to_pylist()
        drawn = draw_sample(tables, SampleOptions(masks=10))
        assert draw_sample(tables, SampleOptions(masks=10)) == drawn
        assert draw_sample(tables, SampleOptions(masks=10, seed=1)) != drawn
        everything = draw_sample(tables, SampleOptions(masks=10**6))
        some = draw_sample(tables, SampleOptions(masks=10**6, select="id <= 2"))
        with pytest.raises(UsageError, match=r"^no masks to rate: none with 576 pixels or more match --select$"):
            draw_sample(tables, SampleOptions(select="id > 1000"))
        with pytest.raises(UsageError, match=r"^--masks 0: expected 1 or more$"):
            draw_sample(tables, SampleOptions(masks=0))
    assert len(drawn) == 10
    assert {each.mask for each in everything} == {row["mask"] for row in rows}
    assert all(each.image == each.mask // 10_000 for each in everything)
    assert {each.image for each in some} == {1, 2}
    ann, bo = (order_for(drawn, name, 0) for name in ("ann", "bo"))
    assert sorted(ann) == sorted(bo) == drawn
    assert ann != bo
    assert ann == order_for(drawn, "ann", 0)
