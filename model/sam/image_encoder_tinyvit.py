"""MobileSAM's image encoder: TinyViT (arXiv 2207.10666) at 1024 pixels without the last downsampling.

Convolutions process (B, C, H, W), and transformer blocks process (B, H, W, C).
"""

import copy
from collections import OrderedDict
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval

from segmint.model.sam.common import GeluConv2d, Linear, embedding_neck, join_heads, merge_windows, partition_windows
from segmint.model.sam.image_encoder_vit import attend

WIDTHS = (64, 128, 160, 320)
DEPTHS = (2, 2, 6, 2)
HEAD_CHANNELS = 32
WINDOWS = (7, 14, 7)
CLASSES = 1000


class ImageEncoderTinyViT(nn.Module):
    """Image encoder that maps normalized, padded images to embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = Stem(WIDTHS[0])
        self.layers = nn.ModuleList(
            [
                ConvStage(WIDTHS[0], DEPTHS[0], PatchMerging(WIDTHS[0], WIDTHS[1], stride=2)),
                AttentionStage(WIDTHS[1], DEPTHS[1], WINDOWS[0], PatchMerging(WIDTHS[1], WIDTHS[2], stride=2)),
                AttentionStage(WIDTHS[2], DEPTHS[2], WINDOWS[1], PatchMerging(WIDTHS[2], WIDTHS[3], stride=1)),
                AttentionStage(WIDTHS[3], DEPTHS[3], WINDOWS[2], None),
            ]
        )
        # The checkpoint includes TinyViT's ImageNet classifier. Without these two unused layers, strict loading would
        # fail.
        self.norm_head = nn.LayerNorm(WIDTHS[3])
        self.head = nn.Linear(WIDTHS[3], CLASSES)
        self.neck = embedding_neck(WIDTHS[3])

    def forward(self, image: Tensor) -> Tensor:
        """Encode images (B, 3, S, S) as (B, 256, S / 16, S / 16)."""
        x = self.patch_embed(image)
        for layer in self.layers:
            x = layer(x)
        embedding: Tensor = self.neck(x)
        return embedding

    def folded(self) -> Self:
        """Return a copy for inference in which batch norms are folded into convolutions. It's a fifth faster on a CPU.

        The embeddings differ by less than 1e-5. The copy stores convolution weights in channels-last order, and its
        state dict uses different names than checkpoints do. Raises ValueError in training mode, because batch norms
        then depend on the batch.
        """
        if self.training:
            raise ValueError("the encoder is in training mode: call .eval() before folding batch norms")
        folded = copy.deepcopy(self)
        for part in list(folded.modules()):
            for name, child in part.named_children():
                if isinstance(child, ConvNorm):
                    setattr(part, name, child.folded())
        return folded.to(memory_format=torch.channels_last)


class ConvNorm(nn.Module):
    """Convolution without bias, followed by batch norm and, if requested, GELU."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, gelu: bool = False
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.gelu = gelu

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        out: Tensor = self.bn(self.c(x))
        return F.gelu(out) if self.gelu else out

    def folded(self) -> nn.Module:
        """Fold the layers into an equivalent convolution with bias, and GELU, for evaluation mode.

        The folding is computed in float32.
        """
        dtype = self.c.weight.dtype
        exact = copy.deepcopy(self).float()
        fused = fuse_conv_bn_eval(exact.c, exact.bn).to(dtype)
        return GeluConv2d(fused) if self.gelu else fused


class Stem(nn.Module):
    """Two strided convolutions, which map (B, 3, S, S) to (B, width, S / 4, S / 4)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        # The checkpoint counts the GELU between the two as a separate layer.
        first = ConvNorm(3, width // 2, kernel=3, stride=2, gelu=True)
        second = ConvNorm(width // 2, width, kernel=3, stride=2)
        self.seq = nn.Sequential(OrderedDict([("0", first), ("2", second)]))

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, width, S / 4, S / 4)."""
        out: Tensor = self.seq(image)
        return out


