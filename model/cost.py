"""Number of floating-point operations in SAM, computed from its shapes; the basis of the hardware ceiling.

Counts the multiplications and additions of the network's matrix products, convolutions, and attentions, two operations
per multiply-add, one prompt after another as in the SAM paper. Excludes norms, activations, softmax, resizing, filters,
and everything outside the network. The count is independent of our implementation: sharing products between prompts or
skipping unused outputs takes fewer operations than counted here and gets closer to the ceiling. All counts are integers
for one input with the geometry `SAM1`.
"""

from dataclasses import dataclass

from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam import image_encoder_tinyvit as tinyvit
from segmint.model.sam.common import EMBEDDING_CHANNELS
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.image_encoder_vit import WINDOW, VitShape
from segmint.model.sam.load import VIT_SHAPES, Architecture
from segmint.model.sam.mask_decoder import MASK_TOKENS

POINT_TOKENS = 2
"""Number of prompt tokens per point: the point and its padding token ("not a point")."""

_DECODER_HIDDEN = 2048
_FLOP = 2  # operations per multiply-add


@dataclass(frozen=True)
class ImageCost:
    """The network's work on one image: `encodes` of the image and its crops, and `prompts` over all of them."""

    encodes: int
    prompts: int

    def flop(self, architecture: Architecture, decoder_depth: int = 2) -> int:
        """Return the number of operations for the whole image."""
        return self.encodes * encode_flop(architecture) + self.prompts * prompt_flop(decoder_depth)


def image_cost(settings: MaskSettings) -> ImageCost:
    """Return the number of encodes and prompts for one image, where layer L has 4^L crops, each with its own grid.

    With the settings of SA-1B (SAM paper, Appendix B), that is 21 encodes and 3,072 prompts. Tiny images may have fewer
    crops, but count as if they had all of them.
    """
    return ImageCost(settings.encodes, settings.points)


def encode_flop(architecture: Architecture) -> int:
    """Return the operations of one pass through the image encoder: 5.96e12 for ViT-H."""
    if architecture == "mobile_sam":
        return _FLOP * _tinyvit_madds()
    return _FLOP * _vit_madds(VIT_SHAPES[architecture])


def prompt_flop(decoder_depth: int = 2) -> int:
    """Return the operations of one point prompt in the mask decoder: 3.62e9 for a depth of 2."""
    width, inner = EMBEDDING_CHANNELS, EMBEDDING_CHANNELS // 2
    tokens, positions = 1 + MASK_TOKENS + POINT_TOKENS, SAM1.embedding_size**2
    to_image = _cross_attention(tokens, positions, width, inner)
    block = (
        _cross_attention(tokens, tokens, width, width)
        + to_image
        + 2 * tokens * width * _DECODER_HIDDEN
        + _cross_attention(positions, tokens, width, inner)
    )
    # Two transposed 2x2 convolutions with stride 2, each of which turns one input position into four.
    upscaling = 4 * positions * width * (width // 4) + 4 * (4 * positions) * (width // 4) * (width // 8)
    perceptrons = MASK_TOKENS * (2 * width**2 + width * (width // 8)) + 2 * width**2 + width * MASK_TOKENS
    masks = MASK_TOKENS * (width // 8) * 16 * positions
    return _FLOP * (decoder_depth * block + to_image + upscaling + perceptrons + masks)


def _cross_attention(queries: int, keys: int, width: int, inner: int) -> int:
    """Return the multiply-adds of an attention with `inner` channels over all heads, including its four projections."""
    return 2 * (queries + keys) * width * inner + 2 * queries * keys * inner


def _window_attention(grid: int, window: int, width: int) -> int:
    """Return the multiply-adds of self-attention in square windows over grid² tokens, padded to whole windows."""
    tokens = (-(-grid // window) * window) ** 2
    return 4 * tokens * width**2 + 2 * tokens * window**2 * width


def _neck(grid: int, width: int) -> int:
    return grid**2 * EMBEDDING_CHANNELS * (width + 9 * EMBEDDING_CHANNELS)


def _vit_madds(shape: VitShape) -> int:
    grid, width = SAM1.embedding_size, shape.width
    madds = grid**2 * 3 * SAM1.patch_size**2 * width + _neck(grid, width)
    for index in range(shape.depth):
        side = grid if index in shape.global_blocks else WINDOW
        tokens = (-(-grid // side) * side) ** 2
        relative_positions = 2 * tokens * side * width
        madds += _window_attention(grid, side, width) + relative_positions + 8 * grid**2 * width**2
    return madds


def _tinyvit_madds() -> int:
    first = tinyvit.WIDTHS[0]
    grid = SAM1.image_size // 4
    madds = 9 * (2 * grid) ** 2 * 3 * (first // 2) + 9 * grid**2 * (first // 2) * first
    for stage, (width, depth) in enumerate(zip(tinyvit.WIDTHS, tinyvit.DEPTHS, strict=True)):
        if stage == 0:
            madds += depth * grid**2 * (2 * width * 4 * width + 9 * 4 * width)
        else:
            attention = _window_attention(grid, tinyvit.WINDOWS[stage - 1], width)
            madds += depth * (attention + grid**2 * (9 * width + 8 * width**2))
        if stage + 1 < len(tinyvit.WIDTHS):
            after = tinyvit.WIDTHS[stage + 1]
            smaller = max(grid // 2, SAM1.embedding_size)
            madds += grid**2 * width * after + smaller**2 * (9 * after + after**2)
            grid = smaller
    return madds + _neck(grid, tinyvit.WIDTHS[-1])
