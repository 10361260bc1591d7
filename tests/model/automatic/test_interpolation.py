"""One matrix a side, against the plain interpolation of whole masks."""

import pytest
import torch

from segmint.model.automatic.interpolation import interpolation
from segmint.model.sam.load import build_sam
from segmint.model.sam.predictor import Predictor
from tests.support.whole_masks import embedding_of


@pytest.mark.parametrize("size", [(1200, 1800), (534, 800), (1500, 1000), (97, 211), (1, 3), (40, 3000)])
def test_two_matrices_are_both_interpolations(size: tuple[int, int]) -> None:
    embedding = embedding_of(*size)
    logits = 10 * torch.randn(256, 256)
    rows, columns = (
        interpolation(256, 1024, filled, pixels) for filled, pixels in zip(embedding.input_size, size, strict=True)
    )

    upscaled = rows.weights @ logits @ columns.weights.T

    plain = Predictor(build_sam("mobile_sam")).upscale(logits[None, None], embedding)[0, 0]
    torch.testing.assert_close(upscaled, plain, atol=2e-5, rtol=0)
    for weights in (rows.weights, columns.weights):
        assert (weights >= 0).all()
        torch.testing.assert_close(weights.sum(dim=1), torch.ones(len(weights)), atol=1e-6, rtol=0)
