from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor

from benchmarks.masks.reference import reference_sam
from segmint.model.sam.load import build_sam, load_sam
from segmint.model.sam.predictor import Embedding, Predictor
from tests.support.stripes import stripes
from tests.support.tiny_vit import tiny_sam


@dataclass(frozen=True)
class PredictorPair:
    """One image in our predictor and in the reference's, on the same random weights of a small encoder."""

    image: np.ndarray
    ours: Predictor
    embedding: Embedding
    theirs: SamPredictor


@pytest.fixture(scope="module")
def pair(coffee: np.ndarray) -> PredictorPair:
    image = coffee[:, :501]
    ours = Predictor(tiny_sam())
    theirs = SamPredictor(reference_sam(ours.sam))
    theirs.set_image(image)
    return PredictorPair(image, ours, ours.embed(image), theirs)


@pytest.fixture(scope="module")
def other(pair: PredictorPair, astronaut: np.ndarray) -> Embedding:
    """Another image's embedding."""
    return pair.ours.embed(astronaut)


def test_the_embedding_is_the_reference_one(pair: PredictorPair) -> None:
    assert pair.embedding.input_size == pair.theirs.input_size
    assert pair.embedding.frame_size == pair.theirs.original_size == (400, 501)
    torch.testing.assert_close(pair.embedding.features, pair.theirs.features, atol=1e-4, rtol=0)


POINT_KINDS = {"points": [1, 0, 1], "unlabeled points": [1, -1, -1]}
MIXTURES = [mixture for mixture in product(["", *POINT_KINDS], ["", "mask"], ["", "box"]) if any(mixture)]


# For one mask, by default a mask alone, what it is meant for, and all prompts.
ONE = [("", "mask", ""), ("points", "mask", ""), ("unlabeled points", "mask", "box")]


@pytest.mark.parametrize(
    ("points", "masks", "boxes", "multimask"),
    [
        pytest.param(
            *mixture,
            multimask,
            id=f"{'-'.join(mixture)}-{'three' if multimask else 'one'}",
            marks=[] if multimask or mixture in ONE else pytest.mark.long,
        )
        for mixture in MIXTURES
        for multimask in (True, False)
    ],
)
def test_every_mixture_of_prompts_gives_the_reference_masks(
    pair: PredictorPair, points: str, masks: str, boxes: str, multimask: bool
) -> None:
    generator = np.random.default_rng(1)
    coordinates = generator.uniform(0, 400, (3, 2)) if points else None
    labels = np.array(POINT_KINDS[points]) if points else None
    box = np.array([30.0, 40.5, 320.0, 300.0]) if boxes else None
    mask = generator.normal(size=(1, 256, 256)).astype(np.float32) if masks else None

    expected, expected_iou, expected_low_res = pair.theirs.predict(
        coordinates, labels, box, mask, multimask_output=multimask, return_logits=True
    )
    found = pair.ours.predict(
        pair.embedding,
        None if coordinates is None else coordinates[None],
        None if labels is None else labels[None],
        None if box is None else box[None],
        None if mask is None else mask[None],
        multimask,
    )
    assert np.std(expected_low_res) > 0.1, "masks of nearly nothing would compare nothing"
    np.testing.assert_allclose(found.low_res_logits[0].numpy(), expected_low_res, atol=1e-4, rtol=0)
    np.testing.assert_allclose(found.predicted_iou[0].numpy(), expected_iou, atol=1e-4, rtol=0)
    full_size = pair.ours.upscale(found.low_res_logits, pair.embedding)
    np.testing.assert_allclose(full_size[0].numpy(), expected, atol=1e-4, rtol=0)


