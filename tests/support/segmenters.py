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

from segmint import Mask, Reject, StageRow


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


class Saying(Bright):
    """The same masks, which say different things about themselves in turn: nothing, and a score, label, or prompt."""

    name = "saying"
    wants_prompts = True

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow]:
        return [row.with_masks(self.told(row)) for row in rows]

    def told(self, row: StageRow) -> list[Mask]:
        """Return the masks of a row. Labels and texts name the image, so that tests find what is left of it."""
        height, width = row.image.shape[:2]
        origins: list[dict[str, Any]] = [
            {},
            {"score": 0.75, "points": [(1.5, 2.5, 1), (3, 4, 0)]},
            {"label": f"thing in {row['image_id']}", "label_score": 1.5, "box": (0.5, 1, width - 1, height - 1)},
            {"label": f"größte in {row['image_id']}", "label_source": "import", "score": 0.9, "stability": 0.8},
            {"text": f"the light in {row['image_id']}", "stability": 0.5},
        ]
        return [Mask(pixels, **origins[place % len(origins)]) for place, pixels in enumerate(self.regions(row))]


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


class Fussy:
    """A segmenter that rejects images with one kind of prompt, and has a bug with another kind."""

    name = "fussy"
    masks = True
    version = "1"
    wants_prompts = True

    def __init__(self, rejects: str, fails: str) -> None:
        self.rejects, self.fails = rejects, fails

    def __call__(self, rows: Sequence[StageRow]) -> list[StageRow | Reject]:
        return [self.found(row) for row in rows]

    def found(self, row: StageRow) -> StageRow | Reject:
        if any(prompt[self.rejects] is not None for prompt in row["prompts"]):
            return Reject("fussy", f"it has {self.rejects}")
        for prompt in row["prompts"]:
            if prompt[self.fails] is not None:
                raise ValueError(f"no masks for {prompt[self.fails]}")
        return row.with_masks([])
