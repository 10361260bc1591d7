"""Calls of the CPU kernels: measuring, decoding, and drawing masks."""

import ctypes
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from segmint.infra.arrays import Bools, Floats32, Ints
from segmint.model.kernels.cpu.library import Kernels

_TAPS = 3
_LANES = 16
_LEAST_COLUMNS = 2 * _LANES
_MOST_COLUMNS = 1024


class _Axis(ctypes.Structure):
    _fields_ = (
        ("places", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
        ("starts", ctypes.c_void_p),
        ("pixels", ctypes.c_int32),
        ("padded", ctypes.c_int32),
    )


class _Window(ctypes.Structure):
    _fields_ = (
        ("logits", ctypes.c_void_p),
        ("top", ctypes.c_int32),
        ("left", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Axis:
    """Interpolation along one axis, from `side` logits to `pixels` pixels, in the kernels' layout.

    Attributes:
        places: (padded,) int32, index of the first of the three logits that each pixel uses.
        weights: (3, padded) float32, weights of these three logits.
        starts: (side + 1,) int32, for each logit, the first pixel whose place is at or after the logit.
        pixels: number of pixels. The arrays are padded to whole vectors.
    """

    places: NDArray[np.int32]
    weights: Floats32
    starts: NDArray[np.int32]
    pixels: int

    @classmethod
    def of(cls, weights: Floats32, touches: Ints) -> "Axis":
        """Create the axis of an `Interpolation` with these weights (pixels, side) and touches (pixels, 2).

        Raises ValueError if a pixel uses more than three logits.
        """
        pixels, side = weights.shape
        if int((touches[:, 1] - touches[:, 0]).max()) > _TAPS:
            raise ValueError(f"a pixel uses more than {_TAPS} of {side} logits: expected a low-resolution mask")
        places = np.minimum(touches[:, 0], side - _TAPS)
        used = weights[np.arange(pixels)[:, None], places[:, None] + np.arange(_TAPS)].T
        more = -pixels % _LANES + _LANES
        return cls(
            np.pad(places, (0, more), mode="edge").astype(np.int32),
            np.pad(used, ((0, 0), (0, more))).astype(np.float32, order="C"),
            np.searchsorted(places, np.arange(side + 1)).astype(np.int32),
            pixels,
        )

    def pointer(self) -> Any:
        """Return the axis as a C argument. The argument is valid as long as this object exists."""
        arrays = (array.ctypes.data for array in (self.places, self.weights, self.starts))
        return ctypes.byref(_Axis(*arrays, self.pixels, len(self.places)))

    def logits_of(self, first: int, last: int) -> tuple[int, int]:
        """Return the start and exclusive end of the logits that the pixels from `first` to `last` (inclusive) use."""
        return int(self.places[first]), int(self.places[last]) + _TAPS


def can_upscale(side: int, image_size: int) -> bool:
    """Return whether the kernels can upscale masks of size `side` to images of size `image_size`."""
    return side % _LANES == 0 and _LEAST_COLUMNS <= side <= _MOST_COLUMNS and image_size >= side


@dataclass(frozen=True)
class MeasuredMask:
    """Mask that has been measured but not drawn, with the logits that its pixels use.

    Attributes:
        logits: (rows, columns) float32, a copied part of the mask's low-resolution logits.
        corner: (x, y) of this part.
        area: number of foreground pixels.
        box: (4,) int64 as x0, y0, x1, y1, ends inclusive.
    """

    logits: Floats32
    corner: tuple[int, int]
    area: int
    box: Ints


def measure(kernels: Kernels, logits: Tensor, down: Axis, across: Axis, offset: float) -> Ints:
    """Measure the masks of logits (N, S, S) float32, and return counts and boxes (N, 7) like `mask_tiles.measure`.

    Raises ValueError if a logit isn't finite.
    """
    logits = logits.contiguous()
    numbers = np.empty((len(logits), 7), dtype=np.int64)
    bad = kernels.function("measure", ctypes.c_int64)(
        ctypes.c_void_p(logits.data_ptr()),
        ctypes.c_int64(len(logits)),
        ctypes.c_int32(logits.shape[2]),
        down.pointer(),
        across.pointer(),
        ctypes.c_float(offset),
        ctypes.c_void_p(numbers.ctypes.data),
    )
    if bad:
        raise ValueError(f"mask {bad - 1} of {len(logits)} has logits that are not finite: expected finite numbers")
    return numbers


def keep(logits: Tensor, numbers: Ints, down: Axis, across: Axis) -> MeasuredMask:
    """Copy the part of one mask's logits (S, S) inside its box, with its numbers (7,), to draw the mask later.

    The copy lets the chunk's other masks be freed.
    """
    side = logits.shape[1]
    x0, y0, x1, y1 = numbers[3:].tolist()
    top, bottom = down.logits_of(y0, y1)
    left, right = across.logits_of(x0, x1)
    left = min(left, side - _LEAST_COLUMNS) // _LANES * _LANES
    right = max(-(-right // _LANES) * _LANES, left + _LEAST_COLUMNS)
    part = np.array(logits[top:bottom, left:right].numpy(), order="C")
    return MeasuredMask(part, (left, top), int(numbers[1]), numbers[3:])


def draw(kernels: Kernels, mask: MeasuredMask, down: Axis, across: Axis, offset: float) -> Bools:
    """Draw the pixels of the mask inside its box, (height, width) bool. `offset` must be the same as for `measure`.

    Raises RuntimeError if the number of pixels doesn't match the measured area, because the kernels are then broken.
    """
    x0, y0, x1, y1 = mask.box.tolist()
    pixels = np.zeros((y1 - y0 + 1, x1 - x0 + 1), dtype=np.bool_)
    (left, top), (rows, columns) = mask.corner, mask.logits.shape
    kernels.function("draw_mask")(
        ctypes.byref(_Window(mask.logits.ctypes.data, top, left, rows, columns)),
        down.pointer(),
        across.pointer(),
        ctypes.c_float(offset),
        ctypes.c_void_p(mask.box.ctypes.data),
        ctypes.c_void_p(pixels.ctypes.data),
    )
    if np.count_nonzero(pixels) != mask.area:
        raise RuntimeError(f"a mask of {mask.area} pixels was drawn with {np.count_nonzero(pixels)}: broken kernels")
    return pixels


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


def can_draw(drawn: Tensor, second: Tensor) -> bool:
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
        if not can_draw(drawn, weight):
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


HEAD_WIDTH = 16
"""Number of channels per head that the kernel supports."""

MOST_TOKENS = 128
"""Maximum number of tokens times the number of heads."""

_SIZES = ("blocks", "heads", "tokens", "queries", "steps", "constant_rows", "rows", "first", "channels")
_POINTERS = ("answer_own", "answer_places", "squares", "projected", "constants", "look_own", "look_places")


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (*_POINTERS, "look_values")),
        *((name, ctypes.c_int32) for name in _SIZES),
        ("epsilon", ctypes.c_float),
    )


class _Tokens(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("keys", "answer_prior", "values", "gram", "queries", "look_prior")),
        *((name, ctypes.c_void_p) for name in ("scale", "coefficients", "largest", "own", "mixed")),
    )


@dataclass(frozen=True)
class ImagesInBlocks:
    """Images of B prompts in factors, x = scale X + coefficients^T vectors, in the layout of the kernels.

    Attributes:
        scale: (B, P).
        coefficients: (B, P / 32, R, 32). The first rows are the attention weights of the S steps, with the last step
            first. Next come the rows that the image had before the first step, and the rows of the norms come last.
        vectors: (B, n, C), the vectors of the last n rows.
        values: (B, steps * H, T, D), from which the vectors are computed, with the last step first.
    """

    scale: Tensor
    coefficients: Tensor
    vectors: Tensor
    values: Tensor

    @classmethod
    def before(cls, tokens: Tensor, heads: int, steps: int, coefficients: Tensor, vectors: Tensor) -> "ImagesInBlocks":
        """Return the images before the first of S `steps`, for prompts with `tokens` (B, T, C).

        Each image is the shared image plus `coefficients` (B, K, P) times `vectors` (K, C). If all prompts start with
        the shared image itself, K is 0. The coefficients have room for the rows that all steps will add.
        """
        prompts, count, _ = tokens.shape
        _, own, positions = coefficients.shape
        first = steps * heads * count
        room = tokens.new_empty(prompts, positions // BLOCK, first + own + steps, BLOCK)
        room[:, :, first : first + own] = coefficients.unflatten(2, (-1, BLOCK)).transpose(1, 2)
        return cls(
            tokens.new_ones(prompts, positions),
            room,
            vectors.expand(prompts, -1, -1),
            tokens.new_empty(prompts, 0, count, HEAD_WIDTH),
        )


@dataclass(frozen=True)
class SharedStep:
    """Values of one step that all prompts on an image share, in the kernel's layout. All tensors are float32.

    In each step, the image attends to the tokens and is normalized. Then the tokens attend to the image.

    Attributes:
        kernels: the functions to call.
        answer_own: (P / 32, H * D, 32), queries of the shared image. In the first step, they include the positions and
            the bias.
        answer_places: (P / 32, H * D, 32), queries of the positions. None in the first step.
        squares: (P,), sums of squares of the centered shared image.
        projected: (P / 32, steps * H * D, 32), which map values to products with the shared image.
        constants: (P / 32, K, 32), products of the shared image with the vectors that don't come from values. These are
            the vectors that the image had before the first step, and the biases of earlier norms.
        look_own: (P / 32, H * D, 32), keys of the shared image.
        look_places: (P / 32, H * D, 32), keys of the positions.
        look_values: (P, H * D), values of the shared image.
        heads: H.
        channels: C.
        epsilon: epsilon of the norm.
    """

    kernels: Kernels
    answer_own: Tensor
    answer_places: Tensor | None
    squares: Tensor
    projected: Tensor
    constants: Tensor
    look_own: Tensor
    look_places: Tensor
    look_values: Tensor
    heads: int
    channels: int
    epsilon: float

    @classmethod
    def of(
        cls,
        kernels: Kernels,
        answer: tuple[Tensor, Tensor | None],
        norm: tuple[Tensor, Tensor, Tensor, int, float],
        look: tuple[Tensor, Tensor, Tensor],
    ) -> "SharedStep":
        """Create a step from projections (H, D, P) of the image and of the positions.

        `answer` contains these two projections for the image's queries. `norm` contains the sums of squares (P,), the
        products with the maps of values (steps * H, D, P) and with the constants (K, P), C, and epsilon. `look`
        contains the two projections for the image's keys, and the values (H, P, D).
        """
        squares, projected, constants, channels, epsilon = norm
        own, places = answer
        keys, key_places, values = look
        return cls(
            kernels,
            _lanes(own),
            None if places is None else _lanes(places),
            squares.contiguous(),
            _lanes(projected),
            in_blocks(constants.T),
            _lanes(keys),
            _lanes(key_places),
            values.transpose(0, 1).flatten(1).contiguous(),
            len(own),
            channels,
            epsilon,
        )

    def take(
        self, images: ImagesInBlocks, answer: tuple[Tensor, Tensor], gram: Tensor, look: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Run the step: replace the scale and coefficients of `images`, and return the tokens' attention to the result.

        `answer` contains the tokens' scaled keys (B, H, T, D) and the products (B, H * T, n) of these keys with the
        queries of the n vectors from before this step. `gram` (B, N, N) contains the products of all vectors before the
        norm; `images` already contains their values. `look` contains the tokens' scaled queries (B, H, Q, D) and the
        products (B, H * Q, N + 1) of these queries with the keys of the vectors after the norm.

        Returns two weighted means: of the shared image's values (B, H, Q, D), and of the coefficients (B, H * Q, N +
        1). Raises ValueError if the shapes don't match.
        """
        keys, answer_prior = answer
        queries, look_prior = look
        prompts, heads, tokens, width = keys.shape
        vectors, blocks = gram.shape[1], len(self.answer_own)
        wanted = queries.shape[2]
        steps = images.values.shape[1] // heads
        lower = gram.tril().add_(gram.tril(-1))
        inputs = (keys, answer_prior, images.values, lower, queries, look_prior, images.scale, images.coefficients)
        rows, constants = images.coefficients.shape[2], self.constants.shape[1]
        all_steps, rest = divmod(rows - constants + steps - 1, heads * tokens + 1)
        first = (all_steps - steps) * heads * tokens
        expected = (
            *((prompts, heads, tokens, width), (prompts, heads * tokens, vectors - heads * tokens)),
            *((prompts, steps * heads, tokens, width), (prompts, vectors, vectors)),
            *((prompts, heads, wanted, width), (prompts, heads * wanted, vectors + 1)),
            *((prompts, blocks * BLOCK), (prompts, blocks, rows, BLOCK)),
        )
        if (
            tuple(tuple(each.shape) for each in inputs) != expected
            or (heads, width, vectors) != (self.heads, HEAD_WIDTH, steps * heads * tokens + constants)
            or (self.projected.shape[1], rest) != (steps * heads * width, 0)
            or first < 0
            or heads * max(tokens, wanted) > MOST_TOKENS
        ):
            raise ValueError(f"the shapes are {[tuple(each.shape) for each in inputs]}: they don't fit the step")
        if any(each.dtype != torch.float32 for each in inputs) or not (
            images.scale.is_contiguous() and images.coefficients.is_contiguous()
        ):
            raise ValueError("expected float32, and contiguous scales and coefficients")
        kept = [each.contiguous() for each in inputs]  # keep these until the call returns
        columns = -(-heads * wanted // 32) * 32
        largest = keys.new_empty(prompts, columns)
        own = keys.new_empty(prompts, heads, wanted, width)
        mixed = keys.new_empty(prompts, vectors + 1, columns)
        arrays = [*kept, largest, own, mixed]
        each = (_Tokens * prompts)(*(_Tokens(*(address(array[n]) for array in arrays)) for n in range(prompts)))
        shared = (getattr(self, name) for name in (*_POINTERS, "look_values"))
        sizes = blocks, heads, tokens, wanted, steps, constants, rows, first, self.channels
        step = _Step(*map(address, shared), *sizes, self.epsilon)
        self.kernels.function("take_step")(ctypes.byref(step), each, ctypes.c_int32(prompts))
        mixed = mixed[:, :, : heads * wanted].transpose(1, 2)
        total = mixed[:, :, -1:]  # the last coefficient is 1
        return own / total.view(prompts, heads, wanted, 1), mixed / total


def _lanes(map_: Tensor) -> Tensor:
    """Rearrange a map (H, D, P) as (P / 32, H * D, 32)."""
    return in_blocks(map_.flatten(0, 1).T)
