"""How good people find a dataset's masks: their ratings from 1 to 10, by what the masks were made by.

SAM paper, section 7.1 and appendix E. Ratings of a mask that is no longer there, or was replaced, are not counted.
Only the last rating of each mask by each rater is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

import numpy as np

from segmint.catalogs.dataset.annotations.ratings import (
    HIGHEST,
    LOWEST,
    Rating,
    counts_digest,
    last_ratings,
    list_ratings,
    read_ratings,
)
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.operators.intervals import Interval
from segmint.operators.resampling import mean_replicates, percentile_interval
from segmint.operators.schemas import SOURCES

_SEED = 0
_AT_ONCE = 2_000  # masks asked for by one query
_WANTED = "SELECT annotation_id, source, segmentation.counts AS counts FROM masks WHERE annotation_id IN "


@dataclass(frozen=True)
class SourceRatings:
    """The ratings of masks of one source: their mean over masks, of each mask over its raters.

    `interval` is of 95 %, by resampling images; None for one image. `scores` counts ratings from 1 to 10.
    """

    source: str
    masks: int
    images: int
    mean: float
    interval: Interval | None
    scores: tuple[int, ...]


@dataclass(frozen=True)
class RaterAgreement:
    """How far raters of the same mask are apart, over masks that two or more rated.

    `deviation` is the mean over masks of the standard deviation of its ratings (n - 1), `within_one` the share of pairs
    of ratings that differ by at most 1.
    """

    masks: int
    deviation: float
    within_one: float


@dataclass(frozen=True)
class Ratings:
    """All ratings of masks that are there.

    `raters` is how many people rated, `seconds` the median of a rating's. `outdated` counts ratings of masks that were
    deleted or replaced since. Names of raters are left out: reports are published.
    """

    sources: tuple[SourceRatings, ...]
    raters: int
    seconds: float | None
    agreement: RaterAgreement | None
    outdated: int
    unreadable: int


class RatedMask(NamedTuple):
    """A mask that is there, and its ratings."""

    image: int
    mask: int
    source: str
    ratings: tuple[Rating, ...]

    @property
    def scores(self) -> list[int]:
        """The ratings' scores."""
        return [rating.score for rating in self.ratings if rating.score is not None]


def measure_ratings(tables: DatasetTables) -> Ratings | None:
    """Read the ratings of a dataset and sum them up; None if there are none."""
    names = last_ratings(list_ratings(tables.location))
    found: list[Rating] = []
    unreadable = 0
    for rating in read_ratings(tables.location, names):
        if isinstance(rating, Rating):
            found += [rating] if rating.score is not None else []
        else:
            unreadable += 1
    if not found and not unreadable:
        return None
    masks = list(_rated_masks(tables, found))
    outdated = len(found) - sum(len(mask.ratings) for mask in masks)
    return summarize(masks, outdated, unreadable)


def summarize(masks: Sequence[RatedMask], outdated: int = 0, unreadable: int = 0) -> Ratings:
    """Sum up rated masks, each of which has one rating or more."""
    known = [source for source in SOURCES if any(mask.source == source for mask in masks)]
    others = sorted({mask.source for mask in masks}.difference(SOURCES))
    sources = [_of_source(source, [each for each in masks if each.source == source]) for source in (*known, *others)]
    given = [rating for mask in masks for rating in mask.ratings]
    seconds = float(np.median([rating.seconds for rating in given])) if given else None
    raters = len({rating.rater for rating in given})
    return Ratings(tuple(sources), raters, seconds, _agreement(masks), outdated, unreadable)


def _rated_masks(tables: DatasetTables, ratings: Sequence[Rating]) -> Iterator[RatedMask]:
    """Yield the masks that are there as they were rated, by number."""
    ordered = sorted(ratings, key=lambda rating: (rating.mask, rating.rater))
    grouped = [(mask, tuple(group)) for mask, group in groupby(ordered, lambda rating: rating.mask)]
    for start in range(0, len(grouped), _AT_ONCE):
        some = grouped[start : start + _AT_ONCE]
        ids = ", ".join(str(mask) for mask, _ in some)
        rows = tables.query(f"{_WANTED} ({ids})").to_pylist()
        there = {row["annotation_id"]: (row["source"], counts_digest(row["counts"])) for row in rows}
        for mask, group in some:
            source, digest = there.get(mask, ("", ""))
            same = tuple(rating for rating in group if rating.counts_sha256 == digest)
            if same:
                yield RatedMask(same[0].image, mask, source, same)


def _of_source(source: str, masks: Sequence[RatedMask]) -> SourceRatings:
    images = sorted({mask.image for mask in masks})
    place = {image: index for index, image in enumerate(images)}
    sums, counts = np.zeros((len(images), 1)), np.zeros(len(images))
    scores = np.zeros(HIGHEST - LOWEST + 1, np.int64)
    for mask in masks:
        sums[place[mask.image]] += np.mean(mask.scores)
        counts[place[mask.image]] += 1
        np.add.at(scores, np.array(mask.scores) - LOWEST, 1)
    interval = percentile_interval(mean_replicates(sums, counts, _SEED))[0] if len(images) > 1 else None
    mean = float(sums.sum() / counts.sum())
    return SourceRatings(source, len(masks), len(images), mean, interval, tuple(scores.tolist()))


def _agreement(masks: Sequence[RatedMask]) -> RaterAgreement | None:
    several = [np.array(mask.scores) for mask in masks if len(mask.scores) > 1]
    if not several:
        return None
    deviation = float(np.mean([scores.std(ddof=1) for scores in several]))
    apart = np.concatenate([np.abs(scores[:, None] - scores)[np.triu_indices(len(scores), 1)] for scores in several])
    return RaterAgreement(len(several), deviation, float((apart <= 1).mean()))
