"""The way of accelerators, run on the CPU: masks measured by tiles and drawn as runs are those drawn in boxes."""

import types
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.model.automatic import mask_tiles
from segmint.model.automatic import tiled_upscaling as steps
from segmint.model.automatic.mask_tiles import Strip, Taps, interpolate, taps_of
from segmint.model.automatic.proposals import BorderUpscaling, BoxedUpscaling, StableMasks
from segmint.model.automatic.tiled_upscaling import (
    KernelsWithFallback,
    TiledUpscaling,
    mask_operations,
    strips_of,
    upscaling_of,
)
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.load import build_sam
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.model.sam.preprocess import resized_size
from tests.support.whole_masks import WholeUpscaling, blobs, embedding_of, in_full


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(build_sam("mobile_sam"))


def taps(height: int, width: int) -> tuple[Taps, Taps]:
    """Return the weights of interpolation that `TiledUpscaling` uses for `embedding_of(height, width)`."""
    sizes = zip(resized_size(height, width, 1024), (height, width), strict=True)
    rows, columns = (taps_of(*SAM1.mask_axis(filled, pixels), torch.device("cpu")) for filled, pixels in sizes)
    return rows, columns


def check_equal(tiled: StableMasks, boxed: StableMasks) -> None:
    assert tiled.positions.tolist() == boxed.positions.tolist()
    assert np.array_equal(tiled.stability, boxed.stability, equal_nan=True)
    assert tiled.areas.tolist() == boxed.areas.tolist()
    assert tiled.boxes.tolist() == boxed.boxes.tolist()
    assert [array.dtype for array in (tiled.positions, tiled.stability, tiled.areas, tiled.boxes)] == [
        array.dtype for array in (boxed.positions, boxed.stability, boxed.areas, boxed.boxes)
    ]


@pytest.mark.parametrize("size", [(534, 800), (97, 211), (1, 3), (40, 900), (700, 333)])
def test_stable_masks_are_those_found_in_boxes(size: tuple[int, int]) -> None:
    logits = torch.cat([blobs(seed, 4, seed + 1) for seed in range(5)])
    logits[7] = -12
    embedding = embedding_of(*size)
    tiled, boxed = TiledUpscaling(embedding, SAM1), BoxedUpscaling(embedding, SAM1)
    for threshold in (0, 0.6):
        found, expected = (each.stable_masks(logits, 1.0, threshold) for each in (tiled, boxed))

        assert threshold > 0 or len(found.positions) == 20
        check_equal(found, expected)
        drawn = in_full(tiled.draw(found.sketches), size)
        assert np.array_equal(drawn, in_full(boxed.draw(expected.sketches), size))


@given(
    st.integers(1, 300), st.integers(1, 300), st.integers(0, 2**20), st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0])
)
@settings(max_examples=40)
def test_masks_are_the_plain_ones(
    predictor: Predictor, height: int, width: int, seed: int, spread: int, offset: float
) -> None:
    embedding = embedding_of(height, width)
    logits = blobs(seed, 3, spread)
    plain = predictor.upscale(logits[None], embedding)[0]

    tiled = TiledUpscaling(embedding, SAM1)
    found = tiled.stable_masks(logits, offset, threshold=0)
    whole = WholeUpscaling(predictor, embedding).stable_masks(logits, offset, threshold=0)

    patches = tiled.draw(found.sketches)
    masks = in_full(patches, (height, width))
    different = torch.from_numpy(masks) != (plain > 0)
    assert (plain[different].abs() < 1e-4).all()
    # Counts and boxes, from the first pass, are those of the pixels, from the second.
    assert found.areas.tolist() == masks.sum(axis=(1, 2)).tolist() == [patch.area for patch in patches]
    assert found.boxes.tolist() == [list(patch.box) for patch in patches]
    for mask, box in zip(masks, found.boxes.tolist(), strict=True):
        ys, xs = np.nonzero(mask)
        assert not mask.any() or box == [xs.min(), ys.min(), xs.max(), ys.max()]
    near = ((plain.abs() - offset).abs() < 1e-5).sum(dim=(1, 2)).numpy()
    outer = (plain > -offset).sum(dim=(1, 2)).numpy()
    some = outer > 0
    assert np.array_equal(np.isnan(found.stability), ~some)
    assert (np.abs(found.stability - whole.stability)[some] <= 1e-6 + 2 * near[some] / outer[some]).all()


