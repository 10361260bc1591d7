"""Second look at a candidate: searches of small crops around it. False detections rarely survive such changes.

Each view of a candidate is a square around its box, resized so that the box has a given size. A network that sees a
real face or plate finds it in most views. It finds most false ones in few, because they depend on exact pixels.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np

from segmint.infra.arrays import Box, Pixels, Size
from segmint.model.detectors.detection import Detection, Kind, iou, resized, turned_back

LOOK_SCORE = 0.05
"""Minimum score of detections in a view."""
_SAME_IOU = 0.3  # minimum IoU at which a detection in a view shows the candidate
SURE_VIEWS = 2
"""Number of views after which a candidate is confirmed early; see `Rule`."""
_WINDOW: dict[Kind, float] = {"face": 2.2, "plate": 2.5}  # side of a view's square, in longer sides of the box

Look = Callable[[Pixels], Sequence[Detection]]
"""Function that searches one view, (H, W, 3) uint8 RGB, at one size. Detections are in pixels of the view."""


Color = Literal["color", "gray", "swapped"]
"""Colors of a view: the image's own, gray, or with red and blue swapped."""


@dataclass(frozen=True)
class View:
    """View of a candidate: the length of its box's longer side in pixels, its colors, and whether it's mirrored."""

    side: int
    color: Color = "color"
    is_mirrored: bool = False


@dataclass(frozen=True)
class Rule:
    """Condition for a candidate: the mean of its scores in `views`, each capped at `cap`, must be at least `mean`.

    If the first `SURE_VIEWS` scores are all at least `sure`, the others aren't needed.
    """

    views: tuple[View, ...]
    mean: float
    cap: float = 1.0
    sure: float = math.inf

    def is_met(self, scores: Iterable[float]) -> bool:
        """Return whether the scores of the views, in order, meet the rule. Reads no more of them than necessary."""
        wanted = self.mean * len(self.views)
        total, lowest = 0.0, math.inf
        for seen, score in enumerate(scores, 1):
            total += min(score, self.cap)
            lowest = min(lowest, score)
            if total >= wanted or (seen >= SURE_VIEWS and lowest >= self.sure):
                return True
            if total + (len(self.views) - seen) * self.cap < wanted:
                return False
        return False


_FACE_SIDES = (64, 40, 28, 50, 34)
_OWN_COLORS = tuple(View(side, "color", is_mirrored) for side in _FACE_SIDES for is_mirrored in (False, True))
_GRAY = tuple(View(side, "gray", is_mirrored) for side in _FACE_SIDES for is_mirrored in (False, True))
_BOTH = tuple(view for pair in zip(_OWN_COLORS, _GRAY, strict=True) for view in pair)
_PLATE = tuple(View(side, color) for side in (100, 150, 220, 300, 380) for color in ("gray", "swapped"))

SMALL_FACE = Rule(_OWN_COLORS, 0.45, sure=0.95)
"""Rule for upright faces whose longer side is at most `LARGE_FACE` of the image's."""
SURE_FACE = Rule(_BOTH, 0.5, sure=0.95)
"""Rule for other faces: a false redaction of a large face does the most harm, and false faces are rarely gray."""
PLATE = Rule(_PLATE, 0.1, cap=0.25)
"""Rule for plates. In changed colors, the network finds real plates in nearly all views, even if with low scores."""
LARGE_FACE = 0.115


def rule_for(candidate: Detection, shape: Size) -> Rule:
    """Return the rule for a candidate in an image of `shape` (h, w)."""
    if candidate.kind == "plate":
        return PLATE
    x0, y0, x1, y1 = candidate.box
    is_large = max(x1 - x0, y1 - y0) > LARGE_FACE * max(shape)
    if is_large or candidate.orientation:
        return SURE_FACE
    return SMALL_FACE


def is_confirmed(look: Look, image: Pixels, candidate: Detection) -> bool:
    """Return whether a second look at a candidate in `image`, (H, W, 3) uint8 RGB, finds it again.

    `look` searches one view. The candidate is in pixels of the upright image.
    """
    rule = rule_for(candidate, (image.shape[0], image.shape[1]))
    return rule.is_met(view_scores(look, image, candidate, rule.views))


def view_of(image: Pixels, candidate: Detection, view: View) -> tuple[Pixels, Box] | None:
    """Cut a view of a candidate from `image`, (H, W, 3) uint8 RGB, and turn it to the candidate's orientation.

    `candidate` is in pixels of `image`. Squares are clipped to the image. Returns the view and the candidate's box in
    its pixels, or None if the square is outside the image.
    """
    turned = np.rot90(image, candidate.orientation // 90)  # a view of the same memory
    size = turned.shape[1], turned.shape[0]
    # Turning `turned` by the rest of a full turn gives `image`.
    x0, y0, x1, y1 = turned_back(candidate, -candidate.orientation % 360, size).box
    longer = max(x1 - x0, y1 - y0)
    half = _WINDOW[candidate.kind] * longer / 2
    center = np.array([x0 + x1, y0 + y1]) / 2
    left, top = np.floor(center - half).clip(0, size).astype(np.int64).tolist()
    right, bottom = np.ceil(center + half).clip(0, size).astype(np.int64).tolist()
    if longer <= 0 or min(right - left, bottom - top) < 2:
        return None
    window = np.ascontiguousarray(turned[top:bottom, left:right])
    shown = resized(window, view.side / longer)
    if view.color == "gray":
        shown = np.asarray(cv2.cvtColor(cv2.cvtColor(shown, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)
    elif view.color == "swapped":
        shown = np.ascontiguousarray(shown[..., ::-1])
    width = shown.shape[1]
    across, down = width / window.shape[1], shown.shape[0] / window.shape[0]
    box = (x0 - left) * across, (y0 - top) * down, (x1 - left) * across, (y1 - top) * down
    if view.is_mirrored:
        shown = np.ascontiguousarray(shown[:, ::-1])
        box = width - box[2], box[1], width - box[0], box[3]
    return shown, box


def view_scores(look: Look, image: Pixels, candidate: Detection, views: Sequence[View]) -> Iterator[float]:
    """Yield the best score of a detection that shows the candidate in each view, or 0 if there is none."""
    for view in views:
        seen = view_of(image, candidate, view)
        best = 0.0
        if seen is not None:
            window, box = seen
            for found in look(window):
                if iou(found.box, box) >= _SAME_IOU:
                    best = max(best, found.score)
        yield best
