"""Prompts of few tokens decoded by less arithmetic, against the plain decoder."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from segmint.model.sam import predictor as prompt_decoder
from segmint.model.sam.load import load_sam
from segmint.model.sam.mask_decoder import MASK_TOKENS, SAM2_TRAITS, MaskDecoder, PromptEmbedding
from segmint.model.sam.point_decoder import as_linear, decode_with_kernels, draw_with_kernels, plan_points
from segmint.model.sam.predictor import MOST_TOKENS, Predictor, decode_prompts, decode_with_plan, suits
from tests.support.cpu_kernels import every_set
from tests.support.random_weights import randomize

pytestmark = pytest.mark.usefixtures("embedded_once")

SIDE = 32

CHOSEN = {"one": range(1), "three": range(1, MASK_TOKENS), "all": range(MASK_TOKENS)}
FEW = {(1, "all"), (2, "one"), (2, "three"), (3, "all")}
DEPTHS_AND_CHOSEN = [
    pytest.param(depth, chosen, id=f"{depth}-{name}", marks=[] if (depth, name) in FEW else pytest.mark.long)
    for depth in (1, 2, 3)
    for name, chosen in CHOSEN.items()
]


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """Decode as a predictor does."""
    with torch.inference_mode():
        yield


@pytest.mark.parametrize(("depth", "chosen"), DEPTHS_AND_CHOSEN)
def test_masks_and_ious_are_the_plain_decoders(depth: int, chosen: range) -> None:
    decoder = randomize(MaskDecoder(depth))
    torch.manual_seed(1)
    features, positions = torch.randn(2, 1, 256, SIDE, SIDE)
    places = positions[0].flatten(1).T.contiguous()
    for tokens, masks in ((1, 1), (2, 3), (7, 1), (0, 3)):
        prompt = PromptEmbedding(torch.randn(3, tokens, 256), torch.randn(masks, 256, SIDE, SIDE))
        expected, expected_ious = decoder.decode(features, positions, prompt, chosen)
        assert expected.std() > 0.1, "masks of nearly nothing would compare nothing"
        logits, ious = decode_prompts(decoder, features, places, prompt, chosen)
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)
        torch.testing.assert_close(ious, expected_ious, atol=1e-5, rtol=0)


@pytest.mark.parametrize(("depth", "chosen"), DEPTHS_AND_CHOSEN)
def test_the_kernels_give_the_masks_and_ious_of_the_plain_decoder(depth: int, chosen: range) -> None:
    kernels = every_set()[-1]
    decoder = randomize(MaskDecoder(depth))
    torch.manual_seed(1)
    features, positions = torch.randn(2, 1, 256, SIDE, SIDE)
    vectors, no_mask = torch.randn(17, 256) / 4, torch.randn(1, 256, 1, 1).expand(1, 256, SIDE, SIDE)
    plan = plan_points(decoder, features, positions, no_mask, kernels, vectors)
    for tokens, masks in ((1, 1), (2, 3), (11, 1), (0, 3)):
        coefficients = torch.randn(masks, 17, SIDE * SIDE)
        dense = no_mask + (coefficients.transpose(1, 2) @ vectors).transpose(1, 2).unflatten(2, (SIDE, SIDE))
        prompt = PromptEmbedding(torch.randn(3, tokens, 256), dense)
        expected, expected_ious = decoder.decode(features, positions, prompt, chosen)
        assert expected.std() > 0.1, "masks of nearly nothing would compare nothing"
        logits, ious = decode_with_plan(decoder, plan, prompt.sparse, (coefficients, vectors), chosen)
        torch.testing.assert_close(logits, expected, atol=2e-4, rtol=0)
        torch.testing.assert_close(ious, expected_ious, atol=1e-5, rtol=0)


def test_prompts_of_sam_2_are_the_plain_decoders_with_and_without_kernels() -> None:
    decoder = randomize(MaskDecoder(2, SAM2_TRAITS))
    torch.manual_seed(1)
    features, positions = torch.randn(2, 1, 256, SIDE, SIDE)
    high_res = torch.randn(1, 64, 2 * SIDE, 2 * SIDE), torch.randn(1, 32, 4 * SIDE, 4 * SIDE)
    vectors, no_mask = torch.randn(17, 256) / 4, torch.randn(1, 256, 1, 1).expand(1, 256, SIDE, SIDE)
    coefficients, chosen = torch.randn(3, 17, SIDE * SIDE), range(MASK_TOKENS)
    dense = no_mask + (coefficients.transpose(1, 2) @ vectors).transpose(1, 2).unflatten(2, (SIDE, SIDE))
    prompt = PromptEmbedding(torch.randn(3, 2, 256), dense)
    expected = decoder.decode(features, positions, prompt, chosen, high_res)
    places = positions[0].flatten(1).T.contiguous()
    plan = plan_points(decoder, features, positions, no_mask, every_set()[-1], vectors, high_res)
    for found in (
        decode_prompts(decoder, features, places, prompt, chosen, high_res),
        decode_with_plan(decoder, plan, prompt.sparse, (coefficients, vectors), chosen),
    ):
        torch.testing.assert_close(found[0], expected[0], atol=2e-4, rtol=0)
        torch.testing.assert_close(found[1], expected[1], atol=1e-5, rtol=0)


def test_the_number_of_threads_does_not_affect_what_kernels_draw(mobile_sam_path, coffee: np.ndarray) -> None:
    predictor = Predictor(load_sam(mobile_sam_path), kernels=every_set()[-1])
    embedding, threads = predictor.embed(coffee), torch.get_num_threads()
    places, filters = torch.randn(1, 8, 256), torch.randn(4, 32)
    drawn = []
    plan = predictor.plan_points(embedding)
    _, images = decode_with_kernels(predictor.sam.mask_decoder, plan, places, range(1))
    assert plan.kernels is not None
    for count in (1, 2, 3):
        drawn.append(torch.full((4, 256, 256), torch.nan))
        first = as_linear(predictor.sam.mask_decoder.upscaling_steps[0])
        draw_with_kernels(first, plan.kernels.upscaler, images, 0, filters, drawn[-1], count)
    assert threads == torch.get_num_threads()
    assert torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_what_it_is_for() -> None:
    decoder, features, dense = MaskDecoder(), torch.randn(1, 256, SIDE, SIDE), torch.randn(1, 256, SIDE, SIDE)
    few, many = (PromptEmbedding(torch.randn(1, count, 256), dense) for count in (MOST_TOKENS - 5, MOST_TOKENS - 4))
    assert suits(decoder, features, few.sparse)
    assert not suits(decoder, features, many.sparse)
    assert not suits(decoder, features.bfloat16(), few.sparse)
    with torch.inference_mode(False), torch.enable_grad():
        assert not suits(decoder, features, few.sparse)


def test_a_prompt_has_the_same_bits_alone_and_beside_others(mobile_sam_path, coffee: np.ndarray) -> None:
    predictor = Predictor(load_sam(mobile_sam_path))
    embedding = predictor.embed(coffee)
    points = np.array([[[300.0, 200.0], [320.0, 250.0]], [[100.0, 80.0], [500.0, 300.0]]])
    labels = np.array([[1, 0], [1, 1]])
    before = predictor.predict(embedding, points[:, :1], labels[:, :1]).low_res_logits[:, :1]
    both = predictor.predict(embedding, points, labels, masks=before, multimask=False)
    alone = predictor.predict(embedding, points[1:], labels[1:], masks=before[1:], multimask=False)
    assert torch.equal(both.low_res_logits[1:], alone.low_res_logits)


def test_the_predictor_uses_the_kernels(mobile_sam_path, coffee: np.ndarray) -> None:
    sam = load_sam(mobile_sam_path)
    with_kernels, without = Predictor(sam, kernels=every_set()[-1]), Predictor(sam, kernels=None)
    embedding, other = with_kernels.embed(coffee), with_kernels.embed(coffee[::-1])
    points, labels = np.array([[[300.0, 200.0], [320.0, 250.0]]]), np.array([[1, 0]])
    before = without.predict(embedding, points, labels).low_res_logits[:, :1]
    box = np.array([[250.0, 150.0, 400.0, 300.0]])
    for prompt in (
        {"points": points, "labels": labels},
        {"points": points, "labels": labels, "masks": before},
        {"boxes": box, "masks": before},
        {"masks": before},
    ):
        for image in (embedding, other):
            plain, found = (each.predict_all(image, **prompt) for each in (without, with_kernels))
            assert not torch.equal(found.low_res_logits, plain.low_res_logits)  # the last bits
            torch.testing.assert_close(found.low_res_logits, plain.low_res_logits, atol=2e-4, rtol=0)
            torch.testing.assert_close(found.predicted_iou, plain.predicted_iou, atol=1e-5, rtol=0)


def test_the_predictor_asks_it(mobile_sam_path, coffee: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(load_sam(mobile_sam_path), kernels=None)
    embedding = predictor.embed(coffee)
    points, labels = np.array([[[300.0, 200.0]]]), np.array([[1]])
    fast = predictor.predict(embedding, points, labels)
    monkeypatch.setattr(prompt_decoder, "suits", lambda *_: False)
    plain = predictor.predict(embedding, points, labels)
    assert not torch.equal(fast.low_res_logits, plain.low_res_logits)  # the last bits
    torch.testing.assert_close(fast.low_res_logits, plain.low_res_logits, atol=2e-4, rtol=0)
    torch.testing.assert_close(fast.predicted_iou, plain.predicted_iou, atol=1e-5, rtol=0)
