"""Clicks by the paper's protocol, against the segment-anything package's predictor on the same weights."""

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco
from segment_anything import SamPredictor

from segmint.model.sam.predictor import Embedding, Predictor
from segmint.operators.annotations.image import encode_mask
from segmint.operators.evaluate.points import MaskScores, click_masks
from segmint.operators.evaluate.settings import FirstClick, PointsSettings, SeveralClicks

pytestmark = pytest.mark.usefixtures("one_thread")


def iou_of(mask: np.ndarray, truth: np.ndarray) -> float:
    return np.count_nonzero(mask & truth) / np.count_nonzero(mask | truth)


class PhotographScene:
    """A photograph with masks drawn by hand, in our predictor and in the reference's, on MobileSAM's weights."""

    def __init__(self, predictor: Predictor, embedding: Embedding, reference: SamPredictor) -> None:
        self.predictor, self.embedding, self.reference = predictor, embedding, reference
        cup, table, strip = (np.zeros(embedding.frame_size, np.uint8) for _ in range(3))
        cv2.ellipse(cup, (95, 60), (50, 40), 0, 0, 360, 1, -1)
        table[110:, :] = 1
        strip[10:12, 20:180] = 1
        self.masks = [mask.astype(bool) for mask in (cup, table, strip)]

    def click(self, settings: PointsSettings) -> list[MaskScores]:
        masks = [encode_mask(mask) for mask in self.masks]
        return click_masks(self.predictor, self.embedding, masks, range(len(masks)), settings)

    def replay(
        self, scores: MaskScores, truth: np.ndarray, settings: PointsSettings
    ) -> list[tuple[float, float, float]]:
        """IoU, oracle and predicted IoU of the reference after each number of our clicks."""
        found, logits = [], None
        for count in range(1, len(scores.clicks) + 1):
            points = np.array([(click.x, click.y) for click in scores.clicks[:count]])
            labels = np.array([click.label for click in scores.clicks[:count]])
            single, three = (
                self.reference.predict(points, labels, mask_input=logits, multimask_output=multimask)
                for multimask in (False, True)
            )
            masks, predicted, low = three if count == 1 or settings.several is SeveralClicks.THREE else single
            best = int(predicted.argmax())
            logits = low[best : best + 1]
            oracle = max(iou_of(mask, truth) for mask in three[0])
            found.append((iou_of(masks[best], truth), oracle, float(predicted[best])))
        return found


@pytest.fixture(scope="module")
def scene(predictor: Predictor, embedding: Embedding, reference: SamPredictor) -> PhotographScene:
    return PhotographScene(predictor, embedding, reference)


@pytest.mark.parametrize(
    ("first", "several"), [(FirstClick.CENTER, SeveralClicks.SINGLE), (FirstClick.RANDOM, SeveralClicks.THREE)]
)
def test_the_scores_are_those_of_the_reference_predictor(
    scene: PhotographScene, first: FirstClick, several: SeveralClicks
) -> None:
    settings = PointsSettings((1, 2, 3), first, several, seed=3)
    for scores, truth in zip(scene.click(settings), scene.masks, strict=True):
        expected = np.array(scene.replay(scores, truth, settings))
        np.testing.assert_allclose(np.transpose([scores.iou, scores.oracle, scores.predicted]), expected, atol=1e-4)
        assert scores.iou[0] == pytest.approx(iou_of(coco.decode(scores.first).astype(bool), truth))
        assert scores.iou[2] == pytest.approx(iou_of(coco.decode(scores.last).astype(bool), truth))
        assert scores.oracle[0] >= scores.iou[0]


def test_clicks_go_where_the_error_is(scene: PhotographScene) -> None:
    (cup, table, strip) = scene.click(PointsSettings((1, 5)))
    assert cup.clicks[0][1] == 60
    assert abs(cup.clicks[0][0] - 95) <= 1
    assert [len(scores.clicks) for scores in (cup, table, strip)] == [5, 5, 5]
    for scores, truth in zip((cup, table, strip), scene.masks, strict=True):
        assert all(truth[click.y, click.x] == click.label for click in scores.clicks)
    assert cup.iou[1] > cup.iou[0] - 0.05
    assert {click.label for click in strip.clicks} == {0, 1}


def test_a_mask_that_is_met_exactly_gets_no_more_clicks(scene: PhotographScene) -> None:
    answer = coco.decode(scene.click(PointsSettings((1,)))[0].first).astype(bool)
    (scores,) = click_masks(
        scene.predictor, scene.embedding, [encode_mask(answer)], [0], PointsSettings((1, 2, 3), seed=1)
    )
    if len(scores.clicks) == 1:
        assert scores.iou == (1.0, 1.0, 1.0)
    else:
        assert len(scores.clicks) == 3
    assert len(scores.iou) == len(scores.oracle) == len(scores.predicted) == 3
