"""Losses by hand and against torchvision; which of the three masks gets gradients; padding; batches that are split."""

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from segmint.model.training.recipe import LossSettings
from segmint.model.training.step import dice_loss, focal_loss, mask_iou, prompt_losses

WHOLE = torch.ones(2, 2, dtype=torch.bool)
LN2 = math.log(2)


def binary(*rows: str) -> Tensor:
    """A mask drawn with # and dots."""
    return torch.tensor([[mark == "#" for mark in row] for row in rows])


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0, 3.5])
@pytest.mark.parametrize("alpha", [None, 0.0, 0.25, 1.0])
def test_the_focal_loss_is_torchvisions_with_its_gradients(alpha: float | None, gamma: float) -> None:
    logits = (8 * torch.randn(3, 16, 16)).requires_grad_()
    targets = torch.rand(3, 16, 16) < 0.3
    valid = torch.rand(16, 16) < 0.8
    settings = LossSettings(focal_alpha=alpha, focal_gamma=gamma)
    found = focal_loss(logits, targets, valid, settings)
    theirs = sigmoid_focal_loss(logits[:, valid], targets[:, valid].float(), -1 if alpha is None else alpha, gamma)
    torch.testing.assert_close(found, theirs.mean(dim=1), atol=1e-6, rtol=1e-5)
    (ours,) = torch.autograd.grad(found.sum(), logits)
    (expected,) = torch.autograd.grad(theirs.mean(dim=1).sum(), logits)
    torch.testing.assert_close(ours, expected, atol=1e-7, rtol=1e-4)


def test_the_focal_loss_by_hand() -> None:
    """Every pixel is predicted with 1/2: its loss is alpha (1/2)² ln 2, alpha 1/4 on the one of foreground."""
    logits, targets = torch.zeros(1, 2, 2), binary("#.", "..")[None]
    summed = (0.25 + 3 * 0.75) * 0.25 * LN2
    pixels = focal_loss(logits, targets, WHOLE, LossSettings())
    foreground = focal_loss(logits, targets, WHOLE, LossSettings(focal_normalization="foreground"))
    assert pixels.item() == pytest.approx(summed / 4)
    assert foreground.item() == pytest.approx(summed)


def test_pixels_that_are_certain_have_finite_losses_and_gradients() -> None:
    logits = torch.tensor([[[1e4, -1e4], [-1e4, 1e4]]], requires_grad=True)
    for gamma in (0.0, 1.0, 2.0):
        loss = focal_loss(logits, binary("#.", "#.")[None], WHOLE, LossSettings(focal_gamma=gamma))
        (gradient,) = torch.autograd.grad(loss.sum(), logits)
        assert loss.item() == pytest.approx((0.25 + 0.75) * 1e4 / 4)
        assert gradient.isfinite().all()


def test_the_dice_loss_and_the_iou_by_hand() -> None:
    """Two of four pixels found and one too many: dice 1 - (2·2 + 1) / (3 + 4 + 1), IoU 2/5. All at 1/2: 1 - 5/9."""
    target = binary("##.", "##.", "...")
    found = binary("##.", "..#", "...")
    valid = torch.ones(3, 3, dtype=torch.bool)
    certain = torch.where(found, 50.0, -50.0)
    assert dice_loss(certain[None], target[None], valid).item() == pytest.approx(3 / 8)
    assert mask_iou(found[None], target[None], valid).item() == pytest.approx(2 / 5)
    assert dice_loss(torch.zeros(1, 3, 3), target[None], valid).item() == pytest.approx(1 - 5 / 9.5)


def test_a_prompts_losses_by_hand() -> None:
    """One mask, logits 0: half of every pixel, no pixel over 0, so that its IoU is 0."""
    losses = prompt_losses(
        torch.zeros(1, 1, 2, 2), torch.tensor([[0.3]]), binary("#.", "..")[None], WHOLE, LossSettings(), total_masks=2
    )
    focal, dice, error = (0.25 + 3 * 0.75) * 0.25 * LN2 / 4, 1 - 2 / 4, 0.3**2
    assert losses.focal.item() == pytest.approx(focal / 2)
    assert losses.dice.item() == pytest.approx(dice / 2)
    assert losses.iou_error.item() == pytest.approx(error / 2)
    assert losses.total.item() == pytest.approx((20 * focal + dice + error) / 2)
    assert losses.mask_iou.tolist() == [0.0]


