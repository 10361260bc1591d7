"""Training step: the interactive iterations of a batch of masks, its losses, and its cost.

Gradients flow through the plain modules: `Sam.prompt_encoder`, `Sam.mask_decoder`, and the `forward` of an image
encoder. `Predictor`, `BatchEncoder`, and `point_decoder.py` are only for inference. The model stays in evaluation mode.
This way, MobileSAM's batch norms keep their statistics, and an image's embedding doesn't depend on its batch.

Losses of SAM's training: focal and dice on masks, squared error on predicted IoU (SAM paper, Section 3, App. A).

All functions process B prompts with C predicted masks each, in a square of side R. `valid` is True inside the image;
padding doesn't contribute to any loss. All computations are in float32, even under autocast.

Cost of training, counted on tensors without data: floating-point operations, and the memory of one worker.

torch counts the operations of matrix products, convolutions, and attention in the forward and the backward pass. A
multiply-add counts as two operations. Activations are all tensors that autograd stores, in float32. They exclude the
probabilities of attention, because the fused kernels of GPUs recompute them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from segmint.infra.arrays import Size
from segmint.model.sam.common import EMBEDDING_CHANNELS
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.load import Architecture, Sam, build_sam
from segmint.model.sam.mask_decoder import PromptEmbedding
from segmint.model.training.encoder_layers import build_optimizer, encoder_layers, recomputed_blocks
from segmint.model.training.recipe import LossSettings, Recipe, SamplingSettings
from segmint.model.training.sampling import (
    Clicks,
    click_schedule,
    draw_keys,
    dropout,
    embed_clicks,
    first_prompts,
    next_click,
    valid_pixels,
)


@dataclass(frozen=True)
class PromptLosses:
    """Losses of B prompts.

    Each scalar is a sum over the prompts, divided by the number of masks in the global batch. `focal`, `dice`, and
    `iou_error` are detached and unweighted. `total` is the weighted sum; call `backward` on it. `chosen` (B,) int64 is
    the index of the mask to which each prompt's losses apply. `mask_iou` (B,) float32 is the IoU of that mask with the
    target.
    """

    total: Tensor
    focal: Tensor
    dice: Tensor
    iou_error: Tensor
    chosen: Tensor
    mask_iou: Tensor


def prompt_losses(
    logits: Tensor,
    predicted_iou: Tensor,
    targets: Tensor,
    valid: Tensor,
    settings: LossSettings,
    total_masks: int,
) -> PromptLosses:
    """Compute the losses of B prompts. For each prompt, only the mask with the lowest loss receives gradients.

    `logits` are (B, C, R, R), `predicted_iou` is (B, C), `targets` are (B, R, R) bool, and `valid` is (R, R) bool. All
    workers pass the number of masks in the global batch as `total_masks`. This way, their losses add up to the loss
    that a single worker would compute for the whole batch. Raises ValueError if `total_masks` is less than B.
    """
    if total_masks < len(logits):
        raise ValueError(f"total_masks is {total_masks}: expected the global mask count, at least {len(logits)}")
    with torch.autocast("cpu" if logits.is_meta else logits.device.type, enabled=False):  # meta tensors have none
        logits, predicted_iou = logits.float(), predicted_iou.float()
        targets = targets & valid
        rows = torch.arange(len(logits), device=logits.device)
        with torch.no_grad():
            chosen = torch.zeros_like(rows)
            if logits.shape[1] > 1:
                each = focal_loss(logits, targets[:, None], valid, settings), dice_loss(logits, targets[:, None], valid)
                chosen = (settings.focal_weight * each[0] + settings.dice_weight * each[1]).argmin(dim=1)
            ious = mask_iou(logits > 0, targets[:, None], valid)
        best = logits[rows, chosen]
        focal = focal_loss(best, targets, valid, settings).sum() / total_masks
        dice = dice_loss(best, targets, valid).sum() / total_masks
        errors = (predicted_iou - ious).square()
        scored = errors.mean(dim=1) if settings.iou_supervision == "all" else errors[rows, chosen]
        iou_error = scored.sum() / total_masks
        total = settings.focal_weight * focal + settings.dice_weight * dice + settings.iou_weight * iou_error
    return PromptLosses(total, focal.detach(), dice.detach(), iou_error.detach(), chosen, ious[rows, chosen])


def focal_loss(logits: Tensor, targets: Tensor, valid: Tensor, settings: LossSettings) -> Tensor:
    """Compute the focal loss of each mask (Lin et al. 2017, arXiv 1708.02002, eq. 5).

    If p is the predicted probability of a pixel's class, the pixel's loss is -alpha (1 - p)^gamma log(p). `logits`
    (..., R, R) and `targets` (..., R, R) bool broadcast, `valid` is (R, R) bool, and the result is (...).
    """
    # log(p) of the correct class: flip the sign of the logit where the target is background. This can't overflow.
    log_p = F.logsigmoid(torch.where(targets, logits, -logits))
    loss = -log_p * (-torch.expm1(log_p)) ** settings.focal_gamma
    if settings.focal_alpha is not None:
        loss = loss * torch.where(targets, settings.focal_alpha, 1 - settings.focal_alpha)
    summed = torch.where(valid, loss, 0).sum(dim=(-2, -1))
    if settings.focal_normalization == "foreground":
        return summed / (targets & valid).sum(dim=(-2, -1)).clamp(min=1)
    return summed / valid.sum()


def dice_loss(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Compute the dice loss of each mask: 1 - (2 Σ p t + 1) / (Σ p + Σ t + 1) for probabilities p and target t.

    This is the form of DETR and MaskFormer, which the SAM paper follows. Milletari et al. 2016 (arXiv 1606.04797,
    Section 3) use squares in the denominator and don't add 1. The shapes are the same as in `focal_loss`.
    """
    probabilities = torch.where(valid, logits.sigmoid(), 0)
    truth = (targets & valid).to(logits.dtype)
    overlap = (probabilities * truth).sum(dim=(-2, -1))
    return 1 - (2 * overlap + 1) / (probabilities.sum(dim=(-2, -1)) + truth.sum(dim=(-2, -1)) + 1)


