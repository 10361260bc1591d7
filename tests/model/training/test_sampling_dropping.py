"""Drop path and dropout: unbiased, keyed by image and mask, split as they are drawn, and gone after the context."""

import pytest
import torch
from torch import Tensor, nn

from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.image_encoder_vit import ImageEncoderViT, VitShape
from segmint.model.sam.mask_decoder import MaskDecoder, PromptEmbedding
from segmint.model.training.sampling import draw_keys, drop_path, dropout
from segmint.model.training.step import StepSettings, train_step
from tests.model.training.test_step import embedded, few_clicks, rectangles, small_sam
from tests.support.random_weights import randomize

SHAPE = VitShape(width=32, depth=3, heads=2, global_blocks=(1,))
GLOBAL = VitShape(width=32, depth=3, heads=2, global_blocks=(0, 1, 2))


def vit() -> ImageEncoderViT:
    return randomize(ImageEncoderViT(SHAPE, 64))


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    torch.manual_seed(0)


def hooks(network: nn.Module) -> list[object]:
    """Return the hooks that run before and after the forward passes of a network's parts."""
    parts = list(network.modules())
    return [hook for part in parts for hook in (*part._forward_pre_hooks.values(), *part._forward_hooks.values())]  # noqa: SLF001 - torch has no other list


def test_an_encoder_without_drop_path_is_the_plain_one_to_the_last_bit() -> None:
    encoder, image = vit(), torch.randn(2, 3, 64, 64)
    plain = encoder(image)
    with drop_path(encoder, 0.0, seed=0, step=0, images=[0, 1]):
        assert torch.equal(encoder(image), plain)
    with drop_path(encoder, 0.9, seed=0, step=0, images=[0, 1]):
        assert not torch.equal(encoder(image), plain)
    assert torch.equal(encoder(image), plain)
    assert not hooks(encoder)


def branch_factors(encoder: nn.Module, branch: nn.Module, image: Tensor, **keys: object) -> Tensor:
    """What one branch's outputs are multiplied by, for each image: (N,)."""
    seen: list[Tensor] = []
    with branch.register_forward_hook(lambda _, __, output: seen.append(output)):
        encoder(image)
    with drop_path(encoder, **keys), branch.register_forward_hook(lambda _, __, output: seen.append(output)):  # type: ignore[arg-type]
        encoder(image)
    plain, dropped = (output.reshape(len(image), -1) for output in seen)
    return (dropped * plain).sum(dim=1) / (plain * plain).sum(dim=1)


def test_the_chance_rises_from_0_to_the_rate_and_the_mean_stays() -> None:
    """The first block is kept; the last skips a branch with 0.6, and is multiplied by 1 / 0.4 otherwise."""
    images = 1000
    encoder = randomize(ImageEncoderViT(GLOBAL, 32))
    image = torch.randn(1, 3, 32, 32).expand(images, -1, -1, -1)
    keys = {"rate": 0.6, "seed": 1, "step": 2, "images": range(images)}
    first, middle, last = encoder.blocks
    with torch.no_grad():
        kept = branch_factors(encoder, first.mlp, image, **keys)
        torch.testing.assert_close(kept, torch.ones(images))
        # The branches before the last one change its input, so only what is skipped can be compared.
        for branch, chance in ((middle.attn, 0.3), (last.attn, 0.6), (last.mlp, 0.6)):
            skipped = (branch_factors(encoder, branch, image, **keys) == 0).double().mean().item()
            assert abs(skipped - chance) < 0.05
        factors = branch_factors(encoder, middle.attn, image, **keys)
        torch.testing.assert_close(factors[factors > 0], torch.full_like(factors[factors > 0], 1 / 0.7))
        assert abs(factors.mean().item() - 1) < 0.06


@pytest.mark.parametrize("kind", ["vit", "tinyvit"])
def test_two_workers_skip_what_one_skips(kind: str) -> None:
    """Also in TinyViT, whose attention sees an image's windows as a batch."""
    encoder, image = (
        (vit(), torch.randn(4, 3, 64, 64))
        if kind == "vit"
        else (
            randomize(ImageEncoderTinyViT()),
            torch.randn(4, 3, 128, 128),
        )
    )
    numbers = [3, 2**62, 11, 5]
    with torch.no_grad():
        with drop_path(encoder, 0.5, seed=0, step=7, images=numbers):
            whole = encoder(image)
        for part in (slice(0, 1), slice(1, 4)):
            with drop_path(encoder, 0.5, seed=0, step=7, images=numbers[part]):
                torch.testing.assert_close(encoder(image[part]), whole[part], atol=1e-4, rtol=1e-4)
        for other in ({"seed": 1, "step": 7}, {"seed": 0, "step": 8}):
            with drop_path(encoder, 0.5, images=numbers, **other):
                assert (encoder(image) - whole).abs().max() > 0.01


