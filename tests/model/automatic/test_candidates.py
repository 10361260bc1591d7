"""Masks keep their pixels, boxes and order while they are packed, taken and replaced."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from segmint.model.automatic.candidates import CandidateMasks, MaskPatch, concatenate
from segmint.model.automatic.crops import box_of
from segmint.model.automatic.rle import encode
from tests.support.whole_masks import full

MASKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=20))


def candidates(*masks: np.ndarray) -> CandidateMasks:
    boxes = [box_of(mask) for mask in masks]
    count = len(masks)
    return CandidateMasks(
        np.arange(count, dtype=np.float32),
        np.arange(count, dtype=np.float32) / 10,
        np.arange(2.0 * count).reshape(count, 2),
        np.arange(count) % 3,
        np.array(boxes, dtype=np.int64).reshape(count, 4),
        np.tile(np.array([0, 0, 9, 9]), (count, 1)),
        tuple(MaskPatch.pack(mask, box) for mask, box in zip(masks, boxes, strict=True)),
    )


@given(MASKS, st.integers(0, 7), st.integers(0, 7))
def test_a_patch_gives_back_its_mask_in_the_frame(mask: np.ndarray, x: int, y: int) -> None:
    patch = MaskPatch.pack(mask, box_of(mask), (x, y))

    height, width = mask.shape
    frame = full(patch, (height + y + 3, width + x + 2))
    assert np.array_equal(frame[y : y + height, x : x + width], mask)
    assert frame.sum() == mask.sum()


@given(MASKS, st.integers(0, 5), st.integers(0, 5), st.integers(0, 3), st.integers(0, 3))
def test_a_patch_has_the_area_and_the_runs_of_its_mask(
    mask: np.ndarray, x: int, y: int, right: int, bottom: int
) -> None:
    patch = MaskPatch.pack(mask, box_of(mask), (x, y))
    columns = np.pad(patch.window(), ((0, 1), (0, 0))).T.ravel()
    size = (mask.shape[0] + y + bottom, mask.shape[1] + x + right)

    assert patch.area == mask.sum()
    assert np.array_equal(patch.changes, np.flatnonzero(np.diff(columns, prepend=False)))
    assert patch.encode(size) == encode(full(patch, size))
    assert patch.moved((2, 3)).corner == (patch.corner[0] + 2, patch.corner[1] + 3)
    with pytest.raises(ValueError, match="extends beyond the frame"):
        patch.moved((right + mask.shape[1] + 1, 0)).encode(size)


def test_taking_and_joining_keep_rows_together() -> None:
    a, b = np.eye(9, dtype=bool), np.ones((9, 9), dtype=bool)
    joined = concatenate([candidates(a, b), candidates(), candidates(b)])

    taken = joined.take(np.array([2, 0]))

    assert len(joined) == 3
    assert taken.predicted_iou.tolist() == [0, 0]
    assert taken.points.tolist() == [[0, 1], [0, 1]]
    assert concatenate([candidates(), candidates(a, b, a)]).take(np.array([2, 1])).outputs.tolist() == [2, 1]
    assert np.array_equal(full(taken.patches[0], (9, 9)), b)
    assert np.array_equal(full(taken.patches[1], (9, 9)), a)
    assert len(concatenate([])) == 0


def test_a_new_mask_brings_its_box() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[2:4, 5:8] = True

    changed = candidates(np.ones((9, 9), dtype=bool), np.eye(9, dtype=bool)).with_patches(
        {1: MaskPatch.pack(mask, box_of(mask))}
    )

    assert changed.boxes.tolist() == [[0, 0, 8, 8], [5, 2, 7, 3]]
    assert np.array_equal(full(changed.patches[1], (9, 9)), mask)