class MBConv(nn.Module):
    """Inverted bottleneck: widen four times, convolve each channel, narrow, and add the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 4 * width
        self.conv1 = ConvNorm(width, hidden, gelu=True)
        self.conv2 = ConvNorm(hidden, hidden, kernel=3, groups=hidden, gelu=True)
        self.conv3 = ConvNorm(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return F.gelu(x + self.conv3(self.conv2(self.conv1(x))))


class PatchMerging(nn.Module):
    """Transition between two stages, which changes the width. If `stride` is 2, it also halves the resolution."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(inputs, outputs, gelu=True)
        self.conv2 = ConvNorm(outputs, outputs, kernel=3, stride=stride, groups=outputs, gelu=True)
        self.conv3 = ConvNorm(outputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, inputs, H, W) to (B, outputs, H / stride, W / stride)."""
        out: Tensor = self.conv3(self.conv2(self.conv1(x)))
        return out


class ConvStage(nn.Module):
    """First stage: inverted bottlenecks, followed by the transition to the next stage."""

    def __init__(self, width: int, depth: int, downsample: PatchMerging) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(MBConv(width) for _ in range(depth)))
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the output of `downsample`."""
        out: Tensor = self.downsample(self.blocks(x))
        return out


class AttentionStage(nn.Module):
    """Later stage: transformer blocks in windows, followed by the transition to the next stage if there is one."""

    def __init__(self, width: int, depth: int, window: int, downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.Sequential(*(TinyViTBlock(width, window) for _ in range(depth)))
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, width, H, W) to the output of `downsample`. Without `downsample`, the shape stays the same."""
        x = self.blocks(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return x if self.downsample is None else self.downsample(x)


class TinyViTBlock(nn.Module):
    """Transformer block: attention in windows, a depthwise convolution across their borders, and a perceptron."""

    def __init__(self, width: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.attn = WindowAttention(width, width // HEAD_CHANNELS, window)
        self.local_conv = ConvNorm(width, width, kernel=3, groups=width)
        self.mlp = NormedMlp(width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        attended = self.attn(partition_windows(x, self.window))
        x = x + merge_windows(attended, x.shape[1], x.shape[2])
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = x + self.mlp(x)
        return out


class WindowAttention(nn.Module):
    """Multi-head self-attention within a window, with a learned bias per (|dy|, |dx|).

    This layer includes the norm, so it also normalizes the zeros that pad a window. They become the norm's bias.
    """

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def forward(self, windows: Tensor) -> Tensor:
        """Map (N, window, window, C) to the same shape."""
        side = windows.shape[1]
        # The q, k, and v of each head are adjacent: (heads, 3 * D). The ViT uses (3, heads, D) instead.
        qkv = torch.unflatten(self.qkv(self.norm(windows)).flatten(1, 2), -1, (self.heads, 3, -1))
        q, k, v = qkv.permute(3, 0, 2, 1, 4).unbind(0)
        # (1, heads, side², side²), because a CPU's fused kernel doesn't support 3-dimensional masks.
        bias = self.attention_biases[None, :, bias_index(side, windows.device)]
        attended = attend(q, k, v, bias)
        out: Tensor = self.proj(join_heads(attended))
        return torch.unflatten(out, 1, (side, side))


class NormedMlp(nn.Module):
    """Layer norm, followed by a perceptron whose hidden layer is four times as wide."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = Linear(width, 4 * width)
        self.fc2 = Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., C) to the same shape."""
        out: Tensor = self.fc2(self.fc1(self.norm(x), gelu=True))
        return out


def bias_index(side: int, device: torch.device) -> Tensor:
    """Return the table of |dy| * side + |dx| between any two positions of a window, (side², side²) int64."""
    positions = torch.arange(side * side, device=device)
    rows, columns = positions // side, positions % side
    dy = (rows[:, None] - rows[None, :]).abs()
    dx = (columns[:, None] - columns[None, :]).abs()
    return dy * side + dx
