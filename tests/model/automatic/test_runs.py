"""Runs found in drawn masks, all at once, are those that pycocotools finds in each."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from pycocotools import mask as coco

from segmint.model.automatic.candidates import MaskPatch
from segmint.model.automatic.rle import Rle
from segmint.model.automatic.tiled_upscaling import changes

MASKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=30))
MARGIN = st.integers(0, 4)


def drawn(masks: list[np.ndarray]) -> torch.Tensor:
    """Masks one behind the other, by columns, a pixel of background after each."""
    columns = [np.pad(mask, ((0, 1), (0, 0))).T.ravel() for mask in masks]
    return torch.from_numpy(np.concatenate(columns).astype(np.uint8))


def places_of(flat: torch.Tensor, room: int) -> np.ndarray:
    """The places found, and whether the rest is filled up."""
    count, *places = changes(flat, room).tolist()
    assert len(places) == room
    assert places[count:] == [-1] * (room - min(count, room))
    return np.array(places[:count], dtype=np.int64)


@given(st.lists(st.tuples(MASKS, MARGIN, MARGIN, MARGIN, MARGIN), min_size=1, max_size=5))
@settings(max_examples=100)
def test_runs_of_many_masks_are_those_of_pycocotools(items: list[tuple[np.ndarray, int, int, int, int]]) -> None:
    flat = drawn([mask for mask, *_ in items])
    found = places_of(flat, len(flat))
    assert places_of(flat, len(found)).tolist() == found.tolist()
    # Too little room: the count says so.
    short = changes(flat, len(found) // 2).tolist()
    assert short == [len(found), *found[: len(found) // 2].tolist()]

    start = 0
    for mask, left, top, right, bottom in items:
        stop = start + mask.shape[1] * (mask.shape[0] + 1)
        own = found[(found >= start) & (found < stop)] - start
        patch = MaskPatch((left, top), mask.shape, own)
        start = stop
        frame = np.pad(mask, ((top, bottom), (left, right)))
        counts = coco.encode(np.asfortranarray(frame.astype(np.uint8)))["counts"].decode()
        assert patch.encode(frame.shape) == Rle(frame.shape, counts)
        assert np.array_equal(patch.window(), mask)
        assert patch.area == mask.sum()


def test_nothing_drawn_has_no_runs() -> None:
    assert changes(torch.zeros(0, dtype=torch.uint8), 0).tolist() == [0]
    assert changes(torch.zeros(7, dtype=torch.uint8), 2).tolist() == [0, -1, -1]
