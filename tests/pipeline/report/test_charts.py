"""Which plots there are, and that nothing is drawn of what is not known."""

from dataclasses import asdict

from segmint.pipeline.report.charts import charts_of, ranked


def test_nothing_known_is_nothing_drawn() -> None:
    absent = charts_of({})
    null = charts_of(dict.fromkeys(("masks_per_image", "relative_size", "concavity", "centers", "funnel", "geography")))
    assert absent == null
    assert not any(asdict(absent).values())


def test_countries_are_ranked_and_the_rest_is_one_bar() -> None:
    rows = [{"country": code, "images": images} for code, images in (("DE", 2), ("KE", 5), ("BR", 2), ("US", 1))]
    bars = ranked(rows, "country", "Country", shown=2)
    assert bars is not None
    assert [(bar.label, bar.share, bar.text) for bar in bars.rows] == [
        ("KE", 0.5, "5 (50 %)"),
        ("BR", 0.2, "2 (20 %)"),
        ("2 others", 0.3, "3 (30 %)"),
    ]


def test_images_without_a_license_count_as_unknown() -> None:
    bars = ranked([{"license": None, "images": 3}, {"license": "CC0-1.0", "images": 1}], "license", "License", 15)
    assert bars is not None
    assert [bar.label for bar in bars.rows] == ["unknown", "CC0-1.0"]
    assert ranked([{"license": None, "images": 3}], "license", "License", 15) is None


def test_regions_stand_beside_the_paper_s() -> None:
    rows = [
        {"name": "Africa", "images": 0, "share": 0.0, "masks_per_image": None, "paper_share": 0.028},
        {"name": "Europe", "images": 4, "share": 1.0, "masks_per_image": 12.5, "paper_share": 0.498},
    ]
    regions = charts_of({"geography": {"regions": rows}}).regions
    assert regions is not None
    assert regions.has_paper
    assert [(bar.label, bar.share, bar.paper, bar.more) for bar in regions.rows] == [
        ("Africa", 0.0, 0.028, ""),
        ("Europe", 1.0, 0.498, "12.5"),
    ]


def test_the_funnel_is_a_share_of_what_was_predicted() -> None:
    funnel = charts_of({"funnel": [{"step": "predicted", "masks": 400}, {"step": "written", "masks": 3}]}).funnel
    assert funnel is not None
    assert [(bar.label, bar.text) for bar in funnel.rows] == [("predicted", "400 (100 %)"), ("written", "3 (0.75 %)")]
