"""What an export must give back: the masks of each image of the dataset, in order, from a file of NumPy's."""

import sys
from pathlib import Path
from typing import Any

import numpy as np

Masks = np.ndarray[Any, Any]


def load_expected(path: str | Path) -> dict[int, tuple[list[int], Masks]]:
    """Return the ids and the masks (N, height, width) bool of each image, by its id."""
    with np.load(path) as file:
        numbers = sorted(int(name.removeprefix("masks_")) for name in file.files if name.startswith("masks_"))
        return {number: (file[f"ids_{number}"].tolist(), file[f"masks_{number}"]) for number in numbers}


def iou(one: Masks, other: Masks) -> float:
    """Return the intersection over union of two masks; 1 if both are empty."""
    union = int((one | other).sum())
    return 1.0 if union == 0 else int((one & other).sum()) / union


def load_labels(path: str | Path) -> dict[int, str]:
    """Return the category's name of each mask, by its id."""
    with np.load(path) as file:
        numbers = [name.removeprefix("ids_") for name in file.files if name.startswith("ids_")]
        pairs = [zip(file[f"ids_{each}"].tolist(), file[f"labels_{each}"].tolist(), strict=True) for each in numbers]
        return {id: label for each in pairs for id, label in each}


class MaskCounter:
    """Counts masks that were read back, and says at the end whether all were as they should be."""

    def __init__(self, least: float = 1.0) -> None:
        self._least = least
        self._ious: list[float] = []
        self._wrong: list[str] = []

    def compare(self, what: str, got: Masks, wanted: Masks, least: float | None = None) -> None:
        """Compare two masks (height, width) bool, by another bar than the tally's if `least` is given."""
        if got.shape != wanted.shape:
            self._wrong.append(f"{what}: {got.shape} instead of {wanted.shape}")
            return
        self._ious.append(iou(got.astype(bool), wanted))
        if self._ious[-1] < (self._least if least is None else least):
            self._wrong.append(f"{what}: IoU {self._ious[-1]:.4f}")

    def require(self, condition: bool, what: str) -> None:
        """Note that something else is wrong."""
        if not condition:
            self._wrong.append(what)

    def end(self, tool: str, masks: int) -> None:
        """Print the verdict, and end the process: 0 if `masks` masks were compared and nothing was wrong, else 1."""
        self.require(len(self._ious) == masks, f"{len(self._ious)} masks compared, {masks} expected")
        exact = sum(value == 1.0 for value in self._ious)
        lowest = min(self._ious, default=0.0)
        print(f"{tool}: {len(self._ious)} masks, {exact} bit for bit, lowest IoU {lowest:.5f}")
        for line in self._wrong[:20]:
            print(f"  WRONG {line}")
        sys.exit(1 if self._wrong else 0)
