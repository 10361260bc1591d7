"""Clean-up against the reference code, and what the paper does otherwise."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from segment_anything.utils.amg import remove_small_regions

from segmint.model.automatic.boxes import box_of
from segmint.model.automatic.candidates import MaskPatch
from segmint.model.automatic.cleanup import clean, clean_patch
from tests.support.whole_masks import full

MASKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=24))


@given(MASKS, st.integers(1, 30))
@settings(max_examples=400)
def test_it_is_the_reference_codes_holes_first(mask: np.ndarray, min_area: int) -> None:
    expected, holes = remove_small_regions(mask, min_area, mode="holes")
    expected, islands = remove_small_regions(expected, min_area, mode="islands")

    cleaned = clean(mask, min_area, keep_largest=True)

    assert cleaned.mask is not None
    assert np.array_equal(cleaned.mask, expected)
    assert (cleaned.holes, cleaned.islands) == (holes, islands)
    assert cleaned.changed == (holes or islands)


@given(MASKS, st.integers(1, 30))
@settings(max_examples=200)
def test_without_keeping_the_largest_a_mask_of_small_islands_is_dropped(mask: np.ndarray, min_area: int) -> None:
    reference = clean(mask, min_area, keep_largest=True)
    cleaned = clean(mask, min_area, keep_largest=False)

    assert reference.mask is not None
    if int(reference.mask.sum()) < min_area:
        assert cleaned.mask is None
    else:
        assert cleaned.mask is not None
        assert np.array_equal(cleaned.mask, reference.mask)
    assert (cleaned.holes, cleaned.islands) == (reference.holes, reference.islands)


@given(MASKS, st.integers(1, 40), st.tuples(*[st.integers(0, 30)] * 4), st.booleans())
@settings(max_examples=600)
def test_in_a_window_it_is_what_it_is_in_the_frame(
    mask: np.ndarray, min_area: int, around: tuple[int, int, int, int], keep_largest: bool
) -> None:
    left, top, right, bottom = around
    frame = np.pad(mask, ((top, bottom), (left, right)))
    patch = MaskPatch.pack(frame, box_of(frame))
    expected = clean(frame, min_area, keep_largest)

    cleaned, holes, islands = clean_patch(patch, frame.shape, min_area, keep_largest)

    assert (holes, islands) == (expected.holes, expected.islands)
    if expected.mask is None:
        assert cleaned is None
    else:
        assert cleaned is not None
        assert np.array_equal(full(cleaned, frame.shape), expected.mask)
        if expected.mask.any():
            assert cleaned.box == box_of(expected.mask)


def test_a_strip_of_background_beside_a_mask_is_a_hole_when_it_is_small() -> None:
    """The window must reach to the frame's border, or far enough to know that the strip is not small."""
    for strip, filled in ((1, True), (3, False)):
        frame = np.zeros((40, 60), dtype=bool)
        frame[:, : 60 - strip] = True

        cleaned, holes, islands = clean_patch(MaskPatch.pack(frame, box_of(frame)), frame.shape, 100, keep_largest=True)

        assert (holes, islands) == (filled, False)
        assert cleaned is not None
        assert bool(full(cleaned, frame.shape).all()) == filled


def test_a_piece_of_background_cut_off_at_the_border_is_a_hole() -> None:
    mask = np.zeros((20, 20), dtype=bool)
    mask[:, :12] = True
    mask[0, 0] = False

    cleaned = clean(mask, 10, keep_largest=False)

    assert cleaned.changed
    assert cleaned.mask is not None
    assert cleaned.mask[0, 0]


def test_pixels_that_touch_at_a_corner_are_one_island() -> None:
    mask = np.eye(20, dtype=bool)

    cleaned = clean(mask, 20, keep_largest=False)

    assert not cleaned.changed
    assert cleaned.mask is not None
    assert np.array_equal(cleaned.mask, mask)


def test_exactly_the_limit_is_not_small() -> None:
    mask = np.zeros((30, 30), dtype=bool)
    mask[0:10, 0:10] = True
    mask[20:29, 20:31] = True

    cleaned = clean(mask, 100, keep_largest=False)

    assert cleaned.mask is not None
    assert cleaned.mask[:10, :10].all()
    assert int(cleaned.mask.sum()) == 100
