"""Paths, Pillow images and arrays give the same pixels; anything else is refused in words."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segmint.pipeline.masks.results import ImageError, describe, pixels_of
from tests.support.bad_images import bmp_with_unused_alpha, photograph


@pytest.fixture
def turned(tmp_path: Path, coffee: np.ndarray) -> Path:
    """A JPEG that EXIF says is to be turned by 90 degrees."""
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "turned.jpg"
    Image.fromarray(coffee[:80, :120]).save(path, exif=exif, quality=95)
    return path


def test_a_path_a_pillow_image_and_an_array_give_the_same_upright_pixels(turned: Path) -> None:
    pixels = pixels_of(turned)
    assert pixels.shape == (120, 80, 3)
    for same in (str(turned), f"file://{turned}", Image.open(turned), pixels, torch.from_numpy(pixels)):
        assert np.array_equal(pixels_of(same), pixels)
    assert pixels_of(pixels) is pixels


def test_gray_palettes_and_transparency_become_rgb(coffee: np.ndarray) -> None:
    gray = coffee[:8, :9, 1]
    assert np.array_equal(pixels_of(gray), pixels_of(Image.fromarray(gray)))
    clear = Image.new("RGBA", (9, 8), (200, 10, 10, 0))
    assert (pixels_of(clear) == 255).all()
    assert pixels_of(Image.fromarray(coffee[:8, :9]).convert("P")).shape == (8, 9, 3)


def test_a_file_with_an_unused_alpha_channel_gives_its_pixels_from_a_pillow_image_too(tmp_path: Path) -> None:
    (tmp_path / "a.bmp").write_bytes(bmp_with_unused_alpha())
    expected = np.asarray(photograph())
    for given in (tmp_path / "a.bmp", Image.open(tmp_path / "a.bmp")):
        assert np.array_equal(pixels_of(given), expected)
    Image.new("RGBA", (9, 8), (200, 10, 10, 0)).save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", Image.open(tmp_path / "a.png")):
        with pytest.raises(ImageError, match="every pixel of the PNG image is transparent"):
            pixels_of(given)


RGB = np.zeros((4, 5, 3), np.uint8)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (RGB / 255).astype(np.float32),
            r"shape \(4, 5, 3\) and type float32: expected .* uint8 RGB.*255\)\.round\(\)",
        ),
        (RGB.astype(np.int64), "type int64: expected"),
        (RGB.astype(np.float32) + 200, r"You may want image\.round\(\)\.astype"),
        (RGB.astype(np.uint16), r"You may want \(image / 257\)\.round"),
        (RGB > 0, r"You may want \(image \* 255\)\.round"),
        (np.zeros((4, 5, 4), np.uint8), r"To drop its transparency, use image\[:, :, :3\]"),
        (RGB.transpose(2, 0, 1), r"shape \(3, 4, 5\).*image\.transpose\(1, 2, 0\)"),
        (RGB[None], r"shape \(1, 4, 5, 3\).*generate_many"),
        (RGB[:0], r"shape \(0, 5, 3\)"),
        (3, "image is a int: expected a path, a Pillow image, or a uint8 array"),
        ([[1, 2]], "image is a list"),
        (Image.new("F", (3, 3)), "Pillow image of mode F"),
    ],
)
def test_what_is_no_image_is_refused_with_what_was_given(given: object, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        pixels_of(given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="photo"):
        pixels_of(given, "photo")  # type: ignore[arg-type]


def test_a_file_that_cannot_be_read_is_refused_with_its_name(tmp_path: Path, turned: Path) -> None:
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "cut.jpg").write_bytes(turned.read_bytes()[:-400])
    for name, message in [
        ("missing.jpg", r"missing\.jpg does not exist: expected the path of an image"),
        ("", "is a folder: expected an image"),
        ("text.jpg", "text.jpg: not_an_image"),
        ("cut.jpg", "cut.jpg: truncated"),
    ]:
        with pytest.raises(ImageError, match=message):
            pixels_of(tmp_path / name)
    unread = [("~no body/x", "is not an image path"), ("x" * 5000, "too long"), ("", "is an empty string")]
    for path, message in unread:
        with pytest.raises(ImageError, match=message):
            pixels_of(path)
    with pytest.raises(ImageError, match=r"cut\.jpg that can't be decoded: image file is truncated"):
        pixels_of(Image.open(tmp_path / "cut.jpg"))
    closed = Image.open(turned)
    closed.close()
    with pytest.raises(ImageError, match="closed image"):
        pixels_of(closed)


def test_an_image_is_named_by_what_it_was_given_as(turned: Path) -> None:
    assert describe(turned) == describe(Image.open(turned)) == str(turned)
    assert describe(RGB) == "array (4, 5, 3)"
    assert describe(Image.new("RGB", (5, 4))) == "Pillow image 5 x 4"
