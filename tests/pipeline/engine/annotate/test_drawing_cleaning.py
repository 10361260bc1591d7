"""Cleaning of accepted masks: 50 scripted ones, as people draw them, against the reference code."""

import cv2
import numpy as np
import pytest
from scipy import ndimage
from segment_anything.utils.amg import remove_small_regions

from segmint.model.automatic.rle import decode, encode
from segmint.pipeline.engine.annotate.drawing import LEAST_IOU, LEAST_PIXELS, clean_mask

SIZE = 480, 640


def scripted(seed: int) -> np.ndarray:
    """An object of a few ellipses with dozens of specks and holes, as from strokes and their gaps."""
    random = np.random.default_rng(seed)
    mask = np.zeros(SIZE, np.uint8)
    for _ in range(3):
        center, axes = random.integers((220, 160), (420, 320)), random.integers(60, 150, 2)
        cv2.ellipse(mask, center.tolist(), axes.tolist(), float(random.uniform(0, 180)), 0, 360, 1, -1)
    whole = mask.copy()
    for _ in range(random.integers(10, 60)):
        place, radius = random.integers((0, 0), SIZE[::-1]), int(random.integers(0, 7))
        cv2.circle(mask, place.tolist(), radius, int(not whole[place[1], place[0]]), -1)
    return mask.astype(bool)


def small(mask: np.ndarray) -> int:
    """The number of pieces below the limit."""
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    return int((ndimage.sum(mask, labels, range(1, count + 1)) < LEAST_PIXELS).sum()) if count else 0


def test_specks_and_holes_of_50_masks_are_gone_and_little_else_changes() -> None:
    before, after, kept = np.zeros(2), np.zeros(2), 0
    for seed in range(50):
        mask = scripted(seed)
        cleaned = decode(clean_mask(encode(mask)))
        expected, _ = remove_small_regions(mask, LEAST_PIXELS, mode="holes")
        expected, _ = remove_small_regions(expected, LEAST_PIXELS, mode="islands")
        fits = (mask & expected).sum() / (mask | expected).sum() >= LEAST_IOU
        assert np.array_equal(cleaned, expected if fits else mask), seed
        kept += not fits
        before += small(mask), small(~mask)
        after += small(cleaned), small(~cleaned)
        if fits:
            assert (small(cleaned), small(~cleaned)) == (0, 0)
            assert (mask & cleaned).sum() / (mask | cleaned).sum() >= 0.98
    assert (before > 50 * np.array([20, 5])).all()
    assert (after < before / 4).all()  # what stays is in masks that cleaning would change too much
    assert 1 <= kept <= 6


@pytest.mark.parametrize("area", [1, 99])
def test_a_mask_of_only_a_speck_stays(area: int) -> None:
    mask = np.zeros(SIZE, bool)
    mask[7, 5 : 5 + area] = True
    assert clean_mask(encode(mask)) == encode(mask)
