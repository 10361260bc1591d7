"""Upscaling inside boxes, band by band, against the plain interpolation of whole masks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from model.automatic import upscaling as steps
from model.automatic.upscaling import BoxedUpscaling, StableMasks, WholeUpscaling, interpolation, upscaling_of
from model.sam.load import build_sam
from model.sam.predictor import Embedding, Predictor
from model.sam.preprocess import resized_size


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(build_sam("mobile_sam"))


def embedding_of(height: int, width: int) -> Embedding:
    return Embedding(torch.zeros(1, 256, 64, 64), resized_size(height, width, 1024), (height, width))


def blobs(seed: int, masks: int, spread: int) -> torch.Tensor:
    """Logits (masks, 256, 256) as a decoder gives them: smooth, -12 where nothing is, a few spots above 0."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(masks, 1, 2 + spread, 2 + spread, generator=generator)
    smooth = F.interpolate(noise, (256, 256), mode="bicubic")[:, 0]
    return (8 * smooth - 4 + 0.2 * torch.randn(masks, 256, 256, generator=generator)).clamp(min=-12)


def in_full(found: StableMasks, size: tuple[int, int]) -> np.ndarray:
    full = np.zeros((len(found.windows), *size), dtype=bool)
    for mask, window in zip(full, found.windows, strict=True):
        (x, y), (height, width) = window.corner, window.pixels.shape
        mask[y : y + height, x : x + width] = window.pixels
    return full


@pytest.mark.parametrize("size", [(1200, 1800), (534, 800), (1500, 1000), (97, 211), (1, 3), (40, 3000)])
def test_two_matrices_are_both_interpolations(predictor: Predictor, size: tuple[int, int]) -> None:
    embedding = embedding_of(*size)
    logits = 10 * torch.randn(256, 256)
    rows, columns = (
        interpolation(256, 1024, filled, pixels) for filled, pixels in zip(embedding.input_size, size, strict=True)
    )

    upscaled = rows.weights @ logits @ columns.weights.T

    torch.testing.assert_close(upscaled, predictor.upscale(logits[None, None], embedding)[0, 0], atol=2e-5, rtol=0)
    for weights in (rows.weights, columns.weights):
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)), atol=1e-6, rtol=0)


@given(
    st.integers(1, 400), st.integers(1, 400), st.integers(0, 2**20), st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0])
)
@settings(deadline=None, max_examples=40)
def test_masks_in_boxes_are_the_plain_ones(
    predictor: Predictor, height: int, width: int, seed: int, spread: int, offset: float
) -> None:
    embedding = embedding_of(height, width)
    logits = blobs(seed, 3, spread)
    plain = predictor.upscale(logits[None], embedding)[0]

    boxed = BoxedUpscaling(embedding, 1024).stable_masks(logits, offset, threshold=0)
    whole = WholeUpscaling(predictor, embedding).stable_masks(logits, offset, threshold=0)

    assert boxed.positions.tolist() == whole.positions.tolist() == [0, 1, 2]
    assert np.array_equal(in_full(whole, (height, width)), (plain > 0).numpy())
    different = torch.from_numpy(in_full(boxed, (height, width))) != (plain > 0)
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

    for upscaling in (BoxedUpscaling(embedding, 1024), WholeUpscaling(predictor, embedding)):
        found = upscaling.stable_masks(logits, 1.0, 0.9)

        assert found.positions.tolist() == [2]
        assert found.stability.tolist() == pytest.approx([1], abs=0.05)
        ys, xs = np.nonzero(in_full(found, (150, 200))[0])
        assert [xs.min(), ys.min(), xs.max(), ys.max()] == pytest.approx([47, 39, 78, 70], abs=1)
        every = upscaling.stable_masks(logits, 1.0, 0)
        assert every.positions.tolist() == [0, 1, 2, 3]
        assert np.isnan(every.stability).tolist() == [False, True, False, True]
        assert not in_full(every, (150, 200))[1].any()


def test_logits_over_the_padding_make_no_mask(predictor: Predictor) -> None:
    embedding = embedding_of(150, 200)
    logits = torch.full((1, 256, 256), -12.0)
    logits[0, 200:] = 12.0

    found = BoxedUpscaling(embedding, 1024).stable_masks(logits, 1.0, 0)

    assert not in_full(found, (150, 200)).any()
    assert np.isnan(found.stability).all()


def test_a_step_of_any_size_gives_the_same_masks(predictor: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    embedding = embedding_of(150, 200)
    logits = blobs(3, 5, 4)
    boxed, whole = BoxedUpscaling(embedding, 1024), WholeUpscaling(predictor, embedding)
    for upscaling, constant in ((boxed, "_BAND_PIXELS"), (whole, "_BATCH_ELEMENTS")):
        at_once = upscaling.stable_masks(logits, 1.0, 0.5)
        monkeypatch.setattr(steps, constant, 1)
        little = upscaling.stable_masks(logits, 1.0, 0.5)

        assert len(at_once.positions) > 1
        assert at_once.positions.tolist() == little.positions.tolist()
        assert at_once.stability.tolist() == little.stability.tolist()
        assert np.array_equal(in_full(at_once, (150, 200)), in_full(little, (150, 200)))


def test_the_device_decides_the_way(predictor: Predictor) -> None:
    assert isinstance(upscaling_of(predictor, embedding_of(150, 200)), BoxedUpscaling)
    elsewhere = Embedding(torch.zeros(1, 256, 64, 64, device="meta"), (768, 1024), (150, 200))
    assert isinstance(upscaling_of(predictor, elsewhere), WholeUpscaling)
