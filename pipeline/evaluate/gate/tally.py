"""The scores that a gate decides by, summed up by image, apart for independent, assisted and automatic masks."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum

import numpy as np
import pyarrow as pa

from segmint.operators.schemas import AUTOMATIC
from segmint.pipeline.evaluate.points.scores import Floats, ImageScores

ASSISTED = "assisted"
"""The `source` of masks that a person made by prompting a model."""


class Role(StrEnum):
    """What a mask may say about two weights."""

    INDEPENDENT = "independent"  # of people, without help, or of a file that the user takes as truth
    ASSISTED = "assisted"  # favors the model that assisted
    AUTOMATIC = "automatic"  # a model's own


def role_of(source: str | None) -> Role:
    """The role of a mask by its `source`, which is None outside datasets."""
    if source == AUTOMATIC:
        return Role.AUTOMATIC
    return Role.ASSISTED if source == ASSISTED else Role.INDEPENDENT


@dataclass
class Tally:
    """Sums the scores of two weights over each image's masks, as results come."""

    measures: tuple[str, ...]
    _sums: dict[tuple[int, str, Role], Floats] = field(default_factory=dict)
    _counts: dict[tuple[int, str, Role], int] = field(default_factory=dict)

    def add(self, table: pa.Table) -> None:
        """Add rows of an interactive evaluation: a row for each mask and weights."""
        columns = ["truth", "image_id", "source", "weights", *self.measures]
        for truth, image, source, weights, *scores in zip(*(table[name].to_pylist() for name in columns), strict=True):
            key = (truth, image, role_of(source))
            sums = self._sums.setdefault(key, np.zeros((2, len(self.measures))))
            sums[weights] += scores
            self._counts[key] = self._counts.get(key, 0) + (weights == 0)

    def scores(self, roles: Sequence[Role], truth: int | None = None) -> ImageScores:
        """The scores of masks with these roles, of one truth or of all; an image is one unit."""
        keys = [key for key in self._sums if key[2] in roles and truth in (None, key[0])]
        sums = np.array([self._sums[key] for key in keys]).reshape(len(keys), 2, len(self.measures))
        counts = np.array([self._counts[key] for key in keys], np.float64)
        truths = np.array([key[0] for key in keys], np.int64)
        images = tuple(key[1] for key in keys)
        return ImageScores(self.measures, truths, images, (None,) * len(keys), counts, sums).by_image()
