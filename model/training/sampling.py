"""What a training step draws: prompts, noise, dropped branches, and targets (SAM paper, Appendix A).

Prompts of interactive training: a first point or box, then clicks in the error region (SAM paper, Appendix A).

All functions process the N masks of one image. Coordinates are in pixels of the image encoder's 1024 x 1024 input, as
in the prompt encoder. Every random number is keyed by (seed, step, mask, iteration); see `draw_keys`.

Keyed random numbers, which are the same for a mask on any device and in any process.

To get a number, this module applies the output function of SplitMix64 (Steele, Lea and Flood, "Fast splittable
pseudorandom number generators", OOPSLA 2014) to a key and a counter. The function uses only integers, so CPUs and GPUs
compute the same bits. torch's generators aren't suitable: their numbers differ between devices and, because the
generators have a state, depend on earlier draws.

Ground-truth masks in the square of the image encoder's input, in which losses, IoU, and clicks are computed.

The image fills the top left `input_size` (height, width) pixels of the 1024 x 1024 input, and the rest is padding. The
square has `resolution` pixels per side. Each of them covers (1024 / resolution)² pixels of the input.

Drop path in image encoders and dropout in the mask decoder, with keyed random numbers.

Both are context managers that hook into the modules of an unchanged model. Outside the context, nothing changes. The
random numbers depend on the image or mask but not on the batch, so the number of workers doesn't matter.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from segmint.infra.arrays import Size
from segmint.model.automatic.crops import mask_boxes
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.mask_decoder import MaskDecoder, PromptEmbedding, PromptEncoder
from segmint.model.training.encoder_layers import encoder_layers
from segmint.model.training.recipe import SamplingSettings

# Constants of SplitMix64 as signed 64-bit integers. torch's integers wrap around like unsigned integers in C.
_STEP = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)

_FRACTION_BITS = 52  # the half that is added below uses the last of float64's 53 bits


def draw_keys(seed: int, step: int, masks: Sequence[int], iteration: int) -> Tensor:
    """Return the keys of one iteration for N masks, (N,) int64 on the CPU. All arguments must be under 2^63."""
    key = random_bits(random_bits(torch.zeros(1, dtype=torch.int64), seed), step)
    return random_bits(random_bits(key, torch.tensor(masks, dtype=torch.int64)), iteration)


def random_bits(keys: Tensor, counters: Tensor | int) -> Tensor:
    """Return 64 random bits, as int64, for each pair of a key and a counter. Keys and counters broadcast."""
    z = keys + (torch.as_tensor(counters, dtype=torch.int64, device=keys.device) + 1) * _STEP
    z = (z ^ _shift_right(z, 30)) * _FIRST
    z = (z ^ _shift_right(z, 27)) * _SECOND
    return z ^ _shift_right(z, 31)


def uniforms(keys: Tensor, count: int) -> Tensor:
    """Draw `count` uniform numbers in the open interval (0, 1) for each key (N,), as (N, count) float64."""
    bits = random_bits(keys[:, None], torch.arange(count, device=keys.device))
    return (_shift_right(bits, 64 - _FRACTION_BITS) + 0.5) / (1 << _FRACTION_BITS)


def highest_pixels(regions: Tensor, keys: Tensor) -> Tensor:
    """Choose one pixel of each region with uniform probability: the highest one in the noise field of the region's key.

    `regions` is (N, H, W) bool, and `keys` is (N,) int64. Returns indices into the flattened H x W, (N,) int64, with -1
    for empty regions. A key always has the same noise field. If rounding makes the masks of two workers differ, they
    still click on the same pixel, unless it's one of the few pixels in which the masks differ. The noise is computed
    only for pixels inside the regions.
    """
    mask, pixel = regions.flatten(1).nonzero().unbind(1)
    height = random_bits(keys.to(regions.device)[mask], pixel)
    lowest = torch.iinfo(torch.int64).min
    peaks = torch.full((len(regions),), lowest, device=regions.device).scatter_reduce(0, mask, height, "amax")
    chosen = height == peaks[mask]
    found = torch.full((len(regions),), -1, device=regions.device)
    # Two pixels may have the same height, although with 2^64 heights, this is very unlikely. Reduce by amax so that
    # they don't race.
    return found.scatter_reduce(0, mask[chosen], pixel[chosen], "amax")


def _shift_right(values: Tensor, bits: int) -> Tensor:
    """Shift right logically. torch's own shift extends the sign."""
    return (values >> bits) & ((1 << (64 - bits)) - 1)


