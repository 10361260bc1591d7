"""Ratings of a dataset's masks."""

from collections.abc import Mapping

from segmint.catalogs.dataset.ratings import Rating, counts_digest, put_rating
from segmint.infra.storage.location import Location
from segmint.pipeline.quality.statistics.masks import open_tables


def rating_of(mask: int, counts: str, rater: str, score: int | None, n: int = 1, seconds: float = 10.0) -> Rating:
    """A rating of a mask."""
    return Rating(
        image=mask // 10_000,
        mask=mask,
        n=n,
        counts_sha256=counts_digest(counts),
        rater=rater,
        score=score,
        seconds=seconds,
        saved_at="2026-11-22T10:00:00Z",
    )


def counts_by_mask(dataset: Location) -> dict[int, str]:
    """The run lengths of a dataset's masks, by annotation id."""
    with open_tables(dataset) as tables:
        rows = tables.query("SELECT annotation_id, segmentation.counts AS counts FROM masks ORDER BY annotation_id")
    return {row["annotation_id"]: row["counts"] for row in rows.to_pylist()}


def rate(dataset: Location, scores: Mapping[str, list[int]]) -> list[Rating]:
    """Put each rater's scores of the first masks of a dataset, in order of their ids; returns the ratings."""
    masks = list(counts_by_mask(dataset).items())
    ratings = [
        rating_of(mask, counts, rater, score)
        for rater, given in scores.items()
        for (mask, counts), score in zip(masks, given, strict=False)
    ]
    assert all(put_rating(dataset, rating) for rating in ratings)
    return ratings
