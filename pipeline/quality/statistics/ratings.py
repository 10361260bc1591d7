"""Human ratings of a dataset's masks from 1 to 10, summarized by mask source (SAM paper, section 7.1, appendix E).

If a rater rated a mask several times, only the last rating counts. Ratings of masks that were later deleted or replaced
don't count.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
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
from segmint.operators.intervals import Interval, mean_intervals
from segmint.operators.schemas import SOURCES

_AT_ONCE = 2_000  # masks per query
_WANTED = "SELECT annotation_id, source, segmentation.counts AS counts FROM masks WHERE annotation_id IN "


@dataclass(frozen=True)
class SourceRatings:
    """Ratings of masks from one source.

    `mean` averages each mask's ratings over its raters, and then averages over masks. `interval` is the mean's 95%
    interval by image, or None if there are too few images. `scores` counts the ratings for each score from 1 to 10.
    """

    source: str
    masks: int
    images: int
    mean: float
    interval: Interval | None
    scores: tuple[int, ...]


@dataclass(frozen=True)
class RaterAgreement:
    """Agreement of raters on masks that at least two people rated.

    `deviation` is the standard deviation (n - 1) of a mask's ratings, averaged over masks. `pairs` counts the pairs of
    ratings of the same mask, and `within_one` is the share of pairs that differ by at most 1.
    """

    masks: int
    pairs: int
    deviation: float
    within_one: float


@dataclass(frozen=True)
class Ratings:
    """Summary of all ratings of current masks.

    `raters` is the number of raters, and `seconds` is the median time per rating. `outdated` counts ratings of masks
    that have since been deleted or replaced. The summary doesn't contain raters' names, because reports are published.
    """

    sources: tuple[SourceRatings, ...]
    raters: int
    seconds: float | None
    agreement: RaterAgreement | None
    outdated: int
    unreadable: int


class RatedMask(NamedTuple):
    """Mask that still exists, with its ratings."""

    image: int
    mask: int
    source: str
    ratings: tuple[Rating, ...]

    @property
    def scores(self) -> list[int]:
        """Scores of the ratings."""
        return [rating.score for rating in self.ratings if rating.score is not None]


def measure_ratings(tables: DatasetTables) -> Ratings | None:
    """Read and summarize a dataset's ratings. Return None if there are no ratings."""
    names = last_ratings(list_ratings(tables.location))
    found: list[Rating] = []
    unreadable = 0
    for rating in read_ratings(tables.location, names):
        if isinstance(rating, Rating):
            if rating.score is not None:
                found.append(rating)
        else:
            unreadable += 1
    if not found and not unreadable:
        return None
    masks = list(_rated_masks(tables, found))
    outdated = len(found) - sum(len(mask.ratings) for mask in masks)
    return summarize(masks, outdated, unreadable)


def summarize(masks: Sequence[RatedMask], outdated: int = 0, unreadable: int = 0) -> Ratings:
    """Summarize the ratings of masks. Each mask needs at least one rating."""
    by_source: dict[str, list[RatedMask]] = {}
    times, raters = [], set()
    for mask in masks:
        by_source.setdefault(mask.source, []).append(mask)
        for rating in mask.ratings:
            times.append(rating.seconds)
            raters.add(rating.rater)
    seconds = None
    if times:
        seconds = float(np.median(times))
    sources = []
    for source in (*SOURCES, *sorted(by_source.keys() - SOURCES)):
        if source in by_source:
            sources.append(_of_source(source, by_source[source]))
    return Ratings(tuple(sources), len(raters), seconds, _agreement(masks), outdated, unreadable)


def _rated_masks(tables: DatasetTables, ratings: Sequence[Rating]) -> Iterator[RatedMask]:
    """Yield the masks that haven't changed since they were rated, by id."""
    grouped: dict[int, list[Rating]] = {}
    for rating in sorted(ratings, key=lambda rating: (rating.mask, rating.rater)):
        grouped.setdefault(rating.mask, []).append(rating)
    masks = list(grouped)
    for start in range(0, len(masks), _AT_ONCE):
        some = masks[start : start + _AT_ONCE]
        rows = tables.query(f"{_WANTED} ({', '.join(map(str, some))})").to_pylist()
        there = {row["annotation_id"]: (row["source"], counts_digest(row["counts"])) for row in rows}
        for mask in some:
            source, digest = there.get(mask, ("", ""))
            same = tuple(rating for rating in grouped[mask] if rating.counts_sha256 == digest)
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
    mean = float(sums.sum() / counts.sum())
    return SourceRatings(
        source,
        len(masks),
        len(images),
        mean,
        mean_intervals(sums, counts, limits=(LOWEST, HIGHEST))[0],
        tuple(scores.tolist()),
    )


def _agreement(masks: Sequence[RatedMask]) -> RaterAgreement | None:
    several = [np.array(mask.scores) for mask in masks if len(mask.scores) > 1]
    if not several:
        return None
    deviation = float(np.mean([scores.std(ddof=1) for scores in several]))
    apart = np.concatenate([np.abs(scores[:, None] - scores)[np.triu_indices(len(scores), 1)] for scores in several])
    return RaterAgreement(len(several), len(apart), deviation, float((apart <= 1).mean()))