def test_masks_are_drawn_in_the_order_asked_for_whatever_fits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (150, 200)
    tiled = TiledUpscaling(embedding_of(*size), SAM1)
    sketches = [sketch for seed in (3, 4) for sketch in tiled.stable_masks(blobs(seed, 5, seed), 1.0, 0).sketches]
    sketches.reverse()
    low = torch.stack([sketch.chunk[sketch.index] for sketch in sketches])
    expected = (interpolate(low, *taps(*size)) > 0).numpy()

    assert np.array_equal(in_full(tiled.draw(sketches), size), expected)
    for name, value in (("STRIP_PIXELS", 1), ("STRIP_PIXELS", 2000), ("DRAWN_PIXELS", 3000), ("DRAWN_MASKS", 2)):
        with monkeypatch.context() as patched:
            patched.setattr(steps, name, value)
            patches = tiled.draw(sketches)

        assert np.array_equal(in_full(patches, size), expected)
        assert [patch.area for patch in patches] == expected.sum(axis=(1, 2)).tolist()
    assert tiled.draw([]) == []
    # Runs for which there was no room are asked for again.
    monkeypatch.setattr(steps, "room_for", lambda _: 3)
    assert np.array_equal(in_full(tiled.draw(sketches), size), expected)


@given(
    st.lists(
        st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, 40), st.integers(0, 40)).map(
            lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
        ),
        max_size=12,
    ),
    st.integers(50, 2000),
    st.integers(1, 5),
)
def test_strips_cover_each_box_once_and_keep_to_the_limits(boxes: list, pixels: int, masks: int) -> None:
    covered = [np.zeros((100, 100), int) for _ in boxes]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(steps, "STRIP_PIXELS", pixels // 2)
        patched.setattr(steps, "DRAWN_PIXELS", pixels)
        patched.setattr(steps, "DRAWN_MASKS", masks)
        groups = list(strips_of(boxes))
    for first, strips in groups:
        place = 0
        for strip in strips:
            assert strip.start == place
            place += strip.columns * (strip.height + 1)
            covered[first + strip.mask][strip.y : strip.y + strip.height, strip.x : strip.x + strip.columns] += 1
        assert place <= pixels
        assert strips[0].mask == 0
        assert strips[-1].mask < masks
    for (x0, y0, x1, y1), count in zip(boxes, covered, strict=True):
        expected = np.zeros_like(count)
        expected[y0 : y1 + 1, x0 : x1 + 1] = 1
        assert np.array_equal(count, expected)


def test_a_mask_of_the_largest_image_is_drawn_in_strips() -> None:
    """250 megapixels, what `ingest.max_pixels` lets in: a byte each, and no strip over its limit."""
    ((first, strips), *others) = strips_of([(0, 0, 15_810, 15_810)])

    assert first == 0
    assert len(others) == 3
    for strip in strips:
        assert strip.columns * (strip.height + 1) <= 1 << 24
    assert strips[-1].start + strips[-1].columns * (strips[-1].height + 1) <= 1 << 26


def failing(name: str) -> types.SimpleNamespace:
    def fail(*_: object) -> None:
        raise RuntimeError("no compiler\nand a long story")

    ways = {"measure": mask_tiles.measure, "draw": mask_tiles.draw}
    return types.SimpleNamespace(**{**ways, name: fail})


@pytest.mark.parametrize("name", ["measure", "draw"])
def test_kernels_that_fail_are_replaced_with_one_warning(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    size = (60, 80)
    logits = blobs(3, 5, 4)
    plain = TiledUpscaling(embedding_of(*size), SAM1)
    expected = plain.stable_masks(logits, 1.0, 0)
    monkeypatch.setattr(steps, "kernels", lambda: failing(name))
    tiled = TiledUpscaling(embedding_of(*size), SAM1, operations=KernelsWithFallback())

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = tiled.stable_masks(logits, 1.0, 0)
        patches = tiled.draw(found.sketches)

    assert [warning.category for warning in caught] == [RuntimeWarning]
    assert "failed (RuntimeError: no compiler)" in str(caught[0].message)
    check_equal(found, expected)
    assert np.array_equal(in_full(patches, size), in_full(plain.draw(expected.sketches), size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiled.draw(tiled.stable_masks(logits, 1.0, 0).sketches)


def test_without_triton_torch_does_it_and_a_fault_in_the_arguments_stays_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps, "find_spec", lambda _: None)
    operations = KernelsWithFallback()
    tiled = TiledUpscaling(embedding_of(60, 80), SAM1, operations=operations)
    nowhere = (torch.zeros(0), torch.zeros(0, 256, 256), *taps(60, 80), [Strip(0, 0, 0, 1, 1, 0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(tiled.stable_masks(blobs(3, 5, 4), 1.0, 0).positions) == 5
        with pytest.raises((IndexError, RuntimeError)):
            operations.draw(*nowhere)


def test_masks_of_several_chunks_keep_their_logits() -> None:
    logits = blobs(3, 7, 4)
    whole = TiledUpscaling(embedding_of(60, 80), SAM1)
    numbers = whole.measure(logits, 1.0).numpy()
    masks = np.array([0, 2, 3, 4, 6])
    found = steps.stable_outlines(numbers[masks], list(logits.split([3, 0, 1, 3])), masks, 0)

    assert found.positions.tolist() == list(range(5))
    for mask, sketch in zip(masks, found.sketches, strict=True):
        assert torch.equal(sketch.chunk[sketch.index], logits[mask])
        assert list(sketch.box) == numbers[mask, 3:].tolist()


def test_kernels_that_fail_are_replaced_except_in_builds(predictor: Predictor) -> None:
    assert mask_operations(predictor) is mask_tiles
    for must_compile, expected in ((False, steps.KERNELS), (True, steps.kernels())):
        there: Any = types.SimpleNamespace(device=torch.device("cuda", 0))
        strict: Any = types.SimpleNamespace(sam=there, must_compile=must_compile)
        assert mask_operations(strict) is expected


def test_the_device_and_the_kernels_decide_the_way(predictor: Predictor) -> None:
    expected = BoxedUpscaling if predictor.kernels is None else BorderUpscaling
    assert isinstance(upscaling_of(predictor, embedding_of(150, 200)), expected)
    without = Predictor(predictor.sam, kernels=None)
    assert isinstance(upscaling_of(without, embedding_of(150, 200)), BoxedUpscaling)
    elsewhere = Embedding(torch.zeros(1, 256, 64, 64, device="meta"), (768, 1024), (150, 200))
    assert isinstance(upscaling_of(predictor, elsewhere), TiledUpscaling)


@pytest.mark.cuda
@pytest.mark.parametrize("size", [(534, 800), (97, 211), (1500, 2250)])
def test_a_gpu_finds_the_masks_of_the_cpu_bit_by_bit_and_compiles(size: tuple[int, int]) -> None:
    logits = torch.cat([blobs(seed, 12, seed + 1) for seed in range(5)])
    on_cpu = TiledUpscaling(embedding_of(*size), SAM1)
    on_gpu = TiledUpscaling(embedding_of(*size, "cuda"), SAM1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = on_gpu.stable_masks(logits.cuda(), 1.0, 0.5)
        patches = on_gpu.draw(found.sketches)

    expected = on_cpu.stable_masks(logits, 1.0, 0.5)
    assert len(found.positions) > 5
    check_equal(found, expected)
    for one, other in zip(patches, on_cpu.draw(expected.sketches), strict=True):
        assert (one.corner, one.shape, one.changes.tolist()) == (other.corner, other.shape, other.changes.tolist())


@pytest.mark.cuda
def test_a_gpu_takes_no_memory_for_masks_of_full_size() -> None:
    logits = blobs(1, 192, 3).cuda()
    tiled = TiledUpscaling(embedding_of(4000, 6000, "cuda"), SAM1)
    tiled.stable_masks(logits[:1], 1.0, 0.5)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()

    tiled.stable_masks(logits, 1.0, 0.99)

    # The masks would take 4.3 GiB at a byte a pixel; low-resolution logits over a threshold take 12 MiB.
    assert torch.cuda.max_memory_allocated() - before < 1 << 28
