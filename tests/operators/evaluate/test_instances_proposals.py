"""Object proposals: the grid's masks without filters, ranked, against the segment-anything package."""

from itertools import combinations

import numpy as np
import pytest
from pycocotools import mask as coco
from segment_anything import SamAutomaticMaskGenerator, SamPredictor

from segmint.model.automatic.candidates import CandidateMasks, MaskPatch
from segmint.model.automatic.generator import MaskGenerator, RawMasks
from segmint.model.automatic.rle import Funnel
from segmint.model.sam.predictor import Predictor
from segmint.operators.evaluate.instances import LIMITS, proposal_settings, propose_objects, rank


def test_settings_are_the_papers() -> None:
    settings = proposal_settings()
    assert (settings.points_per_side, settings.box_nms_thresh, settings.crop_n_layers) == (64, 0.9, 0)
    assert settings.pred_iou_thresh == settings.stability_score_thresh == 0
    assert LIMITS == (10, 100, 1000)


@pytest.mark.long
def test_proposals_are_the_packages_masks_ranked_by_the_mean_of_both_scores(
    predictor: Predictor, reference: SamPredictor, cup: np.ndarray
) -> None:
    found = propose_objects(MaskGenerator(predictor, proposal_settings(3)), cup)
    theirs = SamAutomaticMaskGenerator(
        reference.model, points_per_side=3, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=0.9,
        output_mode="coco_rle",
    )  # fmt: skip
    theirs.predictor = FixedPredictor(reference)
    expected = theirs.generate(cup)
    scores = sorted(((each["predicted_iou"] + each["stability_score"]) / 2 for each in expected), reverse=True)
    assert [mask.score for mask in found] == pytest.approx(scores, abs=1e-4)
    best = {id(each): (each["predicted_iou"] + each["stability_score"]) / 2 for each in expected}
    ranked = sorted(expected, key=lambda each: -best[id(each)])
    overlaps = coco.iou([mask.rle for mask in found], [each["segmentation"] for each in ranked], [0] * len(ranked))
    assert (np.diag(overlaps) > 0.999).mean() > 0.95  # equal scores may change places
    assert min(best.values()) < 0.8  # masks that the filters would drop
    boxes = [coco.toBbox(mask.rle) for mask in found]
    assert max(coco.iou([a], [b], [0])[0, 0] for a, b in combinations(boxes, 2)) < 0.93


def test_a_thousand_are_kept_and_empty_ones_left_out() -> None:
    count = 1100
    generator = np.random.default_rng(0)
    pixels = np.ones((4, 4), bool)
    patches = [MaskPatch.pack(pixels, (0, 0, 1 + index % 3, 1 + index % 2)) for index in range(count)]
    patches[7] = MaskPatch.pack(~pixels, (0, 0, 0, 0))
    iou = generator.random(count).astype(np.float32)
    stability = generator.random(count).astype(np.float32)
    iou[7], stability[7] = 2, np.nan
    nothing = np.zeros((count, 4), np.int64)
    masks = CandidateMasks(iou, stability, np.zeros((count, 2)), nothing[:, 0], nothing, nothing, tuple(patches))
    found = rank(RawMasks(masks, Funnel(), (6, 8)))
    means = (iou.astype(np.float64) + stability.astype(np.float64)) / 2
    expected = np.sort(np.delete(means, 7))[::-1][:1000]
    assert [mask.score for mask in found] == expected.tolist()
    assert all(coco.area(mask.rle) and mask.rle["size"] == [6, 8] for mask in found)


class FixedPredictor:
    """The package's predictor, which keeps the embedding that it has."""

    def __init__(self, predictor: SamPredictor) -> None:
        self._predictor = predictor

    def __getattr__(self, name: str):
        return getattr(self._predictor, name)

    def set_image(self, image: np.ndarray) -> None:
        assert image.shape[:2] == self._predictor.original_size

    def reset_image(self) -> None:
        pass
