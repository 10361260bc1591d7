"""Layers shared by several parts of SAM, and matrix products whose bits don't depend on the machine.

Matrix products and fused convolutions that use the faster of torch's two CPU libraries.

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


EMBEDDING_CHANNELS = 256


def random_normal(*shape: int) -> Tensor:
    """Return standard normal numbers on torch's default device. On the meta device, return an empty tensor.

    There, `torch.randn` would import torch's compiler, which delays each process with a model by 1.5 s.
    """
    values = torch.empty(shape)
    return values if values.is_meta else values.normal_()


def learned_tokens(count: int, width: int) -> nn.Embedding:
    """Create `count` learned tokens of `width` channels. They are random until weights are loaded."""
    return nn.Embedding(count, width, _weight=random_normal(count, width))


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of each position in a map (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """Normalize (B, C, H, W) without changing its shape."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Mlp(nn.Module):
    """Two linear layers with GELU or ReLU between them, as in a transformer block."""

    def __init__(self, width: int, hidden: int, relu: bool = False) -> None:
        super().__init__()
        self.lin1 = Linear(width, hidden)
        self.lin2 = Linear(hidden, width)
        self.relu = relu

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., width) to (..., width)."""
        out: Tensor = self.lin2(F.relu(self.lin1(x)) if self.relu else self.lin1(x, gelu=True))
        return out


class Perceptron(nn.Module):
    """Three linear layers with ReLU between them. No activation follows the last layer."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Linear(inputs, hidden), Linear(hidden, hidden), Linear(hidden, outputs)])

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        *hidden, last = self.layers
        for layer in hidden:
            x = F.relu(layer(x))
        out: Tensor = last(x)
        return out


def embedding_neck(width: int) -> nn.Sequential:
    """Create the layers that map an encoder's output (B, width, H, W) to the image embedding (B, 256, H, W)."""
    channels = EMBEDDING_CHANNELS
    return nn.Sequential(
        nn.Conv2d(width, channels, kernel_size=1, bias=False),
        LayerNorm2d(channels),
        nn.Conv2d(channels, channels, kernel_size=3, padding=1, bias=False),
        LayerNorm2d(channels),
    )


def partition_windows(x: Tensor, size: int) -> Tensor:
    """Divide (B, H, W, C) into square windows. The last row and column of windows are padded with zeros.

    Returns (B * rows * columns, size, size, C), image by image and row by row.
    """
    batch, height, width, channels = x.shape
    rows, columns = windows_along(height, size), windows_along(width, size)
    x = F.pad(x, (0, 0, 0, columns * size - width, 0, rows * size - height))
    x = x.reshape(batch, rows, size, columns, size, channels)
    return x.transpose(2, 3).reshape(batch * rows * columns, size, size, channels)


def windows_along(length: int, size: int) -> int:
    """Return the number of windows of `size` that cover a side of `length`."""
    # Don't write -(-length // size), because torch's ONNX exporter rounds negative quotients incorrectly.
    return (length + size - 1) // size


def merge_windows(windows: Tensor, height: int, width: int) -> Tensor:
    """Undo `partition_windows`, and remove the padding, which gives (B, height, width, C)."""
    size, channels = windows.shape[1], windows.shape[3]
    rows, columns = windows_along(height, size), windows_along(width, size)
    x = windows.reshape(-1, rows, columns, size, size, channels).transpose(2, 3)
    return x.reshape(-1, rows * size, columns * size, channels)[:, :height, :width]


def split_heads(x: Tensor, heads: int) -> Tensor:
    """Reshape (B, N, heads * D) to (B, heads, N, D)."""
    return torch.unflatten(x, -1, (heads, -1)).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Reshape (B, heads, N, D) to (B, N, heads * D)."""
    return x.transpose(1, 2).flatten(2)


def split_rows(rows: Tensor, heads: int) -> Tensor:
    """Reshape (heads * D, N) to (heads, D, N)."""
    return torch.unflatten(rows, 0, (heads, -1))