def valid_pixels(input_size: Size, resolution: int) -> Tensor:
    """Return the pixels of the square that the image covers at least in part, (resolution, resolution) bool.

    Raises ValueError if `input_size` doesn't fit into the input.
    """
    if not all(1 <= side <= SAM1.image_size for side in input_size):
        raise ValueError(f"input_size is {input_size}: expected a height and width from 1 to {SAM1.image_size} pixels")
    starts = torch.arange(resolution) * (SAM1.image_size / resolution)
    height, width = input_size
    return (starts < height)[:, None] & (starts < width)


def fit_targets(masks: Tensor, input_size: Size, resolution: int) -> Tensor:
    """Resample an image's masks (N, H, W) bool to the square, (N, resolution, resolution) bool.

    A pixel belongs to the target if the mask covers at least half of the part of the pixel that is inside the image. If
    a mask is so thin or small that it doesn't cover half of any pixel, the target contains the pixels that it covers
    most. This way, no target is empty. Raises ValueError if a mask is empty, and the same errors as `valid_pixels`.
    """
    empty = ~masks.flatten(1).any(dim=1)
    if empty.any():
        raise ValueError(f"mask {int(empty.nonzero()[0])} is empty: expected masks with at least one pixel")
    valid = valid_pixels(input_size, resolution).to(masks.device)
    rows, columns = (
        _shares(pixels, side, resolution).to(masks.device)
        for pixels, side in zip(masks.shape[1:], input_size, strict=True)
    )
    # Process the masks one at a time. In float32, all masks of a large image would take gigabytes.
    targets = [_most_covered(rows @ mask.to(torch.float32) @ columns.T) for mask in masks]
    return torch.stack(targets) & valid if targets else valid.new_zeros(0, resolution, resolution)


def target_boxes(targets: Tensor) -> Tensor:
    """Return the tight boxes of targets (N, R, R) bool as (N, 4) float64 x0, y0, x1, y1. No target may be empty.

    The boxes are in pixels of the 1024 x 1024 input, with inclusive ends, like the boxes of predicted masks.
    """
    scale = SAM1.image_size // targets.shape[-1]
    boxes = mask_boxes(targets)
    first, last = boxes[:, :2], boxes[:, 2:]
    return torch.cat([first * scale, (last + 1) * scale - 1], dim=1).to(torch.float64)


def _most_covered(share: Tensor) -> Tensor:
    # The coverage is a sum with rounding, so a half may come out slightly smaller.
    return share >= share.max().clamp(max=0.5) * (1 - 1e-4)


def _shares(pixels: int, side: int, resolution: int) -> Tensor:
    """Return the fraction of each square pixel that each image pixel covers along one axis, (resolution, pixels).

    Only the part of the square pixel inside the image counts. The image's `pixels` pixels fill `side` pixels of the
    input. In the padding, rows are 0.
    """
    edges = torch.arange(resolution + 1, dtype=torch.float64) * (SAM1.image_size / resolution)
    marks = torch.arange(pixels + 1, dtype=torch.float64) * (side / pixels)
    overlap = torch.minimum(edges[1:, None], marks[1:]) - torch.maximum(edges[:-1, None], marks[:-1])
    overlap = overlap.clamp(min=0)
    inside = (edges[1:].clamp(max=side) - edges[:-1]).clamp(min=0)
    return torch.where(inside[:, None] > 0, overlap / inside[:, None], 0).to(torch.float32)


