"""The settings of evaluations; importing them loads no model."""

from dataclasses import dataclass
from enum import StrEnum


class FirstClick(StrEnum):
    """Where the first click is."""

    CENTER = "center"
    RANDOM = "random"


class SeveralClicks(StrEnum):
    """Which output answers two clicks or more."""

    SINGLE = "single"  # the mask for unambiguous prompts
    THREE = "three"  # of the three the one with the highest predicted IoU


@dataclass(frozen=True)
class PointsSettings:
    """How the model is clicked. `clicks` are the numbers of clicks after which it is measured, ascending from 1 on."""

    clicks: tuple[int, ...] = (1, 2, 3, 5, 9)
    first: FirstClick = FirstClick.CENTER
    several: SeveralClicks = SeveralClicks.SINGLE
    seed: int = 0  # of random first clicks, intervals and tests
