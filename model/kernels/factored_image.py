"""Operators for the three steps of point decoding that process the whole image, with Triton kernels on CUDA.

Each prompt has its own image of P positions and C channels, kept in factors (`model/sam/factored_image.py`):

    image = scale X + coefficients^T vectors

X is the image that all prompts share, and there are R coefficients per position and R vectors. A step is either local
to a position (`answer`, `draw`) or a sum over positions (`look`), so one program can process a tile of positions
completely. It reads a prompt's coefficients once per step and writes them once per block; nothing else of that size
exists. Products use the tensors' dtype; sums, statistics of norms, and softmax use float32. Sums have a fixed order.

Each of 8 heads has 8 rows for tokens, T of which are used. Row `CONSTANT`, after the first head's tokens, is thus free.
From the first norm on, its coefficients are 1, for the norm's bias. A program arranges the rows as a matrix that is
zero except for each head's own channels, so one product serves all heads.

Shapes: B prompts, N = 64 rows, D = 16 channels per head, W = 128 of all heads, R = 64 rows per block, newest first, C =
256, P positions.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from segmint.model.kernels import factored_plainly

_by_formulas: ContextVar[bool] = ContextVar("_by_formulas", default=False)


@contextmanager
def formulas() -> Iterator[None]:
    """Use the plain formulas on CUDA, too, in this thread while the block runs."""
    token = _by_formulas.set(True)
    try:
        yield
    finally:
        _by_formulas.reset(token)


def _operator(step: str) -> Any:
    """Return a step as a torch operator that uses its kernel on CUDA if Triton is installed, else its plain formula.

    The two differ in the last bits. A kernel that fails to compile is an error, because the choice between the two must
    not vary at run time.
    """
    operator = torch.library.custom_op(f"segmint::{step}", getattr(factored_plainly, step), mutates_args=())
    if find_spec("triton") is not None:
        operator.register_kernel("cuda")(lambda *arguments: _kernel(step, *arguments))
    return operator


def _kernel(step: str, *arguments: Any) -> Any:
    if _by_formulas.get():
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
