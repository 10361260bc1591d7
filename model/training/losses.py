"""Losses of SAM's training: focal and dice on masks, squared error on predicted IoU (SAM paper, Section 3, App. A).

All functions process B prompts with C predicted masks each, in a square of side R. `valid` is True inside the image;
padding doesn't contribute to any loss. All computations are in float32, even under autocast.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.model.training.settings import LossSettings


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
