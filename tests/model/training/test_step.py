"""Steps against a loop over the reference package, tokens without gradients, split batches, encoders in the graph."""

from collections.abc import Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from segment_anything.modeling import MaskDecoder as ReferenceDecoder
from segment_anything.modeling import PromptEncoder as ReferencePromptEncoder
from segment_anything.modeling import TwoWayTransformer as ReferenceTransformer
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from segmint.model.sam.geometry import Geometry
from segmint.model.sam.load import Sam
from segmint.model.sam.mask_decoder import MaskDecoder, PromptEncoder
from segmint.model.training.recipe import LossSettings, Resolution, SamplingSettings
from segmint.model.training.sampling import Clicks, valid_pixels
from segmint.model.training.step import StepSettings, TrainingMasks, interact, train_step
from tests.support.random_weights import randomize

SIZE = (1024, 700)
GRID = 16
"""A quarter of SAM's 64 positions a side: masks of 64 x 64 logits, in a sixteenth of the time."""
SMALL_GRID = Geometry(patch_size=1024 // GRID)


def embedded(images: int) -> Tensor:
    return torch.randn(images, 256, GRID, GRID)


def small_sam(depth: int = 1) -> Sam:
    """The prompt encoder and the decoder with random weights; the image encoder scales 256 channels."""
    scale = nn.Conv2d(256, 256, kernel_size=1, groups=256, bias=False)
    return Sam(scale, randomize(PromptEncoder(SMALL_GRID)), randomize(MaskDecoder(depth)))


def few_clicks(clicks: int, seed: int = 0, resolution: Resolution = 256) -> StepSettings:
    return StepSettings(losses=LossSettings(resolution=resolution), sampling=SamplingSettings(clicks=clicks), seed=seed)


def rectangles(numbers: Sequence[int], side: int = 256) -> TrainingMasks:
    """The masks of one image, a rectangle for each number, and a strip in the padding, which is to be ignored."""
    targets = torch.zeros(len(numbers), side, side, dtype=torch.bool)
    for target, number in zip(targets, numbers, strict=True):
        scale = side // 256
        target[scale * (20 + number) : scale * (90 + 5 * number), scale * (10 + 7 * number) : scale * 100] = True
        target[:, scale * 200 :] = True
    return TrainingMasks(targets, SIZE, numbers)


class Reference(nn.Module):
    """The reference package's prompt encoder and decoder, with our weights."""

    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.prompt_encoder = ReferencePromptEncoder(256, (GRID, GRID), (1024, 1024), 16)
        transformer = ReferenceTransformer(depth=2, embedding_dim=256, num_heads=8, mlp_dim=2048)
        self.mask_decoder = ReferenceDecoder(transformer_dim=256, transformer=transformer)
        self.prompt_encoder.load_state_dict(sam.prompt_encoder.state_dict(), strict=True)
        self.mask_decoder.load_state_dict(sam.mask_decoder.state_dict(), strict=True)
        self.eval()

    def predict(
        self, features: Tensor, clicks: Clicks, mask: int, points: int, previous: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (C, 64, 64) and IoUs (C,) for one mask's prompts with the first so many points."""
        one = slice(mask, mask + 1)
        boxed = bool(clicks.boxed[mask])
        chosen = slice(1 if boxed else 0, points)
        pair = (clicks.points[one, chosen], clicks.labels[one, chosen]) if chosen.start < points else None
        sparse, dense = self.prompt_encoder(pair, clicks.boxes[one] if boxed else None, previous)
        positions = self.prompt_encoder.get_dense_pe()
        logits, ious = self.mask_decoder(features, positions, sparse, dense, previous is None)
        return logits[0], ious[0]


def reference_losses(
    reference: Reference, features: Tensor, masks: TrainingMasks, clicks: Clicks, shown: Sequence[int], side: int
) -> list[Tensor]:
    """The paper's loop, mask by mask: the total loss of each iteration, over the number of masks.

    `shown` says how many points each iteration has; each new one is to lie in the error of the mask that was passed on.
    """
    totals = [features.new_zeros(()) for _ in shown]
    valid = valid_pixels(SIZE, side)
    for mask, target in enumerate(masks.targets):
        truth, previous, passed_on = target[valid].float(), None, target
        for iteration, points in enumerate(shown):
            if iteration and points > shown[iteration - 1]:
                column, row = ((clicks.points[mask, points - 1] + 0.5) / (1024 / side)).long().tolist()
                assert valid[row, column]
                assert passed_on[row, column] != target[row, column] == bool(clicks.labels[mask, points - 1])
            logits, ious = reference.predict(features, clicks, mask, points, previous)
            square = F.interpolate(logits[None], (side, side), mode="bilinear", align_corners=False)[0]
            scored = []
            for plane, predicted in zip(square, ious, strict=True):
                pixels = plane[valid]
                focal = sigmoid_focal_loss(pixels, truth, alpha=0.25, gamma=2, reduction="mean")
                p = pixels.sigmoid()
                dice = 1 - (2 * (p * truth).sum() + 1) / (p.sum() + truth.sum() + 1)
                found = pixels > 0
                iou = (found & (truth > 0)).sum() / (found | (truth > 0)).sum()
                scored.append((20 * focal + dice, (predicted - iou) ** 2))
            mask_loss, error = min(scored, key=lambda losses: losses[0].item())
            totals[iteration] = totals[iteration] + (mask_loss + error) / len(masks.targets)
            previous = logits[ious.argmax()].detach()[None, None]
            passed_on = square[ious.argmax()] > 0
    return totals


def test_a_step_has_the_losses_and_gradients_of_a_plain_loop_over_the_reference() -> None:
    sam = small_sam(depth=2)
    reference = Reference(sam)
    masks = rectangles([0, 3], side=512)
    features = embedded(1)
    found = train_step(sam, features, [masks], few_clicks(2, resolution=512), step=1, total_masks=2)
    (clicks,) = found.clicks
    assert sorted(clicks.boxed.tolist()) == [False, True], "one mask is to begin with a point and one with a box"
    assert clicks.boxes[:, 2].max() < 500, "padding is no part of a mask"
    totals = reference_losses(reference, features, masks, clicks, shown=[1, 2, 2, 3, 3], side=512)
    torch.stack(totals).sum().backward()
    np.testing.assert_allclose(found.total, [float(total.detach()) for total in totals], atol=1e-4)
    compared = 0
    for name, parameter in reference.named_parameters():
        ours, theirs = sam.get_parameter(name).grad, parameter.grad
        assert ours is not None, name
        assert theirs is not None, name
        scale = max(1.0, theirs.abs().max().item())
        assert (ours - theirs).abs().max().item() <= 1e-4 * scale, name
        compared += theirs.abs().max().item() > 1e-3
    assert compared > 100, "gradients of nearly nothing would compare nothing"


def test_tokens_of_masks_that_are_not_chosen_get_no_gradients() -> None:
    """Of three masks the one with the lowest loss alone moves its filters; after the first prompt the fourth token."""
    sam = small_sam()
    decoder = sam.mask_decoder
    chosen = []
    for losses, _ in interact(sam, embedded(1), rectangles([2]), few_clicks(1), step=0, total_masks=1):
        sam.zero_grad()
        losses.total.backward()
        chosen.append(0 if len(chosen) else 1 + losses.chosen.item())
        moved = [any(p.grad is not None and p.grad.any() for p in mlp.parameters()) for mlp in decoder.hypernetworks]
        assert [index for index, moves in enumerate(moved) if moves] == chosen[-1:]
        scores = decoder.iou_prediction_head.layers[-1].bias.grad
        assert scores.nonzero()[:, 0].tolist() == chosen[-1:]
    assert chosen[0] in (1, 2, 3)
    assert chosen[1:] == [0, 0, 0]


def test_two_workers_add_up_to_one_and_the_encoder_gets_its_gradients() -> None:
    """A batch of two images in one encoder's graph; then each image alone, its embedding a leaf."""
    whole, half = small_sam(), small_sam()
    half.load_state_dict(whole.state_dict())
    base, images = embedded(2), [rectangles([5]), rectangles([1])]
    embeddings = whole.image_encoder(base)
    expected = train_step(whole, embeddings, images, few_clicks(1), step=3, total_masks=2)
    leaves = embeddings.detach().clone()
    totals = torch.zeros_like(expected.total)
    for index, masks in enumerate(images):
        leaf = leaves[index : index + 1].clone().requires_grad_()
        for turn, (losses, clicks) in enumerate(interact(half, leaf, masks, few_clicks(1), step=3, total_masks=2)):
            losses.total.backward()
            totals[turn] += losses.total.item()
            assert torch.equal(clicks.points, expected.clicks[index].first(clicks.points.shape[1]).points)
        assert leaf.grad is not None
        leaves[index] = leaf.grad[0]
    torch.testing.assert_close(totals, expected.total, atol=1e-5, rtol=1e-5)
    for name, parameter in half.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, whole.get_parameter(name).grad, atol=1e-4, rtol=1e-4)
    (weight,) = whole.image_encoder.parameters()
    assert weight.grad is not None
    assert weight.grad.abs().max() > 1e-3
    torch.testing.assert_close(weight.grad[:, 0, 0, 0], (leaves * base).sum(dim=(0, 2, 3)), atol=1e-4, rtol=1e-4)


def test_recorded_clicks_are_used_again_on_embeddings_of_an_inference_and_under_autocast() -> None:
    sam = small_sam()
    with torch.inference_mode():
        features = embedded(1)
    masks = rectangles([5, 1])
    first = train_step(sam, features, [masks], few_clicks(1, seed=0), step=0, total_masks=2)
    other = first_points(train_step(sam, features, [masks], few_clicks(1, seed=1), step=0, total_masks=2))
    assert not torch.equal(other, first_points(first))
    again = train_step(
        sam, features, [masks], few_clicks(1, seed=1), step=0, total_masks=2, masks_at_once=1, recorded=first.clicks
    )
    torch.testing.assert_close(again.total, first.total, atol=1e-5, rtol=1e-5)
    assert torch.equal(first_points(again), first_points(first))
    sam.zero_grad()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = train_step(sam, features, [masks], few_clicks(1), step=0, total_masks=2, recorded=first.clicks)
    torch.testing.assert_close(rounded.total[0], first.total[0], rtol=0.05, atol=0)
    assert all(p.grad is None or p.grad.isfinite().all() for p in sam.parameters())
    assert sam.mask_decoder.mask_tokens.weight.grad is not None


def first_points(losses: object) -> Tensor:
    return losses.clicks[0].points  # type: ignore[attr-defined,no-any-return]


def test_steps_whose_parts_do_not_match_are_errors() -> None:
    sam, masks, features = small_sam(), rectangles([0, 1]), embedded(1)
    clicks = Clicks(torch.ones(2, dtype=torch.bool), torch.zeros(2, 4), torch.zeros(2, 5, 2), torch.ones(2, 5))
    empty = TrainingMasks(masks.targets & (torch.tensor([1, 0]) > 0)[:, None, None], SIZE, [0, 1])
    twice = TrainingMasks(masks.targets, SIZE, [4, 4])
    for embeddings, images, recorded, message in (
        (features, [masks, masks], None, r"embeddings have the shape \(1, 256, 16, 16\): expected \(2, 256"),
        (
            features,
            [rectangles([0], side=512)],
            None,
            r"image 0 have the shape \(1, 512, 512\).*expected \(N, 256, 256",
        ),
        (features, [rectangles([])], None, "with 0 mask numbers.*N is at least 1"),
        (features, [empty], None, "the target of mask 1 is empty"),
        (features, [twice], None, "two masks of the step have the same number"),
        (features, [masks], [clicks], r"recorded clicks have the shapes \[\(2, 5, 2\)\]: expected \[\(2, 2, 2\)\]"),
    ):
        with pytest.raises(ValueError, match=message):
            train_step(sam, embeddings, images, few_clicks(1), 0, total_masks=4, recorded=recorded)
