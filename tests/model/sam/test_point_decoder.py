"""Single points decoded by less arithmetic, against the plain decoder on random weights."""

import pytest
import torch

from segmint.model.sam import point_decoder
from segmint.model.sam.mask_decoder import SAM1_TRAITS, SAM2_TRAITS, DecoderTraits, MaskDecoder, PromptEmbedding
from segmint.model.sam.point_decoder import decode_points, draw_masks, plan_points
from tests.support.cpu_kernels import every_set
from tests.support.random_weights import randomize

SIDE = 16


def image_and_points(points: int, side: int = SIDE) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Features, positions, the embedding of no mask and B embedded points, all of them random."""
    torch.manual_seed(1)
    features, positions = torch.randn(2, 1, 256, side, side)
    return features, positions, torch.randn(1, 256, 1, 1).expand(-1, -1, side, side), torch.randn(points, 2, 256)


def high_res_of(traits: DecoderTraits, side: int = SIDE) -> tuple[torch.Tensor, ...]:
    """High-resolution features for SAM 2's decoder, and none for SAM's."""
    if traits is SAM1_TRAITS:
        return ()
    return torch.randn(1, 64, 2 * side, 2 * side), torch.randn(1, 32, 4 * side, 4 * side)


@pytest.mark.parametrize("traits", [SAM1_TRAITS, SAM2_TRAITS], ids=["SAM", "SAM 2"])
@pytest.mark.parametrize("points", [1, 6])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_masks_and_ious_are_the_plain_decoders(depth: int, points: int, traits: DecoderTraits) -> None:
    decoder = randomize(MaskDecoder(depth, traits))
    features, positions, no_mask, sparse = image_and_points(points)
    high_res = high_res_of(traits)
    with torch.inference_mode():
        prompt = PromptEmbedding(sparse, no_mask)
        expected, expected_ious = decoder(features, positions, prompt, multimask=True, high_res=high_res)
        plan = plan_points(decoder, features, positions, no_mask, high_res=high_res)
        decoded = decode_points(decoder, plan, sparse)
        logits = draw_masks(decoder, plan, decoded, torch.ones(points, 3, dtype=torch.bool))
    assert expected.std() > 0.1, "masks of nearly nothing would compare nothing"
    torch.testing.assert_close(logits, expected.flatten(0, 1), atol=1e-4, rtol=0)
    torch.testing.assert_close(decoded.predicted_iou, expected_ious, atol=1e-5, rtol=0)


def test_masks_are_drawn_where_they_are_wanted_in_the_order_of_points() -> None:
    decoder = randomize(MaskDecoder())
    features, positions, no_mask, sparse = image_and_points(3)
    wanted = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    with torch.inference_mode():
        plan = plan_points(decoder, features, positions, no_mask)
        decoded = decode_points(decoder, plan, sparse)
        every = draw_masks(decoder, plan, decoded, torch.ones_like(wanted))
        some = draw_masks(decoder, plan, decoded, wanted)
        none = draw_masks(decoder, plan, decoded, torch.zeros_like(wanted))
    assert torch.equal(some, every[wanted.flatten()])
    assert none.shape == (0, 4 * SIDE, 4 * SIDE)


def test_bands_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    decoder = randomize(MaskDecoder())
    features, positions, no_mask, sparse = image_and_points(2)
    wanted = torch.ones(2, 3, dtype=torch.bool)
    found = []
    for band in (SIDE * SIDE, 100):
        monkeypatch.setattr(point_decoder, "BAND", band)
        with torch.inference_mode():
            plan = plan_points(decoder, features, positions, no_mask)
            decoded = decode_points(decoder, plan, sparse)
            found.append((draw_masks(decoder, plan, decoded, wanted), decoded.predicted_iou))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=0)


@pytest.mark.parametrize("traits", [SAM1_TRAITS, SAM2_TRAITS], ids=["SAM", "SAM 2"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_kernels_decode_and_draw_what_the_plain_decoder_does(depth: int, traits: DecoderTraits) -> None:
    decoder = randomize(MaskDecoder(depth, traits))
    features, positions, no_mask, sparse = image_and_points(6, side=32)
    high_res = high_res_of(traits, 32)
    wanted = torch.tensor([[1, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 1], [0, 0, 1], [1, 1, 0]]).bool()
    with torch.inference_mode():
        prompt = PromptEmbedding(sparse, no_mask)
        expected, ious = decoder(features, positions, prompt, multimask=True, high_res=high_res)
        plan = plan_points(decoder, features, positions, no_mask, every_set()[-1], high_res=high_res)
        decoded = decode_points(decoder, plan, sparse)
        logits = draw_masks(decoder, plan, decoded, wanted)
        none = draw_masks(decoder, plan, decoded, torch.zeros_like(wanted))
    assert plan.kernels is not None
    torch.testing.assert_close(logits, expected[wanted], atol=1e-4, rtol=0)
    torch.testing.assert_close(decoded.predicted_iou, ious, atol=1e-5, rtol=0)
    assert none.shape == (0, 128, 128)


@pytest.mark.parametrize(("side", "dtype"), [(16, torch.float32), (48, torch.float32), (32, torch.bfloat16)])
def test_torch_decodes_what_does_not_suit_the_kernels(side: int, dtype: torch.dtype) -> None:
    decoder = randomize(MaskDecoder()).to(dtype)
    features, positions, no_mask, sparse = (each.to(dtype) for each in image_and_points(1, side))
    wanted = torch.ones(1, 3, dtype=torch.bool)
    found = []
    with torch.inference_mode():
        for kernels in (None, every_set()[-1]):
            plan = plan_points(decoder, features, positions, no_mask, kernels)
            assert plan.kernels is None
            found.append(draw_masks(decoder, plan, decode_points(decoder, plan, sparse), wanted))
    assert torch.equal(*found)


def test_errors_of_the_kernels_against_float64_are_at_most_twice_torchs() -> None:
    decoder = randomize(MaskDecoder())
    inputs = image_and_points(4, side=32)
    wanted = torch.ones(4, 3, dtype=torch.bool)
    found = []
    with torch.inference_mode():
        for dtype, kernels in ((torch.float64, None), (torch.float32, None), (torch.float32, every_set()[-1])):
            features, positions, no_mask, sparse = (each.to(dtype) for each in inputs)
            decoder = decoder.to(dtype)
            plan = plan_points(decoder, features, positions, no_mask, kernels)
            decoded = decode_points(decoder, plan, sparse)
            found.append((draw_masks(decoder, plan, decoded, wanted), decoded.predicted_iou))
    for exact, torchs, ours in zip(*found, strict=True):
        errors = [(each.double() - exact).square().mean().sqrt() for each in (torchs, ours)]
        assert errors[1] <= 2 * errors[0]
