"""Low-resolution logits of masks from factored images, computed with the kernel of `drawing.h`."""

import ctypes
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from segmint.model.kernels.cpu.library import Kernels

BLOCK = 32
"""Number of positions that the kernels process together."""

_HIDDEN, _FINAL, _PARTS = 64, 32, 4
_MOST_MASKS = 4


class _Upscaler(ctypes.Structure):
    _fields_ = (
        ("shared", ctypes.c_void_p),
        ("first_added", ctypes.c_void_p),
        ("second_added", ctypes.c_void_p),
        ("norm", ctypes.c_void_p),
        ("second", ctypes.c_void_p),
        ("second_bias", ctypes.c_void_p),
        ("side", ctypes.c_int32),
        ("epsilon", ctypes.c_float),
    )


class _Prompt(ctypes.Structure):
    _fields_ = (
        ("scale", ctypes.c_void_p),
        ("coefficients", ctypes.c_void_p),
        ("vectors", ctypes.c_void_p),
        ("filters", ctypes.c_void_p),
        ("rows", ctypes.c_int32),
        ("masks", ctypes.c_int32),
    )


def suits(drawn: Tensor, second: Tensor) -> bool:
    """Return whether the kernel supports a shared image after the first step, and the second step's weight.

    It supports an image (P, 256) and a weight (128, 64), both in float32 on the CPU, if P is the square of a multiple
    of 32. The weight is (out, in).
    """
    fits = drawn.shape[1:] == (_PARTS * _HIDDEN,) and second.shape == (_PARTS * _FINAL, _HIDDEN)
    is_float = drawn.dtype == second.dtype == torch.float32 and drawn.device.type == "cpu"
    side = math.isqrt(len(drawn))
    return fits and is_float and side * side == len(drawn) and side % BLOCK == 0


@dataclass(frozen=True)
class Upscaler:
    """Upscaling of one image's masks in the kernel's layout, which all prompts share. All tensors are float32.

    Attributes:
        kernels: the functions to call.
        shared: (P / 32, 256, 32), the shared image after the first step.
        first_added: (P / 32, 256, 32), a map that is added to the output of the first step, or None.
        second_added: (P / 32, 512, 32), a map that is added to the output of the second step, or None.
        norm: (2, 64), weight and bias of the norm.
        second: (64, 128), weight of the second step, inputs first.
        second_bias: (128,), bias of the second step.
        epsilon: epsilon of the norm.
    """

    kernels: Kernels
    shared: Tensor
    first_added: Tensor | None
    second_added: Tensor | None
    norm: Tensor
    second: Tensor
    second_bias: Tensor
    epsilon: float

    @classmethod
    def of(
        cls,
        kernels: Kernels,
        drawn: Tensor,
        norm: nn.LayerNorm,
        second: tuple[Tensor, Tensor],
        first_added: Tensor | None = None,
        second_added: Tensor | None = None,
    ) -> "Upscaler":
        """Create the upscaling from `drawn` (P, 256), the shared image after the first step, without the bias.

        `second` contains the weight (128, 64) and the bias (128,) of the second step. SAM 2.1 adds maps of the image to
        the output of both steps: `first_added` (P, 256) and `second_added` (P, 512). A row of these maps contains the
        pixels of one position in the order of the steps, with the channels of each pixel together. Raises ValueError if
        the kernel doesn't support the input.
        """
        weight, bias = second
        if not suits(drawn, weight):
            shapes = f"{tuple(drawn.shape)} {drawn.dtype} and {tuple(weight.shape)} {weight.dtype}"
            raise ValueError(f"the CPU kernels can't draw masks from {shapes}")
        return cls(
            kernels,
            in_blocks(drawn),
            None if first_added is None else in_blocks(first_added),
            None if second_added is None else in_blocks(second_added),
            torch.stack([norm.weight, norm.bias]).contiguous(),
            weight.T.contiguous(),
            bias.contiguous(),
            norm.eps,
        )

    @property
    def low_res_size(self) -> int:
        """Side of the logits, which is 4S for S x S positions."""
        return 4 * math.isqrt(len(self.shared) * BLOCK)

    def draw(
        self,
        scale: Tensor,
        coefficients: Tensor,
        vectors: Tensor,
        filters: Tensor,
        logits: Tensor,
        threads: int = 1,
    ) -> None:
        """Draw the masks of one prompt into `logits` (N, 4S, 4S), which must be contiguous, for S x S positions.

        The factors of the image after the first step are `scale` (P,), `coefficients` (P / 32, R, 32), and `vectors`
        (R, 256). `filters` (N, 32) contains one filter per mask, and N is at most 4. All tensors are float32. Each of
        the `threads` threads draws a part of the image. Raises ValueError if the shapes are different.
        """
        rows, masks = len(vectors), len(filters)
        positions, side = len(self.shared) * BLOCK, self.low_res_size
        inputs = (scale, coefficients, vectors, filters, logits)
        factors = ((positions,), (positions // BLOCK, rows, BLOCK), (rows, _PARTS * _HIDDEN))
        expected = (*factors, (masks, _FINAL), (masks, side, side))
        if tuple(tuple(each.shape) for each in inputs) != expected or masks > _MOST_MASKS:
            shapes = ", ".join(str(tuple(each.shape)) for each in inputs)
            raise ValueError(f"the shapes are {shapes}: expected {expected} and at most {_MOST_MASKS} masks")
        if any(each.dtype != torch.float32 for each in inputs) or not logits.is_contiguous():
            raise ValueError("expected float32, and contiguous logits")
        maps = (self.shared, self.first_added, self.second_added, self.norm, self.second, self.second_bias)
        kept = tuple(each.contiguous() for each in inputs[:4])  # keep these until the call returns
        upscaler = _Upscaler(*map(address, maps), side // 4, self.epsilon)
        prompt = _Prompt(*map(address, kept), rows, masks)
        function = self.kernels.function("draw_logits")

        def draw_part(start: int, end: int) -> None:
            scratch = torch.empty((rows + _FINAL) * _PARTS * _HIDDEN)
            blocks = ctypes.c_int32(start), ctypes.c_int32(end)
            function(ctypes.byref(upscaler), ctypes.byref(prompt), *blocks, address(scratch), address(logits))

        blocks = len(self.shared)
        if threads == 1:
            draw_part(0, blocks)
            return
        ends = [blocks * (part + 1) // threads for part in range(threads)]
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(draw_part, [0, *ends], ends))


def in_blocks(map_: Tensor) -> Tensor:
    """Rearrange a map (P, C) as (P / 32, C, 32)."""
    blocks: Tensor = map_.unflatten(0, (len(map_) // BLOCK, BLOCK))
    return blocks.transpose(1, 2).contiguous()


def address(tensor: Tensor | None) -> Any:
    """Return a tensor's address as a C argument. For None, return a null pointer."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