def three_masks() -> tuple[Tensor, Tensor, Tensor]:
    """Logits, predicted IoUs and targets of two prompts; the second mask is the first's best, the third the other's."""
    targets = torch.stack([binary("##", ".."), binary("#.", "#.")])
    logits = torch.randn(2, 3, 2, 2)
    logits[0, 1] = torch.where(targets[0], 1.0, -1.0)
    logits[1, 2] = torch.where(targets[1], 1.0, -1.0)
    logits[0, 2], logits[1, 1] = -logits[0, 1], -logits[1, 2]
    logits[:, 0] = 0.1
    return logits.requires_grad_(), torch.rand(2, 3, requires_grad=True), targets


@pytest.mark.parametrize("supervision", ["lowest", "all"])
def test_only_the_mask_with_the_lowest_loss_gets_gradients(supervision: str) -> None:
    logits, ious, targets = three_masks()
    settings = LossSettings(iou_supervision=supervision)  # type: ignore[arg-type]
    losses = prompt_losses(logits, ious, targets, WHOLE, settings, total_masks=2)
    losses.total.backward()
    assert losses.chosen.tolist() == [1, 2]
    assert losses.mask_iou.tolist() == [1.0, 1.0]
    assert logits.grad is not None
    assert ious.grad is not None
    moved = logits.grad.abs().sum(dim=(2, 3)) > 0
    assert moved.tolist() == [[False, True, False], [False, False, True]]
    # The squared errors' gradients, 2 (predicted - IoU) / masks, and a third of it where three are scored.
    measured = torch.tensor([[0.5, 1.0, 0.0], [0.5, 0.0, 1.0]])
    expected = (ious.detach() - measured) / (3 if supervision == "all" else 1)
    if supervision == "lowest":
        expected = torch.where(moved, expected, 0)
    torch.testing.assert_close(ious.grad, expected)


def test_the_weights_decide_which_loss_is_lowest() -> None:
    """Of a small object, nothing at all has the lower focal loss, and the whole image the lower dice loss."""
    targets = torch.zeros(1, 16, 16, dtype=torch.bool)
    targets[0, :6, :6] = True
    logits = torch.stack([torch.full((16, 16), -3.0), torch.full((16, 16), 1.0)])[None]
    valid = torch.ones(16, 16, dtype=torch.bool)
    for weights, lowest in (({"focal_weight": 0.0}, 1), ({"dice_weight": 0.0}, 0), ({}, 0)):
        losses = prompt_losses(logits, torch.zeros(1, 2), targets, valid, LossSettings(**weights), total_masks=1)
        assert losses.chosen.item() == lowest


def test_padding_changes_no_loss_and_gets_no_gradient() -> None:
    valid = torch.ones(8, 8, dtype=torch.bool)
    valid[6:], valid[:, 7] = False, False
    logits, targets = torch.randn(2, 3, 8, 8), torch.rand(2, 8, 8) < 0.4
    elsewhere = (torch.where(valid, logits, 9.0).requires_grad_(), targets | ~valid)
    clean = (torch.where(valid, logits, -9.0).requires_grad_(), targets & valid)
    ious = torch.rand(2, 3)
    for normalization in ("pixels", "foreground"):
        settings = LossSettings(focal_normalization=normalization)  # type: ignore[arg-type]
        one, other = (prompt_losses(maps, ious, truth, valid, settings, 2) for maps, truth in (elsewhere, clean))
        assert one.total.item() == other.total.item()
        (gradient,) = torch.autograd.grad(one.total, elsewhere[0])
        assert gradient[..., ~valid].abs().max() == 0
        assert gradient.abs().max() > 0
    cropped = prompt_losses(logits[..., :6, :7], ious, targets[:, :6, :7], valid[:6, :7], LossSettings(), 2)
    torch.testing.assert_close(cropped.total, prompt_losses(*clean[:1], ious, targets, valid, LossSettings(), 2).total)


def test_the_parts_of_a_split_batch_add_up_to_the_whole() -> None:
    logits, ious, targets = torch.randn(5, 3, 8, 8), torch.rand(5, 3), torch.rand(5, 8, 8) < 0.4
    valid = torch.ones(8, 8, dtype=torch.bool)
    parts = [slice(0, 2), slice(2, 5)]
    whole = prompt_losses(logits, ious, targets, valid, LossSettings(), 5)
    halves = [prompt_losses(logits[part], ious[part], targets[part], valid, LossSettings(), 5) for part in parts]
    for name in ("total", "focal", "dice", "iou_error"):
        torch.testing.assert_close(sum(getattr(half, name) for half in halves), getattr(whole, name))


def test_fewer_masks_in_all_than_here_is_an_error() -> None:
    with pytest.raises(ValueError, match="total_masks is 1: expected the global mask count, at least 2"):
        prompt_losses(torch.zeros(2, 1, 2, 2), torch.zeros(2, 1), torch.stack([WHOLE, WHOLE]), WHOLE, LossSettings(), 1)
