"""Prompts of few tokens decoded by less arithmetic, against the plain decoder."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from segmint.model.sam import prompt_decoder
from segmint.model.sam.load import load_sam
from segmint.model.sam.mask_decoder import MASK_TOKENS, MaskDecoder
from segmint.model.sam.predictor import Predictor
from segmint.model.sam.prompt_decoder import MOST_TOKENS, decode_prompts, suits
from segmint.model.sam.prompt_encoder import PromptEmbedding
from tests.support.random_weights import randomize

SIDE = 32


@pytest.fixture(autouse=True)
def no_gradients() -> Iterator[None]:
    """Decode as a predictor does."""
    with torch.inference_mode():
        yield


@pytest.mark.parametrize("chosen", [range(1), range(1, MASK_TOKENS), range(MASK_TOKENS)], ids=["one", "three", "all"])
@pytest.mark.parametrize("depth", [1, 2, 3])
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


def test_what_it_is_for() -> None:
    features, dense = torch.randn(1, 256, SIDE, SIDE), torch.randn(1, 256, SIDE, SIDE)
    few, many = (PromptEmbedding(torch.randn(1, count, 256), dense) for count in (MOST_TOKENS - 5, MOST_TOKENS - 4))
    assert suits(features, few)
    assert not suits(features, many)
    assert not suits(features.bfloat16(), few)
    with torch.inference_mode(False), torch.enable_grad():
        assert not suits(features, few)


def test_a_prompt_has_the_same_bits_alone_and_beside_others(mobile_sam_path, coffee: np.ndarray) -> None:
    predictor = Predictor(load_sam(mobile_sam_path))
    embedding = predictor.embed(coffee)
    points = np.array([[[300.0, 200.0], [320.0, 250.0]], [[100.0, 80.0], [500.0, 300.0]]])
    labels = np.array([[1, 0], [1, 1]])
    before = predictor.predict(embedding, points[:, :1], labels[:, :1]).low_res_logits[:, :1]
    both = predictor.predict(embedding, points, labels, masks=before, multimask=False)
    alone = predictor.predict(embedding, points[1:], labels[1:], masks=before[1:], multimask=False)
    assert torch.equal(both.low_res_logits[1:], alone.low_res_logits)


def test_the_predictor_asks_it(mobile_sam_path, coffee: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(load_sam(mobile_sam_path))
    embedding = predictor.embed(coffee)
    points, labels = np.array([[[300.0, 200.0]]]), np.array([[1]])
    fast = predictor.predict(embedding, points, labels)
    monkeypatch.setattr(prompt_decoder, "suits", lambda *_: False)
    plain = predictor.predict(embedding, points, labels)
    assert not torch.equal(fast.low_res_logits, plain.low_res_logits)  # the last bits
    torch.testing.assert_close(fast.low_res_logits, plain.low_res_logits, atol=2e-4, rtol=0)
    torch.testing.assert_close(fast.predicted_iou, plain.predicted_iou, atol=1e-5, rtol=0)
