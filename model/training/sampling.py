"""Prompts of interactive training: a first point or box, then clicks in the error region (SAM paper, Appendix A).

All functions process the N masks of one image. Coordinates are in pixels of the image encoder's 1024 x 1024 input, as
in the prompt encoder. Every random number is keyed by (seed, step, mask, iteration); see `noise.py`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from segmint.model.sam.geometry import SAM1
from segmint.model.sam.prompt_encoder import PromptEmbedding, PromptEncoder
from segmint.model.training.noise import draw_keys, highest_pixels, uniforms
from segmint.model.training.settings import SamplingSettings
from segmint.model.training.targets import target_boxes

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
    targets: Tensor, input_size: tuple[int, int], seed: int, step: int, masks: Sequence[int], settings: SamplingSettings
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
    input_size: tuple[int, int],
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


def _pixel_centers(pixels: Tensor, resolution: int, input_size: tuple[int, int]) -> Tensor:
    """Return the centers of pixels (N,) of the flattened square, clamped to the image, (N, 2) float64 as (x, y).

    The origin is the center of the input's first pixel, as in the prompt encoder.
    """
    scale = SAM1.image_size / resolution
    height, width = input_size
    x = ((pixels % resolution + 0.5) * scale - 0.5).clamp(max=width - 1)
    y = ((pixels // resolution + 0.5) * scale - 0.5).clamp(max=height - 1)
    return torch.stack([x, y], dim=1).to(torch.float64)
