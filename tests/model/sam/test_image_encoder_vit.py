from collections.abc import Callable

import pytest
import torch

from benchmarks.masks.reference import reference_vit
from segmint.model.sam import image_encoder_vit
from segmint.model.sam.image_encoder_vit import (
    VIT_B,
    VIT_H,
    VIT_L,
    ImageEncoderViT,
    VitShape,
    attend_in_bands,
    attend_with_extended_keys,
    relative_offsets,
)
from tests.support.random_weights import randomize


def largest_difference(shape: VitShape, image_size: int) -> float:
    ours = randomize(ImageEncoderViT(shape, image_size))
    theirs = reference_vit(shape, image_size)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    image = torch.randn(1, 3, image_size, image_size)
    with torch.inference_mode():
        found, expected = ours(image), theirs(image)
    assert found.shape == (1, 256, image_size // 16, image_size // 16)
    assert expected.std() > 0.3, "an embedding of nearly nothing would compare nothing"
    return float((found - expected).abs().max())


@pytest.mark.parametrize("shape", [VIT_B, pytest.param(VIT_L, marks=pytest.mark.long), VIT_H], ids=["b", "l", "h"])
def test_encodes_as_the_reference_does(shape: VitShape) -> None:
    """The real width and heads, on a smaller image, with a window block on each side of a global one."""
    small = VitShape(shape.width, depth=3, heads=shape.heads, global_blocks=(1,))
    assert largest_difference(small, image_size=320) < 1e-4


def test_windows_that_fit_are_not_filled_up() -> None:
    assert largest_difference(VitShape(64, 2, 4, global_blocks=(1,)), image_size=448) < 1e-4


@pytest.mark.long
def test_the_whole_vit_b_at_full_size_encodes_as_the_reference_does() -> None:
    assert largest_difference(VIT_B, image_size=1024) < 1e-4


def test_several_images_at_once_give_what_each_gives_alone() -> None:
    encoder = randomize(ImageEncoderViT(VitShape(64, 2, 4, global_blocks=(1,)), image_size=320))
    images = torch.randn(2, 3, 320, 320)
    with torch.inference_mode():
        together = encoder(images)
        alone = torch.cat([encoder(image[None]) for image in images])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


def test_norms_have_the_reference_epsilon() -> None:
    """Too small to show in the outputs of random weights."""
    shape = VitShape(64, 1, 4, global_blocks=())
    for encoder in (ImageEncoderViT(shape), reference_vit(shape, 1024)):
        epsilons = {part.eps for part in encoder.blocks.modules() if isinstance(part, torch.nn.LayerNorm)}
        assert epsilons == {1e-6}


def test_relative_offsets_point_at_the_difference_of_positions() -> None:
    assert relative_offsets(3, torch.device("cpu")).tolist() == [[2, 1, 0], [3, 2, 1], [4, 3, 2]]


def attention_parts(side: int, dimensions: int) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(side)
    shapes = [(2, 3, side * side, last) for last in (dimensions, dimensions, dimensions, side, side)]
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


@pytest.mark.parametrize("band_elements", [1, 2 * 9**3, 1 << 18], ids=["one row", "two of nine rows", "all rows"])
@pytest.mark.parametrize("attend", [attend_in_bands, attend_with_extended_keys])
@pytest.mark.parametrize(("side", "dimensions"), [(9, 16), (4, 10)])
def test_attention_with_positions_is_the_plain_formula(
    attend: Callable[..., torch.Tensor],
    side: int,
    dimensions: int,
    band_elements: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(image_encoder_vit, "BAND_ELEMENTS", band_elements)
    q, k, v, rows, columns = attention_parts(side, dimensions)
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) / dimensions**0.5
    for key in range(side * side):
        logits[..., key] += rows[..., key // side] + columns[..., key % side]
    expected = logits.softmax(-1) @ v
    torch.testing.assert_close(attend(q, k, v, rows, columns), expected, atol=2e-6, rtol=0)


def test_attention_with_extended_keys_encodes_as_the_reference_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_encoder_vit, "attend_in_bands", attend_with_extended_keys)
    assert largest_difference(VitShape(160, 2, 2, global_blocks=(1,)), image_size=320) < 1e-4


def test_bfloat16_weights_keep_the_norms_statistics_exact() -> None:
    """Tokens far from zero: statistics in bfloat16 would round the spread away."""
    tokens = (100 + torch.randn(4, 64)).bfloat16()
    norm = randomize(torch.nn.LayerNorm(64, eps=1e-6)).bfloat16()
    torch.testing.assert_close(norm(tokens).float(), norm.float()(tokens.float()), atol=0.02, rtol=0.01)


def test_bfloat16_embeddings_are_near_the_exact_ones() -> None:
    encoder = randomize(ImageEncoderViT(VitShape(64, 2, 4, global_blocks=(1,)), image_size=320))
    image = torch.randn(1, 3, 320, 320)
    with torch.inference_mode():
        expected = encoder(image)
        found = encoder.bfloat16()(image.bfloat16())
    assert found.dtype == torch.bfloat16
    assert (found.float() - expected).abs().mean() < 0.02 * expected.std()
