"""Number of floating-point operations in SAM, computed from its shapes, which is the basis of the hardware ceiling.

The counts include the multiplications and additions of matrix products, convolutions, and attention. A multiply-add
counts as two operations. For the mask decoder, they count the products of the factored algebra
(`sam/point_decoder.py`), which needs far fewer than the formulas of the SAM paper. They exclude padding, layout
changes, norms, activations, softmax, resizing, filters, and everything that depends only on the weights. Any
implementation of this algebra needs at least the counted operations, so it can't exceed the ceiling. docs/metric.md
contains the formula. Each count is an integer for one input with the image size and patch size of `SAM1`.
"""

from dataclasses import dataclass

from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam import image_encoder_tinyvit as tinyvit
from segmint.model.sam.common import EMBEDDING_CHANNELS
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.image_encoder_hiera import HIERA_SHAPES, HIGH_RES_CHANNELS, PATCH_SIZE, HieraShape
from segmint.model.sam.image_encoder_vit import WINDOW, VitShape
from segmint.model.sam.load import VIT_SHAPES, Architecture
from segmint.model.sam.mask_decoder import MASK_TOKENS
from segmint.model.sam.point_decoder import POINT_TOKENS

MASKS_PER_POINT = MASK_TOKENS - 1
"""Maximum number of masks per point."""

_DECODER_HIDDEN = 2048
_FLOP = 2  # operations per multiply-add

