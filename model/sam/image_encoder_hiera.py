"""SAM 2's image encoder: Hiera (arXiv 2306.00989) with a feature pyramid (SAM 2 paper, arXiv 2408.00714, Section 4).

Hiera has four stages. Each stage halves the resolution of the previous one and doubles its channels, so their maps have
256, 128, 64, and 32 positions per side. The image embedding is the third map plus the upsampled fourth map. The first
two maps are the high-resolution features, which the mask decoder adds while it upscales the embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from segmint.model.sam.common import (
    EMBEDDING_CHANNELS,
    Linear,
    Mlp,
    join_heads,
    linear,
    merge_windows,
    partition_windows,
    split_heads,
)
from segmint.model.sam.image_encoder_vit import attend

NORM_EPS = 1e-6
PATCH_SIZE = 4
"""Stride of the patch embedding, in pixels per position of the first stage."""
HIGH_RES_CHANNELS = (EMBEDDING_CHANNELS // 4, EMBEDDING_CHANNELS // 8)
"""Number of channels of the high-resolution features from the second stage and from the first stage."""


@dataclass(frozen=True)
class HieraShape:
    """Dimensions of a Hiera.

    Attributes:
        width: number of channels in the first stage. Each stage has twice as many as the previous one.
        heads: number of attention heads in the first stage, which doubles in the same way.
        depths: number of blocks in each stage.
        windows: side of each stage's windows, in positions.
        global_blocks: indices of the blocks that attend to the whole map.
        background: side of the position embedding before it's interpolated to the size of the map.
    """

    width: int
    heads: int
    depths: tuple[int, int, int, int]
    windows: tuple[int, int, int, int]
    global_blocks: tuple[int, ...]
    background: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Number of channels in each stage."""
        return tuple(self.width << stage for stage in range(len(self.depths)))


HIERA_SHAPES: Mapping[str, HieraShape] = {
    "hiera_tiny": HieraShape(96, 1, (1, 2, 7, 2), (8, 4, 14, 7), (5, 7, 9), 7),
    "hiera_small": HieraShape(96, 1, (1, 2, 11, 2), (8, 4, 14, 7), (7, 10, 13), 7),
    "hiera_base_plus": HieraShape(112, 2, (2, 3, 16, 3), (8, 4, 14, 7), (12, 16, 20), 14),
    "hiera_large": HieraShape(144, 2, (2, 6, 36, 4), (8, 4, 16, 8), (23, 33, 43), 7),
}


class ImageEncoderHiera(nn.Module):
    """Image encoder that maps normalized images to embeddings and high-resolution features.

    It includes all parts of SAM 2 that depend only on the image. These are the projections of the high-resolution
    features, and the "no memory" embedding, which replaces the memory of earlier frames for still images.
    """

    high_res_channels = HIGH_RES_CHANNELS

    def __init__(self, shape: HieraShape) -> None:
        super().__init__()
        self.shape = shape
        self.trunk = Hiera(shape)
        self.neck = FeaturePyramid(shape.widths)
        self.high_res_projections = nn.ModuleList(
            nn.Conv2d(EMBEDDING_CHANNELS, channels, kernel_size=1) for channels in HIGH_RES_CHANNELS
        )
        self.no_memory_embed = nn.Parameter(torch.zeros(1, 1, EMBEDDING_CHANNELS))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Encode images (B, 3, S, S), where S is a multiple of 32.

        Returns the embedding (B, 256, S / 16, S / 16), and the high-resolution features (B, 64, S / 8, S / 8) and (B,
        32, S / 4, S / 4).
        """
        finest, finer, embedding = self.neck(self.trunk(image))
        embedding = embedding + self.no_memory_embed.view(1, -1, 1, 1)
        of_finer, of_finest = self.high_res_projections
        return embedding, of_finer(finer), of_finest(finest)


class Hiera(nn.Module):
    """Trunk of the encoder: transformer blocks on maps whose resolution halves from stage to stage."""

    def __init__(self, shape: HieraShape) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed(shape.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, shape.width, shape.background, shape.background))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, shape.width, shape.windows[0], shape.windows[0]))
        blocks: list[HieraBlock] = []
        for stage, (depth, width) in enumerate(zip(shape.depths, shape.widths, strict=True)):
            for number in range(depth):
                pools = stage > 0 and number == 0
                # A block that pools receives the positions of the previous stage, so it uses that stage's windows.
                window = shape.windows[stage - pools] if len(blocks) not in shape.global_blocks else None
                blocks.append(HieraBlock(width >> pools, width, shape.heads << stage, window, pools))
        self.blocks = nn.ModuleList(blocks)
        self.ends = {sum(shape.depths[: stage + 1]) - 1 for stage in range(len(shape.depths))}

    def forward(self, image: Tensor) -> list[Tensor]:
        """Encode images (B, 3, S, S), and return the map (B, C, H, W) of each stage, from fine to coarse."""
        x = self.patch_embed(image)
        x = (x + self._positions(x.shape[1], x.shape[2])).contiguous()
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.ends:
                maps.append(x.permute(0, 3, 1, 2))
        return maps

    def _positions(self, height: int, width: int) -> Tensor:
        """Return the position embedding (1, height, width, C).

        It's the sum of an embedding of the whole map and an embedding that repeats in each window.
        """
        whole = F.interpolate(self.pos_embed, size=(height, width), mode="bicubic")
        side = self.pos_embed_window.shape[-1]
        return (whole + self.pos_embed_window.tile(1, 1, height // side, width // side)).permute(0, 2, 3, 1)


class PatchEmbed(nn.Module):
    """Convolution that maps overlapping patches of 7x7 pixels to tokens."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=7, stride=PATCH_SIZE, padding=3)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, S / 4, S / 4, width)."""
        tokens: Tensor = self.proj(image).permute(0, 2, 3, 1)
        return tokens


