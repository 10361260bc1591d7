"""Comparison of a GPU's kernels with torch's operations before the first image, except those that decode points.

`crops.check_kernels` compares the kernels that decode points, because their graphs differ by chunk size. This module
compares the encoder's attention, and the kernels that measure masks, draw masks, and resize images.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.model.automatic import mask_tiles
from segmint.model.automatic.mask_tiles import taps_of
from segmint.model.automatic.on_device.crops import KernelError, expect_close, wrong_kernels
from segmint.model.automatic.tiled_upscaling import MaskOperations, mask_operations, strips_of
from segmint.model.device import first_line
from segmint.model.sam import preprocess
from segmint.model.sam.geometry import Geometry
from segmint.model.sam.image_encoder_vit import RelativeAttention
from segmint.model.sam.predictor import Predictor
from segmint.model.sam.preprocess import resized_size
from segmint.model.sam.sam import Sam

FRAME = (701, 1051)
"""Size of the image and of the masks: no multiple of a tile's sides."""

_MASKS = 4
_OFFSET = 1.0


@torch.inference_mode()
def check_other_kernels(predictor: Predictor) -> None:
    """Compare the kernels of a model with torch's operations on random inputs.

    The attention may differ by rounding. Masks and resized images must be equal. Raises `KernelError` if results
    differ, or if a kernel can't be compiled or launched.
    """
    sam = predictor.sam
    try:
        check_attention(sam)
        check_masks(mask_operations(predictor), sam.geometry, sam.device)
        check_resize(sam.geometry, sam.device)
    except (KernelError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # compilers and drivers fail in many ways
        raise KernelError(
            f"this GPU can't run segmint's kernels ({type(error).__name__}: {first_line(error)}). "
            "Use a different version of torch and Triton."
        ) from error


def check_attention(sam: Sam) -> None:
    """Compare one of the encoder's attention layers for each size of square, which are windows and the whole map."""
    layers: dict[int, RelativeAttention] = {}
    for module in sam.image_encoder.modules():
        if isinstance(module, RelativeAttention):
            layers.setdefault(module.side, module)
    side = sam.geometry.embedding_size
    for layer in layers.values():
        weight = layer.proj.weight
        tokens = _noise(1, side, side, weight.shape[0]).to(weight.device, weight.dtype)
        name = f"attention in squares of {layer.side}"
        expect_close(name, layer(tokens), layer.proj(layer.attend_plainly(tokens)))


def check_masks(operations: MaskOperations, geometry: Geometry, device: torch.device) -> None:
    """Compare the numbers and the pixels of a few random masks."""
    coarse = 8 * _noise(_MASKS, 1, 9, 9)
    low = F.interpolate(coarse, (geometry.low_res_size,) * 2, mode="bicubic")[:, 0].to(device)
    axes = zip(resized_size(*FRAME, geometry.image_size), FRAME, strict=True)
    rows, columns = (taps_of(*geometry.mask_axis(filled, pixels), device) for filled, pixels in axes)
    expected = mask_tiles.measure(low, rows, columns, _OFFSET)
    if not torch.equal(operations.measure(low, rows, columns, _OFFSET), expected):
        raise wrong_kernels("counts and boxes of masks differ from those of torch's operations")
    boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in expected[:, 3:].tolist()]
    for first, strips in strips_of(boxes):
        last = strips[-1]
        drawn = torch.empty(last.start + last.columns * (last.height + 1), dtype=torch.uint8, device=device)
        same = torch.empty_like(drawn)
        operations.draw(drawn, low[first:], rows, columns, strips)
        mask_tiles.draw(same, low[first:], rows, columns, strips)
        if not torch.equal(drawn, same):
            raise wrong_kernels("pixels of masks differ from those of torch's operations")


def check_resize(geometry: Geometry, device: torch.device) -> None:
    """Compare the pixels of a resized random image."""
    pixels = ((64 * _noise(*FRAME, 3) + 128).clamp(0, 255)).to(device, torch.uint8)
    size = resized_size(*FRAME, geometry.image_size)
    if not torch.equal(preprocess.resize_on_device(pixels, size), preprocess.resize_by_passes(pixels, size)):
        raise wrong_kernels("pixels of a resized image differ from those of torch's operations")


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