def mask_iou(masks: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Compute the IoU (...) float32 of bool masks and targets inside `valid` (R, R).

    Masks and targets (..., R, R) broadcast. The IoU of two empty masks is 0.
    """
    shared = (masks & targets & valid).sum(dim=(-2, -1))
    covered = ((masks | targets) & valid).sum(dim=(-2, -1))
    return shared / covered.clamp(min=1)


@dataclass(frozen=True)
class TrainingMasks:
    """Training masks of one image in a step: N masks, where N is at least 1.

    `targets` (N, R, R) bool must not contain an empty mask; R is the resolution of the losses (see `fit_targets`).
    `input_size` is the (height, width) that the image fills in the encoder's input. `numbers` contains one number under
    2^63 per mask, unique in the step's global batch. The mask's random numbers are keyed by this number, so it must not
    depend on how the batch is split.
    """

    targets: Tensor
    input_size: Size
    numbers: Sequence[int]

    def __getitem__(self, masks: slice) -> "TrainingMasks":
        """Select some of the masks."""
        return TrainingMasks(self.targets[masks], self.input_size, self.numbers[masks])


@dataclass(frozen=True)
class StepSettings:
    """Settings that determine a step's losses, together with the data. They are recorded with the weights.

    `seed` and `step`, together with a mask's number and the iteration, are the keys of the step's random numbers.
    `dropout` is the dropout probability of the decoder; see `sampling.py`.
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


_FLOAT = 4  # bytes
_COPIES = 3  # float32 copies of each trained weight: its gradient, and two moments of AdamW


@dataclass(frozen=True)
class TrainingCost:
    """Number of weights and operations, and bytes of activations."""

    weights: int
    trained: int  # number of trained weights
    encode_flop: int  # for encoding an image once, without gradients
    image_flop: int  # per image and step, for training the encoder and for the decoder's work that all masks share
    mask_flop: int  # per mask and step, in all iterations
    image_bytes: int  # per image, if the encoder is trained
    mask_bytes: int  # per mask, in the iteration that stores most

    @property
    def state_bytes(self) -> int:
        """Bytes of the weights, the gradients, and the optimizer state."""
        return _FLOAT * (self.weights + _COPIES * self.trained)


def training_cost(
    architecture: Architecture, decoder_layers: int, recipe: Recipe, recompute: bool = False
) -> TrainingCost:
    """Count the cost of training with a recipe. For ViT-H, this takes seconds.

    With `recompute`, the encoder's blocks are recomputed in the backward pass (see `recomputed_blocks`).
    """
    with torch.device("meta"):
        sam = build_sam(architecture, decoder_layers)
        build_optimizer(sam, recipe)
        image = torch.zeros(1, 3, SAM1.image_size, SAM1.image_size)
        trains_encoder = "image_encoder" in recipe.parts
        with torch.no_grad():
            encode_flop = _flop(lambda: sam.image_encoder(image))
        image_flop = image_bytes = 0
        if trains_encoder:
            with recomputed_blocks(sam.image_encoder) if recompute else nullcontext():
                image_flop = _flop(lambda: sam.image_encoder(image).sum().backward())
            image_bytes = _encoder_bytes(sam, image, recompute)
        one, two = (_decoder_cost(sam, masks, recipe, trains_encoder) for masks in (1, 2))
    sizes = [(weight.numel(), weight.requires_grad) for weight in sam.parameters()]
    return TrainingCost(
        sum(size for size, _ in sizes),
        sum(size for size, trained in sizes if trained),
        encode_flop,
        image_flop + 2 * one[0] - two[0],
        two[0] - one[0],
        image_bytes,
        two[1] - one[1],
    )


def _flop(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def _encoder_bytes(sam: Sam, image: Tensor, recompute: bool) -> int:
    """Return the bytes that the encoder stores in training.

    With `recompute`, it stores the inputs of all blocks and the activations of one whole block.
    """
    inputs: list[int] = []
    marks: list[int] = []
    with ExitStack() as contexts:
        stored = contexts.enter_context(_stored(sam))
        for layer in encoder_layers(sam.image_encoder):

            def before(_: object, given: tuple[Tensor, ...]) -> None:
                inputs.append(given[0].nbytes)
                marks.append(stored.bytes)

            def after(_: object, given: object, output: object) -> None:
                marks.append(stored.bytes)

            contexts.callback(layer.block.register_forward_pre_hook(before).remove)
            contexts.callback(layer.block.register_forward_hook(after).remove)
        sam.image_encoder(image)
    if not recompute:
        return stored.bytes
    blocks = [end - start for start, end in zip(marks[::2], marks[1::2], strict=True)]
    return stored.bytes - sum(blocks) + sum(inputs) + max(blocks)


def _decoder_cost(sam: Sam, masks: int, recipe: Recipe, features_trained: bool) -> tuple[int, int]:
    """Return the operations of all iterations for `masks` masks, and the bytes of the iteration that stores most."""
    flop, largest = 0, 0
    size = SAM1.embedding_size
    features = torch.zeros(1, EMBEDDING_CHANNELS, size, size, requires_grad=features_trained)
    for points in _points(recipe.sampling):
        with _stored(sam) as stored:
            flop += _flop(lambda points=points: _iterate(sam, features, masks, points, recipe.losses))  # type: ignore[misc]
        largest = max(largest, stored.bytes)
    return flop, largest


def _points(sampling: SamplingSettings) -> list[int]:
    """Return the number of points in each iteration. The first iteration, which predicts three masks, is 0.

    A box counts as one point, because both take two tokens. Iterations that add no point count as if they came last.
    """
    clicks = [1 + each for each in range(1, sampling.clicks + 1)]
    return [0, *clicks, *[clicks[-1]] * (sampling.iterations - 1 - len(clicks))]


def _iterate(sam: Sam, features: Tensor, masks: int, points: int, losses: LossSettings) -> None:
    encoder, side = sam.prompt_encoder, losses.resolution
    places, labels = torch.zeros(masks, max(1, points), 2), torch.ones(masks, max(1, points), dtype=torch.int64)
    sparse = encoder(places, labels, None, None).sparse
    low = 4 * SAM1.embedding_size
    dense = encoder.mask_downscaling(torch.zeros(masks, 1, low, low)) if points else encoder.dense_without_mask()
    prompt = PromptEmbedding(sparse, dense)
    logits, ious = sam.mask_decoder(features, encoder.dense_positions(), prompt, multimask=not points)
    targets, valid = torch.zeros(masks, side, side, dtype=torch.bool), torch.ones(side, side, dtype=torch.bool)
    prompt_losses(at_resolution(logits, side), ious, targets, valid, losses, masks).total.backward()  # type: ignore[no-untyped-call]


class _Stored(TorchFunctionMode):
    """Counter of the bytes that autograd stores. Each storage counts only once, and weights don't count."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.bytes = 0
        self._seen = [weight.untyped_storage() for weight in sam.parameters()]  # kept, so that no address is reused
        self._keys = {storage._cdata for storage in self._seen}
        self._paused = False

    def add(self, tensor: Tensor) -> Tensor:
        """Count a tensor, and return it unchanged."""
        storage = tensor.untyped_storage()
        if not self._paused and storage._cdata not in self._keys:
            self._keys.add(storage._cdata)
            self._seen.append(storage)
            self.bytes += storage.nbytes()
        return tensor

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """For an attention, count only the inputs and the output, because fused kernels store nothing else."""
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        self._paused = True
        output = func(*args, **(kwargs or {}))
        self._paused = False
        for tensor in (*args, output):
            self.add(tensor)
        return output


@contextmanager
def _stored(sam: Sam) -> Iterator[_Stored]:
    stored = _Stored(sam)
    with stored, saved_tensors_hooks(stored.add, lambda tensor: tensor):
        yield stored
