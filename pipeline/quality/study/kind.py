"""Kinds of studies, in a module with few imports because the command line's help needs it."""

from enum import StrEnum


class StudyKind(StrEnum):
    """Subject of a study: masks, unredacted faces and plates, or people's ratings of models' masks."""

    MASKS = "masks"
    PRIVACY = "privacy"
    RATINGS = "ratings"


IMAGES = {StudyKind.MASKS: 500, StudyKind.PRIVACY: 3000, StudyKind.RATINGS: 500}
"""Default number of images: 500 as in the SAM paper, and enough to bound the miss rate by 0.1 % if no misses are found.

For ratings, it is the number of true masks."""
