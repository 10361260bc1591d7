import pytest
import torch
from segment_anything.modeling import MaskDecoder as ReferenceDecoder
from segment_anything.modeling import TwoWayTransformer as ReferenceTransformer

from segmint.model.sam.mask_decoder import MaskDecoder
from segmint.model.sam.prompt_encoder import PromptEmbedding
from tests.support.random_weights import randomize

SIDE = 16


def reference_decoder(ours: MaskDecoder, depth: int) -> ReferenceDecoder:
    theirs = ReferenceDecoder(
        transformer_dim=256,
        transformer=ReferenceTransformer(depth=depth, embedding_dim=256, num_heads=8, mlp_dim=2048),
    )
    theirs.load_state_dict(ours.state_dict(), strict=True)
    return theirs.eval()


@pytest.mark.parametrize("masked", [False, True], ids=["no mask", "masks"])
@pytest.mark.parametrize("multimask", [True, False], ids=["three", "one"])
@pytest.mark.parametrize("depth", [2, 3])
def test_masks_and_ious_are_the_reference_ones(depth: int, multimask: bool, masked: bool) -> None:
    decoder = randomize(MaskDecoder(depth))
    features, positions = torch.randn(2, 1, 256, SIDE, SIDE)
    sparse, dense = torch.randn(3, 2, 256), torch.randn(3 if masked else 1, 256, SIDE, SIDE)
    with torch.inference_mode():
        logits, ious = decoder(features, positions, PromptEmbedding(sparse, dense), multimask)
        expected_logits, expected_ious = reference_decoder(decoder, depth)(
            features, positions, sparse, dense.expand(3, -1, -1, -1), multimask
        )
    assert logits.shape == (3, 3 if multimask else 1, 4 * SIDE, 4 * SIDE)
    assert expected_logits.std() > 0.1, "masks of nearly nothing would compare nothing"
    torch.testing.assert_close(logits, expected_logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(ious, expected_ious, atol=1e-4, rtol=0)


def test_a_mask_alone_is_decoded_without_any_prompt_token() -> None:
    decoder = randomize(MaskDecoder())
    features, positions = torch.randn(2, 1, 256, SIDE, SIDE)
    prompt = PromptEmbedding(torch.zeros(2, 0, 256), torch.randn(2, 256, SIDE, SIDE))
    with torch.inference_mode():
        found, _ = decoder(features, positions, prompt, multimask=True)
        expected, _ = reference_decoder(decoder, 2)(features, positions, prompt.sparse, prompt.dense, True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
