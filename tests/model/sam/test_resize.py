"""Pixels are resized on a device to the bits that Pillow gives."""

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.model.sam import preprocess
from segmint.model.sam.preprocess import resize, resize_on_device, resized_size

# Enlarged and reduced, one row and one column, an unchanged side, tall ones on both sides of Pillow's rule of order.
SIZES = [(1, 3), (37, 20), (5000, 3), (2, 2), (1024, 700), (700, 1024), (1500, 740), (1500, 760), (1500, 2250)]


def check(size: tuple[int, int], device: str) -> None:
    generator = np.random.default_rng(size)
    pixels = generator.integers(0, 256, (*size, 3), dtype=np.uint8)
    found = resize_on_device(torch.from_numpy(pixels).to(device), resized_size(*size, 1024))
    assert found.is_contiguous()
    np.testing.assert_array_equal(found.cpu().numpy(), resize(pixels, 1024), err_msg=f"{size}")


def random_sizes() -> list[tuple[int, int]]:
    sizes = np.random.default_rng(20260817).integers(1, 1200, (41, 2))
    return [(int(height), int(width)) for height, width in sizes]


@pytest.mark.parametrize("size", SIZES)
def test_pixels_are_those_of_pillow(size: tuple[int, int]) -> None:
    check(size, "cpu")


def test_pixels_of_random_sizes_are_those_of_pillow() -> None:
    for size in random_sizes()[:8]:
        check(size, "cpu")


@pytest.mark.long
def test_pixels_of_more_random_sizes_are_those_of_pillow() -> None:
    for size in random_sizes()[8:]:
        check(size, "cpu")


def test_black_and_white_edges_are_those_of_pillow() -> None:
    """Extremes, at which a sum of weights that is not quite one would show."""
    pixels = np.where(np.indices((333, 251)).sum(0)[..., None] % 7 < 3, 255, 0).repeat(3, 2).astype(np.uint8)
    np.testing.assert_array_equal(
        resize_on_device(torch.from_numpy(pixels), resized_size(333, 251, 640)).numpy(), resize(pixels, 640)
    )


def test_rows_at_a_time_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = torch.from_numpy(np.random.default_rng(5).integers(0, 256, (211, 97, 3), dtype=np.uint8))
    expected = resize_on_device(pixels, (128, 59))
    monkeypatch.setattr(preprocess, "_ELEMENTS", 5000)
    assert torch.equal(resize_on_device(pixels, (128, 59)), expected)


@pytest.mark.parametrize("version", ["12.1", "12.2"])
def test_a_pillow_before_13_is_followed(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preprocess._pillow_takes_columns_first.cache_clear()
    resized = Image.Image.resize

    def older(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
        tall = image.height > 100 * image.width and size[1] < image.height
        first = (image.width, size[1]) if tall and version == "12.2" else (size[0], image.height)
        return resized(resized(image, first, resample), size, resample)

    monkeypatch.setattr(Image.Image, "resize", older)
    try:
        for size in ((1500, 740), (5000, 3), (1200, 11), (1100, 11)):
            check(size, "cpu")
    finally:
        preprocess._pillow_takes_columns_first.cache_clear()


@pytest.mark.cuda
@pytest.mark.parametrize("size", [*SIZES, *random_sizes()])
def test_pixels_on_a_gpu_are_those_of_pillow(size: tuple[int, int]) -> None:
    check(size, "cuda")
