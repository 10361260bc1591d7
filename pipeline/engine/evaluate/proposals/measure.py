"""Object proposals as a measure, with a row for each image, set of weights, and kind of category."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import pyarrow as pa

from segmint.model.automatic.generator import MaskGenerator
from segmint.model.sam.predictor import Predictor
from segmint.operators.evaluate.coco_matching import PredictedMask, RecallCounts, TrueMask, recall_counts
from segmint.operators.evaluate.proposals import LIMITS, proposal_settings, propose_objects
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.measure import HEAD, Model, PredictedResult, Predictions
from segmint.pipeline.engine.evaluate.truth import Truth, TruthImage, TruthMask

ALL = "all"

KINDS: Mapping[str, str] = {"r": "rare", "c": "common", "f": "frequent"}
"""Names of the values of `frequency` in LVIS's categories."""


@dataclass(frozen=True)
class ProposalsMeasure:
    """Measure that proposes objects in each image and counts how many true masks the proposals find.

    `frequencies` maps each truth and category id of an LVIS file to a key of `KINDS`. Each kind of category is then
    also counted separately, as if its masks were the only true masks.
    """

    points_per_side: int = 64
    frequencies: Mapping[int, Mapping[int, str]] = field(default_factory=dict)

    name = "proposals"

    @property
    def schema(self) -> pa.Schema:
        """`HEAD`, the weights, the kind, the numbers of proposals and true masks, and the image's average recall.

        `true_masks` and `found` are the flattened arrays of `RecallCounts`.
        """
        return pa.schema(
            [
                *HEAD,
                pa.field("weights", pa.int32(), nullable=False),  # index of the weights in the command, from 0
                pa.field("kind", pa.string(), nullable=False),  # kind of category: all, rare, common, or frequent
                pa.field("proposals", pa.int32(), nullable=False),
                pa.field("true_masks", pa.list_(pa.int64()), nullable=False),
                pa.field("found", pa.list_(pa.int64()), nullable=False),
                *(pa.field(f"ar_{limit}", pa.float64()) for limit in LIMITS),
            ]
        )

    def check(self, truths: Sequence[Truth]) -> None:
        """Accept any truth."""

    def rows(self, models: Sequence[Model], image: TruthImage) -> list[Row]:
        """Propose objects with each model."""
        rows = []
        for weights, model in enumerate(models):
            if isinstance(model, Predictions):
                found = best_first(model.results_for(image))
            else:
                found = propose_objects(_generator(model, self.points_per_side), image.pixels)
            for kind, masks in self._by_kind(image).items():
                rows.append({"weights": weights, "kind": kind, "proposals": len(found), **_counted(masks, found)})
        return rows

    def _by_kind(self, image: TruthImage) -> dict[str, list[TruthMask]]:
        # COCOeval sorts masks by category and then in the file's order. The order breaks ties between equal overlaps.
        masks = sorted(image.masks, key=lambda mask: -1 if mask.category is None else mask.category)
        kinds = {ALL: masks}
        if self.frequencies:
            known = self.frequencies.get(image.truth, {})
            for key, kind in KINDS.items():
                kinds[kind] = [mask for mask in masks if mask.category is not None and known.get(mask.category) == key]
        return kinds


def true_masks(masks: Sequence[TruthMask]) -> list[TrueMask]:
    """Convert masks for matching. A mask's area is taken from its file if the file states it."""
    return [
        TrueMask(mask.rle, mask.area if mask.stated_area is None else mask.stated_area, mask.crowd) for mask in masks
    ]


def counts_of(row: Row) -> RecallCounts:
    """Return the counts of a row."""
    truth = np.array(row["true_masks"], dtype=np.int64)
    return RecallCounts(np.array(row["found"], dtype=np.int64).reshape(len(LIMITS), len(truth), -1), truth)


def best_first(results: Sequence[PredictedResult], most: int = LIMITS[-1]) -> list[PredictedMask]:
    """Return the masks with the highest scores, best first."""
    found = [PredictedMask(each.rle, each.score or 0.0) for each in results]
    return sorted(found, key=lambda mask: -mask.score)[:most]


def _counted(masks: Sequence[TruthMask], found: Sequence[PredictedMask]) -> Row:
    counts = recall_counts(true_masks(masks), found, LIMITS)
    averages = (areas[0] for areas in counts.average_recall())
    return {
        "true_masks": counts.truth.tolist(),
        "found": counts.found.reshape(-1).tolist(),
        **{f"ar_{limit}": average for limit, average in zip(LIMITS, averages, strict=True)},
    }


@lru_cache(maxsize=2)
def _generator(model: Predictor, points_per_side: int) -> MaskGenerator:
    """Return a model's mask generator. Its threads live as long as the process."""
    return MaskGenerator(model, proposal_settings(points_per_side))