# Iteration numbers for draws that don't belong to the click of an iteration.
_KIND, _NOISE, _SCHEDULE = -1, -2, -3


@dataclass(frozen=True)
class Clicks:
    """Prompts of N masks so far.

    Every mask has both a box and a first point, and `boxed` (N,) bool selects which of them is the first prompt: the
    box in `boxes` (N, 4) float64, or the first of `points` (N, 1 + K, 2) float64 as (x, y). K clicks follow. `labels`
    (N, 1 + K) int64 are 1 for foreground and 0 for background. The label is -1 if there is no point because the error
    region was empty.
    """

    boxed: Tensor
    boxes: Tensor
    points: Tensor
    labels: Tensor

    def __getitem__(self, masks: slice) -> "Clicks":
        """Select the prompts of some of the masks."""
        return Clicks(self.boxed[masks], self.boxes[masks], self.points[masks], self.labels[masks])

    def first(self, points: int) -> "Clicks":
        """Keep only the first `points` points of each mask."""
        return replace(self, points=self.points[:, :points], labels=self.labels[:, :points])

    def with_point(self, point: Tensor, label: Tensor) -> "Clicks":
        """Append a point (N, 2) with its label (N,) to the prompts."""
        return replace(
            self,
            points=torch.cat([self.points, point[:, None]], dim=1),
            labels=torch.cat([self.labels, label[:, None]], dim=1),
        )

    def to(self, device: torch.device) -> "Clicks":
        """Move the prompts to a device."""
        return Clicks(*(part.to(device) for part in (self.boxed, self.boxes, self.points, self.labels)))

    @staticmethod
    def join(parts: Sequence["Clicks"]) -> "Clicks":
        """Concatenate the prompts of several groups of masks. All groups must have the same number of points."""
        return Clicks(
            torch.cat([part.boxed for part in parts]),
            torch.cat([part.boxes for part in parts]),
            torch.cat([part.points for part in parts]),
            torch.cat([part.labels for part in parts]),
        )


def click_schedule(seed: int, step: int, settings: SamplingSettings) -> list[bool]:
    """Return whether each iteration after the first one adds a click. All masks of a step have the same schedule.

    Two iterations add no click: one before a randomly chosen click, and the last one.
    """
    draw = uniforms(draw_keys(seed, step, [0], _SCHEDULE), 1).item()
    pause = int(draw * settings.clicks)
    return [True] * pause + [False] + [True] * (settings.clicks - pause) + [False]


def first_prompts(
    targets: Tensor, input_size: Size, seed: int, step: int, masks: Sequence[int], settings: SamplingSettings
) -> Clicks:
    """Draw each mask's first prompt: a uniformly distributed point in the mask, or the mask's box with noise.

    `targets` (N, R, R) bool must not contain an empty mask. `masks` contains the N numbers of the masks in the step's
    global batch. `SamplingSettings` defines the noise on each coordinate of a box. Boxes with noise are clipped to the
    image. Raises ValueError if a target is empty.
    """
    device = targets.device
    boxed = uniforms(draw_keys(seed, step, masks, _KIND), 1)[:, 0] < settings.box_share
    draws = uniforms(draw_keys(seed, step, masks, _NOISE), 4)
    boxes = target_boxes(targets)
    sides = (boxes[:, 2:] - boxes[:, :2] + 1).repeat(1, 2)
    limit = settings.box_noise_limit
    if settings.box_noise_kind == "normal":
        boxes = boxes + (torch.special.ndtri(draws).to(device) * settings.box_noise * sides).clamp(-limit, limit)
    else:
        boxes = boxes + (2 * draws - 1).to(device) * (settings.box_noise * sides).clamp(max=limit)
    x, y = (boxes[:, axis::2].clamp(0, input_size[1 - axis] - 1).sort(dim=1).values for axis in (0, 1))
    boxes = torch.stack([x[:, 0], y[:, 0], x[:, 1], y[:, 1]], dim=1)
    pixels = highest_pixels(targets, draw_keys(seed, step, masks, 0))
    if (pixels < 0).any():
        number = masks[int((pixels < 0).nonzero()[0])]
        raise ValueError(f"the target of mask {number} is empty: expected at least one pixel inside the image")
    points = _pixel_centers(pixels, targets.shape[-1], input_size)
    labels = torch.ones(len(targets), 1, dtype=torch.int64, device=device)
    return Clicks(boxed.to(device), boxes, points[:, None], labels)


