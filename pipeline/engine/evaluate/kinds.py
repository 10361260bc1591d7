"""Kinds of truth and selections of a dataset's masks; importing this module loads nothing else."""

from enum import StrEnum

DATASET, COCO, LABEL_MAPS = "dataset", "coco", "label maps"
"""Kinds of truth."""


class TruthSelection(StrEnum):
    """Selection of a dataset's masks as ground truth."""

    HUMAN = "human"
    AUTOMATIC = "automatic"
    ALL = "all"
