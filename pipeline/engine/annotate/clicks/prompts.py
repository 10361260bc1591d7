"""Prompts as the page sends them, validated before they reach the model."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from segmint.catalogs.dataset.annotations.run_lengths import canonical_area
from segmint.infra.errors import UsageError

MOST_POINTS = 1000
_HANDLE = 64  # characters


class MaskPart(StrEnum):
    """Choice among the masks of a single prompt."""

    AUTO = "auto"
    WHOLE = "whole"
    PART = "part"
    SUBPART = "subpart"


@dataclass(frozen=True)
class ClickPrompt:
    """Prompt for the model, with coordinates in pixels of the image.

    `points` contains (x, y, label), and `box` is (x, y, width, height). A prompt can correct an earlier result: `mask`
    contains the run lengths of a mask to correct, and `after` is the handle of a prediction to correct.
    """

    points: tuple[tuple[float, float, int], ...] = ()
    box: tuple[float, float, float, float] | None = None
    mask: str | None = None
    after: str | None = None
    part: MaskPart = MaskPart.AUTO

    @property
    def is_several(self) -> bool:
        """True if the prompt contains several points, or combines points and a box."""
        return len(self.points) + (self.box is not None) > 1


def parse_prompt(value: Any, size: tuple[int, int]) -> ClickPrompt:
    """Parse a request body for an image of `size` (height, width). Raises `UsageError` if it is invalid."""
    if not isinstance(value, Mapping) or not isinstance(value.get("prompt"), Mapping):
        raise UsageError("expected {prompt: {points, box, mask, from}, part}")
    said, part = value["prompt"], value.get("part", MaskPart.AUTO)
    unknown = {*said} - {"points", "box", "mask", "from"} | {*value} - {"prompt", "part"}
    if unknown:
        raise UsageError(f"unknown: {', '.join(sorted(map(str, unknown)))[:100]}")
    if not isinstance(part, str) or part not in set(MaskPart):
        raise UsageError(f"part: expected one of {', '.join(MaskPart)}")
    points, box, mask, after = (said.get(name) for name in ("points", "box", "mask", "from"))
    if not isinstance(points or [], list) or len(points or []) > MOST_POINTS:
        raise UsageError(f"points: expected a list of at most {MOST_POINTS} [x, y, label]")
    prompt = ClickPrompt(
        points=tuple(_point(point, size) for point in points or []),
        box=None if box is None else _box(box, size),
        mask=None if mask is None else checked_counts(mask, size),
        after=after,
        part=MaskPart(part),
    )
    if after is not None and not (isinstance(after, str) and len(after) <= _HANDLE):
        raise UsageError("from: expected a handle")
    if not (prompt.points or prompt.box or prompt.mask):
        raise UsageError("expected points, a box, or a mask")
    starts = prompt.box or prompt.mask or after
    if prompt.points and not starts and not any(label for _, _, label in prompt.points):
        raise UsageError("points: only background points given; expected at least one inside the object")
    return prompt


def _numbers(value: Any, count: int) -> list[float]:
    if not isinstance(value, list) or len(value) != count:
        return []
    plain = all(isinstance(each, int | float) and not isinstance(each, bool) for each in value)
    return [float(each) for each in value] if plain and all(map(_is_finite, value)) else []


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _point(value: Any, size: tuple[int, int]) -> tuple[float, float, int]:
    height, width = size
    numbers = _numbers(value, 3)
    if not numbers or numbers[2] not in (0, 1) or not (0 <= numbers[0] <= width and 0 <= numbers[1] <= height):
        raise UsageError(f"points: expected [x, y, 0 or 1] inside the {width} x {height} pixels")
    return numbers[0], numbers[1], int(numbers[2])


def _box(value: Any, size: tuple[int, int]) -> tuple[float, float, float, float]:
    height, width = size
    x, y, w, h = _numbers(value, 4) or [-1.0] * 4
    if not (w > 0 and h > 0 and x >= 0 and y >= 0 and x + w <= width + 1e-6 and y + h <= height + 1e-6):
        raise UsageError(f"box: expected [x, y, w, h] inside the {width} x {height} pixels, with an area")
    return x, y, w, h


def checked_counts(value: Any, size: tuple[int, int]) -> str:
    """Return a mask's run lengths. Raises `UsageError` if they don't fit an image of `size` (height, width)."""
    if not isinstance(value, str):
        raise UsageError("mask: expected run lengths")
    try:
        area = canonical_area(value, size)
    except ValueError as error:
        raise UsageError(f"mask: {error}") from error
    if not area:
        raise UsageError("mask: it has no pixels")
    return value
