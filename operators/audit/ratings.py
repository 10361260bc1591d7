"""Audits ratings of single masks: that they can be read, and are of masks that the dataset has or had."""

from collections.abc import Collection, Iterator, Sequence

from segmint.catalogs.dataset.annotations.answers import MOST_MASKS
from segmint.catalogs.dataset.annotations.ratings import (
    Rating,
    RatingName,
    counts_digest,
    list_ratings,
    read_ratings,
)
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.findings import Code, Finding, Place

_AT_ONCE = 2_000  # ratings whose masks are asked for by one query


def audit_ratings(tables: DatasetTables, taken: Collection[int]) -> Iterator[Finding]:
    """Findings in `annotations/ratings/`: files that are no ratings, and ratings of what was never a mask.

    A mask that was rated may be replaced or deleted later: its number is under the image's `next_mask`. `taken` are
    ordinals of images that were taken down: `audit_answers` finds what is left of them.
    """
    names = [name for name in list_ratings(tables.location) if name.ordinal not in taken]
    for start in range(0, len(names), _AT_ONCE):
        some = names[start : start + _AT_ONCE]
        numbers, counts = _masks_of(tables, sorted({name.ordinal + 1 for name in some}))
        for name, rating in zip(some, read_ratings(tables.location, some), strict=True):
            if not isinstance(rating, Rating):
                yield _finding(name, "a rating", str(rating).removeprefix(f"{tables.location}/"))
            elif rating.image not in numbers:
                yield _finding(name, "an image of the dataset", f"id {rating.image}")
            elif name.mask not in counts and name.mask % MOST_MASKS >= numbers[rating.image]:
                yield _finding(name, "a mask of the dataset", f"mask {name.mask}")
            elif name.mask in counts and rating.counts_sha256 != counts_digest(counts[name.mask]):
                yield _finding(name, f"a rating of mask {name.mask} as it is", "one of other run lengths")


def _masks_of(tables: DatasetTables, images: Sequence[int]) -> tuple[dict[int, int], dict[int, str]]:
    """Return the number of the next mask by image, and the run lengths by annotation id, of these images."""
    among = ", ".join(str(image) for image in images)
    rows = tables.query(f"SELECT id, next_mask AS next FROM images WHERE id IN ({among})").to_pylist()
    masks = tables.query(
        f"SELECT annotation_id AS mask, segmentation.counts AS counts FROM masks WHERE id IN ({among})"
    ).to_pylist()
    return {row["id"]: row["next"] for row in rows}, {row["mask"]: row["counts"] for row in masks}


def _finding(name: RatingName, expected: str, found: str) -> Finding:
    place = Place(name.path, image=name.ordinal + 1)
    return place.finding(Code.BAD_RATING, expected, found, f"mask {name.mask}", mask=name.mask)
