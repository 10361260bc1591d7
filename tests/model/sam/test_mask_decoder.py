import pytest
import torch
from segment_anything.modeling import MaskDecoder as ReferenceDecoder
from segment_anything.modeling import TwoWayTransformer as ReferenceTransformer

from segmint.model.sam.mask_decoder import SAM1_TRAITS, SAM2_TRAITS, MaskDecoder, PromptEmbedding
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


@torch.inference_mode()
def test_high_resolution_features_are_added_before_the_norm_and_before_the_last_activation() -> None:
    decoder = randomize(MaskDecoder(2, SAM2_TRAITS))
    features, positions = torch.randn(2, 1, 256, SIDE, SIDE)
    prompt = PromptEmbedding(torch.randn(3, 2, 256), torch.randn(1, 256, SIDE, SIDE))
    finer, finest = torch.randn(1, 64, 2 * SIDE, 2 * SIDE), torch.randn(1, 32, 4 * SIDE, 4 * SIDE)
    logits, ious = decoder(features, positions, prompt, True, (finer, finest))

    tokens, image = decoder.attend(features, positions, prompt)
    first, norm, _, second, _ = decoder.output_upscaling
    pixels = torch.nn.functional.gelu(norm(first(image.mT.unflatten(2, (SIDE, SIDE))) + finer))
    pixels = torch.nn.functional.gelu(second(pixels) + finest)
    filters = torch.stack([decoder.output_hypernetworks_mlps[n](tokens[:, 1 + n]) for n in (1, 2, 3)], dim=1)
    torch.testing.assert_close(logits, torch.einsum("bnc,bchw->bnhw", filters, pixels), atol=1e-4, rtol=0)
    assert (logits - decoder(features, positions, prompt, True)[0]).abs().max() > 1
    torch.testing.assert_close(ious, decoder.iou_prediction_head(tokens[:, 0])[:, 1:].sigmoid(), atol=0, rtol=0)


@torch.inference_mode()
def test_the_object_scores_token_comes_last_and_matters() -> None:
    decoder = randomize(MaskDecoder(2, SAM2_TRAITS))
    assert torch.equal(decoder.own_tokens[5:], decoder.obj_score_token.weight)
    features, positions = torch.randn(2, 1, 256, SIDE, SIDE)
    prompt = PromptEmbedding(torch.randn(2, 2, 256), torch.zeros(1, 256, SIDE, SIDE))
    before = decoder(features, positions, prompt, True)[0]
    decoder.obj_score_token.weight.add_(1.0)
    assert (decoder(features, positions, prompt, True)[0] - before).abs().max() > 1e-3


def test_the_best_of_three_replaces_an_unstable_single_mask() -> None:
    logits = torch.full((4, 4, 10, 10), -1.0)
    logits[:, 1:] = torch.arange(1.0, 4.0).view(1, 3, 1, 1)
    logits[0, 0, :7] = 1.0  # 70 of 70 pixels
    logits[1, 0, :7], logits[1, 0, 7, 0] = 1.0, 0.0  # 70 of 71
    logits[2, 0, :7], logits[2, 0, 7, :2] = 1.0, 0.01  # 70 of 72
    ious = torch.tensor([[0.9, 0.1, 0.2, 0.3], [0.9, 0.1, 0.2, 0.3], [0.9, 0.1, 0.3, 0.2], [0.9, 0.1, 0.2, 0.3]])
    found, scores = MaskDecoder(1, SAM2_TRAITS).with_stable_single_mask(logits, ious)
    assert torch.equal(found[[0, 1, 3]], logits[[0, 1, 3]]), "stable ones, and an empty one"
    assert torch.equal(found[2, 0], logits[2, 2])
    assert torch.equal(found[2, 1:], logits[2, 1:])
    assert scores[:, 0].tolist() == pytest.approx([0.9, 0.9, 0.3, 0.9])
    assert torch.equal(MaskDecoder(1, SAM1_TRAITS).with_stable_single_mask(logits, ious)[0], logits)
