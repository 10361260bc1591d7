"""The scores that a gate decides by, summed up by image, apart for independent, assisted and automatic masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import numpy as np
import pyarrow as pa

from segmint.operators.schemas import AUTOMATIC
from segmint.pipeline.engine.evaluate.gate.lineage import Lineage
from segmint.pipeline.engine.evaluate.points.scores import Floats, ImageScores

ASSISTED = "assisted"
"""The `source` of masks that a person made by prompting a model."""


CORRECTED = "corrected"
"""The `source` of a model's masks that a person changed."""


class Role(StrEnum):
    """What a mask may say about two weights."""

    INDEPENDENT = "independent"  # of people, without help, or of a file that the user takes as truth
    FAVORS_FIRST = "favors_first"  # corrected from an answer of the first weights, or of what they descend from
    ASSISTED = "assisted"  # favors the model that assisted
    AUTOMATIC = "automatic"  # a model's own


def role_of(source: str | None) -> Role:
    """The role of a mask by its `source`, which is None outside datasets."""
    if source == AUTOMATIC:
        return Role.AUTOMATIC
    return Role.ASSISTED if source == ASSISTED else Role.INDEPENDENT


def role_of_corrected(model: str, first: Lineage, second: Lineage) -> Role:
    """The role of a mask that a person corrected, by the SHA-256 of the model that made it.

    An ancestor of both favors the first if the second descends from the first. Else it is not known which of them it is
    nearer to, and the mask is apart, as one that favors the second.
    """
    if model in first.hashes and (first.weights.sha256 in second.hashes or model not in second.hashes):
        return Role.FAVORS_FIRST
    return Role.ASSISTED if model in second.hashes else Role.INDEPENDENT


class TruthRoles(Protocol):
    """What is known of the masks and images of the truths of a run, which are named by their place in it."""

    def role(self, truth: int, mask: int, source: str | None) -> Role:
        """The role of a mask, by its annotation's id."""

    def group(self, truth: int, image: str) -> int | None:
        """The group of images that show the same, by the image's file name; None: it is not known."""


class SourceRoles:
    """Masks have the roles of their sources, and each image is alone."""

    def role(self, truth: int, mask: int, source: str | None) -> Role:
        """The role by the source."""
        return role_of(source)

    def group(self, truth: int, image: str) -> int | None:
        """No group."""
        return None


@dataclass
class ScoreSums:
    """Sums the scores of two weights over each image's masks, as results come."""

    measures: tuple[str, ...]
    judged: TruthRoles = field(default_factory=SourceRoles)
    _sums: dict[tuple[int, str, Role], Floats] = field(default_factory=dict)
    _counts: dict[tuple[int, str, Role], int] = field(default_factory=dict)
    _units: dict[tuple[int, str], tuple[int, str]] = field(default_factory=dict)
    _firsts: dict[int, tuple[int, str]] = field(default_factory=dict)
    corrected_separately: int = 0  # corrected masks that are reported with the assisted ones

    def add(self, table: pa.Table) -> None:
        """Add rows of an interactive evaluation: a row for each mask and weights."""
        columns = ["truth", "image_id", "image", "mask", "source", "weights", *self.measures]
        rows = zip(*(table[name].to_pylist() for name in columns), strict=True)
        for truth, image, name, mask, source, weights, *scores in rows:
            if (truth, image) not in self._units:
                group = self.judged.group(truth, name)
                alone = (truth, image)
                self._units[alone] = alone if group is None else self._firsts.setdefault(group, alone)
            role = self.judged.role(truth, mask, source)
            self.corrected_separately += role is Role.ASSISTED and source == CORRECTED and weights == 0
            key = (truth, image, role)
            sums = self._sums.setdefault(key, np.zeros((2, len(self.measures))))
            sums[weights] += scores
            self._counts[key] = self._counts.get(key, 0) + (weights == 0)

    def scores(self, roles: Sequence[Role], truth: int | None = None) -> ImageScores:
        """The scores of masks with these roles, of one truth or of all; images that show the same are one unit."""
        keys = [key for key in self._sums if key[2] in roles and truth in (None, key[0])]
        sums = np.array([self._sums[key] for key in keys]).reshape(len(keys), 2, len(self.measures))
        counts = np.array([self._counts[key] for key in keys], np.float64)
        units = [self._units[key[:2]] for key in keys]
        truths = np.array([unit[0] for unit in units], np.int64)
        images = tuple(unit[1] for unit in units)
        return ImageScores(self.measures, truths, images, (None,) * len(keys), counts, sums).by_image()
