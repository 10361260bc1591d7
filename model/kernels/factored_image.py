"""The three steps of decoding points that touch the whole image, as Triton kernels with plain formulas next to them.

Each prompt has its own image of P positions and C channels, kept in factors (`model/sam/factored_image.py`):

    image = scale X + coefficients^T vectors

with the image X that all prompts share, R coefficients a position and R vectors. A step is local to a position
(`answer`, `draw`) or a sum over them (`look`), so that one program takes a tile of positions through all of it: a
prompt's coefficients are read once a step and written once a block, and nothing else of its size exists. Products have
the tensors' type and sums float32, statistics of norms and softmax too. Sums have one fixed order.

Tokens come in rows of 8 for each of 8 heads, T of them real. The row after the first head's tokens, number `CONSTANT`,
is free: from the first norm on its coefficients are 1, for the norm's bias. A program lays the rows out as a matrix
that is zero except for each head's own channels, so that one product serves all heads.

Shapes: B prompts, N = 64 rows, D = 16 channels of a head, W = 128 of all heads, R = 64 rows a block, newest first,
C = 256, P positions.
"""

from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from segmint.model.kernels import factored_plainly


@torch.library.custom_op("segmint::answer", mutates_args=())
def answer(
    queries: Tensor,
    own: Tensor,
    places: Tensor,
    prior: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    vectors: Tensor,
    shared: Tensor,
    tokens: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    """The images after they have attended to the tokens, normalized: scale (B, P) float32, coefficients (B, R + N, P).

    Args:
        queries: (B, N, D), the tokens' keys, scaled.
        own: (W, P), the shared image's queries.
        places: (W, P), those of the positions and the bias; of no rows before the first block, where `own` has them.
        prior: (B, N, R), the product of the tokens' keys with the queries of the image's vectors.
        scale: (B, P) float32, of the image; ones before the first block.
        coefficients: (B, R, P), of the image; R is 0 before the first block.
        vectors: (B, N + R, C), without their mean: what the tokens add to the image, then the image's own.
        shared: (P, C), the shared image without its mean.
        tokens: T, at most 7.
        eps: the norm's.
    """
    found: tuple[Tensor, Tensor] = _computed(
        "answer", queries, own, places, prior, scale, coefficients, vectors, shared, tokens, eps
    )
    return found


@answer.register_fake
def _(
    queries: Tensor,
    own: Tensor,
    places: Tensor,
    prior: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    vectors: Tensor,
    shared: Tensor,
    tokens: int,
    eps: float,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scale), queries.new_empty(len(queries), vectors.shape[1], own.shape[1])


@torch.library.custom_op("segmint::look", mutates_args=())
def look(
    queries: Tensor,
    own: Tensor,
    places: Tensor,
    prior: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    values: Tensor,
) -> tuple[Tensor, Tensor]:
    """What the tokens see of their images, as weights of factors: of shared values (B, N, D), of vectors (B, N, R).

    Args:
        queries: (B, N, D), scaled.
        own: (W, P), the shared image's keys.
        places: (W, P), those of the positions.
        prior: (B, N, R), the product of the queries with the keys of the image's vectors.
        scale: (B, P) float32, of the image.
        coefficients: (B, R, P), of the image.
        values: (P, W), the shared image's values.
    """
    found: tuple[Tensor, Tensor] = _computed("look", queries, own, places, prior, scale, coefficients, values)
    return found


@look.register_fake
def _(
    queries: Tensor,
    own: Tensor,
    places: Tensor,
    prior: Tensor,
    scale: Tensor,
    coefficients: Tensor,
    values: Tensor,
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(queries), torch.empty_like(prior)


@torch.library.custom_op("segmint::draw", mutates_args=())
def draw(
    scale: Tensor,
    coefficients: Tensor,
    vectors: Tensor,
    shared: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor,
    filters: Tensor,
    wanted: Tensor,
    eps: float,
) -> Tensor:
    """Logits (B, 3, 4S, 4S) float32 of masks on images of S x S positions.

    A prompt of which no mask is wanted may have anything there.

    Args:
        scale: (B, P) float32, of the image.
        coefficients: (B, R, P), of the image.
        vectors: (B, R, 4K), the image's after the first step of upscaling: 4 pixels of K = 64 channels.
        shared: (P, 4K), the shared image after it.
        norm: (2, K), weight and bias of the norm.
        weight: (K, 4L), of the second step: 4 pixels of L = 32 channels.
        bias: (4L,).
        filters: (B, 3, L), of the masks.
        wanted: (B, 3) bool.
        eps: the norm's.
    """
    found: Tensor = _computed("draw", scale, coefficients, vectors, shared, norm, weight, bias, filters, wanted, eps)
    return found


@draw.register_fake
def _(
    scale: Tensor,
    coefficients: Tensor,
    vectors: Tensor,
    shared: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor,
    filters: Tensor,
    wanted: Tensor,
    eps: float,
) -> Tensor:
    side = 4 * round(shared.shape[0] ** 0.5)
    return scale.new_empty(len(scale), 3, side, side)


def _computed(step: str, *arguments: Any) -> Any:
    """A step by its kernel on CUDA if Triton is installed, else by its plain formula, whose last bits differ.

    A kernel that fails to compile is an error: which of the two computes must not depend on the moment.
    """
    if arguments[0].device.type != "cuda" or find_spec("triton") is None:
        return getattr(factored_plainly, step)(*arguments)
    from segmint.model.kernels import factored_triton

    return getattr(factored_triton, step)(*arguments)
