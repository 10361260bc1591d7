"""Hashes of views: their exact bits, what they mean, and which changes of a photograph leave one of them near."""

import io
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image, ImageDraw, ImageEnhance, ImageOps

from segmint.operators.similar import near
from segmint.operators.similar.near import HASHES, MIRROR, NO_HASH, image_hashes, jpeg_hashes, luma, view_hashes
from tests.support.photographs import photograph

NAMES = ("astronaut", "coffee", "chelsea", "rocket")


def encoded(image: Image.Image, quality: int = 95) -> bytes:
    sink = io.BytesIO()
    image.save(sink, "JPEG", quality=quality)
    return sink.getvalue()


def reencoded(image: Image.Image, quality: int = 40) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, quality)))


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
    "cropped by 2% on each side": lambda image: ImageOps.crop(image, round(image.width * 0.02)),
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
    assert distance(one.views, other.views) <= 3


def test_different_photographs_have_no_near_views() -> None:
    views = [image_hashes(photograph(name), mirror=True).views for name in NAMES]
    assert min(distance(one, other) for at, one in enumerate(views) for other in views[:at]) > 8


def test_the_mirror_image_is_hashed_by_choice() -> None:
    with_mirror, without = (image_hashes(photograph("coffee"), mirror=mirror) for mirror in (True, False))
    assert without.views[MIRROR] == NO_HASH != with_mirror.views[MIRROR]
    assert (without.views[:MIRROR] == with_mirror.views[:MIRROR]).all()


def test_a_picture_without_structure_has_no_hashes() -> None:
    noise = np.random.default_rng(0).integers(127, 130, (300, 400, 3), np.uint8)
    found = image_hashes(noise, mirror=True)
    assert not found.views.any()
    assert found.thumbnail.shape == (64, 64)
    assert abs(int(found.thumbnail[30, 30]) - 128) <= 2


def drawn(width: int, height: int) -> np.ndarray:
    """Rings that aren't symmetric, drawn with integers only."""
    y, x = np.mgrid[:height, :width]
    rings = ((x * 7 // 3) ** 2 + (y - height // 3) ** 2) // (width + height)
    return ((rings + x * y // 50) % 256).astype(np.uint8)


STORED = {
    (300, 200): "80071f1c3cbcbcbe 80071f1e3c3cbebc 80030f1e3ebcbeae 80030f0e3ebefeaa f101030f565e55fe "
    "d5524b49494969fd 81ff03c13f8160bf d5ad4bb669966902 d4555a6b6a2b3515",
    (1500, 2250): "8000ffffff7e0400 800501ff7fff2f00 0000000000000000 0000000000000000 0000000000000000 "
    "aaaaaaaaaaaaaaaa ff00ff00ff00ff00 aa55aa55aa55aa55 aaaaaaaaaaaaaaaa",
    (31, 500): "801f6097b04fb56f 803f609fa04fb16f 803f639f224fb14e 803e639d235eb54e 803b4eb36e916e53 "
    "d54a35c2f51ae43a 9ada2bad45aa55a8 d5b53535e5e0e0c4 cf70fe0f3806302f",
}


@pytest.mark.parametrize("size", STORED)
def test_the_bits_are_the_stored_ones(size: tuple[int, int]) -> None:
    assert " ".join(f"{value:016x}" for value in view_hashes(drawn(*size)).tolist()) == STORED[size]


def test_luma_and_cosines_are_the_documented_integers() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8)
    assert np.array_equal(luma(pixels), np.asarray(Image.fromarray(pixels).convert("L")))
    expected = [[round(16384 * math.cos(math.pi * (2 * n + 1) * k / 64)) for n in range(near.SIDE)] for k in range(8)]
    assert near.TRANSFORM.tolist() == expected
    assert not near.TRANSFORM[1:].sum(axis=1).any()  # so that brightness reaches no other frequency


@settings(max_examples=20, deadline=None)
@given(
    arrays(np.uint8, st.tuples(st.integers(1, 23), st.integers(1, 23))), st.sampled_from((1, 3, 8)), st.integers(1, 9)
)
def test_averages_are_exact(values: np.ndarray, cells: int, scale: int) -> None:
    height, width = values.shape

    def covered(length: int, cell: int) -> list[Fraction]:
        start, end = Fraction(cell * length, cells), Fraction((cell + 1) * length, cells)
        return [max(Fraction(0), min(end, Fraction(i + 1)) - max(start, Fraction(i))) for i in range(length)]

    columns = [covered(width, cell) for cell in range(cells)]
    sums = [[sum(w * int(v) for w, v in zip(column, row, strict=True)) for column in columns] for row in values]
    expected = [
        [
            math.floor(
                sum(w * line[cell] for w, line in zip(covered(height, row), sums, strict=True))
                * Fraction(scale * cells * cells, height * width)
                + Fraction(1, 2)
            )
            for cell in range(cells)
        ]
        for row in range(cells)
    ]
    assert near.averages(values, cells, scale).tolist() == expected


@settings(max_examples=10, deadline=None)
@given(st.integers(20, 700), st.integers(20, 700), st.integers(0, 9))
def test_a_turned_picture_is_the_turned_view(width: int, height: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    gray = np.asarray(Image.fromarray(random.integers(0, 256, (5, 7), np.uint8)).resize((width, height)))
    found = view_hashes(gray)
    turned = [np.fliplr(gray), *(np.rot90(gray, turns) for turns in (1, 2, 3))]
    assert [int(view_hashes(each)[0]) for each in turned] == found[MIRROR:].tolist()
    assert len(found) == HASHES
    assert np.array_equal(view_hashes(gray.copy()), found)


RELEASES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "quality 80": lambda image: reencoded(image, 80),
    "quality 40": reencoded,
    "75%": lambda image: image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.BICUBIC),
    "50%": lambda image: image.resize((image.width // 2, image.height // 2), Image.Resampling.BICUBIC),
    "gray": lambda image: image.convert("L").convert("RGB"),
}


@pytest.mark.parametrize("change", RELEASES)
@pytest.mark.parametrize("name", NAMES)
def test_every_hash_of_a_release_that_is_encoded_again_is_near(name: str, change: str) -> None:
    image = Image.fromarray(photograph(name))
    one, other = (jpeg_hashes(encoded(each)) for each in (image, RELEASES[change](image)))
    assert np.bitwise_count(one ^ other).max() <= 4


def test_a_jpeg_that_ends_early_has_no_hash() -> None:
    data = encoded(Image.fromarray(photograph("coffee")))
    with pytest.raises(ValueError):
        jpeg_hashes(data[: len(data) // 2] + data[-2:])
