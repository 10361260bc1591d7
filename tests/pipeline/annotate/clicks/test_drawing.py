"""Masks drawn inside their box against the whole frame upscaled by the predictor."""

from pathlib import Path

import numpy as np
import pytest
import torch

from segmint.model.automatic.boxes import box_of
from segmint.model.automatic.filters import stability_scores
from segmint.model.automatic.rle import Rle, decode
from segmint.model.sam.load import load_sam
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.pipeline.annotate.clicks import drawing
from segmint.pipeline.annotate.clicks.drawing import draw_mask

FRAMES = [((1024, 683), (1500, 1000)), ((683, 1024), (427, 640)), ((1024, 1024), (333, 333)), ((500, 1024), (61, 125))]


@pytest.fixture(scope="module")
def predictor(mobile_sam_path: Path) -> Predictor:
    """A predictor; only its upscaling is used."""
    return Predictor(load_sam(mobile_sam_path))


def blobs(seed: int, level: float) -> torch.Tensor:
    """Smooth random logits (256, 256)."""
    coarse = torch.randn(1, 1, 9, 9, generator=torch.Generator().manual_seed(seed)) * 12 + level
    return torch.nn.functional.interpolate(coarse, (256, 256), mode="bicubic")[0, 0]


@pytest.mark.parametrize(("filled", "frame"), FRAMES)
@pytest.mark.parametrize("level", [-12.0, 0.0, 15.0, -200.0])
def test_pixels_are_the_predictors(
    predictor: Predictor, filled: tuple[int, int], frame: tuple[int, int], level: float
) -> None:
    embedding = Embedding(torch.zeros(1, 256, 64, 64), filled, frame)
    for seed in range(3):
        logits = blobs(seed, level)
        upscaled = predictor.upscale(logits[None, None], embedding)[0]
        wanted = (upscaled[0] > 0).numpy()
        drawn = draw_mask(predictor, embedding, logits)
        assert (decode(Rle(frame, drawn.counts)) == wanted).all()
        assert drawn.area == np.count_nonzero(wanted)
        if drawn.area:
            x0, y0, x1, y1 = box_of(wanted)
            assert drawn.bbox == (x0, y0, x1 - x0, y1 - y0)
            assert drawn.stability == pytest.approx(float(stability_scores(upscaled, 1.0)[0]), abs=1e-4)


def test_a_pixel_all_but_zero_is_left_to_the_predictor(predictor: Predictor) -> None:
    embedding = Embedding(torch.zeros(1, 256, 64, 64), (1024, 1024), (512, 512))
    logits = blobs(1, 0.0)
    logits[100:140, 100:140] = 0.0  # where sums in another order may have either sign
    assert drawing._draw_box(logits, embedding, 1024) is None
    wanted = (predictor.upscale(logits[None, None], embedding)[0, 0] > 0).numpy()
    assert (decode(Rle((512, 512), draw_mask(predictor, embedding, logits).counts)) == wanted).all()
    drawn = [drawing._draw_box(blobs(seed, 0.0), embedding, 1024) for seed in range(8)]
    assert sum(each is not None for each in drawn) > 4  # the others have such a pixel by chance
