"""Upscaling by the CPU kernels against `BoxedUpscaling`: the same masks, measured first and drawn last."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segmint.model.automatic.border_upscaling import BorderUpscaling
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.automatic.settings import MaskSettings
from segmint.model.automatic.tiled_upscaling import upscaling_of
from segmint.model.automatic.upscaling import BoxedUpscaling
from segmint.model.sam.geometry import SAM1, Geometry
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Predictor
from tests.support.cpu_kernels import every_set
from tests.support.photographs import photograph
from tests.support.whole_masks import blobs, embedding_of, in_full

SIZES = st.integers(1, 1200)


@given(SIZES, SIZES, st.integers(0, 2**20), st.integers(1, 9), st.sampled_from([0.0, 0.5, 1.0]))
@settings(max_examples=25)
def test_masks_are_those_of_boxed_upscaling(height: int, width: int, seed: int, spread: int, offset: float) -> None:
    embedding, logits = embedding_of(height, width), blobs(seed, 3, spread)
    boxed = BoxedUpscaling(embedding, SAM1)
    expected = boxed.stable_masks(logits, offset, 0)
    near = _near_thresholds(boxed, logits, offset)

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


def _near_thresholds(boxed: BoxedUpscaling, logits: torch.Tensor, offset: float) -> int:
    """The pixels of all masks whose logit is within 4e-7 of a threshold by float64."""
    rows, columns = boxed._rows.weights.double(), boxed._columns.weights.double()
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


@pytest.mark.parametrize("geometry", [Geometry(image_size=1000, patch_size=20), Geometry(placement="stretched")])
def test_masks_of_another_geometry_do_not_suit(geometry: Geometry) -> None:
    with pytest.raises(ValueError, match="can't upscale masks of Geometry"):
        BorderUpscaling(every_set()[-1], embedding_of(150, 200), geometry)
