"""Kinds of studies, in a module with few imports because the command line's help needs it."""

from enum import StrEnum


class StudyKind(StrEnum):
    """Kind of a study, named after what people judge: masks, unredacted faces and plates, or models' masks."""

    MASKS = "masks"
    PRIVACY = "privacy"
    RATINGS = "ratings"


IMAGES = {StudyKind.MASKS: 500, StudyKind.PRIVACY: 3000, StudyKind.RATINGS: 500}
"""Default number of images per kind of study, or of true masks for ratings.

500 is as in the SAM paper. For privacy, the number is large enough to bound the miss rate by 0.1% if people find no
misses.
"""
