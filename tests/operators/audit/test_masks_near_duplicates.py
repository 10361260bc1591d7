"""Near-duplicates are those that pycocotools finds by comparing every mask with every other."""

import numpy as np
import pytest
from pycocotools import mask as coco

from segmint.model.automatic.rle import encode
from segmint.operators.audit.masks import NearDuplicate, near_duplicates


def ellipses(seed: int, count: int) -> list[np.ndarray]:
    draws = np.random.default_rng(seed)
    y, x = np.mgrid[:60, :80]
    masks = []
    for _ in range(count):
        cx, cy, rx, ry = draws.uniform([20, 20, 3, 3], [60, 40, 18, 14])
        masks.append(((x - cx) / rx) ** 2 + ((y - cy) / ry) ** 2 < 1)
    return masks + [np.roll(mask, 1, axis=1) for mask in masks[: count // 2]]


@pytest.mark.parametrize("threshold", [0.3, 0.7, 0.9])
def test_all_pairs_are_found_and_no_others(threshold: float) -> None:
    masks = ellipses(0, 200)
    counts = [encode(mask).counts for mask in masks]
    codes = [{"size": [60, 80], "counts": code.encode()} for code in counts]
    ious = coco.iou(codes, codes, [0] * len(codes))
    expected = [(i, j) for i, j in np.argwhere(ious >= threshold).tolist() if i < j]
    found = near_duplicates((60, 80), counts, threshold)
    assert [pair[:2] for pair in found] == expected
    assert len(expected) > 10
    for pair in found:
        assert pair.iou == ious[pair.first, pair.second]
        both = (masks[pair.first] & masks[pair.second]).sum() / (masks[pair.first] | masks[pair.second]).sum()
        assert pair.iou == pytest.approx(both)


def test_damaged_and_empty_masks_are_passed_over() -> None:
    mask = encode(ellipses(1, 1)[0]).counts
    empty = encode(np.zeros((60, 80), bool)).counts
    assert near_duplicates((60, 80), [empty, mask, "~", "0", empty, mask, "é"], 0.5) == [NearDuplicate(1, 5, 1.0)]
    assert near_duplicates((60, 80), [], 0.5) == []