def test_another_number_of_images_is_an_error() -> None:
    encoder = vit()
    with (
        drop_path(encoder, 0.5, seed=0, step=0, images=[0, 1]),
        pytest.raises(ValueError, match="drawn for 2 images, but the encoder was called with 4"),
    ):
        encoder(torch.randn(4, 3, 64, 64))
    with pytest.raises(ValueError, match="drop_path is 1: expected a number from 0 to below 1"):  # noqa: SIM117
        with drop_path(encoder, 1, seed=0, step=0, images=[0]):
            pass


def decoded(decoder: MaskDecoder, prompts: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    features, positions, dense = (torch.randn(1, 256, 4, 4, generator=generator) for _ in range(3))
    sparse = torch.randn(1, 3, 256, generator=generator).expand(prompts, -1, -1)
    logits, ious = decoder(features, positions, PromptEmbedding(sparse, dense), multimask=True)
    return logits, ious


def test_a_decoder_without_dropout_is_the_plain_one_to_the_last_bit() -> None:
    decoder = randomize(MaskDecoder(depth=2))
    keys = draw_keys(0, 0, range(2), 1)
    plain = decoded(decoder, 2)
    with dropout(decoder, 0.0, keys):
        assert all(map(torch.equal, decoded(decoder, 2), plain))
    with dropout(decoder, 0.1, keys):
        assert not torch.equal(decoded(decoder, 2)[0], plain[0])
    assert all(map(torch.equal, decoded(decoder, 2), plain))
    assert not hooks(decoder)


def test_a_tenth_of_each_output_becomes_0_and_the_mean_stays() -> None:
    """The first attention's outputs, of equal prompts: each number is dropped for its own mask and place alone."""
    prompts = 400
    decoder = randomize(MaskDecoder(depth=2))
    place = decoder.transformer.blocks[0].self_attn
    seen: list[Tensor] = []
    with torch.no_grad():
        with place.register_forward_hook(lambda _, __, output: seen.append(output)):
            decoded(decoder, prompts)
        keys = draw_keys(0, 0, range(prompts), 1)
        with dropout(decoder, 0.1, keys), place.register_forward_hook(lambda _, __, output: seen.append(output)):
            decoded(decoder, prompts)
    plain, dropped = seen
    factors = dropped / plain
    assert abs((factors == 0).double().mean().item() - 0.1) < 1e-3
    assert abs(factors.mean().item() - 1) < 1e-3
    torch.testing.assert_close(factors[factors > 0], torch.full_like(factors[factors > 0], 1 / 0.9), atol=1e-4, rtol=0)
    zeros = (factors == 0).double().flatten(1)
    for shares in (zeros.mean(dim=0), zeros.mean(dim=1)):
        assert shares.min() > 0
        assert shares.max() < 0.25


def test_two_workers_drop_what_one_drops() -> None:
    """Also where the masks of an image are taken a few at a time; other seeds and no dropout differ."""
    sam, features = small_sam(depth=2), embedded(2)
    images = [rectangles([0, 3, 6]), rectangles([1])]
    plain = few_clicks(1)
    settings = StepSettings(losses=plain.losses, sampling=plain.sampling, seed=0, dropout=0.1)

    def gradients(parts: list[slice], at_once: int) -> tuple[Tensor, Tensor]:
        sam.zero_grad()
        total = torch.zeros(4, dtype=torch.float64)
        for part in parts:
            total += train_step(sam, features[part], images[part], settings, 3, 4, at_once).total
        grad = sam.mask_decoder.mask_tokens.weight.grad
        assert grad is not None
        return total, grad.clone()

    whole = gradients([slice(0, 2)], 64)
    for parts, at_once in (([slice(0, 1), slice(1, 2)], 64), ([slice(0, 2)], 1)):
        for found, expected in zip(gradients(parts, at_once), whole, strict=True):
            torch.testing.assert_close(found, expected, atol=2e-3, rtol=2e-3)
    settings = plain
    assert (gradients([slice(0, 2)], 64)[0] - whole[0]).abs().max() > 0.01


def test_another_number_of_prompts_is_an_error() -> None:
    decoder = randomize(MaskDecoder(depth=1))
    with (
        dropout(decoder, 0.1, draw_keys(0, 0, range(3), 1)),
        pytest.raises(ValueError, match="keys for 3 prompts, but the decoder was called with 2"),
    ):
        decoded(decoder, 2)
