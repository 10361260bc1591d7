"""Drop path in image encoders and dropout in the mask decoder, with keyed random numbers (see `noise.py`).

Both are hooks on the modules of an unchanged model within a context, so nothing changes outside the context. The random
numbers depend on the image or mask, not on the batch, so the number of workers doesn't matter.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from segmint.model.sam.mask_decoder import MaskDecoder
from segmint.model.training.encoder_layers import encoder_layers
from segmint.model.training.noise import draw_keys, random_bits, uniforms

_DROP_PATH = -4  # an iteration whose keys `sampling.py` doesn't draw

_LANES = 4
"""Number of 16-bit lanes in a 64-bit hash. Each lane decides about one element."""


@contextmanager
def drop_path(encoder: nn.Module, rate: float, seed: int, step: int, images: Sequence[int]) -> Iterator[None]:
    """Skip branches of the encoder's blocks at random for each of N images (stochastic depth, arXiv 1603.09382).

    The probability increases linearly from 0 in the first block to `rate` in the last. Kept outputs are divided by the
    probability of being kept, so their mean is unchanged. `images` contains a number under 2^63 for each image of the
    batch with which the encoder is called; it must not depend on how a step's images are split. Raises ValueError for
    another number of images, for an encoder that is neither a ViT nor TinyViT, and for a rate outside [0, 1).
    """
    _check_rate("drop_path", rate)
    with ExitStack() as hooks:
        if rate:
            hooks.enter_context(encoder.register_forward_pre_hook(_expects(len(images))))
            layers = encoder_layers(encoder)
            chances = [rate * index / max(1, len(layers) - 1) for index in range(len(layers))]
            branches = [(branch, p) for layer, p in zip(layers, chances, strict=True) for branch in layer.branches]
            drawn = uniforms(draw_keys(seed, step, images, _DROP_PATH), len(branches))
            for (branch, chance), column in zip(branches, drawn.T, strict=True):
                factors = torch.where(column < chance, 0.0, 1 / (1 - chance))
                hooks.enter_context(branch.register_forward_hook(_scales(factors)))
        yield


@contextmanager
def dropout(decoder: MaskDecoder, rate: float, keys: Tensor) -> Iterator[None]:
    """Set outputs of the decoder's attention and perceptrons to 0 with probability `rate` before they are added.

    `keys` (B,) int64 contains one key for each prompt with which the decoder is called. It is the key of (seed, step,
    mask, iteration), which clicks use too. Kept outputs are divided by the probability of being kept, which is a
    multiple of 1/65,536. Raises ValueError for another number of prompts and for a rate outside [0, 1).
    """
    _check_rate("dropout", rate)
    with ExitStack() as hooks:
        if rate:
            transformer = decoder.transformer
            places: list[nn.Module] = [transformer.final_attn_token_to_image]
            for block in transformer.blocks:
                cross = (block.cross_attn_token_to_image, block.cross_attn_image_to_token)
                places += [block.self_attn, *cross, block.mlp]
            for number, place in enumerate(places):
                # Clicks use counters from 0 on.
                hooks.enter_context(place.register_forward_hook(_drops(random_bits(keys, -1 - number), rate)))
        yield


Hook = Callable[[nn.Module, object, Tensor], Tensor]


def _scales(factors: Tensor) -> Hook:
    def scale(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        # TinyViT's attention gets the windows of an image one after another.
        windows = output.shape[0] // len(factors)
        each = factors.to(output.device, output.dtype).repeat_interleave(windows)
        return output * each.reshape(-1, *[1] * (output.ndim - 1))

    return scale


def _drops(keys: Tensor, rate: float) -> Hook:
    dropped = min(round(rate * (1 << 16)), (1 << 16) - 1)
    lowest, scale = dropped - (1 << 15), (1 << 16) / ((1 << 16) - dropped)

    def drop(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if len(output) != len(keys):
            raise ValueError(f"dropout has keys for {len(keys)} prompts, but the decoder was called with {len(output)}")
        elements = output[0].numel()
        counters = torch.arange(-(-elements // _LANES), device=output.device)
        lanes = random_bits(keys.to(output.device)[:, None], counters).view(torch.int16)
        kept = (lanes[:, :elements] >= lowest).reshape(output.shape)
        return torch.where(kept, output * scale, 0)

    return drop


def _expects(images: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found = len(inputs[0])
        if found != images:
            raise ValueError(f"drop path was drawn for {images} images, but the encoder was called with {found}")

    return check


def _check_rate(name: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"{name} is {rate!r}: expected a number from 0 to below 1")
