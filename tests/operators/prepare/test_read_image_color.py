"""Conversion to sRGB, strip by strip, without seams."""

import numpy as np
import pytest
from PIL import Image

from segmint.catalogs.findings import Reason, RejectedError
from segmint.operators.prepare import read_image
from tests.support import bad_images
from tests.support.bad_images import half_transparent, photograph


@pytest.mark.parametrize("profile", [None, bad_images.swapped_profile()], ids=["untagged", "tagged"])
@pytest.mark.parametrize(
    "image",
    [
        photograph(),
        photograph().convert("L"),
        photograph().convert("CMYK"),
        photograph().convert("1"),
        photograph().quantize(64),
        photograph().convert("YCbCr"),
        bad_images.sixteen_bit_grey(),
        half_transparent(),
        half_transparent().convert("LA"),
    ],
    ids=lambda image: image.mode,
)
def test_strips_leave_no_seams(image: Image.Image, profile: bytes | None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_image.to_srgb(image, profile)
    monkeypatch.setattr(read_image, "STRIP_PIXELS", 451 * 7)
    assert np.array_equal(read_image.to_srgb(image, profile), whole)
    assert whole.shape == (300, 451, 3)
    assert whole.dtype == np.uint8


def test_black_and_white_stay_black_and_white() -> None:
    for mode, black, white in (("1", 0, 1), ("L", 0, 255), ("I;16", 0, 65535), ("CMYK", (0, 0, 0, 255), (0, 0, 0, 0))):
        for value, level in ((black, 0), (white, 255)):
            assert (read_image.to_srgb(Image.new(mode, (9, 9), value), None) == level).all()


def test_an_alpha_channel_that_hides_everything_is_dropped_from_bmps_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(read_image, "STRIP_PIXELS", 9 * 3)
    hidden = {"RGBA": (9, 8, 7, 0), "LA": (9, 0), "La": (0, 0), "PA": (3, 0)}
    for mode, value in hidden.items():
        image = Image.new(mode, (9, 9), value)
        with pytest.raises(RejectedError, match="every pixel of the PNG image is transparent") as verdict:
            read_image.to_srgb(image, None, "PNG")
        assert verdict.value.reason is Reason.UNSUPPORTED_FORMAT
    image = Image.new("RGBA", (9, 9), hidden["RGBA"])
    assert (read_image.to_srgb(image, None, "BMP") == (9, 8, 7)).all()
    image.putpixel((8, 8), (0, 0, 0, 1))  # in the last strip
    for container in ("BMP", "PNG"):
        assert (read_image.to_srgb(image, None, container)[0] == 255).all()


def test_full_transparency_is_white() -> None:
    assert (read_image.to_srgb(Image.new("RGBA", (9, 9), (255, 0, 0, 0)), None) == 255).all()
    assert (read_image.to_srgb(Image.new("RGBA", (9, 9), (255, 0, 0, 255)), None) == (255, 0, 0)).all()
