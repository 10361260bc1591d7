"""Which kernels the model attends with on a GPU: fixed by the type of the weights, as each rounds differently.

Left alone, `F.scaled_dot_product_attention` may take cuDNN's, by its version and by the environment.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

AttentionKernels = Literal["triton", "flash", "efficient"]
"""Ours, which know relative positions, or one of torch's two."""

_TRITON = find_spec("triton") is not None
_HALF = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
_EXACT = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention_kernels(dtype: torch.dtype) -> AttentionKernels:
    """The kernels for weights of a type: ours in half precision where Triton is installed, torch's elsewhere."""
    if dtype not in (torch.bfloat16, torch.float16):
        return "efficient"  # flash attention has no float32
    return "triton" if _TRITON else "flash"


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """`F.scaled_dot_product_attention`, on a GPU by the kernels that `attention_kernels` fixes, or torch's for ours.

    A GPU that cannot run them takes the next in a fixed order, and never cuDNN's.
    """
    if q.device.type != "cuda":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    exact = bias is not None or attention_kernels(q.dtype) == "efficient"  # flash attention takes no bias
    with sdpa_kernel(_EXACT if exact else _HALF, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def relative_attention(x: Tensor, heads: int, side: int) -> Callable[..., Tensor] | None:
    """Our kernels for tokens x (B, H, W, C), see `kernels/relative_attention.py`; None where others attend.

    They compute no gradients.
    """
    if x.device.type != "cuda" or torch.is_grad_enabled() or attention_kernels(x.dtype) != "triton":
        return None
    kernels = _kernels()
    suits = kernels.supports(heads, x.shape[3], side, (x.shape[1], x.shape[2]))
    return kernels.relative_attention if suits else None


def _kernels() -> Any:
    """The module, which loads Triton: only on a GPU."""
    from segmint.model.kernels import relative_attention as kernels

    return kernels
