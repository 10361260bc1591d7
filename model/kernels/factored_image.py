"""Operators for the three steps of point decoding that process the whole image, with Triton kernels on CUDA.

Each prompt has its own image of P positions and C channels. The image is stored in factors (see
`model/sam/point_decoder.py`):

    image = scale X + coefficients^T vectors

X is the image that all prompts share. Each position has R coefficients, one for each of the prompt's R vectors.
`answer` and `draw` process each position independently, and `look` sums over positions. So a single program can finish
a whole tile of positions. It reads a prompt's coefficients once per step and writes them once per block, and no other
data of that size exists. Products use the tensors' dtype. Sums, the statistics of norms, and the softmax use float32.
Sums have a fixed order.

Each of the 8 heads has 8 rows for tokens and uses T of them, so the row after the first head's tokens is free. From the
first norm on, this row, `CONSTANT`, stores the norm's bias, and its coefficients are 1. A program arranges the rows as
a matrix in which each head's rows are zero outside the head's own channels. This way, one product computes all heads.

Shapes: B prompts, N = 64 rows, D = 16 channels per head, W = 128 channels of all heads, R = 64 rows per block with the
newest block first, C = 256, P positions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from segmint.model.kernels import factored_plainly

by_formulas: ContextVar[bool] = ContextVar("by_formulas", default=False)


@contextmanager
def formulas() -> Iterator[None]:
    """Use the plain formulas instead of the kernels in this thread while the context is active, even on CUDA."""
    token = by_formulas.set(True)
    try:
        yield
    finally:
        by_formulas.reset(token)


def _operator(step: str) -> Any:
    """Register a step as a torch operator that runs a Triton kernel on CUDA if Triton is installed.

    Otherwise, the operator runs the step's plain formula. The kernel and the formula differ in the last bits, so the
    choice between them must not change at run time. For this reason, a kernel that fails to compile raises an error.
    """
    operator = torch.library.custom_op(f"segmint::{step}", getattr(factored_plainly, step), mutates_args=())
    if find_spec("triton") is not None:
        operator.register_kernel("cuda")(lambda *arguments: run_kernel(step, *arguments))
    return operator


def run_kernel(step: str, *arguments: Any) -> Any:
    """Run the Triton kernel of a step, or its plain formula inside `formulas`."""
    if by_formulas.get():
        return getattr(factored_plainly, step)(*arguments)
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
