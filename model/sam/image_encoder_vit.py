"""SAM's image encoder: a Vision Transformer with windows and relative positions (SAM paper, Appendix A)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.sam.common import Mlp, embedding_neck, join_heads, merge_windows, partition_windows

PATCH = 16
WINDOW = 14
NORM_EPS = 1e-6


@dataclass(frozen=True)
class VitShape:
    """The size of a ViT: tokens' width, number of blocks and heads, and which blocks attend globally."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


VIT_B = VitShape(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11))
VIT_L = VitShape(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))
VIT_H = VitShape(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))


class ImageEncoderViT(nn.Module):
    """Turns a normalized, padded image into its embedding.

    `image_size` is the side of the square input in pixels, a multiple of 16; SAM's weights are for 1024.
    """

    def __init__(self, shape: VitShape, image_size: int = 1024) -> None:
        super().__init__()
        grid = image_size // PATCH
        self.patch_embed = PatchEmbed(shape.width)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, shape.width))
        self.blocks = nn.ModuleList(
            Block(shape.width, shape.heads, grid, window=None if index in shape.global_blocks else WINDOW)
            for index in range(shape.depth)
        )
        self.neck = embedding_neck(shape.width)

    def forward(self, image: Tensor) -> Tensor:
        """Encodes (B, 3, S, S) as (B, 256, S / 16, S / 16)."""
        x = self.patch_embed(image) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        embedding: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return embedding


class PatchEmbed(nn.Module):
    """One linear map from each 16x16 patch of pixels to a token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=PATCH, stride=PATCH)

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, S / 16, S / 16, width)."""
        tokens: Tensor = self.proj(image).permute(0, 2, 3, 1)
        return tokens


class Block(nn.Module):
    """A transformer block, normalized before each half; attention within windows, or over all when None."""

    def __init__(self, width: int, heads: int, grid: int, window: int | None) -> None:
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = Attention(width, heads, side=window or grid)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) to the same shape."""
        normed = self.norm1(x)
        if self.window is None:
            x = x + self.attn(normed)
        else:
            # The zeros that fill up the last windows come after the norm and are attended to like any token:
            # the weights were trained so.
            attended = self.attn(partition_windows(normed, self.window))
            x = x + merge_windows(attended, x.shape[1], x.shape[2])
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class Attention(nn.Module):
    """Multi-head self-attention over a square of tokens, with decomposed relative positions.

    `side` is the square's side in tokens. The relative positions are those of MViTv2 (arXiv 2112.01526, eq.
    4): one table for rows, one for columns, each of 2 * side - 1 vectors.
    """

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        """(B, side, side, C) to the same shape."""
        side = x.shape[1]
        qkv = torch.unflatten(self.qkv(x).flatten(1, 2), -1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self._position_bias(q, side)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=bias)
        out: Tensor = self.proj(join_heads(attended))
        return torch.unflatten(out, 1, (side, side))

    def _position_bias(self, q: Tensor, side: int) -> Tensor:
        """What to add to the scaled logits: (B, heads, side², side²), from q as (B, heads, side², D).

        The products take q as it is, without the attention's 1/sqrt(D).
        """
        offsets = relative_offsets(side, q.device)
        q = torch.unflatten(q, 2, (side, side))
        rows = torch.einsum("bnhwd,hkd->bnhwk", q, self.rel_pos_h[offsets])
        columns = torch.einsum("bnhwd,wkd->bnhwk", q, self.rel_pos_w[offsets])
        bias = rows[..., :, None] + columns[..., None, :]
        return bias.flatten(4, 5).flatten(2, 3)


def relative_offsets(side: int, device: torch.device) -> Tensor:
    """The (side, side) int64 table of q - k + side - 1: the row of a position table for each pair."""
    positions = torch.arange(side, device=device)
    return positions[:, None] - positions[None, :] + side - 1
