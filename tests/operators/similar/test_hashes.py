"""Hashes of real photographs' views: which changes of a picture leave one of them near."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from segmint.operators.similar.hashes import MIRROR, NO_HASH, image_hashes
from tests.support.photographs import photograph

NAMES = ("astronaut", "coffee", "chelsea", "rocket")


def reencoded(image: Image.Image) -> Image.Image:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=40)
    return Image.open(sink)


def captioned(image: Image.Image) -> Image.Image:
    image = image.copy()
    top = image.height * 9 // 10
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, top, *image.size), fill="black")
    draw.text((10, top + 5), "a caption over the lower edge", fill="white", font_size=20)
    return image


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "quality 40": reencoded,
    "a quarter of the size": lambda image: image.resize((image.width // 4, image.height // 4)),
    "cropped by 2 % on each side": lambda image: ImageOps.crop(image, round(image.width * 0.02)),
    "mirrored": ImageOps.mirror,
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.15),
    "captioned": captioned,
}


def distance(one: np.ndarray, other: np.ndarray) -> int:
    apart = np.bitwise_count(one[:, None] ^ other)
    return int(apart[(one != NO_HASH)[:, None] & (other != NO_HASH)].min())


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_changed_photograph_has_a_view_near_one_of_the_original(name: str, change: str) -> None:
    pixels = photograph(name)
    changed = np.asarray(CHANGES[change](Image.fromarray(pixels)))
    one, other = image_hashes(pixels, mirror=True), image_hashes(changed, mirror=True)
    assert distance(one.views(), other.views()) <= 3


def test_different_photographs_have_no_near_views() -> None:
    views = [image_hashes(photograph(name), mirror=True).views() for name in NAMES]
    assert min(distance(one, other) for at, one in enumerate(views) for other in views[:at]) > 8


def test_the_mirror_image_is_hashed_by_choice() -> None:
    with_mirror, without = (image_hashes(photograph("coffee"), mirror=mirror) for mirror in (True, False))
    assert without.mirror == NO_HASH != with_mirror.mirror
    assert (without.views()[:MIRROR] == with_mirror.views()[:MIRROR]).all()


def test_a_picture_without_structure_has_no_hashes() -> None:
    noise = np.random.default_rng(0).integers(127, 130, (300, 400, 3), np.uint8)
    found = image_hashes(noise, mirror=True)
    assert not found.views().any()
    assert found.thumbnail.shape == (64, 64)
    assert abs(int(found.thumbnail[30, 30]) - 128) <= 2
