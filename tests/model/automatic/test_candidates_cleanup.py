"""Clean-up against the reference code, and what the paper does otherwise."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from segment_anything.utils.amg import remove_small_regions

from segmint.model.automatic.candidates import MaskPatch, clean_patch
from segmint.model.automatic.crops import box_of
from tests.support.pixel_cleanup import clean, clean_in_window
from tests.support.whole_masks import full

MASKS = arrays.arrays(np.bool_, arrays.array_shapes(min_dims=2, max_dims=2, max_side=24))


def cleaned_frame(mask: np.ndarray, min_area: int, keep_largest: bool) -> tuple[np.ndarray | None, bool, bool]:
    """The cleaned mask over the whole frame, and whether there were small holes and small islands."""
    patch, holes, islands = clean_patch(MaskPatch.pack(mask, box_of(mask)), mask.shape, min_area, keep_largest)
    return None if patch is None else full(patch, mask.shape), holes, islands


@given(MASKS, st.integers(1, 30))
@settings(max_examples=400)
def test_it_is_the_reference_codes_holes_first(mask: np.ndarray, min_area: int) -> None:
    expected, holes = remove_small_regions(mask, min_area, mode="holes")
    expected, islands = remove_small_regions(expected, min_area, mode="islands")

    found = cleaned_frame(mask, min_area, keep_largest=True)

    assert np.array_equal(found[0], expected)
    assert found[1:] == (holes, islands)


@given(MASKS, st.integers(1, 30))
@settings(max_examples=200)
def test_without_keeping_the_largest_a_mask_of_small_islands_is_dropped(mask: np.ndarray, min_area: int) -> None:
    reference = cleaned_frame(mask, min_area, keep_largest=True)
    found = cleaned_frame(mask, min_area, keep_largest=False)

    assert reference[0] is not None
    if int(reference[0].sum()) < min_area:
        assert found[0] is None
    else:
        assert np.array_equal(found[0], reference[0])
    assert found[1:] == reference[1:]


@given(MASKS, st.integers(1, 40), st.tuples(*[st.integers(0, 30)] * 4), st.booleans())
@settings(max_examples=600)
def test_on_runs_it_is_what_it_is_on_pixels(
    mask: np.ndarray, min_area: int, around: tuple[int, int, int, int], keep_largest: bool
) -> None:
    left, top, right, bottom = around
    frame = np.pad(mask, ((top, bottom), (left, right)))
    patch = MaskPatch.pack(frame, box_of(frame))
    expected = clean(frame, min_area, keep_largest)

    found = clean_patch(patch, frame.shape, min_area, keep_largest)

    assert found[1:] == (expected.holes, expected.islands)
    assert (found.patch is None) == (expected.mask is None)
    if found.patch is not None and expected.mask is not None:
        assert np.array_equal(full(found.patch, frame.shape), expected.mask)
        if expected.mask.any():
            assert found.patch.box == box_of(expected.mask)
    in_window = clean_in_window(patch, frame.shape, min_area, keep_largest)
    assert found[1:] == in_window[1:]
    assert (found.patch is None) == (in_window.patch is None)


def test_winding_masks_and_noise_have_the_components_of_their_pixels() -> None:
    """Masks whose runs are joined only through many others."""
    rows = np.zeros((61, 80), dtype=bool)
    rows[::2], rows[1::4, -1], rows[3::4, 0] = True, True, True
    noise = np.random.default_rng(0).random((60, 80))
    checkers = np.add.outer(np.arange(60), np.arange(80)) % 2 == 0
    for mask in (rows, rows.T, checkers, *(noise < share for share in (0.3, 0.4, 0.5, 0.6, 0.7))):
        for min_area in (2, 7, 30):
            expected = clean(mask, min_area, keep_largest=True)

            pixels, *flags = cleaned_frame(mask, min_area, keep_largest=True)

            assert np.array_equal(pixels, expected.mask)
            assert flags == [expected.holes, expected.islands]


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

    cleaned, holes, islands = cleaned_frame(mask, 10, keep_largest=False)

    assert (holes, islands) == (True, False)
    assert cleaned is not None
    assert cleaned[0, 0]


def test_pixels_that_touch_at_a_corner_are_one_island() -> None:
    mask = np.eye(20, dtype=bool)

    cleaned, holes, islands = cleaned_frame(mask, 20, keep_largest=False)

    assert (holes, islands) == (False, False)
    assert np.array_equal(cleaned, mask)


def test_exactly_the_limit_is_not_small() -> None:
    mask = np.zeros((30, 30), dtype=bool)
    mask[0:10, 0:10] = True
    mask[20:29, 20:31] = True

    cleaned, _, _ = cleaned_frame(mask, 100, keep_largest=False)

    assert cleaned is not None
    assert cleaned[:10, :10].all()
    assert int(cleaned.sum()) == 100