class HieraBlock(nn.Module):
    """Pre-norm transformer block that attends within windows or, if `window` is None, over the whole map.

    With `pools`, the block is the first one of a stage, and it halves the resolution. It pools the queries before the
    attention. Because the block adds the attention's output to its input, it also projects and pools its input.
    """

    def __init__(self, width: int, width_out: int, heads: int, window: int | None, pools: bool) -> None:
        super().__init__()
        self.window = window
        self.pools = pools
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = PooledAttention(width, width_out, heads)
        self.norm2 = nn.LayerNorm(width_out, eps=NORM_EPS)
        self.mlp = Mlp(width_out, 4 * width_out)
        if pools:
            self.proj = Linear(width, width_out)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, width) to (B, H, W, width_out). If the block pools, H and W are halved."""
        normalized = self.norm1(x)
        if self.pools:
            x = max_pool(self.proj(normalized))
        x = x + self.attn(normalized, self.window, self.pools)
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PooledAttention(nn.Module):
    """Multi-head self-attention within the windows of a map. The queries may be pooled."""

    def __init__(self, width: int, width_out: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(width, 3 * width_out)
        self.proj = Linear(width_out, width_out)

    def forward(self, x: Tensor, window: int | None, pools: bool) -> Tensor:
        """Map (B, H, W, width) to (B, H, W, width_out). With `pools`, H and W are halved."""
        height, width = x.shape[1:3]
        side = window or height
        # As in training, tokens also attend to the zeros that pad the last windows. The q, k, and v of these zeros are
        # just the bias, so the matrix product skips them, and the bias is added afterwards.
        qkv = torch.unflatten(linear(x.flatten(0, 2), self.qkv.weight), 0, x.shape[:3])
        q, k, v = (partition_windows(qkv, side) + self.qkv.bias).chunk(3, dim=-1)
        if pools:
            q, side, height, width = max_pool(q), side // 2, height // 2, width // 2
        q, k, v = (split_heads(each.flatten(1, 2), self.heads) for each in (q, k, v))
        attended = torch.unflatten(join_heads(attend(q, k, v)), 1, (side, side))
        out: Tensor = self.proj(merge_windows(attended, height, width))
        return out


class FeaturePyramid(nn.Module):
    """Feature pyramid (arXiv 1612.03144) over the stages' maps. It adds only the coarsest map to the next finer map."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        # In the checkpoint's order, from coarse to fine.
        self.convs = nn.ModuleList(nn.Conv2d(width, EMBEDDING_CHANNELS, kernel_size=1) for width in reversed(widths))

    def forward(self, maps: list[Tensor]) -> list[Tensor]:
        """Project the maps of all stages to 256 channels, and add the last one to the one before.

        Returns the maps (B, 256, H, W) of all stages except the last.
        """
        *finer, before_last, last = (conv(map_) for conv, map_ in zip(reversed(list(self.convs)), maps, strict=True))
        added = before_last + F.interpolate(last, scale_factor=2.0, mode="nearest")
        return [*finer, added]


def max_pool(x: Tensor) -> Tensor:
    """Return the maximum of each 2x2 block of (B, H, W, C), where H and W are even, as (B, H / 2, W / 2, C)."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).amax(dim=(2, 4))
