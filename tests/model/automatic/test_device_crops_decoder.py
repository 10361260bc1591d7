"""The decoder that is laid out for kernels computes the plain decoder's masks, on random weights."""

import pytest
import torch

from segmint.model.automatic.device_crops import decode, plan_decoding, prepare_drawing
from segmint.model.sam.mask_decoder import MaskDecoder, PromptEmbedding
from tests.support.random_weights import randomize

SIDE = 16


@pytest.mark.parametrize("points", [1, 19])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_masks_and_ious_are_the_plain_decoders(depth: int, points: int) -> None:
    decoder = randomize(MaskDecoder(depth))
    features, positions = torch.randn(2, 1, 256, SIDE, SIDE)
    no_mask, sparse = torch.randn(1, 256, 1, 1).expand(-1, -1, SIDE, SIDE), torch.randn(points, 2, 256)
    with torch.inference_mode():
        expected, expected_ious = decoder(features, positions, PromptEmbedding(sparse, no_mask), multimask=True)
        plan = plan_decoding(decoder, features, positions, no_mask)
        ious, tokens, images = decode(decoder, plan, sparse)
        drawing = prepare_drawing(decoder, plan, tokens, images)
        logits = drawing.draw(torch.ones(points, 3, dtype=torch.bool))
    assert expected.std() > 0.1, "masks of nearly nothing would compare nothing"
    assert images.coefficients.shape == (points, 64 * depth, SIDE * SIDE)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(ious, expected_ious, atol=1e-5, rtol=0)
