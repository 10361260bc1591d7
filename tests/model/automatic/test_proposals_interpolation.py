"""One matrix a side, against the plain interpolation of whole masks."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segmint.model.automatic.proposals import interpolation
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


def random_sizes(count: int) -> list[tuple[int, int]]:
    generator = np.random.default_rng(20260817)
    return [(int(generator.integers(1, 1025)), int(generator.integers(1, 5000))) for _ in range(count)]


def check_the_bits(side: int, padded: int, filled: int, pixels: int) -> None:
    """The whole matrix against each unit vector's own interpolation, and both tables of spans against the matrix."""
    square = F.interpolate(torch.eye(side)[None, :, :, None], (padded, 1), mode="bilinear", align_corners=False)
    crop = F.interpolate(square[:, :, :filled], (pixels, 1), mode="bilinear", align_corners=False)
    expected = crop[0, :, :, 0].T
    found = interpolation(side, padded, filled, pixels)
    assert torch.equal(found.weights, expected)
    for spans, used in ((found.touches, expected > 0), (found.reached, expected.T > 0)):
        for (start, end), row in zip(spans.tolist(), used, strict=True):
            places = row.nonzero().flatten().tolist() or [len(row), -1]
            assert (start, end) == (places[0], places[-1] + 1)


@pytest.mark.parametrize(
    "arguments",
    [
        *((256, 1024, filled, pixels) for filled in (1, 683, 1024) for pixels in (1, 3, 1024)),
        (20, 80, 80, 31),
        (5, 7, 7, 100),
        (300, 64, 60, 20),
    ],
)
def test_weights_have_the_bits_of_torchs_interpolation(arguments: tuple[int, int, int, int]) -> None:
    check_the_bits(*arguments)


def test_weights_of_random_sizes_have_the_bits_of_torchs_interpolation() -> None:
    for size in random_sizes(10):
        check_the_bits(256, 1024, *size)


@pytest.mark.long
def test_weights_of_many_sizes_have_the_bits_of_torchs_interpolation() -> None:
    for size in random_sizes(300)[10:]:
        check_the_bits(256, 1024, *size)
