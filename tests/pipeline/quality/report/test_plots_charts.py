"""Which plots there are, and that nothing is drawn of what is not known."""

from dataclasses import asdict

from segmint.pipeline.quality.report.plots import charts_of, ranked
from segmint.pipeline.quality.statistics.values import FunnelStep, Geography, GroupImages, Histogram
from tests.support.statistics import statistics_of


def test_nothing_known_is_nothing_drawn() -> None:
    assert not any(asdict(charts_of(statistics_of())).values())


def test_countries_are_ranked_and_the_rest_is_one_bar() -> None:
    bars = ranked([("DE", 2), ("KE", 5), ("BR", 2), ("US", 1)], "Country", shown=2)
    assert bars is not None
    assert [(bar.label, bar.share, bar.text) for bar in bars.rows] == [
        ("KE", 0.5, "5 (50%)"),
        ("BR", 0.2, "2 (20%)"),
        ("2 others", 0.3, "3 (30%)"),
    ]


def test_images_without_a_license_count_as_unknown() -> None:
    bars = ranked([(None, 3), ("CC0-1.0", 1)], "License", 15)
    assert bars is not None
    assert [bar.label for bar in bars.rows] == ["unknown", "CC0-1.0"]
    assert ranked([(None, 3)], "License", 15) is None


def test_regions_stand_beside_the_paper_s() -> None:
    rows = (GroupImages("Africa", 0, 0.0, None, 0.028, 0, 0), GroupImages("Europe", 4, 1.0, 12.5, 0.498, 50, 2))
    regions = charts_of(statistics_of(geography=Geography(4, 0, (), rows, ()))).regions
    assert regions is not None
    assert regions.has_paper
    assert [(bar.label, bar.share, bar.paper) for bar in regions.rows] == [
        ("Africa", 0.0, 0.028),
        ("Europe", 1.0, 0.498),
    ]


def test_a_predicted_iou_over_1_counts_as_1() -> None:
    edges = (0.98, 0.99, 1.0000000000000002, 1.01, 1.02)
    (scores,) = charts_of(statistics_of(predicted_iou=Histogram(edges, (1, 4, 2, 1), 1.004))).scores
    assert (scores.edges, scores.shares, scores.mean) == (edges[:3], (1 / 8, 7 / 8), 1)


def test_the_funnel_is_a_share_of_what_was_predicted() -> None:
    funnel = charts_of(statistics_of(funnel=(FunnelStep("predicted", 400), FunnelStep("written", 3)))).funnel
    assert funnel is not None
    assert [(bar.label, bar.text) for bar in funnel.rows] == [("predicted", "400 (100%)"), ("written", "3 (0.75%)")]
