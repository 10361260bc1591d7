"""Conversion of a catalog row's prompts to pixels of the released image."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmint.catalogs.reasons import Reason, RejectedError

TOLERANCE = 0.01
"""Share by which a frame's shape may differ from the photograph's, and prompts may extend beyond a side."""

Size = tuple[float, float]  # (width, height)


def released_prompts(entry: Mapping[str, Any], source: Size, released: Size) -> list[dict[str, Any]]:
    """Return prompts in pixels of the released image, cut at its border.

    `entry` is a value of `PROMPTS`. `source` and `released` are the sizes of the upright photograph and of the released
    image. Raises `RejectedError` (`prompts_misfit`) if the frame's sides are swapped, if its shape differs by more than
    `TOLERANCE`, or if a prompt is outside. A frame of 1 x 1 has no shape.
    """
    frame = entry["width"], entry["height"]
    if frame != (1, 1):
        _check_shape(frame, source)
    scale = np.divide(released, frame)
    found = []
    for index, prompt in enumerate(entry["prompts"]):
        box, points = prompt["box"], prompt["points"]
        if box is not None:
            x, y, width, height = box
            first, last = _inside([[x, y], [x + width, y + height]], frame, f"prompts.{index}.box")
            box = [*(first * scale).tolist(), *((last - first) * scale).tolist()]
        if points is not None:
            points = (_inside(points, frame, f"prompts.{index}.points") * scale).tolist()
        found.append({**prompt, "box": box, "points": points})
    return found


def _check_shape(frame: Size, source: Size) -> None:
    text = f"the prompts' frame is {frame[0]:g} x {frame[1]:g}, and the photograph {source[0]:g} x {source[1]:g}"
    if (frame[0] - frame[1]) * (source[0] - source[1]) < 0:
        raise RejectedError(Reason.PROMPTS_MISFIT, f"{text}: the sides are swapped")
    ratio = frame[0] * source[1] / (frame[1] * source[0])
    if max(ratio, 1 / ratio) > 1 + TOLERANCE:
        raise RejectedError(Reason.PROMPTS_MISFIT, f"{text}: the shapes differ by over {TOLERANCE:.0%}")


def _inside(points: list[list[float]], frame: Size, what: str) -> NDArray[np.float64]:
    """Return points (N, 2) inside a frame. Raise `RejectedError` if one is too far outside, or if a box is empty."""
    there = np.array(points)
    kept = there.clip(0, frame)
    is_empty = what.endswith("box") and (kept[0] >= kept[1]).any()
    if is_empty or (np.abs(there - kept) > TOLERANCE * np.array(frame)).any():
        places = " to ".join(f"({x:g}, {y:g})" for x, y in points)
        detail = f"{what} is at {places}; expected at most ({frame[0]:g}, {frame[1]:g}), as the prompts' frame"
        raise RejectedError(Reason.PROMPTS_MISFIT, detail)
    return kept
