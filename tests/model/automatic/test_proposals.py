"""One crop, step by step: chunks are padded, and what is faster finds the same masks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from model.automatic.crops import Crop, crop_points
from model.automatic.proposals import Proposals, chunks_of, measure, propose
from model.automatic.settings import MaskSettings
from model.automatic.upscaling import BoxedUpscaling, WholeUpscaling, upscaling_of
from model.sam.load import load_sam
from model.sam.predictor import Embedding, Predictor

CROP = Crop(1, (40, 20, 240, 170))
FRAME = (200, 300)


@pytest.fixture(scope="module")
def predictor(mobile_sam_path: Path) -> Predictor:
    return Predictor(load_sam(mobile_sam_path))


@pytest.fixture(scope="module")
def embedding(predictor: Predictor, coffee: np.ndarray) -> Embedding:
    # The pixels have twice the frame's resolution, as a crop of an original has.
    return predictor.embed(np.ascontiguousarray(coffee[40:340, 80:480]), frame_size=CROP.size)


def proposed(
    predictor: Predictor, embedding: Embedding, points: np.ndarray, settings: MaskSettings
) -> list[tuple[Proposals, int]]:
    plan = predictor.plan_points(embedding)
    return [
        propose(predictor, embedding, plan, chunk, settings) for chunk in chunks_of(points, settings.points_per_chunk)
    ]


def test_every_chunk_decodes_the_same_number_of_prompts(predictor: Predictor, embedding: Embedding) -> None:
    points = crop_points(CROP, 3)[:5]
    alone = MaskSettings.sa1b(points_per_chunk=4, pred_iou_thresh=0)

    first, last = proposed(predictor, embedding, points, alone)

    assert [len(first[0].points), first[1]] == [12, 12]
    assert [len(last[0].points), last[1]] == [3, 3]
    assert last[0].points.tolist() == [points[4].tolist()] * 3
    assert last[0].low_res_logits.shape == (3, 256, 256)


def test_proposals_are_what_the_plain_decoder_predicts(predictor: Predictor, embedding: Embedding) -> None:
    points = crop_points(CROP, 3)
    settings = MaskSettings.sa1b(points_per_chunk=2, pred_iou_thresh=0.88)
    plain = predictor.predict(embedding, points[:, None], np.ones((9, 1)))
    over = (plain.predicted_iou > 0.88).numpy()

    chunks = [proposals for proposals, _ in proposed(predictor, embedding, points, settings)]

    assert 5 < over.sum() < 25
    logits = torch.cat([chunk.low_res_logits for chunk in chunks])
    ious = torch.cat([chunk.predicted_iou for chunk in chunks])
    torch.testing.assert_close(logits, plain.low_res_logits[over], atol=1e-3, rtol=0)
    torch.testing.assert_close(ious, plain.predicted_iou[over], atol=1e-5, rtol=0)
    assert np.array_equal(np.concatenate([chunk.points for chunk in chunks]), points[np.nonzero(over)[0]])


def test_masks_upscaled_in_boxes_are_those_of_whole_masks(predictor: Predictor, embedding: Embedding) -> None:
    settings = MaskSettings.sa1b(points_per_chunk=9, pred_iou_thresh=0.5, stability_score_thresh=0.7)
    ((proposals, _),) = proposed(predictor, embedding, crop_points(CROP, 3), settings)

    whole, funnel = measure(WholeUpscaling(predictor, embedding), proposals, CROP, FRAME, settings)
    boxed, again = measure(BoxedUpscaling(embedding, 1024), proposals, CROP, FRAME, settings)

    assert len(whole) > 1
    assert funnel == again
    assert whole.boxes.tolist() == boxed.boxes.tolist()
    assert whole.stability.tolist() == boxed.stability.tolist()
    assert whole.points.tolist() == boxed.points.tolist()
    for one, other in zip(whole.patches, boxed.patches, strict=True):
        assert np.array_equal(one.full(FRAME), other.full(FRAME))


def test_masks_lie_in_the_frame_inside_their_crop(predictor: Predictor, embedding: Embedding) -> None:
    settings = MaskSettings.sa1b(points_per_chunk=4, pred_iou_thresh=0.5, stability_score_thresh=0.7)
    ((proposals, _),) = proposed(predictor, embedding, crop_points(CROP, 2), settings)

    found, _ = measure(upscaling_of(predictor, embedding), proposals, CROP, FRAME, settings)

    x0, y0, x1, y1 = CROP.box
    for patch, box, point in zip(found.patches, found.boxes, found.points, strict=True):
        mask = patch.full(FRAME)
        outside = mask.copy()
        outside[y0:y1, x0:x1] = False
        assert not outside.any()
        ys, xs = np.nonzero(mask)
        assert box.tolist() == [xs.min(), ys.min(), xs.max(), ys.max()]
        assert x0 < point[0] < x1
        assert y0 < point[1] < y1