def test_a_batch_of_prompts_gives_what_each_gives_alone(pair: PredictorPair) -> None:
    points = torch.tensor([[[10.0, 20.0]], [[400.0, 300.0]], [[250.0, 5.0]]])
    labels = torch.ones(3, 1)
    together = pair.ours.predict(pair.embedding, points, labels)
    alone = [pair.ours.predict(pair.embedding, points[i : i + 1], labels[:1]) for i in range(3)]
    assert together.low_res_logits.shape == (3, 3, 256, 256)
    assert together.predicted_iou.shape == (3, 3)
    expected = torch.cat([masks.low_res_logits for masks in alone])
    torch.testing.assert_close(together.low_res_logits, expected, atol=1e-4, rtol=0)
    assert (expected[0] - expected[1]).abs().max() > 0.1


def test_no_prompts_give_no_masks(pair: PredictorPair) -> None:
    found = pair.ours.predict(pair.embedding, np.zeros((0, 1, 2)), np.zeros((0, 1)))
    assert found.low_res_logits.shape == (0, 3, 256, 256)
    assert pair.ours.upscale(found.low_res_logits, pair.embedding).shape == (0, 3, 400, 501)


def test_the_frame_may_differ_from_the_pixels(pair: PredictorPair) -> None:
    """Prompts and masks in a frame of half the height and twice the width."""
    framed = pair.ours.embed(pair.image, frame_size=(200, 1002))
    assert framed.input_size == pair.embedding.input_size
    assert torch.equal(framed.features, pair.embedding.features)
    label = np.ones((1, 1))
    expected = pair.ours.predict(pair.embedding, np.array([[[300, 100]]]), label)
    found = pair.ours.predict(framed, np.array([[[600, 50]]]), label)
    assert torch.equal(found.low_res_logits, expected.low_res_logits)
    assert pair.ours.upscale(found.low_res_logits, framed).shape == (1, 3, 200, 1002)


def test_many_images_are_embedded_as_each_is(pair: PredictorPair, other: Embedding, astronaut: np.ndarray) -> None:
    found = pair.ours.embed_many([pair.image, astronaut], [(200, 300), None], batch_size=2)
    expected = [replace(pair.embedding, frame_size=(200, 300)), other]
    for one, alone in zip(found, expected, strict=True):
        assert (one.input_size, one.frame_size) == (alone.input_size, alone.frame_size)
        torch.testing.assert_close(one.features, alone.features, atol=1e-4, rtol=0)
    assert pair.ours.embed_many([]) == []
    with pytest.raises(ValueError, match="1 frames for 2 images: expected one per image"):
        pair.ours.embed_many([pair.image, astronaut], [None])


def test_an_embedding_outlives_other_images(pair: PredictorPair, other: Embedding) -> None:
    box = np.array([[10, 10, 200, 200]])
    before = pair.ours.predict(pair.embedding, boxes=box)
    between = pair.ours.predict(other, boxes=box)
    after = pair.ours.predict(pair.embedding, boxes=box)
    assert torch.equal(before.low_res_logits, after.low_res_logits)
    assert not torch.equal(before.low_res_logits, between.low_res_logits)