def next_click(
    predicted: Tensor,
    targets: Tensor,
    valid: Tensor,
    input_size: Size,
    seed: int,
    step: int,
    masks: Sequence[int],
    iteration: int,
) -> tuple[Tensor, Tensor]:
    """Draw a uniformly distributed point in the error region, where the predicted mask and the target differ.

    `predicted` and `targets` are (N, R, R) bool. `valid` (R, R) bool excludes padding. Returns points (N, 2) float64
    and labels (N,) int64: 1 for a false negative and 0 for a false positive. If a prediction has no error, the label is
    -1 and the point is (0, 0).
    """
    pixels = highest_pixels((predicted ^ targets) & valid, draw_keys(seed, step, masks, iteration))
    truth = targets.flatten(1).gather(1, pixels.clamp(min=0)[:, None])[:, 0]
    labels = torch.where(pixels < 0, -1, truth.to(torch.int64))
    return _pixel_centers(pixels.clamp(min=0), targets.shape[-1], input_size), labels


def embed_clicks(encoder: PromptEncoder, clicks: Clicks, masks: Tensor | None) -> PromptEmbedding:
    """Embed the prompts of N masks in one batch, with the same tokens as if the prompt encoder embedded each mask.

    This works because a first point with its padding token takes two tokens, and so do the two corners of a box.
    `masks` (N, 1, 256, 256) are optional logits.
    """
    follow = clicks.points.shape[1] > 1
    pointed, boxed = (~clicks.boxed).nonzero()[:, 0], clicks.boxed.nonzero()[:, 0]
    tokens = []
    if len(pointed):
        tokens.append(encoder(clicks.points[pointed], clicks.labels[pointed], None, None).sparse)
    if len(boxed):
        points, labels = (clicks.points[boxed, 1:], clicks.labels[boxed, 1:]) if follow else (None, None)
        tokens.append(encoder(points, labels, clicks.boxes[boxed], None).sparse)
    order = torch.cat([pointed, boxed]).argsort()
    dense = encoder.dense_without_mask() if masks is None else encoder.mask_downscaling(masks)
    return PromptEmbedding(torch.cat(tokens)[order], dense)


