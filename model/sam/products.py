"""Matrix products and fused convolutions that use the faster of torch's two CPU libraries.

For float32, `torch.mm` calls MKL. On some CPUs, MKL uses only half of the vector units: on AMD CPUs with AVX-512, it
reaches 105 GFLOP/s per core, compared with 215 for oneDNN. torch itself uses oneDNN for convolutions, for reduced
precision, and in `torch.compile`. This module calls the oneDNN operator that `torch.compile` uses. Both libraries
compute in float32, but their sums differ in the last bits. oneDNN takes milliseconds to compile a kernel for each new
shape, so use these functions only for the few shapes that occur in every image. In bfloat16, torch uses oneDNN in any
case, but only this operator fuses the addition or activation. With gradients, in `torch.compile`, on accelerators, and
for factors of different types, as under autocast, these functions compute plain products.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_OPERATORS = ("_linear_pointwise", "_convolution_pointwise", "_is_mkldnn_bf16_supported")
ONEDNN = torch._C._has_mkldnn and all(hasattr(torch.ops.mkldnn, name) for name in _OPERATORS)
_BF16 = ONEDNN and torch.ops.mkldnn._is_mkldnn_bf16_supported()  # not with AVX2 only, where torch converts to float32


def product(a: Tensor, b: Tensor, onto: Tensor | None = None) -> Tensor:
    """Multiply a (N, K) by b (K, M), or batches of both. If `onto` (N, M) is given, add the product to it."""
    if not _suits_onednn(a, b):
        return a @ b if onto is None else onto + a @ b
    if a.ndim == 3:
        ontos = [None] * len(a) if onto is None else onto
        return torch.stack([product(*one) for one in zip(a, b, ontos, strict=True)])
    if onto is None:
        return linear(a, b.T)
    added: Tensor = torch.ops.mkldnn._linear_pointwise.binary(a, onto, b.T, None, "add")
    return added


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, gelu: bool = False) -> Tensor:
    """Apply `F.linear` to x (N, K) with weight (M, K) and bias (M,), then the exact GELU if `gelu` is set: (N, M)."""
    if _suits_onednn(x, weight):
        result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "gelu" if gelu else "none", [], "none")
        return result
    result = F.linear(x, weight, bias)
    return F.gelu(result) if gelu else result


class Linear(nn.Linear):
    """`nn.Linear` that computes its product with `linear`."""

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        """Map (..., in) to (..., out). With `gelu`, an exact GELU follows."""
        result = linear(x.flatten(0, -2), self.weight, self.bias, gelu)
        return result.reshape(*x.shape[:-1], self.out_features)


class GeluConv2d(nn.Module):
    """Convolution followed by an exact GELU. oneDNN fuses the two, so a map of 64 MB is written only once."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H', W')."""
        conv = self.convolution
        if not _suits_onednn(x, conv.weight):
            return F.gelu(conv(x))
        sizes = conv.padding, conv.stride, conv.dilation, conv.groups
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(x, conv.weight, conv.bias, *sizes, "gelu", [], "none")
        return result


def _suits_onednn(x: Tensor, weight: Tensor) -> bool:
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.dtype != weight.dtype:
        return False
    return ONEDNN and x.device.type == "cpu" and (x.dtype == torch.float32 or (_BF16 and x.dtype == torch.bfloat16))
