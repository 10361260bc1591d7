"""The same values as the reference's functions, on masks, boxes, and crops of many kinds."""

from typing import Any

import numpy as np
import pytest
import segment_anything.utils.amg as theirs
import torch

import segmint.compat.utils.amg as ours

RANDOM = np.random.default_rng(7)
MASKS = torch.from_numpy(RANDOM.random((5, 17, 23)) > np.array([0, 0.1, 0.5, 0.9, 1])[:, None, None])
LOGITS = torch.from_numpy(RANDOM.normal(0, 3, (2, 3, 17, 23)).astype(np.float32))
CROP, FRAME = [10, 20, 110, 90], [0, 0, 200, 90]
BOXES = torch.from_numpy(RANDOM.integers(0, 100, (40, 4)))


def same(mine: Any, other: Any) -> None:
    assert type(mine) is type(other)
    if isinstance(mine, torch.Tensor):
        assert mine.dtype == other.dtype
        assert torch.equal(mine, other) or torch.equal(mine.isnan(), other.isnan())
    elif isinstance(mine, np.ndarray):
        assert mine.dtype == other.dtype
        assert np.array_equal(mine, other)
    elif isinstance(mine, (list, tuple)):
        assert len(mine) == len(other)
        for one, another in zip(mine, other, strict=True):
            same(one, another)
    else:
        assert mine == other


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("is_box_near_crop_edge", (BOXES, CROP, FRAME)),
        ("is_box_near_crop_edge", (BOXES, CROP, FRAME, 3.0)),
        ("box_xyxy_to_xywh", (torch.tensor([3, 4, 10, 20]),)),
        ("mask_to_rle_pytorch", (MASKS,)),
        ("calculate_stability_score", (LOGITS, 0.0, 1.0)),
        ("calculate_stability_score", (LOGITS[0], 0.5, 0.25)),
        ("calculate_stability_score", (LOGITS[0, :1] * 0 - 9, 0.0, 1.0)),
        ("build_point_grid", (5,)),
        ("build_all_layer_point_grids", (8, 2, 2)),
        ("generate_crop_boxes", ((301, 400), 2, 512 / 1500)),
        ("uncrop_boxes_xyxy", (BOXES, CROP)),
        ("uncrop_points", (BOXES.reshape(-1, 2, 2), CROP)),
        ("uncrop_masks", (torch.ones(2, 70, 100, dtype=torch.bool), CROP, 90, 200)),
        ("uncrop_masks", (torch.ones(2, 1, 90, 200), FRAME, 90, 200)),
        ("batched_mask_to_box", (MASKS,)),
        ("batched_mask_to_box", (MASKS[2],)),
        ("batched_mask_to_box", (MASKS[None],)),
        ("batched_mask_to_box", (MASKS[:0],)),
    ],
)
def test_a_function_returns_what_the_references_does(name: str, arguments: tuple[Any, ...]) -> None:
    same(getattr(ours, name)(*arguments), getattr(theirs, name)(*arguments))


def test_run_lengths_are_the_references() -> None:
    for runs in theirs.mask_to_rle_pytorch(MASKS):
        same(ours.rle_to_mask(runs), theirs.rle_to_mask(runs))
        same(ours.area_from_rle(runs), theirs.area_from_rle(runs))
        same(ours.coco_encode_rle(runs), theirs.coco_encode_rle(runs))


@pytest.mark.parametrize("mode", ["holes", "islands"])
@pytest.mark.parametrize("least", [0, 2.5, 9, 10_000])
def test_small_regions_are_the_references(mode: str, least: float) -> None:
    for mask in MASKS[1:4].numpy():
        same(ours.remove_small_regions(mask, least, mode), theirs.remove_small_regions(mask, least, mode))


def test_every_function_has_a_counterpart() -> None:
    names = {name for name, value in vars(theirs).items() if getattr(value, "__module__", "") == theirs.__name__}
    assert names - set(vars(ours)) == {"MaskData"}


def test_wrong_arguments_are_refused() -> None:
    same([*ours.batch_iterator(2, BOXES, [*range(40)])], [*theirs.batch_iterator(2, BOXES, [*range(40)])])
    with pytest.raises(ValueError, match="lengths of 40, 1: expected equal ones"):
        next(ours.batch_iterator(2, BOXES, [1]))
    with pytest.raises(ValueError, match="mode is 'spots': expected 'holes' or 'islands'"):
        ours.remove_small_regions(MASKS[0].numpy(), 3, "spots")
