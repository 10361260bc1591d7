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


def _operator(step: str) -> Any:
    """A step as an operator of torch: by its kernel on CUDA if Triton is installed, else by its plain formula.

    The last bits of the two differ. A kernel that fails to compile is an error: which of the two computes must not
    depend on the moment.
    """
    operator = torch.library.custom_op(f"segmint::{step}", getattr(factored_plainly, step), mutates_args=())
    if find_spec("triton") is not None:
        operator.register_kernel("cuda")(lambda *arguments: _kernel(step, *arguments))
    return operator


def _kernel(step: str, *arguments: Any) -> Any:
    from segmint.model.kernels import factored_triton

    return getattr(factored_triton, step)(*arguments)


answer, look, draw = (_operator(step) for step in ("answer", "look", "draw"))


@answer.register_fake
def _(
    queries: Tensor, own: Tensor, places: Tensor, prior: Tensor, scale: Tensor, _: Tensor, vectors: Tensor, *__: Any
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(scale), queries.new_empty(len(queries), vectors.shape[1], own.shape[1])


@look.register_fake
def _(queries: Tensor, own: Tensor, places: Tensor, prior: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty_like(queries), torch.empty_like(prior)


@draw.register_fake
def _(scale: Tensor, coefficients: Tensor, vectors: Tensor, shared: Tensor, *_: Any) -> Tensor:
    side = 4 * round(shared.shape[0] ** 0.5)
    return scale.new_empty(len(scale), 3, side, side)
