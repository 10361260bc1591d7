"""Label maps as tools write them: every number a mask, exactly."""

import io

import numpy as np
import pytest
from PIL import Image

from segmint.operators.annotations.label_maps import UnreadableMapError, label_masks, pair_by_stem, read_label_map
from tests.support import bad_images

LABELS = np.zeros((6, 5), np.int64)
LABELS[1:3, 1:4] = 7
LABELS[4:, :2] = 3
LABELS[:2, 4] = 255


def picture(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def array(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


def of_shape(shape: tuple[int, ...], kind: str = "|u1") -> bytes:
    """An array's file that claims a shape, and has no numbers."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_2_0(buffer, {"shape": shape, "fortran_order": False, "descr": kind})
    return buffer.getvalue()


def palette() -> Image.Image:
    image = Image.fromarray(LABELS.astype(np.uint8), "P")
    image.putpalette([value for index in range(256) for value in (255 - index, 0, 0)])
    return image


@pytest.mark.parametrize(
    ("name", "data", "factor"),
    [
        ("a.png", picture(Image.fromarray(LABELS.astype(np.uint8)), "PNG"), 1),
        ("a.PNG", picture(Image.fromarray((LABELS * 200).astype(np.uint16)), "PNG"), 200),
        ("a.png", picture(palette(), "PNG"), 1),
        ("a.tiff", picture(Image.fromarray((LABELS * 200).astype(np.uint16)), "TIFF"), 200),
        ("a.tif", picture(Image.fromarray((LABELS * 8_000_000).astype(np.int32)), "TIFF"), 8_000_000),
        ("a.npy", array(LABELS.astype(np.uint16)), 1),
        ("a.npy", array(-LABELS), -1),
    ],
)
def test_numbers_come_back_as_they_were_written(name: str, data: bytes, factor: int) -> None:
    np.testing.assert_array_equal(read_label_map(data, name), LABELS * factor)


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.jpg", b"", "extension is .jpg"),
        ("a.png", b"junk", "can't be decoded"),
        ("a.png", picture(palette(), "PNG")[:60], "can't be decoded"),
        ("a.png", picture(palette().convert("RGB"), "PNG"), "RGB, a color"),
        ("a.npy", b"junk", "not a NumPy array"),
        ("a.npy", array(LABELS / 2), "float64"),
        ("a.npy", array(np.array([[{}]], object)), "of type object"),
        ("a.npy", array(LABELS[None]), r"its shape is \(1, 6, 5\)"),
        ("a.npy", array(np.array([[2**64 - 1]], np.uint64)), "over 2\\^63"),
        ("a.npy", of_shape((30_000, 30_000)), "it has 900,000,000 pixels: the limit is 250,000,000"),
        ("a.npy", of_shape((1 << 40, 1 << 40)), "its shape is"),
        ("a.npy", of_shape((6, 5), "|V1000000000"), "of type"),
        ("a.npy", of_shape((6, 5)), "not a NumPy array"),
    ],
)
def test_what_is_no_label_map_is_an_error(name: str, data: bytes, why: str) -> None:
    with pytest.raises(UnreadableMapError, match=why):
        read_label_map(data, name)


def test_damage_is_never_anything_but_a_verdict_on_the_file() -> None:
    """The checksums of PNG and deflate also find damage that decoders read as other numbers."""
    deep, random = Image.fromarray((LABELS * 200).astype(np.uint16)), np.random.default_rng(5)
    files = {
        "a.png": picture(deep, "PNG"),
        "a.tif": picture(deep, "TIFF"),
        "b.tif": picture(deep, "TIFF", compression="tiff_adobe_deflate"),
        "a.npy": array(LABELS),
    }
    errors: dict[str, int] = dict.fromkeys(files, 0)
    for name, whole in files.items():
        for _ in range(400):
            data = bytearray(whole)
            for place in random.integers(len(data), size=random.integers(1, 6)):
                data[place] = random.integers(256)
            try:
                label_masks(read_label_map(bytes(data), name))
            except UnreadableMapError:
                errors[name] += 1
    assert all(errors.values())
    with pytest.raises(UnreadableMapError, match="a wrong CRC"):
        read_label_map(bad_images.flipped(files["a.png"], files["a.png"].index(b"IDAT") + 12, 1), "a.png")


TORN = picture(Image.fromarray(LABELS.astype(np.uint8)), "PNG")[:-20]


@pytest.mark.parametrize(("name", "data"), [("a.npy", of_shape((6, 4))), ("a.png", TORN)])
def test_another_size_than_the_images_is_not_decoded(name: str, data: bytes) -> None:
    with pytest.raises(UnreadableMapError, match="pixels, but its image is 5 x 7"):
        read_label_map(data, name, (7, 5))


def test_noise_is_no_label_map() -> None:
    noise = np.arange(260 * 260).reshape(260, 260)
    with pytest.raises(UnreadableMapError, match="67,600 different numbers: the limit is 65,536"):
        label_masks(noise)


def test_every_number_but_the_background_is_a_mask() -> None:
    masks = label_masks(LABELS, ignore=[255])
    assert [(mask.id, mask.label) for mask in masks] == [(3, "3"), (7, "7")]
    for mask, number in zip(label_masks(LABELS), (3, 7, 255), strict=True):
        np.testing.assert_array_equal(mask.pixels(), np.equal(LABELS, number))
    assert label_masks(np.zeros((4, 4), np.int64)) == []
    random = np.random.default_rng(0).integers(-2, 3, (31, 17))
    for mask in label_masks(random):
        np.testing.assert_array_equal(mask.pixels(), random == mask.id)


def test_files_are_paired_by_stem_and_never_guessed() -> None:
    paired = pair_by_stem(
        ["x/a.jpg", "b.jpg", "c.jpg", "c.png", "d.jpg"], ["a.png", "c.png", "d.png", "d.npy", "e.png"]
    )
    assert paired.pairs == [("x/a.jpg", "a.png")]
    assert (paired.images_alone, paired.maps_alone) == (["b.jpg"], ["e.png"])
    assert paired.ambiguous == ["c: c.jpg, c.png and c.png", "d: d.jpg and d.png, d.npy"]
