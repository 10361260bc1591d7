"""Products of matrices in float32 on a CPU, by the faster of torch's two libraries.

`torch.mm` hands float32 to MKL, which uses half of the vector units of some CPUs (AMD's with AVX-512: 105 GFLOP/s a
core where oneDNN has 215). torch has oneDNN for convolutions and reduced precision, and for `torch.compile`, whose
operator is called here. Both libraries compute in float32; sums differ in their last bits. oneDNN compiles a kernel
for each new shape, which takes milliseconds: these functions are for the few shapes that return with every prompt.
Whatever is no float32 on a CPU, or is a batch of more than one, takes the plain product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

_ONEDNN = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b for (N, K) and (K, M), or for a batch of both."""
    if a.ndim == 3:
        return product(a[0], b[0])[None] if len(a) == 1 else a @ b
    return linear(a, b.T) if _suits_onednn(a) else a @ b


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """`F.linear` of x (N, K) with weight (M, K) and bias (M,), and the exact GELU of that if asked for: (N, M)."""
    if _suits_onednn(x):
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
        return result
    result = F.linear(x, weight, bias)
    return F.gelu(result) if gelu else result


def _suits_onednn(x: Tensor) -> bool:
    return _ONEDNN and x.device.type == "cpu" and x.dtype == torch.float32
