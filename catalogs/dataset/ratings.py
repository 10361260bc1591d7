"""Ratings: annotators' scores for single masks, from 1 to 10, each stored as one immutable file.

The scale comes from the SAM paper (section 7.1 and appendices E and G). The file of a rating is
`annotations/ratings/<ordinal>/<annotation id>.<rater>.<n>.json`. `rater` is derived from the person's name, so a person
can't have two first ratings of the same mask. A later rating replaces an earlier one. A rating without a score retracts
the earlier ones.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import Field, model_validator

from segmint.catalogs.dataset.submissions import (
    ANNOTATIONS,
    MOST_MASKS,
    RATINGS,
    Annotator,
    FileNumber,
    ImageNumber,
    SavedRecord,
    parse_saved,
    put_saved,
    read_saved,
)
from segmint.catalogs.frozen import ExactCount, Sha256
from segmint.catalogs.layout import bytes_sha256
from segmint.infra.errors import SegmintError
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location

LOWEST, HIGHEST = 1, 10
"""Ends of the scale: a mask of no object at all, and a mask without a visible error."""

LEAST_AREA = 24 * 24
"""Minimum area in pixels of a mask to rate. Smaller masks are hard to judge (SAM paper, Appendix E)."""

_MOST_BYTES = 4096
_KEY_DIGITS = 12
_READERS = 16
_PATH = re.compile(
    rf"{ANNOTATIONS}/{RATINGS}/(?P<ordinal>0|[1-9]\d{{0,15}})"
    r"/(?P<mask>0|[1-9]\d{0,15})\.(?P<rater>[0-9a-f]{12})\.(?P<n>[1-9]\d{0,8})\.json",
    re.ASCII,
)


class RatingError(SegmintError):
    """A rating can't be used. The message names the rating and gives the reason."""


class RatingName(NamedTuple):
    """Components of a rating's path. Names sort by image, mask, rater, and number."""

    ordinal: int
    mask: int
    rater: str  # `rater_key` of the name
    n: int

    @property
    def path(self) -> str:
        """Path of the rating's file below the dataset."""
        return f"{ANNOTATIONS}/{RATINGS}/{self.ordinal}/{self.mask}.{self.rater}.{self.n}.json"


class Rating(SavedRecord):
    """A person's score for a mask. If `score` is None, the rating retracts an earlier one.

    Create a rating with `from_json`, or from its fields. The latter raises pydantic's `ValidationError` for invalid
    values.
    """

    format: Literal["segmint rating"] = "segmint rating"
    schema_version: Literal[1] = 1
    image: ImageNumber
    mask: ExactCount  # annotation id
    n: FileNumber
    counts_sha256: Sha256  # `counts_digest` of the mask that was shown
    rater: Annotator
    score: Annotated[int, Field(ge=LOWEST, le=HIGHEST)] | None
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]  # of active viewing

    @classmethod
    def from_json(cls, data: bytes, where: str = "the rating") -> Self:
        """Parse a rating's file. Raises `RatingError`, whose message starts with `where`, if it is invalid."""
        return parse_saved(cls, data, lambda wrong: RatingError(f"{where} is not a rating: {wrong}"))

    @property
    def name(self) -> RatingName:
        """Components of the rating's path."""
        return RatingName(self.image - 1, self.mask, rater_key(self.rater), self.n)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mask // MOST_MASKS != self.image:
            raise ValueError(f"mask {self.mask} is not of image {self.image}")
        return self


def rater_key(name: str) -> str:
    """Return the key that identifies a rater in paths: the first twelve digits of the SHA-256 of the name."""
    return bytes_sha256(name.encode())[:_KEY_DIGITS]


def counts_digest(counts: str) -> str:
    """Return the SHA-256 of a mask's compressed run lengths."""
    return bytes_sha256(counts.encode())


def parse_rating_path(path: str) -> RatingName | None:
    """Parse the path of a rating's file below the dataset. Returns None for any other path."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    return RatingName(int(match["ordinal"]), int(match["mask"]), match["rater"], int(match["n"]))


def list_ratings(dataset: Location) -> list[RatingName]:
    """Return the names of all ratings in a dataset, in order. Other files are ignored."""
    folder = f"{ANNOTATIONS}/{RATINGS}"
    names = (parse_rating_path(f"{folder}/{entry.name}") for entry in (dataset / folder).walk())
    return sorted(name for name in names if name is not None)


def last_ratings(names: Iterable[RatingName]) -> list[RatingName]:
    """Return each rater's last rating of each mask, in order."""
    return list({(name.mask, name.rater): name for name in sorted(names)}.values())


def read_rating(dataset: Location, name: RatingName) -> Rating:
    """Read a rating. Raises `RatingError` if its file is missing, can't be read, or contains another rating."""
    file = dataset / name.path
    rating = Rating.from_json(read_saved(file, _MOST_BYTES, RatingError), str(file))
    if rating.name != name:
        raise RatingError(f"{file} identifies itself as {rating.name.path}")
    return rating


def read_ratings(dataset: Location, names: Iterable[RatingName]) -> Iterator[Rating | RatingError]:
    """Yield these ratings in order. If a rating can't be read, the error is yielded in its place."""

    def read(name: RatingName) -> Rating | RatingError:
        try:
            return read_rating(dataset, name)
        except RatingError as error:
            return error

    yield from map_ahead(read, names, _READERS, 2 * _READERS, "ratings")


def put_rating(dataset: Location, rating: Rating) -> bool:
    """Put a rating if its number is free. `put_saved` describes the result and the errors."""
    return put_saved(dataset, rating.name.path, rating.to_json(), rating.name.ordinal, "ratings")