def _pixel_centers(pixels: Tensor, resolution: int, input_size: Size) -> Tensor:
    """Return the centers of pixels (N,) of the flattened square, clamped to the image, (N, 2) float64 as (x, y).

    The origin is the center of the input's first pixel, as in the prompt encoder.
    """
    scale = SAM1.image_size / resolution
    height, width = input_size
    x = ((pixels % resolution + 0.5) * scale - 0.5).clamp(max=width - 1)
    y = ((pixels // resolution + 0.5) * scale - 0.5).clamp(max=height - 1)
    return torch.stack([x, y], dim=1).to(torch.float64)


_DROP_PATH = -4  # iteration number that `sampling.py` doesn't use

_LANES = 4
"""Number of 16-bit lanes in a 64-bit hash. Each lane decides whether one element is dropped."""


@contextmanager
def drop_path(encoder: nn.Module, rate: float, seed: int, step: int, images: Sequence[int]) -> Iterator[None]:
    """Skip branches of the encoder's blocks at random for each of N images (stochastic depth, arXiv 1603.09382).

    The probability of skipping increases linearly, from 0 in the first block to `rate` in the last. Outputs that are
    kept are divided by the probability of keeping them, so the mean stays the same. `images` contains a number under
    2^63 for each image in the encoder's batch. This number must not depend on how a step's images are split. Raises
    ValueError if the encoder is called with a different number of images, if it's neither a ViT nor TinyViT, or if the
    rate is outside [0, 1).
    """
    _check_rate("drop_path", rate)
    with ExitStack() as hooks:
        if rate:
            hooks.enter_context(encoder.register_forward_pre_hook(_expects(len(images))))
            layers = encoder_layers(encoder)
            chances = [rate * index / max(1, len(layers) - 1) for index in range(len(layers))]
            branches = [(branch, p) for layer, p in zip(layers, chances, strict=True) for branch in layer.branches]
            drawn = uniforms(draw_keys(seed, step, images, _DROP_PATH), len(branches))
            for (branch, chance), column in zip(branches, drawn.T, strict=True):
                factors = torch.where(column < chance, 0.0, 1 / (1 - chance))
                hooks.enter_context(branch.register_forward_hook(_scales(factors)))
        yield


@contextmanager
def dropout(decoder: MaskDecoder, rate: float, keys: Tensor) -> Iterator[None]:
    """Set outputs of the decoder's attention and perceptrons to 0 with probability `rate`, before they are added.

    `keys` (B,) int64 contains one key for each prompt in the decoder's batch. It's the key of (seed, step, mask,
    iteration), which clicks use as well. Outputs that are kept are divided by the probability of keeping them, which is
    a multiple of 1/65,536. Raises ValueError if the decoder is called with a different number of prompts, or if the
    rate is outside [0, 1).
    """
    _check_rate("dropout", rate)
    with ExitStack() as hooks:
        if rate:
            transformer = decoder.transformer
            places: list[nn.Module] = [transformer.final_attn_token_to_image]
            for block in transformer.blocks:
                cross = (block.cross_attn_token_to_image, block.cross_attn_image_to_token)
                places += [block.self_attn, *cross, block.mlp]
            for number, place in enumerate(places):
                # Clicks use counters from 0 up, so these counters are negative.
                hooks.enter_context(place.register_forward_hook(_drops(random_bits(keys, -1 - number), rate)))
        yield


Hook = Callable[[nn.Module, object, Tensor], Tensor]


def _scales(factors: Tensor) -> Hook:
    def scale(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        # TinyViT's attention receives the windows of one image after another.
        windows = output.shape[0] // len(factors)
        each = factors.to(output.device, output.dtype).repeat_interleave(windows)
        return output * each.reshape(-1, *[1] * (output.ndim - 1))

    return scale


def _drops(keys: Tensor, rate: float) -> Hook:
    dropped = min(round(rate * (1 << 16)), (1 << 16) - 1)
    lowest, scale = dropped - (1 << 15), (1 << 16) / ((1 << 16) - dropped)

    def drop(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        if len(output) != len(keys):
            raise ValueError(f"dropout has keys for {len(keys)} prompts, but the decoder was called with {len(output)}")
        elements = output[0].numel()
        counters = torch.arange(-(-elements // _LANES), device=output.device)
        lanes = random_bits(keys.to(output.device)[:, None], counters).view(torch.int16)
        kept = (lanes[:, :elements] >= lowest).reshape(output.shape)
        return torch.where(kept, output * scale, 0)

    return drop


def _expects(images: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def check(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        found = len(inputs[0])
        if found != images:
            raise ValueError(f"drop path was drawn for {images} images, but the encoder was called with {found}")

    return check


def _check_rate(name: str, rate: float) -> None:
    if not 0 <= rate < 1:
        raise ValueError(f"{name} is {rate!r}: expected a number from 0 to below 1")
