"""Prefilled masks: what the model is confident of in the boxes that a detector found, on a real photograph."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from segmint.infra.errors import UsageError
from segmint.model.automatic.candidates import stability_scores
from segmint.model.automatic.rle import Rle, decode, encode
from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.pipeline.engine.annotate.prefill import ObjectFinder, clipped, prefill

CUP = (120.0, 60.0, 450.0, 345.0)
PLATE = (60.0, 40.0, 520.0, 390.0)
TABLE = (10.0, 12.0, 40.0, 30.0)

ANY = replace(MaskSettings.sa1b(), pred_iou_thresh=0.0, stability_score_thresh=0.0, max_mask_area_ratio=0.0)


@dataclass(frozen=True)
class SeenImage:
    """A photograph as the model sees it."""

    predictor: Predictor
    embedding: Embedding

    def single(self, box: tuple[float, ...]) -> tuple[np.ndarray, float, float]:
        """The model's single mask for a box, its predicted IoU and its stability."""
        found = self.predictor.predict(self.embedding, boxes=np.array([box]), multimask=False)
        logits = self.predictor.upscale(found.low_res_logits, self.embedding)[0]
        return (logits[0] > 0).numpy(), float(found.predicted_iou), float(stability_scores(logits, 1.0))


@pytest.fixture(scope="module")
def seen(coffee: np.ndarray, mobile_sam_path: Path, embedded_once: None) -> SeenImage:
    predictor = Predictor(load_sam(mobile_sam_path))
    return SeenImage(predictor, predictor.embed(coffee))


def test_each_mask_is_the_models_for_its_box_and_the_best_is_first(seen: SeenImage) -> None:
    boxes = [CUP, TABLE]
    found = prefill(seen.predictor, seen.embedding, boxes, [], ANY)
    expected = sorted(((box, *seen.single(box)) for box in boxes), key=lambda each: -each[2])
    assert len(found) == 2
    for mask, (box, pixels, iou, stability) in zip(found, expected, strict=True):
        assert np.array_equal(decode(Rle((400, 600), mask.counts)), pixels)
        assert (mask.iou, mask.stability, mask.area) == (iou, stability, int(pixels.sum()))
        assert mask.box == (box[0], box[1], box[2] - box[0], box[3] - box[1])


def test_what_the_model_is_not_confident_of_is_left_out(seen: SeenImage) -> None:
    _, iou, stability = seen.single(CUP)
    pixels, *_ = seen.single(CUP)
    share = float(pixels.mean())
    kept = replace(ANY, pred_iou_thresh=iou - 1e-6, stability_score_thresh=stability, max_mask_area_ratio=share + 1e-6)
    assert len(prefill(seen.predictor, seen.embedding, [CUP], [], kept)) == 1
    for key, value in (
        ("pred_iou_thresh", iou + 1e-6),
        ("stability_score_thresh", stability + 1e-6),
        ("max_mask_area_ratio", share),
    ):
        assert prefill(seen.predictor, seen.embedding, [CUP], [], replace(kept, **{key: value})) == [], key


def test_of_masks_of_one_object_and_of_those_that_are_there_none_is_prefilled_twice(seen: SeenImage) -> None:
    near = tuple(side + 1 for side in CUP)
    ious = {box: seen.single(box)[1] for box in (CUP, near)}
    (found,) = prefill(seen.predictor, seen.embedding, [CUP, near], [], ANY)
    assert found.iou == max(ious.values())
    pixels, *_ = seen.single(CUP)
    there = pixels.copy()
    there[: np.flatnonzero(pixels.any(axis=1))[0] + 40] = False  # a part is missing, IoU over 0.7
    assert 0.7 < (there & pixels).sum() / (there | pixels).sum() < 1
    assert prefill(seen.predictor, seen.embedding, [CUP], [encode(there).counts], ANY) == []
    there[:, : 600 // 2] = False
    assert (there & pixels).sum() / (there | pixels).sum() < 0.7
    assert len(prefill(seen.predictor, seen.embedding, [CUP], [encode(there).counts], ANY)) == 1


def test_boxes_are_cut_at_the_image() -> None:
    boxes = [(-5.0, 10.0, 30.0, 420.0), (600.0, 0.0, 700.0, 10.0), (5.0, 5.0, 5.5, 50.0), (1.0, 2.0, 3.0, 4.0)]
    assert clipped(boxes, (400, 600)) == [(0.0, 10.0, 30.0, 400.0), (1.0, 2.0, 3.0, 4.0)]


class BrightDetector(nn.Module):
    """Finds the box of bright pixels in one BGR image, with the score 0.6, and a fainter one inside it."""

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ys, xs = torch.where(image[0] > 200)
        size = torch.tensor([image.shape[1], image.shape[2]])
        if ys.numel() == 0:
            return torch.zeros((0, 4)), torch.zeros(0, dtype=torch.int64), torch.zeros(0), size
        box = torch.stack([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]).to(torch.float32)
        part = torch.stack([box[0], box[1], box[0] + 5, box[1] + 5])
        return torch.stack([part, box]), torch.ones(2, dtype=torch.int64), torch.tensor([0.55, 0.6]), size


@pytest.mark.usefixtures("processes")
def test_a_detectors_file_finds_objects_and_objects_in_them(tmp_path: Path) -> None:
    path = tmp_path / "objects.pt"
    torch.jit.script(BrightDetector()).save(path)
    image = np.zeros((50, 60, 3), np.uint8)
    image[10:30, 20:45] = 255
    with ObjectFinder(path) as finder:
        assert finder.boxes(image) == [(20, 10, 45, 30), (20, 10, 25, 15)]
        assert finder.boxes(np.zeros_like(image)) == []


@pytest.mark.usefixtures("processes")
def test_a_file_that_is_no_detector_is_refused_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "objects.pt"
    path.write_bytes(b"no module")
    with pytest.raises(UsageError, match=r"^--prefill: .*objects\.pt can't be loaded as TorchScript: "):
        ObjectFinder(path)
    torch.jit.script(nn.Identity()).save(path)
    with pytest.raises(UsageError, match=r"^--prefill: .*objects\.pt failed on a blank image\. Expected a TorchScript"):
        ObjectFinder(path)
