"""First prompts and clicks: where they lie, how they are spread, and that they do not depend on the batch."""

import pytest
import torch
from torch import Tensor

from segmint.model.sam.mask_decoder import PromptEncoder
from segmint.model.training.recipe import SamplingSettings
from segmint.model.training.sampling import (
    Clicks,
    click_schedule,
    embed_clicks,
    first_prompts,
    next_click,
    target_boxes,
    valid_pixels,
)
from tests.support.random_weights import randomize

SIDE = 16
SIZE = (1024, 700)


def pixels_of(points: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The row and the column in a square of `side` pixels that points in the input lie in."""
    column, row = ((points + 0.5) / (1024 / side)).floor().long().unbind(1)
    return row, column


def test_clicks_lie_in_the_error_region_in_10000_random_cases() -> None:
    valid = valid_pixels(SIZE, SIDE)
    seen = set()
    for step in range(10):
        shares = torch.rand(2, 1000, 1, 1)
        targets, predicted = torch.rand(2, 1000, SIDE, SIDE) < shares
        targets &= valid  # predictions are not: they may reach into the padding
        predicted[:50] = targets[:50]
        points, labels = next_click(predicted, targets, valid, SIZE, 0, step, range(1000), 1 + step)
        rows, columns = pixels_of(points, SIDE)
        errors = (predicted != targets) & valid
        exists = errors.flatten(1).any(dim=1)
        cases = torch.arange(1000)
        assert torch.equal(labels >= 0, exists)
        assert errors[cases, rows, columns][exists].all()
        assert torch.equal(labels[exists], targets[cases, rows, columns][exists].long())
        assert points.min() >= 0
        assert (points <= torch.tensor([SIZE[1] - 1, SIZE[0] - 1])).all()
        seen |= set(labels.tolist())
    assert seen == {-1, 0, 1}


def test_first_points_lie_in_their_masks_and_half_of_the_masks_begin_with_a_box() -> None:
    valid = valid_pixels(SIZE, SIDE)
    targets = (torch.rand(10_000, SIDE, SIDE) < torch.rand(10_000, 1, 1)) & valid
    targets[:, 3, 4] = True
    clicks = first_prompts(targets, SIZE, 7, 0, range(10_000), SamplingSettings())
    rows, columns = pixels_of(clicks.points[:, 0], SIDE)
    assert targets[torch.arange(10_000), rows, columns].all()
    assert clicks.labels.eq(1).all()
    assert abs(clicks.boxed.float().mean() - 0.5) < 0.02  # 4 standard deviations
    for share in (0.0, 1.0):
        boxed = first_prompts(targets[:9], SIZE, 7, 0, range(9), SamplingSettings(box_share=share)).boxed
        assert boxed.tolist() == [share == 1] * 9


@pytest.mark.parametrize(("first", "last"), [((5, 7), (14, 12)), ((10, 15), (55, 50)), ((0, 0), (63, 63))])
def test_boxes_have_normal_noise_of_a_tenth_of_their_side_and_20_pixels_at_most(
    first: tuple[int, int], last: tuple[int, int]
) -> None:
    targets = torch.zeros(1, 64, 64, dtype=torch.bool)
    targets[0, first[1] : last[1] + 1, first[0] : last[0] + 1] = True
    exact = target_boxes(targets)[0]
    boxes = first_prompts(targets.expand(2000, -1, -1), (1024, 1024), 1, 2, range(2000), SamplingSettings()).boxes
    noise = boxes - exact
    assert noise.abs().max() <= 20
    assert boxes.min() >= 0
    assert boxes.max() <= 1023
    sides = (exact[2:] - exact[:2] + 1).repeat(2)
    normal = 0.1 * sides * torch.randn(50_000, 4, dtype=torch.float64)
    expected = ((exact + normal.clamp(-20, 20)).clamp(0, 1023) - exact).std(dim=0)
    torch.testing.assert_close(noise.std(dim=0), expected, rtol=0.08, atol=0)
    between = torch.corrcoef(noise.T) - torch.eye(4, dtype=torch.float64)
    assert between.abs().max() < 0.1


def test_uniform_noise_on_boxes_is_at_most_a_tenth_of_their_side() -> None:
    targets = torch.zeros(1, 64, 64, dtype=torch.bool)
    targets[0, 20:52, 30:35] = True  # 512 by 80 pixels of the input
    exact = target_boxes(targets)[0]
    settings = SamplingSettings(box_noise_kind="uniform")
    noise = first_prompts(targets.expand(2000, -1, -1), (1024, 1024), 1, 2, range(2000), settings).boxes - exact
    limits = torch.tensor([8.0, 20.0, 8.0, 20.0], dtype=torch.float64)
    assert (noise.abs() <= limits).all()
    torch.testing.assert_close(noise.std(dim=0), limits / 3**0.5, rtol=0.05, atol=0)


def test_prompts_depend_on_a_masks_number_not_on_its_place_in_the_batch() -> None:
    targets, predicted = torch.rand(2, 6, SIDE, SIDE) < 0.5
    valid, settings = valid_pixels(SIZE, SIDE), SamplingSettings()
    targets &= valid
    numbers = [4, 9, 2**40, 1, 0, 77]
    whole = first_prompts(targets, SIZE, 3, 4, numbers, settings)
    click = next_click(predicted, targets, valid, SIZE, 3, 4, numbers, 2)
    order = [5, 0, 3]
    part = [numbers[index] for index in order]
    other = first_prompts(targets[order], SIZE, 3, 4, part, settings)
    for name in ("boxed", "boxes", "points", "labels"):
        assert torch.equal(getattr(other, name), getattr(whole, name)[order]), name
    for found, expected in zip(
        next_click(predicted[order], targets[order], valid, SIZE, 3, 4, part, 2), click, strict=True
    ):
        assert torch.equal(found, expected[order])
    later = first_prompts(targets, SIZE, 3, 5, numbers, settings)
    assert not torch.equal(later.points, whole.points)


def test_two_iterations_have_no_click_one_at_random_and_the_last() -> None:
    settings = SamplingSettings()
    schedules = [click_schedule(0, step, settings) for step in range(2000)]
    assert {len(schedule) for schedule in schedules} == {10}
    assert {sum(schedule) for schedule in schedules} == {8}
    assert not any(schedule[-1] for schedule in schedules)
    counts = torch.tensor([schedule.index(False) for schedule in schedules]).bincount()
    assert len(counts) == 8, "before one of the eight clicks, so that a click lies between the two"
    assert ((counts - 250) ** 2 / 250).sum() < 30  # chi-square of 7 degrees: 1 in 10,000


@pytest.mark.parametrize("masked", [False, True], ids=["no masks", "masks"])
@pytest.mark.parametrize("extra", [0, 2])
@pytest.mark.parametrize("boxed", [[False, True, False], [True, True, True], [False, False, False]], ids=str)
def test_points_and_boxes_together_are_embedded_as_each_alone(boxed: list[bool], extra: int, masked: bool) -> None:
    encoder = randomize(PromptEncoder())
    labels = torch.tensor([[1, 0, 1], [1, 1, -1], [1, -1, 0]])[:, : 1 + extra]
    points = 1000 * torch.rand(3, 1 + extra, 2, dtype=torch.float64)
    boxes = 1000 * torch.rand(3, 4, dtype=torch.float64)
    masks = torch.randn(3, 1, 256, 256) if masked else None
    clicks = Clicks(torch.tensor(boxed), boxes, points, labels)
    with torch.no_grad():
        found = embed_clicks(encoder, clicks, masks)
        assert found.sparse.shape == (3, extra + 2, 256)
        for mask in range(3):
            one = slice(mask, mask + 1)
            if boxed[mask]:
                given = (points[one, 1:], labels[one, 1:]) if extra else (None, None)
                expected = encoder(*given, boxes[one], None if masks is None else masks[one])
            else:
                expected = encoder(points[one], labels[one], None, None if masks is None else masks[one])
            torch.testing.assert_close(found.sparse[one], expected.sparse)
            dense = found.dense[one] if masked else found.dense
            torch.testing.assert_close(dense, expected.dense)


def test_a_click_is_the_center_of_its_pixel_of_the_input() -> None:
    """The prompt encoder adds the half pixel: pixel (x, y) of 1024 is (x, y), and of 256 the middle of four by four."""
    for side, center in ((1024, 5.0), (256, 21.5)):
        targets = torch.zeros(1, side, side, dtype=torch.bool)
        targets[0, 7, 5] = True
        row = center + 2 * 1024 / side
        clicks = first_prompts(targets, (1024, 1024), 0, 0, [0], SamplingSettings())
        assert clicks.points[0].tolist() == [[center, row]]
