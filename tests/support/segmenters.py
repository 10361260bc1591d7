"""Segmenters for tests, in a module that workers can import."""

import os
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from segmint import Mask, StageRow


class Bright:
    """Masks of the regions of an image that are brighter than a threshold, the largest first.

    If `kills` is a folder, each of its files ends this process once, when it processes the image with that id.
    """

    name = "bright"
    masks = True
    version = "1"

    def __init__(self, threshold: int = 100, largest: int = 20, kills: str = "") -> None:
        self.threshold, self.largest, self.kills = threshold, largest, kills

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        return [row.with_masks([self.mask(pixels) for pixels in self.regions(row)]) for row in rows]

    def mask(self, pixels: NDArray[np.bool_]) -> Mask:
        return Mask(pixels, score=0.75, label="bright", label_score=0.5)

    def regions(self, row: StageRow) -> list[NDArray[np.bool_]]:
        mark = Path(self.kills) / str(row["id"])
        if self.kills and mark.exists():
            mark.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        gray = cv2.cvtColor(row.image, cv2.COLOR_RGB2GRAY)
        count, labels = cv2.connectedComponents((gray > self.threshold).astype(np.uint8))
        sizes = np.bincount(labels.ravel(), minlength=count)[1:]
        return [labels == 1 + place for place in np.argsort(-sizes, kind="stable")[: self.largest]]


class BrightStage:
    """A custom stage with the same name, which does nothing."""

    name = "bright"
    version = "1"

    def __call__(self, rows: Sequence[StageRow]) -> Sequence[StageRow]:
        return rows


class Encoded(Bright):
    """The same masks as run lengths, which aren't canonical, without scores and labels."""

    name = "encoded"

    def mask(self, pixels: NDArray[np.bool_]) -> Mask:
        flat = pixels.ravel(order="F").astype(np.int8)
        borders = np.flatnonzero(np.diff(flat, prepend=0, append=0))
        counts = [int(each) for each in np.diff(borders, prepend=0, append=pixels.size)]
        return Mask({"size": list(pixels.shape), "counts": [0, 0, *counts]})


class Original(Bright):
    """A mask of the whole image, whose text is the size of the original."""

    name = "original"
    wants_original = True

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        found = []
        for row in rows:
            height, width = row.original.shape[:2]
            whole = np.ones(row.image.shape[:2], bool)
            found.append(row.with_masks([Mask(whole, text=f"{width} x {height}")]))
        return found


class LooksForOriginal(Bright):
    """A segmenter that uses the original without asking for it."""

    name = "looks"

    def regions(self, row: StageRow) -> list[NDArray[np.bool_]]:
        return [row.original[..., 0] > 0]


class WithFields(Bright):
    """A segmenter that also declares a column."""

    fields: ClassVar[dict[str, Any]] = {"gray": "double"}


class WithoutMasks:
    """A stage that wants the original, but makes no masks."""

    name = "without"
    wants_original = True

    def __call__(self, rows: Sequence[StageRow]) -> Sequence[StageRow]:
        return rows


class WrongMasks(Bright):
    """A class with a number in place of a truth value."""

    masks = 1  # type: ignore[assignment]


class Faulty:
    """A segmenter that finds the whole image, except for the images in `how`, for which it fails in the given way.

    The keys of `how` are ids as text, or `control` for the control image.
    """

    name = "faulty"
    masks = True
    version = "1"

    def __init__(self, how: Mapping[str, str]) -> None:
        self.how = how

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        return [self.found(row) for row in rows]

    def found(self, row: StageRow) -> StageRow:
        whole = np.ones(row.image.shape[:2], bool)
        how = self.how.get("control" if row["image_id"] == "control" else str(row["id"]))
        if how is None:
            return row.with_masks([Mask(whole)])
        if how == "raise":
            raise ValueError(f"no masks for image {row['id']}")
        if how == "hang":
            time.sleep(600)
        if how == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "forget":
            return row
        return row.with_masks(invalid_masks(whole)[how])


def invalid_masks(whole: NDArray[np.bool_]) -> dict[str, list[Any]]:
    """Lists of masks that can't be stored, by what is wrong with them."""
    height, width = whole.shape
    return {
        "size": [Mask(np.ones((height, width + 1), bool))],
        "type": [Mask(np.ones((height, width), np.uint8))],  # type: ignore[arg-type]
        "no_mask": [whole],
        "nan": [Mask(whole, score=float("nan"))],
        "sum": [Mask({"size": [height, width], "counts": [0, height * width - 1]})],
        "many": [Mask(whole)] * 10_001,
    }
