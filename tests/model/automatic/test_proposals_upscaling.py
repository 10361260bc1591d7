"""Upscaling inside boxes, band by band, against the plain interpolation of whole masks."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.model.automatic import proposals as steps
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.automatic.proposals import BorderUpscaling, BoxedUpscaling, interpolation
from segmint.model.automatic.settings import MaskSettings
from segmint.model.automatic.tiled_upscaling import upscaling_of
from segmint.model.sam.geometry import SAM1, SAM2, Geometry
from segmint.model.sam.load import build_sam, load_sam
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.model.sam.preprocess import resized_size
from tests.support.cpu_kernels import every_set
from tests.support.photographs import photograph
from tests.support.whole_masks import WholeUpscaling, blobs, embedding_of, in_full

pytestmark = pytest.mark.usefixtures("embedded_once")

SIZES = st.integers(1, 1200)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(build_sam("mobile_sam"))


@given(
    st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**20), st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0])
)
@settings(max_examples=40)
def test_masks_in_boxes_are_the_plain_ones(
    predictor: Predictor, height: int, width: int, seed: int, spread: int, offset: float
) -> None:
    embedding = embedding_of(height, width)
    logits = blobs(seed, 3, spread)
    plain = predictor.upscale(logits[None], embedding)[0]

    boxed = BoxedUpscaling(embedding, SAM1).stable_masks(logits, offset, threshold=0)
    whole = WholeUpscaling(predictor, embedding).stable_masks(logits, offset, threshold=0)

    assert boxed.positions.tolist() == whole.positions.tolist() == [0, 1, 2]
    assert np.array_equal(in_full(whole.sketches, (height, width)), (plain > 0).numpy())
    masks = in_full(boxed.sketches, (height, width))
    assert boxed.areas.tolist() == masks.sum(axis=(1, 2)).tolist()
    assert boxed.boxes.tolist() == [list(patch.box) for patch in boxed.sketches]
    different = torch.from_numpy(masks) != (plain > 0)
    assert (plain[different].abs() < 1e-5).all()
    near = ((plain.abs() - offset).abs() < 1e-5).sum(dim=(1, 2)).numpy()
    outer = (plain > -offset).sum(dim=(1, 2)).numpy()
    assert np.array_equal(np.isnan(boxed.stability), outer == 0)
    some = outer > 0
    assert (np.abs(boxed.stability - whole.stability)[some] <= 1e-6 + 2 * near[some] / outer[some]).all()


def test_only_stable_masks_come_back_with_their_places(predictor: Predictor) -> None:
    embedding = embedding_of(150, 200)
    logits = torch.full((4, 256, 256), -12.0)
    logits[0, 50:90, 60:100] = 0.5  # less than the offset: never stable
    logits[2, 50:90, 60:100] = 12.0

    for upscaling in (BoxedUpscaling(embedding, SAM1), WholeUpscaling(predictor, embedding)):
        found = upscaling.stable_masks(logits, 1.0, 0.9)

        assert found.positions.tolist() == [2]
        assert found.stability.tolist() == pytest.approx([1], abs=0.05)
        ys, xs = np.nonzero(in_full(found.sketches, (150, 200))[0])
        assert [xs.min(), ys.min(), xs.max(), ys.max()] == pytest.approx([47, 39, 78, 70], abs=1)
        every = upscaling.stable_masks(logits, 1.0, 0)
        assert every.positions.tolist() == [0, 1, 2, 3]
        assert np.isnan(every.stability).tolist() == [False, True, False, True]
        assert not in_full(every.sketches, (150, 200))[1].any()


def test_logits_over_the_padding_make_no_mask(predictor: Predictor) -> None:
    embedding = embedding_of(150, 200)
    logits = torch.full((1, 256, 256), -12.0)
    logits[0, 200:] = 12.0

    found = BoxedUpscaling(embedding, SAM1).stable_masks(logits, 1.0, 0)

    assert not in_full(found.sketches, (150, 200)).any()
    assert np.isnan(found.stability).all()


def test_a_step_of_any_size_gives_the_same_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = blobs(3, 5, 4)
    boxed = BoxedUpscaling(embedding_of(150, 200), SAM1)
    at_once = boxed.stable_masks(logits, 1.0, 0.5)
    monkeypatch.setattr(steps, "BAND_PIXELS", 1)
    little = boxed.stable_masks(logits, 1.0, 0.5)

    assert len(at_once.positions) > 1
    assert at_once.positions.tolist() == little.positions.tolist()
    assert at_once.stability.tolist() == little.stability.tolist()
    assert np.array_equal(in_full(at_once.sketches, (150, 200)), in_full(little.sketches, (150, 200)))


@given(SIZES, SIZES, st.integers(0, 2**20), st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=25)
def test_masks_are_those_of_boxed_upscaling(height: int, width: int, seed: int, spread: int, offset: float) -> None:
    embedding, logits = embedding_of(height, width), blobs(seed, 3, spread)
    boxed = BoxedUpscaling(embedding, SAM1)
    expected = boxed.stable_masks(logits, offset, 0)
    near = _near_thresholds(height, width, logits, offset)

    upscaling = BorderUpscaling(every_set()[-1], embedding, SAM1)
    found = upscaling.stable_masks(logits, offset, 0)
    drawn = upscaling.draw(found.sketches)

    assert found.positions.tolist() == [0, 1, 2]
    assert (np.abs(found.areas - expected.areas) <= near).all()
    assert found.areas.tolist() == [patch.area for patch in drawn]
    if near == 0:
        assert np.array_equal(found.stability, expected.stability, equal_nan=True)
        assert np.array_equal(found.boxes, expected.boxes)
        assert np.array_equal(in_full(drawn, (height, width)), in_full(expected.sketches, (height, width)))


def _near_thresholds(height: int, width: int, logits: torch.Tensor, offset: float) -> int:
    """The pixels of all masks whose logit is within 4e-7 of a threshold by float64."""
    sizes = zip(resized_size(height, width, 1024), (height, width), strict=True)
    rows, columns = (interpolation(*SAM1.mask_axis(filled, pixels)).weights.double() for filled, pixels in sizes)
    exact = rows @ logits.double() @ columns.T
    return sum(int(((exact - threshold).abs() <= 4e-7).sum()) for threshold in (-offset, 0, offset))


def test_only_stable_masks_are_kept_without_the_other_logits() -> None:
    logits = torch.full((4, 256, 256), -12.0)
    logits[0, 50:90, 60:100] = 0.5  # less than the offset: never stable
    logits[2, 50:90, 60:100] = 12.0
    upscaling = BorderUpscaling(every_set()[-1], embedding_of(150, 200), SAM1)

    found = upscaling.stable_masks(logits, 1.0, 0.9)

    assert found.positions.tolist() == [2]
    assert found.sketches[0].mask.logits.nbytes < 256 * 256
    every = upscaling.stable_masks(logits, 1.0, 0)
    assert np.isnan(every.stability).tolist() == [False, True, False, True]
    assert not in_full(upscaling.draw(every.sketches), (150, 200))[1].any()


def test_the_generator_finds_the_same_masks_with_and_without_kernels(
    mobile_sam_path: Path,
) -> None:
    kernels, settings = every_set()[-1], MaskSettings.sa1b(points_per_side=5, crop_n_layers=0)
    image, sam = photograph("coffee"), load_sam(mobile_sam_path)
    fast = Predictor(sam, kernels=kernels)
    assert isinstance(upscaling_of(fast, fast.embed(image)), BorderUpscaling)

    plain = MaskGenerator(Predictor(sam, kernels=None), settings).generate(image)

    found = MaskGenerator(fast, settings).generate(image)
    assert [replace(record, predicted_iou=0) for record in found.records] == [
        replace(record, predicted_iou=0) for record in plain.records
    ]
    ious = ([record.predicted_iou for record in each.records] for each in (found, plain))
    np.testing.assert_allclose(*ious, atol=2e-6, rtol=0)
    assert len(plain.records) > 2


def test_masks_of_another_geometry_do_not_suit() -> None:
    with pytest.raises(ValueError, match="can't upscale masks of Geometry"):
        BorderUpscaling(every_set()[-1], embedding_of(150, 200), Geometry(image_size=1000, patch_size=20))


@pytest.mark.parametrize("frame_size", [(150, 200), (1000, 1501), (1024, 256), (31, 47)])
def test_masks_of_a_stretched_model_are_the_same_with_kernels(frame_size: tuple[int, int]) -> None:
    coarse = torch.randn(6, 1, 24, 24)
    logits = 4 * torch.nn.functional.interpolate(coarse, (256, 256), mode="bicubic")[:, 0]
    embedding = Embedding(torch.zeros(1, 256, 64, 64), (1024, 1024), frame_size)
    plain, fast = BoxedUpscaling(embedding, SAM2), BorderUpscaling(every_set()[-1], embedding, SAM2)
    expected, found = (upscaling.stable_masks(logits, 1.0, 0.01) for upscaling in (plain, fast))
    assert len(expected.positions) == 6
    np.testing.assert_array_equal(found.stability, expected.stability)
    np.testing.assert_array_equal(found.boxes, expected.boxes)
    drawn, wanted = in_full(fast.draw(found.sketches), frame_size), in_full(plain.draw(expected.sketches), frame_size)
    np.testing.assert_array_equal(drawn, wanted)
