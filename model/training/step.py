"""Training step: the interactive iterations of a batch of masks, and their gradients.

Gradients flow through the plain modules: `Sam.prompt_encoder`, `Sam.mask_decoder`, and the `forward` of an image
encoder. `Predictor`, `BatchEncoder`, and `point_decoder.py` are only for inference. The model stays in evaluation mode.
This way, MobileSAM's batch norms keep their statistics, and an image's embedding doesn't depend on its batch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.model.sam.geometry import SAM1
from segmint.model.sam.sam import Sam
from segmint.model.training.dropping import dropout
from segmint.model.training.losses import PromptLosses, prompt_losses
from segmint.model.training.noise import draw_keys
from segmint.model.training.sampling import Clicks, click_schedule, embed_clicks, first_prompts, next_click
from segmint.model.training.settings import LossSettings, SamplingSettings
from segmint.model.training.targets import valid_pixels


@dataclass(frozen=True)
class TrainingMasks:
    """Training masks of one image in a step: N masks, where N is at least 1.

    `targets` (N, R, R) bool must not contain an empty mask; R is the resolution of the losses (see `fit_targets`).
    `input_size` is the (height, width) that the image fills in the encoder's input. `numbers` contains one number under
    2^63 per mask, unique in the step's global batch. The mask's random numbers are keyed by this number, so it must not
    depend on how the batch is split.
    """

    targets: Tensor
    input_size: tuple[int, int]
    numbers: Sequence[int]

    def __getitem__(self, masks: slice) -> "TrainingMasks":
        """Select some of the masks."""
        return TrainingMasks(self.targets[masks], self.input_size, self.numbers[masks])


@dataclass(frozen=True)
class StepSettings:
    """Settings that determine a step's losses, together with the data. They are recorded with the weights.

    `seed` and `step`, together with a mask's number and the iteration, are the keys of the step's random numbers.
    `dropout` is the dropout probability of the decoder; see `dropping.py`.
    """

    losses: LossSettings
    sampling: SamplingSettings
    seed: int
    dropout: float = 0.0


@dataclass(frozen=True)
class StepLosses:
    """Losses of a step per iteration, (iterations,) float64 on the CPU, summed over masks as in `PromptLosses`.

    To get the losses of the whole batch, add up the losses of all workers. The sum of `mask_iou` is then the mean IoU
    of the chosen masks. `clicks` contains the prompts of each image's masks.
    """

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou_error: Tensor
    mask_iou: Tensor
    clicks: list[Clicks]


def train_step(
    sam: Sam,
    embeddings: Tensor,
    images: Sequence[TrainingMasks],
    settings: StepSettings,
    step: int,
    total_masks: int,
    masks_at_once: int = 64,
    recorded: Sequence[Clicks] | None = None,
) -> StepLosses:
    """Run all iterations of a step, add the gradients of their losses to the weights' `.grad`, and return the losses.

    `embeddings` (I, 256, 64, 64) belong to the I `images`. They can come from a frozen encoder, for example from a
    cache or `Predictor.embed`. If they require gradients instead, a single backward pass at the end propagates the
    gradients into the encoder. `total_masks` is the number of masks in the global batch of all workers, so sum the
    gradients of the workers, and don't average them. `masks_at_once` limits memory, and changes the last bits. If you
    pass the `recorded` clicks of an earlier step, the step uses them instead of drawing new ones. For reduced
    precision, call this function under autocast.

    Raises ValueError if shapes don't match, or if the model's input differs from that of `SAM1`.
    """
    if (sam.geometry.image_size, sam.geometry.placement) != (SAM1.image_size, SAM1.placement):
        raise ValueError(f"training supports SAM's input, padded to {SAM1.image_size} pixels, but not {sam.geometry}")
    _check(embeddings, images, settings, recorded)
    # The backward pass can't use tensors that were created in inference mode.
    features = embeddings.clone() if embeddings.is_inference() else embeddings.detach()
    features.requires_grad_(embeddings.requires_grad)
    figures = torch.zeros(5, settings.sampling.iterations, dtype=torch.float64)
    clicks = []
    for index, image in enumerate(images):
        drawn = []
        for start in range(0, len(image.targets), masks_at_once):
            part = slice(start, start + masks_at_once)
            before = None if recorded is None else recorded[index][part]
            turns = interact(sam, features[index : index + 1], image[part], settings, step, total_masks, before)
            for iteration, (losses, prompts) in enumerate(turns):
                losses.total.backward()  # type: ignore[no-untyped-call]
                figures[:, iteration] += _figures(losses, total_masks)
                last = prompts
            drawn.append(last)
        clicks.append(Clicks.join(drawn))
    if features.grad is not None:
        embeddings.backward(features.grad)  # type: ignore[no-untyped-call]
    total, focal, dice, iou_error, mask_iou = figures
    return StepLosses(total, focal, dice, iou_error, mask_iou, clicks)


def interact(
    sam: Sam,
    features: Tensor,
    masks: TrainingMasks,
    settings: StepSettings,
    step: int,
    total_masks: int,
    recorded: Clicks | None = None,
) -> Iterator[tuple[PromptLosses, Clicks]]:
    """Predict the masks of one image repeatedly, with more prompts in each iteration (SAM paper, Appendix A).

    `features` (1, 256, 64, 64) is the image's embedding. Each iteration yields its losses and the prompts so far. A
    predicted mask becomes a prompt without gradients, just like a click, so each iteration has its own graph. To keep
    only one graph in memory, call `backward` on the losses before you request the next iteration.

    The first iteration predicts three masks from a single prompt. All later iterations also get the previous logits of
    the mask with the highest predicted IoU, so they predict one mask from the token for multiple prompts.
    """
    losses, sampling, device = settings.losses, settings.sampling, features.device
    valid = valid_pixels(masks.input_size, losses.resolution).to(device)
    targets = masks.targets.to(device) & valid
    keys = (settings.seed, step, masks.numbers)
    drawn = first_prompts(targets, masks.input_size, *keys, sampling) if recorded is None else recorded.to(device)
    clicks = drawn.first(1)
    positions = sam.prompt_encoder.dense_positions()
    rows = torch.arange(len(targets), device=device)
    previous: Tensor | None = None
    predicted = targets
    for iteration, clicked in enumerate([False, *click_schedule(settings.seed, step, sampling)]):
        if clicked and recorded is not None:
            clicks = drawn.first(1 + clicks.points.shape[1])
        elif clicked:
            clicks = clicks.with_point(*next_click(predicted, targets, valid, masks.input_size, *keys, iteration))
        prompt = embed_clicks(sam.prompt_encoder, clicks, previous)
        with dropout(sam.mask_decoder, settings.dropout, draw_keys(*keys, iteration)):
            logits, ious = sam.mask_decoder(features, positions, prompt, multimask=previous is None)
        square = at_resolution(logits.float(), losses.resolution)
        yield prompt_losses(square, ious, targets, valid, losses, total_masks), clicks
        with torch.no_grad():
            best = ious.argmax(dim=1)
            previous = logits[rows, best][:, None].to(sam.dtype)
            predicted = square[rows, best] > 0


def at_resolution(logits: Tensor, resolution: int) -> Tensor:
    """Interpolate logits (B, C, 256, 256) to a square of side `resolution`, the resolution of the losses."""
    if logits.shape[-1] == resolution:
        return logits
    return F.interpolate(logits, (resolution, resolution), mode="bilinear", align_corners=False)


def _figures(losses: PromptLosses, total_masks: int) -> Tensor:
    """Collect the losses in the order of `StepLosses`, (5,) float64 on the CPU."""
    mean_iou = losses.mask_iou.sum() / total_masks
    figures = torch.stack([losses.total.detach(), losses.focal, losses.dice, losses.iou_error, mean_iou])
    return figures.to("cpu", torch.float64)


def _check(
    embeddings: Tensor, images: Sequence[TrainingMasks], settings: StepSettings, recorded: Sequence[Clicks] | None
) -> None:
    found = tuple(embeddings.shape)
    if len(found) != 4 or found[0] != len(images):
        raise ValueError(f"embeddings have the shape {found}: expected ({len(images)}, 256, 64, 64), one per image")
    side = settings.losses.resolution
    for index, image in enumerate(images):
        shape, masks = tuple(image.targets.shape), len(image.numbers)
        if shape != (masks, side, side) or masks == 0:
            raise ValueError(
                f"the targets of image {index} have the shape {shape}, with {masks} mask numbers: "
                f"expected (N, {side}, {side}) with N numbers, where N is at least 1"
            )
    numbers = [number for image in images for number in image.numbers]
    if len(set(numbers)) < len(numbers):
        raise ValueError("two masks of the step have the same number, so they would get the same random numbers")
    if recorded is not None:
        points = [tuple(clicks.points.shape) for clicks in recorded]
        expected = [(len(image.numbers), 1 + settings.sampling.clicks, 2) for image in images]
        if points != expected:
            raise ValueError(f"the points of the recorded clicks have the shapes {points}: expected {expected}")
