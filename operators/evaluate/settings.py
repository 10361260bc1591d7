"""Settings of evaluations; importing them loads no model.

Kinds of truth and selections of a dataset's masks; importing this module loads nothing else.
"""

from dataclasses import dataclass
from enum import StrEnum


class FirstClick(StrEnum):
    """Location of the first click on a mask."""

    CENTER = "center"
    RANDOM = "random"


class SeveralClicks(StrEnum):
    """Output of the model that is used after two or more clicks."""

    SINGLE = "single"  # the mask for unambiguous prompts
    THREE = "three"  # of the three masks, the one with the highest predicted IoU


@dataclass(frozen=True)
class PointsSettings:
    """Settings of clicks. The model is measured after each number of clicks in `clicks`, which ascend from 1."""

    clicks: tuple[int, ...] = (1, 2, 3, 5, 9)
    first: FirstClick = FirstClick.CENTER
    several: SeveralClicks = SeveralClicks.SINGLE
    seed: int = 0  # seed for random first clicks, intervals, and tests


DATASET, COCO, LABEL_MAPS = "dataset", "coco", "label maps"
"""Kinds of truth."""


class TruthSelection(StrEnum):
    """Selection of a dataset's masks as ground truth."""

    HUMAN = "human"
    AUTOMATIC = "automatic"
    ALL = "all"
