import pytest
import torch

from segmint.model.training.sampling import fit_targets, target_boxes, valid_pixels


def test_pixels_are_valid_where_the_image_reaches_into_them() -> None:
    valid = valid_pixels((1024, 513), 256)
    assert valid.all(dim=0).sum() == valid.any(dim=0).sum() == 129  # 128 whole ones, and a quarter of one
    assert valid_pixels((1, 1), 256).nonzero().tolist() == [[0, 0]]
    with pytest.raises(ValueError, match=r"input_size is \(0, 1024\): expected .* from 1 to 1024"):
        valid_pixels((0, 1024), 256)


def test_a_mask_of_the_inputs_size_keeps_its_pixels() -> None:
    masks = torch.rand(2, 1024, 700) < 0.3
    targets = fit_targets(masks, (1024, 700), 1024)
    assert torch.equal(targets[:, :, :700], masks)
    assert not targets[:, :, 700:].any()


def test_a_pixel_is_the_targets_where_half_of_it_is_covered() -> None:
    """From 512 x 256 pixels to the square: one of its pixels is 2 x 2 of the image's."""
    mask = torch.zeros(1, 512, 256, dtype=torch.bool)
    mask[0, 10, 20:23] = True  # a half of pixel (5, 10), a quarter of (5, 11)
    mask[0, 100:110, 100:110] = True
    expected = torch.zeros(256, 256, dtype=torch.bool)
    expected[5, 10] = True
    expected[50:55, 50:55] = True
    assert torch.equal(fit_targets(mask, (1024, 512), 256)[0], expected)


def test_every_pixel_of_the_image_covered_is_every_valid_pixel() -> None:
    for height, width in ((333, 500), (7, 4000), (1024, 683)):
        scale = 1024 / max(height, width)
        size = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        targets = fit_targets(torch.ones(1, height, width, dtype=torch.bool), size, 256)
        assert torch.equal(targets[0], valid_pixels(size, 256)), (height, width)


def test_no_target_is_empty_however_small_its_mask() -> None:
    masks = torch.zeros(3, 900, 4000, dtype=torch.bool)
    masks[0, 899, 3999] = True
    masks[1, 450, 100:300] = True
    masks[2, 0, 0] = True
    targets = fit_targets(masks, (230, 1024), 256)
    assert targets[0].nonzero().tolist() == [[57, 255]]
    assert targets[2].nonzero().tolist() == [[0, 0]]
    rows, columns = targets[1].nonzero().unbind(1)
    assert rows.unique().tolist() == [28]
    assert (columns.min(), columns.max()) == (7, 18)  # 100 and 300 of 4,000 are 6.4 and 19.2: whole pixels alone


def test_an_empty_mask_is_an_error() -> None:
    masks = torch.ones(2, 10, 10, dtype=torch.bool)
    masks[1] = False
    with pytest.raises(ValueError, match="mask 1 is empty"):
        fit_targets(masks, (1024, 1024), 256)
    assert fit_targets(masks[:0], (1024, 1024), 256).shape == (0, 256, 256)


def test_boxes_hold_the_first_and_the_last_pixel_of_the_input() -> None:
    targets = torch.zeros(2, 256, 256, dtype=torch.bool)
    targets[0, 3, 5] = True
    targets[1, 10:20, 0] = True
    targets[1, 15, :256] = True
    assert target_boxes(targets).tolist() == [[20, 12, 23, 15], [0, 40, 1023, 79]]
