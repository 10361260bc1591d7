"""LVIS's federated AP (Gupta et al. 2019, arXiv 1908.03195): only some categories were checked in each image.

A prediction counts only if its category is among an image's annotations or its `neg_category_ids`. For categories in
`not_exhaustive_category_ids`, unmatched predictions count as neither right nor wrong. An image has at most `MOST`
predictions over all categories.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segmint.operators.evaluate.coco_matching import AREAS, IOU_THRESHOLDS, ImageMatches, accumulate

MOST = 300
"""Maximum number of predictions per image, over all categories."""


@dataclass
class FederatedPrecision:
    """Precision and recall over categories, collected by `add`; the metrics are those of `LVISEval.summarize`.

    `frequencies` maps category ids to r, c, or f.
    """

    frequencies: Mapping[int, str]
    _categories: list[int] = field(default_factory=list)
    _precision: list[NDArray[np.float64]] = field(default_factory=list)
    _recall: list[NDArray[np.float64]] = field(default_factory=list)

    def add(self, category: int, images: Sequence[ImageMatches]) -> float | None:
        """Add a category by its matches, as for `accumulate`, and return its AP; None without ground truth."""
        found = accumulate(images, (MOST,))
        self._categories.append(category)
        self._precision.append(found["precision"][:, :, 0, :, 0])
        self._recall.append(found["recall"][:, 0, :, 0])
        return _mean(self._precision[-1][:, :, 0])

    def figures(self) -> dict[str, float | None]:
        """Return AP, at 0.5 and 0.75, by size, and by frequency, and average recall; None without ground truth."""
        shape = (len(IOU_THRESHOLDS), 0, len(AREAS), 0)
        precision = np.stack(self._precision, axis=-1) if self._precision else np.zeros(shape)
        recall = np.stack(self._recall, axis=-1) if self._recall else np.zeros((shape[0], *shape[2:]))
        every = precision[:, :, 0]
        found = {"ap": every, "ap50": every[:1], "ap75": every[5:6]}
        found |= {f"ap_{area}": precision[:, :, place] for place, area in enumerate(AREAS) if place}
        for frequency in "rcf":
            chosen = [self.frequencies.get(category) == frequency for category in self._categories]
            found[f"ap_{frequency}"] = every[..., chosen]
        found[f"ar_{MOST}"] = recall[:, 0]
        found |= {f"ar_{area}": recall[:, place] for place, area in enumerate(AREAS) if place}
        return {name: _mean(values) for name, values in found.items()}


def _mean(values: NDArray[np.float64]) -> float | None:
    known = values[values > -1]
    return float(known.mean()) if known.size else None
