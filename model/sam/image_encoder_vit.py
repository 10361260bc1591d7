"""SAM's image encoder: a Vision Transformer with windows and relative positions (SAM paper, Appendix A).

Selection of attention kernels on a GPU. Only the weights' dtype decides, because each kernel rounds differently.

If left to choose, `F.scaled_dot_product_attention` may use cuDNN, depending on its version and the environment.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from segmint.model.sam.common import Linear, Mlp, embedding_neck, join_heads, linear, merge_windows, partition_windows
from segmint.model.sam.geometry import SAM1

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
    from segmint.model.kernels import encoder_triton as kernels

    return kernels


WINDOW = 14
NORM_EPS = 1e-6

# Number of logits per head whose position terms are computed at once: 1 MB in float32, or one row of 64 queries on the
# full map. On a CPU, this is twice as fast as computing all 4096 queries at once. Their terms would take 800 MB in
# ViT-B.
BAND_ELEMENTS = 1 << 18


@dataclass(frozen=True)
class VitShape:
    """Dimensions of a ViT: the tokens' width, the number of blocks and heads, and the indices of global blocks."""

    width: int
    depth: int
    heads: int
    global_blocks: tuple[int, ...]


VIT_B = VitShape(width=768, depth=12, heads=12, global_blocks=(2, 5, 8, 11))
VIT_L = VitShape(width=1024, depth=24, heads=16, global_blocks=(5, 11, 17, 23))
VIT_H = VitShape(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))


class ImageEncoderViT(nn.Module):
    """Image encoder that maps normalized, padded images to embeddings.

    `image_size` is the side of the square input in pixels, and must be a multiple of `patch_size`; see `Geometry`.
    """

    def __init__(self, shape: VitShape, image_size: int = SAM1.image_size, patch_size: int = SAM1.patch_size) -> None:
        super().__init__()
        grid = image_size // patch_size
        self.patch_embed = PatchEmbed(shape.width, patch_size)
        self.pos_embed = nn.Parameter(torch.zeros(1, grid, grid, shape.width))
        self.blocks = nn.ModuleList(
            VitBlock(shape.width, shape.heads, grid, window=None if index in shape.global_blocks else WINDOW)
            for index in range(shape.depth)
        )
        self.neck = embedding_neck(shape.width)

    def forward(self, image: Tensor) -> Tensor:
        """Encode images (B, 3, S, S) as (B, 256, S / 16, S / 16)."""
        x = self.patch_embed(image) + self.pos_embed
        if x.device.type != "cpu":
            # A convolution returns channels-first memory, and sums keep that layout, so each norm and each product
            # would copy the map. Copy it once instead. A CPU keeps the layout, because the rounding of the neck's
            # convolution depends on it.
            x = x.contiguous()
        for block in self.blocks:
            x = block(x)
        embedding: Tensor = self.neck(x.permute(0, 3, 1, 2))
        return embedding