# Shapes of the decoder, as in `sam/point_decoder.py`.
_POSITIONS = SAM1.embedding_size**2
TOKENS = 1 + MASK_TOKENS + POINT_TOKENS
"""Number of tokens per point in SAM's decoder. SAM 2's decoder has one more, for the object score."""
_USED_TOKENS = 1 + MASKS_PER_POINT
_WIDTH = EMBEDDING_CHANNELS
_INNER = _WIDTH // 2  # channels of an attention between the tokens and the image, over all heads
_HEADS = 8
_HEAD_WIDTH = _INNER // _HEADS
_FIRST = 4 * (_WIDTH // 4)  # outputs of the first upscaling step per position: 2x2 pixels
_HIDDEN = _WIDTH // 4  # channels between the upscaling steps
_FINAL = _WIDTH // 8  # channels of the upscaled image and of a mask's filter


@dataclass(frozen=True)
class ImageCost:
    """Work of the network on one image before drawing.

    It encodes `encodes` crops, and decodes `prompts` prompts in all of these crops together.
    """

    encodes: int
    prompts: int

    def flop(self, architecture: Architecture, decoder_depth: int = 2) -> int:
        """Return the operations for encoding and planning every crop, and for decoding every prompt."""
        each = encode_flop(architecture) + plan_flop(decoder_depth)
        return self.encodes * each + self.prompts * decode_flop(decoder_depth, tokens_of(architecture))


def image_cost(settings: MaskSettings) -> ImageCost:
    """Return the number of encodes and prompts for one image. Layer L has 4^L crops, each with its own grid.

    With SA-1B's settings (SAM paper, Appendix B), an image needs 21 encodes and 3,072 prompts. Tiny images are counted
    as if they had all crops.
    """
    return ImageCost(settings.encodes, settings.points)


def tokens_of(architecture: Architecture) -> int:
    """Return the number of tokens per point in the decoder of this architecture."""
    return TOKENS + (architecture in HIERA_SHAPES)


def encode_flop(architecture: Architecture) -> int:
    """Return the operations for one pass through the image encoder. ViT-H needs 5.64e12."""
    if architecture == "mobile_sam":
        return _FLOP * _tinyvit_madds()
    if architecture in HIERA_SHAPES:
        return _FLOP * _hiera_madds(HIERA_SHAPES[architecture])
    return _FLOP * _vit_madds(VIT_SHAPES[architecture])


def plan_flop(decoder_depth: int = 2) -> int:
    """Return the operations that all points on an image share, for the projections of the image's embedding."""
    outputs = 2 * _INNER  # keys and values of the first attention
    for block in range(1, decoder_depth + 1):
        # The image's queries; products with the vectors of all blocks so far, and with the biases of earlier norms; and
        # the keys and values of the next attention.
        outputs += _INNER + block * _INNER + (block - 1) + 2 * _INNER
    return _FLOP * _POSITIONS * _WIDTH * (outputs + _FIRST)


def decode_flop(decoder_depth: int = 2, tokens: int = TOKENS) -> int:
    """Return the operations from a point to its predicted IoU. With a depth of 2, it's 3.54e8."""
    madds = 2 * tokens * _INNER * _POSITIONS  # in the first attention, all points share the keys and values
    madds += _projections(tokens)
    for block in range(1, decoder_depth + 1):
        last = block == decoder_depth
        madds += _token_attention(tokens) + 2 * tokens * _WIDTH * _DECODER_HIDDEN
        madds += _answer(block, tokens) + _look(_rows(block, tokens), _USED_TOKENS if last else tokens)
    return _FLOP * (madds + 2 * _WIDTH**2 + _WIDTH * MASK_TOKENS)  # includes the head that predicts the IoU


def draw_flop(points: int, masks: int, decoder_depth: int = 2, tokens: int = TOKENS) -> int:
    """Return the operations for drawing `masks` low-resolution masks of `points` points."""
    upscaling = _rows(decoder_depth, tokens) * _FIRST * (_WIDTH + _POSITIONS) + 4 * _POSITIONS * _HIDDEN * 4 * _FINAL
    filters = 2 * _WIDTH**2 + _WIDTH * _FINAL + _FINAL * 16 * _POSITIONS
    return _FLOP * (points * upscaling + masks * filters)


def mask_flop(decoder_depth: int = 2, tokens: int = TOKENS) -> int:
    """Return a lower bound of the operations per drawn mask. With a depth of 2, it's 1.78e8.

    A run counts the masks that it draws, but not their points. A point has at most three masks, so each mask accounts
    for at least a third of its point's operations.
    """
    return draw_flop(1, MASKS_PER_POINT, decoder_depth, tokens) // MASKS_PER_POINT


def _rows(blocks: int, tokens: int) -> int:
    """Return the number of a prompt's vectors after some blocks, without the last norm's bias, which is only added."""
    return blocks * _HEADS * tokens + max(0, blocks - 1)


def _projections(tokens: int) -> int:
    """Return the multiply-adds of two projections from tokens to heads or back."""
    return 2 * tokens * _WIDTH * _INNER


def _scores(tokens: int, rows: int, places: bool = True) -> int:
    """Return the multiply-adds of scores between tokens and a prompt's image, which has `rows` vectors.

    With `places`, the shared image and its positions need separate products.
    """
    own = (1 + places) * tokens * _INNER * _POSITIONS
    prior = tokens * _INNER * _WIDTH + tokens * _HEADS * rows * _WIDTH if rows else 0
    return own + prior + tokens * _HEADS * rows * _POSITIONS


def _answer(block: int, tokens: int) -> int:
    """Return the multiply-adds of the image's attention to the tokens, and of its norm. The first `block` is 1."""
    vectors = block * _HEADS * tokens  # vectors that come from values
    rows = _rows(block, tokens)
    # A symmetric n x n matrix has n (n + 1) / 2 different products, and a quadratic form needs n more.
    gram, form = rows * (rows + 1) // 2 * _WIDTH, rows * (rows + 3) // 2 * _POSITIONS
    linear = vectors * _HEAD_WIDTH * (_WIDTH + _POSITIONS)
    scores = _scores(tokens, _rows(block - 1, tokens), places=block > 1)
    return _projections(tokens) + scores + linear + gram + form


def _look(rows: int, tokens: int) -> int:
    """Return the multiply-adds of the attention from `tokens` to an image with `rows` vectors."""
    own = tokens * _INNER * _POSITIONS
    mixed = tokens * _HEADS * rows * (_POSITIONS + _WIDTH) + tokens * _INNER * _WIDTH
    return _projections(tokens) + _scores(tokens, rows) + own + mixed


def _token_attention(tokens: int) -> int:
    """Return the multiply-adds of the tokens' attention to one another and its four projections."""
    return 4 * tokens * _WIDTH**2 + 2 * tokens**2 * _WIDTH


def _window_attention(grid: int, window: int, width: int) -> int:
    """Return the multiply-adds of self-attention over grid² tokens, each to all window² positions of its window.

    The zeros that pad the last windows count as keys, but not as queries. Their projections depend only on the weights,
    so those don't count.
    """
    return grid**2 * (4 * width**2 + 2 * window**2 * width)


def _neck(grid: int, width: int) -> int:
    return grid**2 * EMBEDDING_CHANNELS * (width + 9 * EMBEDDING_CHANNELS)


def _vit_madds(shape: VitShape) -> int:
    grid, width = SAM1.embedding_size, shape.width
    madds = grid**2 * 3 * SAM1.patch_size**2 * width + _neck(grid, width)
    for index in range(shape.depth):
        side = grid if index in shape.global_blocks else WINDOW
        relative_positions = 2 * grid**2 * side * width
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


def _hiera_madds(shape: HieraShape) -> int:
    grid = SAM1.image_size // PATCH_SIZE
    madds = grid**2 * 3 * 49 * shape.width
    madds += sum((grid >> (1 - n)) ** 2 * EMBEDDING_CHANNELS * each for n, each in enumerate(HIGH_RES_CHANNELS))
    index = 0
    for stage, (width, depth) in enumerate(zip(shape.widths, shape.depths, strict=True)):
        for number in range(depth):
            pools = stage > 0 and number == 0
            side = grid if index in shape.global_blocks else shape.windows[stage - pools]
            queries, inputs = (grid >> pools) ** 2, width >> pools
            madds += grid**2 * inputs * (3 + pools) * width + queries * (2 * side**2 * width + 9 * width**2)
            grid >>= pools
            index += 1
        madds += grid**2 * width * EMBEDDING_CHANNELS
    return madds
