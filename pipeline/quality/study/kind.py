"""The kinds of studies. It imports little, since the command line's help needs it."""

from enum import StrEnum


class Kind(StrEnum):
    """What people look at: the masks, or the faces and plates that nobody redacted."""

    MASKS = "masks"
    PRIVACY = "privacy"


IMAGES = {Kind.MASKS: 500, Kind.PRIVACY: 3000}
"""How many images are drawn unless said: the SAM paper's 500, and enough to bound a share by 0.1 % if none is found."""
