import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from segment_anything.modeling import Sam as ReferenceSam
from segment_anything.utils.transforms import ResizeLongestSide
from torch import nn

from segmint.model.sam.preprocess import normalize_into, normalized, resize, resized_size

side = st.integers(1, 6000)


@given(side, side)
def test_the_size_is_the_reference_one_and_never_empty(height: int, width: int) -> None:
    expected = ResizeLongestSide.get_preprocess_shape(height, width, 1024)
    found = resized_size(height, width, 1024)
    assert found == (max(1, expected[0]), max(1, expected[1]))
    assert max(found) == 1024


@pytest.mark.parametrize("size", [(512, 512), (300, 512), (512, 201)])
@pytest.mark.parametrize("long_side", [1024, 512, 333])
def test_pixels_are_resized_to_the_reference_ones(astronaut: np.ndarray, size: tuple[int, int], long_side: int) -> None:
    image = astronaut[: size[0], : size[1]]
    assert np.array_equal(resize(image, long_side), ResizeLongestSide(long_side).apply_image(image))


def test_an_extreme_shape_keeps_a_row_of_pixels() -> None:
    assert resize(np.zeros((1, 5000, 3), np.uint8), 1024).shape == (1, 1024, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_normalized_pixels_are_rounded_once_to_the_dtype_of_their_place(dtype: torch.dtype) -> None:
    pixels = torch.randint(0, 256, (20, 32, 3), dtype=torch.uint8)
    batch = torch.zeros(2, 3, 32, 32, dtype=dtype)
    normalize_into(batch[1], pixels)
    assert torch.equal(batch[1, :, :20], normalized(pixels).to(dtype))
    assert (batch[0] == 0).all()


def test_the_tensor_is_the_reference_one_and_its_padding_is_zero() -> None:
    pixels = torch.randint(0, 256, (20, 32, 3), dtype=torch.uint8)
    encoder = nn.Identity()
    encoder.img_size = 32
    expected = ReferenceSam(encoder, nn.Identity(), nn.Identity()).preprocess(pixels.permute(2, 0, 1)[None])
    found = torch.zeros(3, 32, 32)
    normalize_into(found, pixels)
    torch.testing.assert_close(found[None], expected, atol=1e-6, rtol=0)
    assert (found[:, 20:] == 0).all()
