"""Which image of a dataset a finding is about, by what it says of the place."""

import re
from collections.abc import Callable

from segmint.operators.shards.files import MASKS_PER_IMAGE_LIMIT

_PLACES: tuple[tuple[re.Pattern[str], Callable[[int], int]], ...] = (
    (re.compile(r"^mask (\d{1,18})\b"), lambda number: number // MASKS_PER_IMAGE_LIMIT),
    (re.compile(r"^id (\d{1,18})\b"), lambda number: number),
    (re.compile(r"^sa_(\d{1,18})\."), lambda number: number),
    (re.compile(r"^ordinal (\d{1,18})\b"), lambda number: number + 1),
)


def image_of(where: str) -> int | None:
    """The number of the image that a finding's `where` names: by mask, id, file or ordinal; None where it names none.

    For findings in datasets that segmint wrote: elsewhere the numbers of masks say nothing of their image.
    """
    for pattern, to_image in _PLACES:
        match = pattern.match(where)
        if match is not None:
            return to_image(int(match[1]))
    return None
