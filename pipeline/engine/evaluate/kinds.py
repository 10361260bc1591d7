"""Kinds of truth, and which masks of a dataset are taken; importing them loads nothing."""

from enum import StrEnum

DATASET, COCO, LABEL_MAPS = "dataset", "coco", "label maps"
"""The kinds of truth."""


class TruthSelection(StrEnum):
    """Which masks of a dataset are the truth."""

    HUMAN = "human"
    AUTOMATIC = "automatic"
    ALL = "all"
