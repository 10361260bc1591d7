"""Steps of the mask decoder that visit every position of the image, computed with the kernel of `decoding.h`."""

import ctypes
from dataclasses import dataclass

import torch
from torch import Tensor

from segmint.model.kernels.cpu.drawing import BLOCK, address, in_blocks
from segmint.model.kernels.cpu.library import Kernels

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
