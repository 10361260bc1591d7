"""Two-way transformer of SAM's mask decoder, in which tokens attend to the image and the image attends to tokens.

There are T tokens of 256 channels. They come from the decoder (predicted IoU, masks) and from the prompt. The image has
P = 4096 positions. If all B prompts share one image, it has a batch size of 1 and broadcasts.
"""

from typing import cast

from torch import Tensor, nn

from segmint.model.sam.common import Mlp, join_heads, split_heads
from segmint.model.sam.gpu_attention import attend
from segmint.model.sam.products import Linear


class TwoWayTransformer(nn.Module):
    """Stack of `depth` two-way blocks, followed by an attention from the tokens to the image."""

    def __init__(self, depth: int, width: int = 256, heads: int = 8, hidden: int = 2048) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(width, heads, hidden, first=index == 0) for index in range(depth))
        self.final_attn_token_to_image = Attention(width, width // 2, heads)
        self.norm_final_attn = nn.LayerNorm(width)

    @property
    def blocks(self) -> list["TwoWayBlock"]:
        """Two-way blocks, from first to last."""
        return [cast(TwoWayBlock, layer) for layer in self.layers]

    def forward(self, image: Tensor, image_positions: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Let the tokens (B, T, 256) and the image (B, P, 256) attend to each other, and return both.

        `image` may also be (1, P, 256). `image_positions` (1, P, 256) is added to the image's queries and keys. In the
        same way, the input tokens are added to the queries and keys of the tokens.
        """
        token_positions = tokens
        for block in self.blocks:
            tokens, image = block(tokens, image, token_positions, image_positions)
        attended = self.final_attn_token_to_image(tokens + token_positions, image + image_positions, image)
        tokens = self.norm_final_attn(tokens + attended)
        return tokens, image


class TwoWayBlock(nn.Module):
    """Block of four steps: tokens to tokens, tokens to image, a perceptron on the tokens, and image to tokens.

    All steps but the perceptron are attentions. The output of each step is added to its input and then normalized. The
    first block is different: its self-attention uses the tokens without positions, and the output replaces the tokens.
    """

    def __init__(self, width: int, heads: int, hidden: int, first: bool) -> None:
        super().__init__()
        self.first = first
        self.self_attn = Attention(width, width, heads)
        self.norm1 = nn.LayerNorm(width)
        self.cross_attn_token_to_image = Attention(width, width // 2, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, hidden, relu=True)
        self.norm3 = nn.LayerNorm(width)
        self.cross_attn_image_to_token = Attention(width, width // 2, heads)
        self.norm4 = nn.LayerNorm(width)

    def forward(
        self, tokens: Tensor, image: Tensor, token_positions: Tensor, image_positions: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Run one block on the tokens (B, T, 256) and the image (B, P, 256), and return both."""
        tokens = self.attend_among_tokens(tokens, token_positions)
        placed_image = image + image_positions
        attended = self.cross_attn_token_to_image(tokens + token_positions, placed_image, image)
        tokens = self.refine_tokens(tokens, attended)
        image = image + self.cross_attn_image_to_token(placed_image, tokens + token_positions, tokens)
        image = self.norm4(image)
        return tokens, image

    def attend_among_tokens(self, tokens: Tensor, token_positions: Tensor) -> Tensor:
        """Run the first step, in which the tokens (B, T, 256) attend to each other."""
        if self.first:
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_positions
            tokens = tokens + self.self_attn(placed, placed, tokens)
        normalized: Tensor = self.norm1(tokens)
        return normalized

    def refine_tokens(self, tokens: Tensor, attended: Tensor) -> Tensor:
        """Run the second and third steps, given the tokens and their attention to the image, both (B, T, 256)."""
        tokens = self.norm2(tokens + attended)
        refined: Tensor = self.norm3(tokens + self.mlp(tokens))
        return refined


class Attention(nn.Module):
    """Multi-head attention with `inner` channels over all heads."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.head_width = inner // heads
        self.q_proj = Linear(width, inner)
        self.k_proj = Linear(width, inner)
        self.v_proj = Linear(width, inner)
        self.out_proj = Linear(inner, width)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend from q (B, Q, width) to k and v (B, K, width), and return (B, Q, width).

        The batch size of q, or of k and v, may be 1.
        """
        batch = q.shape[0] if k.shape[0] == 1 else k.shape[0]
        q, k, v = (
            split_heads(projected, self.heads).expand(batch, -1, -1, -1)
            for projected in (self.q_proj(q), self.k_proj(k), self.v_proj(v))
        )
        out: Tensor = self.out_proj(join_heads(attend(q, k, v)))
        return out