class PatchEmbed(nn.Module):
    """Linear layer that maps each patch of pixels, 16x16 in SAM, to a token."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size)

    def forward(self, image: Tensor) -> Tensor:
        """Map (B, 3, S, S) to (B, S / 16, S / 16, width)."""
        tokens: Tensor = self.proj(image).permute(0, 2, 3, 1)
        return tokens


class VitBlock(nn.Module):
    """Pre-norm transformer block that attends within windows or, if `window` is None, over the whole map."""

    def __init__(self, width: int, heads: int, grid: int, window: int | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=NORM_EPS)
        self.attn = RelativeAttention(width, heads, side=window or grid)
        self.norm2 = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = Mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class RelativeAttention(nn.Module):
    """Multi-head self-attention within squares of tokens, with decomposed relative positions.

    A square is a window or the whole map, and `side` is its side in tokens. The relative positions follow MViTv2 (arXiv
    2112.01526, eq. 4), with one table for rows and one for columns. Each table contains 2 * side - 1 vectors.
    """

    def __init__(self, width: int, heads: int, side: int) -> None:
        super().__init__()
        self.heads = heads
        self.side = side
        self.qkv = Linear(width, 3 * width)
        self.proj = Linear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * side - 1, width // heads))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to the same shape."""
        kernel = relative_attention(x, self.heads, self.side)
        if kernel is None:
            attended = self.attend_plainly(x)
        else:
            attended = kernel(self.qkv(x), self.qkv.bias, self.rel_pos_h, self.rel_pos_w, self.heads, self.side)
        out: Tensor = self.proj(attended)
        return out

    def attend_plainly(self, x: Tensor) -> Tensor:
        """Compute the attention of all heads with torch operations, (B, H, W, C)."""
        side = self.side
        # As in training, tokens also attend to the zeros that pad the last windows. The q, k, and v of these zeros are
        # just the bias, so the matrix product skips them, and the bias is added afterwards.
        qkv = torch.unflatten(linear(x.flatten(0, 2), self.qkv.weight), 0, x.shape[:3])
        qkv = partition_windows(qkv, side) + self.qkv.bias
        heads = torch.unflatten(qkv.flatten(1, 2), -1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        q, k, v = heads.contiguous().unbind(0)
        rows, columns = self._position_logits(q)
        # Neither method is faster everywhere. A CPU's kernel is fastest on short bands, whose logits fit into the
        # cache. A GPU's kernel is fastest in one call without a mask.
        attend_by = attend_in_bands if q.device.type == "cpu" else attend_with_extended_keys
        attended = torch.unflatten(join_heads(attend_by(q, k, v, rows, columns)), 1, (side, side))
        return merge_windows(attended, x.shape[1], x.shape[2])

    def _position_logits(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """Return the terms that the row and the column of each key add to its logits, both (N, heads, side², side).

        q is (N, heads, side², D), before scaling by the attention's 1/sqrt(D).
        """
        offsets = relative_offsets(self.side, q.device)
        q = torch.unflatten(q, 2, (self.side, self.side))
        rows = torch.einsum("bnhwd,hkd->bnhwk", q, self.rel_pos_h[offsets])
        columns = torch.einsum("bnhwd,wkd->bnhwk", q, self.rel_pos_w[offsets])
        return rows.flatten(2, 3), columns.flatten(2, 3)


def attend_in_bands(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Compute softmax(q kᵀ / sqrt(D) + rows + columns) v for a few rows of queries at a time: (B, heads, side², D).

    q, k, and v are (B, heads, side², D). `rows` and `columns` (B, heads, side², side) are the terms that the row and
    the column of each key add to its logit. Working in bands limits the sum of these terms to (band, side²) per head
    instead of (side², side²). It doesn't change the bits of the result.
    """
    side = rows.shape[-1]
    band = side * max(1, BAND_ELEMENTS // side**3)
    rows, columns = rows.contiguous()[..., :, None], columns.contiguous()[..., None, :]
    attended = [
        F.scaled_dot_product_attention(
            q[:, :, start : start + band],
            k,
            v,
            attn_mask=(rows[:, :, start : start + band] + columns[:, :, start : start + band]).flatten(3),
        )
        for start in range(0, side * side, band)
    ]
    return torch.cat(attended, dim=2)


def attend_with_extended_keys(q: Tensor, k: Tensor, v: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Compute `attend_in_bands` in one call without a mask, by moving the positions into additional inner dimensions.

    For a key in row y and column x, with e(j) as the one-hot vector of j:

        q·k / sqrt(D) + rows[y] + columns[x] = [q / sqrt(D), rows, columns] · [k, e(y), e(x)]

    This extends q and k to D + 2 * side dimensions. The fused kernels of GPUs require that q, k, and v have the same
    number of dimensions, and that it's a multiple of 8, so all three are padded with zeros.
    """
    side, dimensions = rows.shape[-1], q.shape[-1]
    one_hot = torch.eye(side, dtype=k.dtype, device=k.device)
    places = torch.cat([one_hot.repeat_interleave(side, 0), one_hot.repeat(side, 1)], dim=1)
    extended_q = torch.cat([q * dimensions**-0.5, rows, columns], dim=-1)
    extended_k = torch.cat([k, places.expand(*k.shape[:2], -1, -1)], dim=-1)
    inner = extended_q.shape[-1]
    fill = -inner % 8
    attended = attend(
        F.pad(extended_q, (0, fill)),
        F.pad(extended_k, (0, fill)),
        F.pad(v, (0, inner + fill - dimensions)),
        scale=1.0,
    )
    return attended[..., :dimensions]


def relative_offsets(side: int, device: torch.device) -> Tensor:
    """Return the table of q - k + side - 1, (side, side) int64, which is the row of a position table for each pair."""
    positions = torch.arange(side, device=device)
    return positions[:, None] - positions[None, :] + side - 1
