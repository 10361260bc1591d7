"""Upscaling inside boxes, band by band, against the plain interpolation of whole masks."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.model.automatic import upscaling as steps
from segmint.model.automatic.upscaling import BoxedUpscaling
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.load import build_sam
from segmint.model.sam.predictor import Predictor
from tests.support.whole_masks import WholeUpscaling, blobs, embedding_of, in_full


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
    monkeypatch.setattr(steps, "_BAND_PIXELS", 1)
    little = boxed.stable_masks(logits, 1.0, 0.5)

    assert len(at_once.positions) > 1
    assert at_once.positions.tolist() == little.positions.tolist()
    assert at_once.stability.tolist() == little.stability.tolist()
    assert np.array_equal(in_full(at_once.sketches, (150, 200)), in_full(little.sketches, (150, 200)))
