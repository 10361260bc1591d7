"""Which image and mask the text of a finding names: what `Finding.image` is checked against."""

import re
from collections.abc import Callable

from segmint.operators.rows import MASKS_PER_IMAGE_LIMIT

_PLACES: tuple[tuple[re.Pattern[str], Callable[[int], int]], ...] = (
    (re.compile(r"^mask (\d{1,18})\b"), lambda number: number // MASKS_PER_IMAGE_LIMIT),
    (re.compile(r"^id (\d{1,18})\b"), lambda number: number),
    (re.compile(r"^sa_(\d{1,18})\."), lambda number: number),
    (re.compile(r"^ordinal (\d{1,18})\b"), lambda number: number + 1),
)


def image_of(where: str) -> int | None:
    """The number of the image that a finding's `where` names, in a dataset that segmint wrote; None: it names none."""
    for pattern, to_image in _PLACES:
        match = pattern.match(where)
        if match is not None:
            return to_image(int(match[1]))
    return None


def mask_of(where: str) -> int | None:
    """The annotation id of the mask that a finding's `where` names; None: it names none."""
    match = _PLACES[0][0].match(where)
    return None if match is None else int(match[1])
