"""Losses of SAM's training: focal and dice on masks, squared error on predicted IoU (SAM paper, Section 3, App. A).

There are B prompts with C predicted masks each, in a square of side R. `valid` is True inside the image; padding
contributes to no loss. Everything is computed in float32, even under autocast.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.model.training.settings import LossSettings


@dataclass(frozen=True)
class PromptLosses:
    """Losses of B prompts.

    The scalars are sums over the prompts divided by the number of masks in the global batch. `focal`, `dice`, and
    `iou_error` are detached and unweighted, and `total` is the weighted sum to call `backward` on. `chosen` (B,) int64
    is the index of the mask to which each prompt's losses apply, and `mask_iou` (B,) float32 is that mask's IoU with
    the target.
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
    """Return the losses of masks predicted for B prompts; for each, only the mask with the lowest loss gets gradients.

    `logits` are (B, C, R, R), `predicted_iou` (B, C), `targets` (B, R, R) bool, and `valid` (R, R) bool. All workers
    pass the number of masks in the global batch as `total_masks`, so that their losses add up to those of one worker
    with the whole batch. Raises ValueError if it is less than B.
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
    """Return the focal loss of each mask (Lin et al. 2017, arXiv 1708.02002, eq. 5).

    With p the predicted probability of a pixel's class, its loss is -alpha (1 - p)^gamma log(p). `logits` (..., R, R)
    and `targets` (..., R, R) bool broadcast, `valid` is (R, R) bool, and the result is (...).
    """
    # log(p) of the right class, without overflow, because the logit's sign is flipped where the target is background.
    log_p = F.logsigmoid(torch.where(targets, logits, -logits))
    loss = -log_p * (-torch.expm1(log_p)) ** settings.focal_gamma
    if settings.focal_alpha is not None:
        loss = loss * torch.where(targets, settings.focal_alpha, 1 - settings.focal_alpha)
    summed = torch.where(valid, loss, 0).sum(dim=(-2, -1))
    if settings.focal_normalization == "foreground":
        return summed / (targets & valid).sum(dim=(-2, -1)).clamp(min=1)
    return summed / valid.sum()


def dice_loss(logits: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Return the dice loss of each mask: 1 - (2 Σ p t + 1) / (Σ p + Σ t + 1) for probabilities p and target t.

    Milletari et al. 2016 (arXiv 1606.04797, Section 3) use squares in the denominator and don't add 1. The form here is
    that of DETR and MaskFormer, which the SAM paper follows. Shapes are as in `focal_loss`.
    """
    probabilities = torch.where(valid, logits.sigmoid(), 0)
    truth = (targets & valid).to(logits.dtype)
    overlap = (probabilities * truth).sum(dim=(-2, -1))
    return 1 - (2 * overlap + 1) / (probabilities.sum(dim=(-2, -1)) + truth.sum(dim=(-2, -1)) + 1)


def mask_iou(masks: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Return the IoU (...) float32 of bool masks and targets (..., R, R), which broadcast, inside `valid` (R, R).

    The IoU of two empty masks is 0.
    """
    shared = (masks & targets & valid).sum(dim=(-2, -1))
    covered = ((masks | targets) & valid).sum(dim=(-2, -1))
    return shared / covered.clamp(min=1)
