"""Conversion of a catalog row's prompts to pixels of the released image."""

from collections.abc import Mapping
from typing import Any

import numpy as np

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
    found = []
    for index, prompt in enumerate(entry["prompts"]):
        box, points = prompt["box"], prompt["points"]
        places = list(points or ())
        if box is not None:
            places += [box[:2], [box[0] + box[2], box[1] + box[3]]]
        if not places:
            found.append(dict(prompt))
            continue
        kept = np.clip(places, 0, frame)
        if (np.abs(kept - places) > np.multiply(TOLERANCE, frame)).any() or (box and (kept[-2] >= kept[-1]).any()):
            detail = f"prompts.{index} has {str(places)[:200]}; expected at most {list(frame)}, as the prompts' frame"
            raise RejectedError(Reason.PROMPTS_MISFIT, detail)
        kept = kept * released / frame
        if box is not None:
            box = [*kept[-2].tolist(), *(kept[-1] - kept[-2]).tolist()]
        if points is not None:
            points = kept[: len(points)].tolist()
        found.append({**prompt, "box": box, "points": points})
    return found


def _check_shape(frame: Size, source: Size) -> None:
    text = f"the prompts' frame is {frame[0]:g} x {frame[1]:g}, and the photograph {source[0]:g} x {source[1]:g}"
    if (frame[0] - frame[1]) * (source[0] - source[1]) < 0:
        raise RejectedError(Reason.PROMPTS_MISFIT, f"{text}: the sides are swapped")
    ratio = frame[0] * source[1] / (frame[1] * source[0])
    if max(ratio, 1 / ratio) > 1 + TOLERANCE:
        raise RejectedError(Reason.PROMPTS_MISFIT, f"{text}: the shapes differ by over {TOLERANCE:.0%}")
