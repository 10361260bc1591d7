"""Ratings of a dataset's masks: sums that were worked out by hand, and ratings that no longer count."""

import numpy as np
import pytest

from segmint.catalogs.dataset.ratings import HIGHEST, LOWEST, put_rating
from segmint.pipeline.quality.statistics.masks import open_tables
from segmint.pipeline.quality.statistics.ratings import RatedMask, measure_ratings, summarize
from tests.support.locations import location_of
from tests.support.rated import counts_by_mask, rating_of


def rated(mask: int, source: str, **scores: int) -> RatedMask:
    ratings = tuple(rating_of(mask, "c", name, score, seconds=10.0 * score) for name, score in scores.items())
    return RatedMask(mask // 10_000, mask, source, ratings)


def test_means_are_over_masks_and_of_each_mask_over_its_raters() -> None:
    masks = [
        rated(10_000, "automatic", Ada=8, Bo=6),
        rated(10_001, "automatic", Ada=10),
        rated(20_000, "automatic", Ada=3, Bo=4),
        rated(20_001, "corrected", Bo=9),
    ]
    found = summarize(masks)
    automatic, corrected = found.sources
    assert (automatic.source, automatic.masks, automatic.images) == ("automatic", 3, 2)
    assert automatic.mean == pytest.approx((7 + 10 + 3.5) / 3)
    assert automatic.scores == (0, 0, 1, 1, 0, 1, 0, 1, 0, 1)
    assert automatic.interval is None  # too few images
    assert (corrected.mean, corrected.interval) == (9, None)
    assert (found.raters, found.seconds) == (2, 70)
    assert found.agreement is not None
    assert (found.agreement.masks, found.agreement.pairs) == (2, 2)
    assert found.agreement.deviation == pytest.approx((np.sqrt(2) + np.sqrt(0.5)) / 2)
    assert found.agreement.within_one == 0.5


def test_an_interval_is_of_images_not_of_masks() -> None:
    """Six masks of one image that are alike say no more than one, and with a hundred, the mean is that image's."""
    six, hundred = ([rated(10_000 + index, "automatic", Ada=9) for index in range(count)] for count in (6, 100))
    other = [rated(image * 10_000, "automatic", Ada=1 + image % 10) for image in range(2, 12)]
    (found,) = summarize([*six, *other]).sources
    assert found.mean == pytest.approx((54 + 55) / 16)
    assert found.interval is not None
    assert LOWEST <= found.interval[0] < 5
    assert found.mean < found.interval[1] <= HIGHEST
    (found,) = summarize([*hundred, *other]).sources
    assert (found.mean, found.interval) == (pytest.approx((900 + 55) / 110), None)


def test_only_last_ratings_of_masks_as_they_are_count(dataset: str) -> None:
    location = location_of(dataset)
    (one, counts), (two, other), (three, last), *_ = counts_by_mask(location).items()
    with open_tables(location) as tables:
        assert measure_ratings(tables) is None
        given = [
            rating_of(one, counts, "Ada", 2),
            rating_of(one, counts, "Ada", 8, n=2),
            rating_of(one, counts, "Bo", 6),
            rating_of(two, other, "Ada", 1),
            rating_of(two, other, "Ada", None, n=2),  # taken back
            rating_of(two, "another mask of that number", "Bo", 4),
            rating_of(one // 10_000 * 10_000 + 999, "gone", "Ada", 5),
            rating_of(three, last, "Ada", 9),
        ]
        assert all(put_rating(location, each) for each in given)
        (location / rating_of(three, last, "Bo", 1).name.path).put(b"{}")
        found = measure_ratings(tables)
    assert found is not None
    (automatic,) = found.sources
    assert (automatic.masks, automatic.mean) == (2, 8)
    assert automatic.scores == (0, 0, 0, 0, 0, 1, 0, 1, 1, 0)
    assert (found.outdated, found.unreadable) == (2, 1)
