"""Settings of evaluations; importing them loads no model."""

from dataclasses import dataclass
from enum import StrEnum


class FirstClick(StrEnum):
    """Location of the first click."""

    CENTER = "center"
    RANDOM = "random"


class SeveralClicks(StrEnum):
    """Output that is used for two or more clicks."""

    SINGLE = "single"  # the mask for unambiguous prompts
    THREE = "three"  # the one of the three with the highest predicted IoU


@dataclass(frozen=True)
class PointsSettings:
    """Settings of clicks. `clicks` lists the numbers of clicks after which the model is measured, ascending from 1."""

    clicks: tuple[int, ...] = (1, 2, 3, 5, 9)
    first: FirstClick = FirstClick.CENTER
    several: SeveralClicks = SeveralClicks.SINGLE
    seed: int = 0  # of random first clicks, intervals, and tests
