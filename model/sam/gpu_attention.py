"""Selection of attention kernels on a GPU. Only the weights' dtype decides, because each kernel rounds differently.

If left to choose, `F.scaled_dot_product_attention` may use cuDNN, depending on its version and the environment.
"""

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

AttentionKernels = Literal["triton", "flash", "efficient"]
"""Attention kernels: ours, which support relative positions, or one of the two kinds in torch."""

HAS_TRITON = find_spec("triton") is not None
HALF_BACKENDS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION]
_EXACT = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention_kernels(dtype: torch.dtype) -> AttentionKernels:
    """Choose the kernels for a weight dtype: ours in half precision if Triton is installed, otherwise torch's."""
    if dtype not in (torch.bfloat16, torch.float16):
        return "efficient"  # flash attention doesn't support float32
    return "triton" if HAS_TRITON else "flash"


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, scale: float | None = None) -> Tensor:
    """Run `F.scaled_dot_product_attention`. On a GPU, use the torch kernels that `attention_kernels` selects.

    If it selects our kernels, this function runs torch's flash attention instead. If the GPU doesn't support a kernel,
    the next one in a fixed order runs, but never cuDNN's.
    """
    if q.device.type != "cuda":
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)
    exact = bias is not None or attention_kernels(q.dtype) == "efficient"  # flash attention doesn't support a bias
    with sdpa_kernel(_EXACT if exact else HALF_BACKENDS, set_priority=True):
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=scale)


def relative_attention(x: Tensor, heads: int, side: int) -> Callable[..., Tensor] | None:
    """Return our kernels for tokens x (B, H, W, C). If they don't support this input, return None.

    The kernels don't compute gradients.
    """
    if x.device.type != "cuda" or torch.is_grad_enabled() or attention_kernels(x.dtype) != "triton":
        return None
    kernels = _kernels()
    suits = kernels.supports(heads, x.shape[3], side, (x.shape[1], x.shape[2]))
    return kernels.relative_attention if suits else None


def _kernels() -> Any:
    """Import the kernels. The import loads Triton, so call this only on a GPU."""
    from segmint.model.kernels import relative_attention as kernels

    return kernels
