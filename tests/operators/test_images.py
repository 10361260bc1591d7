"""Our own JPEGs decode to Pillow's pixels, and no other format is accepted."""

import io

import numpy as np
import pytest
from PIL import Image, UnidentifiedImageError

from segmint.operators.images import decode_jpeg
from segmint.operators.prepare.release import ReleaseConfig, encode_original, release


def test_pixels_are_those_that_pillow_decodes(coffee: np.ndarray) -> None:
    data = release(coffee, ReleaseConfig()).jpeg
    assert np.array_equal(decode_jpeg(data), np.asarray(Image.open(io.BytesIO(data))))
    assert np.abs(decode_jpeg(encode_original(coffee)).astype(int) - coffee).mean() < 2


def test_a_gray_image_has_three_equal_channels(coffee: np.ndarray) -> None:
    gray = io.BytesIO()
    Image.fromarray(coffee).convert("L").save(gray, "JPEG")
    pixels = decode_jpeg(gray.getvalue())
    assert pixels.shape == coffee.shape
    assert np.array_equal(pixels, np.repeat(pixels[..., :1], 3, axis=2))


def test_another_format_is_refused(coffee: np.ndarray) -> None:
    png = io.BytesIO()
    Image.fromarray(coffee).save(png, "PNG")
    with pytest.raises(UnidentifiedImageError):
        decode_jpeg(png.getvalue())