@pytest.mark.usefixtures("embedded_once")
def test_the_published_weights_in_bfloat16_give_nearly_the_same_masks(mobile_sam_path: Path) -> None:
    exact = Predictor(load_sam(mobile_sam_path))
    embedding = exact.embed(stripes())
    halved = Predictor(load_sam(mobile_sam_path).to(torch.bfloat16))
    prompts = {"points": np.array([[[512, 384]]]), "labels": np.array([[1]]), "boxes": np.array([[9, 9, 600, 700]])}
    expected = exact.predict(embedding, **prompts)
    found = halved.predict(replace(embedding, features=embedding.features.bfloat16()), **prompts)
    assert found.low_res_logits.dtype == found.predicted_iou.dtype == torch.float32
    assert ((found.low_res_logits > 0) == (expected.low_res_logits > 0)).float().mean() > 0.98
    torch.testing.assert_close(found.predicted_iou, expected.predicted_iou, atol=0.03, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_stays_behind_on_another_device(dtype: torch.dtype) -> None:
    """PyTorch's shape-only device refuses, as a GPU does, to meet a tensor of the CPU."""
    predictor = Predictor(build_sam("mobile_sam").to("meta", dtype))
    embedding = predictor.embed(np.zeros((60, 80, 3), np.uint8))
    assert embedding.features.dtype == dtype
    point, label, box = np.array([[[5, 6]]]), np.array([[1]]), torch.tensor([[1, 2, 30, 20]])
    for mask in (None, np.zeros((1, 1, 256, 256))):
        found = predictor.predict(embedding, point, label, box, mask)
        assert found.low_res_logits.device.type == found.predicted_iou.device.type == "meta"
        assert predictor.upscale(found.low_res_logits, embedding).shape == (1, 3, 60, 80)


@pytest.mark.cuda
def test_a_gpu_gives_the_masks_of_the_cpu(mobile_sam_path: Path) -> None:
    on_cpu, on_gpu = (Predictor(load_sam(mobile_sam_path, device)) for device in ("cpu", "cuda"))
    prompts = {"points": np.array([[[512, 384]]]), "labels": np.array([[1]])}
    expected = on_cpu.predict(on_cpu.embed(stripes()), **prompts)
    found = on_gpu.predict(on_gpu.embed(stripes()), **prompts)
    assert found.low_res_logits.is_cuda
    same = (found.low_res_logits.cpu() > 0) == (expected.low_res_logits > 0)
    assert same.float().mean() > 0.999
    torch.testing.assert_close(found.predicted_iou.cpu(), expected.predicted_iou, atol=1e-2, rtol=0)


def test_a_prompt_is_asked_for(pair: PredictorPair) -> None:
    with pytest.raises(ValueError, match="no prompt: expected points with labels, boxes, masks"):
        pair.ours.predict(pair.embedding)


@pytest.mark.parametrize(
    ("image", "found"),
    [
        (np.zeros((8, 8), np.uint8), r"\(8, 8\)"),
        (np.zeros((8, 8, 4), np.uint8), r"\(8, 8, 4\)"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)"),
        (np.zeros((8, 8, 3), np.float32), "float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), r"\(3, 8, 8\)"),
    ],
)
def test_an_image_of_another_shape_or_type_is_refused(pair: PredictorPair, image: np.ndarray, found: str) -> None:
    with pytest.raises(ValueError, match=rf"{found}.*expected \(height, width, 3\) uint8"):
        pair.ours.embed(image)


def test_an_empty_frame_and_flat_logits_are_refused(pair: PredictorPair) -> None:
    with pytest.raises(ValueError, match=r"frame_size is \(0, 5\): expected"):
        pair.ours.embed(np.zeros((8, 8, 3), np.uint8), frame_size=(0, 5))
    with pytest.raises(ValueError, match=r"shape \(256, 256\): expected \(B, C, 256, 256\)"):
        pair.ours.upscale(torch.zeros(256, 256), pair.embedding)


def test_single_points_decode_to_what_predict_gives(pair: PredictorPair) -> None:
    points = np.random.default_rng(2).uniform(0, 400, (3, 2))
    expected = pair.ours.predict(pair.embedding, points[:, None], np.ones((3, 1)))

    plan = pair.ours.plan_points(pair.embedding)
    decoded = pair.ours.decode_points(pair.embedding, plan, points)
    drawn = pair.ours.draw_masks(plan, decoded, torch.ones(3, 3, dtype=torch.bool))

    torch.testing.assert_close(drawn, expected.low_res_logits.flatten(0, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(decoded.predicted_iou, expected.predicted_iou, atol=1e-5, rtol=0)


def test_several_points_a_prompt_are_not_single_points(pair: PredictorPair) -> None:
    plan = pair.ours.plan_points(pair.embedding)
    with pytest.raises(ValueError, match=r"points have the shape \(3, 2, 2\): expected \(B, 2\), one point per prompt"):
        pair.ours.decode_points(pair.embedding, plan, np.zeros((3, 2, 2)))
