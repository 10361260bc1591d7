"""Drop path in image encoders and dropout in the mask decoder, with keyed random numbers (see `noise.py`).

Both are context managers that hook into the modules of an unchanged model. Outside the context, nothing changes. The
random numbers depend on the image or mask but not on the batch, so the number of workers doesn't matter.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn

from segmint.model.sam.mask_decoder import MaskDecoder
from segmint.model.training.encoder_layers import encoder_layers
from segmint.model.training.noise import draw_keys, random_bits, uniforms

_DROP_PATH = -4  # iteration number that `sampling.py` doesn't use

_LANES = 4
"""Number of 16-bit lanes in a 64-bit hash. Each lane decides whether one element is dropped."""


@contextmanager
def drop_path(encoder: nn.Module, rate: float, seed: int, step: int, images: Sequence[int]) -> Iterator[None]:
    """Skip branches of the encoder's blocks at random for each of N images (stochastic depth, arXiv 1603.09382).

    The probability of skipping increases linearly, from 0 in the first block to `rate` in the last. Outputs that are
    kept are divided by the probability of keeping them, so the mean stays the same. `images` contains a number under
    2^63 for each image in the encoder's batch. This number must not depend on how a step's images are split. Raises
    ValueError if the encoder is called with a different number of images, if it's neither a ViT nor TinyViT, or if the
    rate is outside [0, 1).
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
    """Set outputs of the decoder's attention and perceptrons to 0 with probability `rate`, before they are added.

    `keys` (B,) int64 contains one key for each prompt in the decoder's batch. It's the key of (seed, step, mask,
    iteration), which clicks use as well. Outputs that are kept are divided by the probability of keeping them, which is
    a multiple of 1/65,536. Raises ValueError if the decoder is called with a different number of prompts, or if the
    rate is outside [0, 1).
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
                # Clicks use counters from 0 up, so these counters are negative.
                hooks.enter_context(place.register_forward_hook(_drops(random_bits(keys, -1 - number), rate)))
        yield


Hook = Callable[[nn.Module, object, Tensor], Tensor]


def _scales(factors: Tensor) -> Hook:
    def scale(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        # TinyViT's attention receives the windows of one image after another.
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
