"""One crop, step by step: chunks are padded, and what is faster finds the same masks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segmint.model.automatic.candidates import CandidateMasks, nms
from segmint.model.automatic.crops import Crop, crop_points
from segmint.model.automatic.proposals import (
    BoxedUpscaling,
    Proposals,
    Upscaling,
    chunks_of,
    measure,
    propose,
    suppress_and_draw,
)
from segmint.model.automatic.rle import Funnel
from segmint.model.automatic.settings import MaskSettings, point_grid
from segmint.model.automatic.tiled_upscaling import TiledUpscaling, upscaling_of
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Embedding, Predictor
from tests.support.whole_masks import WholeUpscaling, full

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
    points = crop_points(CROP, point_grid(3))[:5]
    alone = MaskSettings.sa1b(points_per_chunk=4, pred_iou_thresh=0)

    first, last = proposed(predictor, embedding, points, alone)

    assert [len(first[0].points), first[1]] == [12, 12]
    assert [len(last[0].points), last[1]] == [3, 3]
    assert last[0].points.tolist() == [points[4].tolist()] * 3
    assert last[0].low_res_logits.shape == (3, 256, 256)


def test_proposals_are_what_the_plain_decoder_predicts(predictor: Predictor, embedding: Embedding) -> None:
    points = crop_points(CROP, point_grid(3))
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
    assert np.array_equal(np.concatenate([chunk.outputs for chunk in chunks]), np.nonzero(over)[1])


def found_by(upscaling: Upscaling, proposals: Proposals, settings: MaskSettings) -> tuple[CandidateMasks, Funnel]:
    measured, funnel = measure(upscaling, proposals, CROP, FRAME, settings)
    return suppress_and_draw(upscaling, [measured], CROP, settings.box_nms_thresh, torch.device("cpu")), funnel


def test_masks_upscaled_in_boxes_or_by_tiles_are_those_of_whole_masks(
    predictor: Predictor, embedding: Embedding
) -> None:
    settings = MaskSettings.sa1b(points_per_chunk=9, pred_iou_thresh=0.5, stability_score_thresh=0.7, box_nms_thresh=1)
    ((proposals, _),) = proposed(predictor, embedding, crop_points(CROP, point_grid(3)), settings)

    whole, funnel = found_by(WholeUpscaling(predictor, embedding), proposals, settings)
    for upscaling in (BoxedUpscaling(embedding, SAM1), TiledUpscaling(embedding, SAM1)):
        found, again = found_by(upscaling, proposals, settings)

        assert 1 < len(whole) == funnel.inside_crop
        assert funnel == again
        assert whole.boxes.tolist() == found.boxes.tolist() == [list(patch.box) for patch in found.patches]
        assert whole.stability.tolist() == found.stability.tolist()
        assert whole.predicted_iou.tolist() == found.predicted_iou.tolist()
        assert whole.points.tolist() == found.points.tolist()
        assert whole.outputs.tolist() == found.outputs.tolist()
        for one, other in zip(whole.patches, found.patches, strict=True):
            assert np.array_equal(full(one, FRAME), full(other, FRAME))


def test_chunks_are_suppressed_together_and_only_what_is_left_is_drawn(
    predictor: Predictor, embedding: Embedding
) -> None:
    settings = MaskSettings.sa1b(points_per_chunk=3, pred_iou_thresh=0.5, stability_score_thresh=0.7)
    upscaling = TiledUpscaling(embedding, SAM1)
    chunks = proposed(predictor, embedding, crop_points(CROP, point_grid(3)), settings)
    parts = [measure(upscaling, proposals, CROP, FRAME, settings)[0] for proposals, _ in chunks]
    boxes = np.concatenate([part.boxes for part in parts])
    keep = nms(boxes, np.concatenate([part.predicted_iou for part in parts]), 0.7)
    drawn: list[int] = []

    class CountingTorch:
        def draw(self, sketches: list) -> list:
            drawn.append(len(sketches))
            return upscaling.draw(sketches)

    found = suppress_and_draw(CountingTorch(), parts, CROP, 0.7, torch.device("cpu"))

    assert drawn == [len(keep)] == [len(found)]
    assert 1 < len(keep) < len(boxes)
    assert found.boxes.tolist() == boxes[keep].tolist()
    assert (found.crop_boxes == np.array(CROP.box)).all()
    assert len(suppress_and_draw(upscaling, [], CROP, 0.7, torch.device("cpu"))) == 0


def test_masks_lie_in_the_frame_inside_their_crop(predictor: Predictor, embedding: Embedding) -> None:
    settings = MaskSettings.sa1b(points_per_chunk=9, pred_iou_thresh=0.5, stability_score_thresh=0.7)
    ((proposals, _),) = proposed(predictor, embedding, crop_points(CROP, point_grid(3)), settings)

    found, _ = found_by(upscaling_of(predictor, embedding), proposals, settings)

    x0, y0, x1, y1 = CROP.box
    plain = predictor.predict(embedding, (found.points - CROP.box[:2])[:, None], np.ones((len(found), 1)))
    drawn = (predictor.upscale(plain.low_res_logits, embedding) > 0).numpy()
    assert len(set(found.outputs.tolist())) > 1
    for index, (patch, box, point) in enumerate(zip(found.patches, found.boxes, found.points, strict=True)):
        mask = full(patch, FRAME)
        assert (mask[y0:y1, x0:x1] != drawn[index, found.outputs[index]]).mean() < 1e-3
        outside = mask.copy()
        outside[y0:y1, x0:x1] = False
        assert not outside.any()
        ys, xs = np.nonzero(mask)
        assert box.tolist() == [xs.min(), ys.min(), xs.max(), ys.max()]
        assert x0 < point[0] < x1
        assert y0 < point[1] < y1
