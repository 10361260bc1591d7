"""The kinds of studies. It imports little, since the command line's help needs it."""

from enum import StrEnum


class StudyKind(StrEnum):
    """What people look at: the masks, or the faces and plates that nobody redacted."""

    MASKS = "masks"
    PRIVACY = "privacy"


IMAGES = {StudyKind.MASKS: 500, StudyKind.PRIVACY: 3000}
"""How many images are drawn unless said: the SAM paper's 500, and enough to bound a share by 0.1 % if none is found."""
