"""Label maps as tools write them: every number a mask, exactly."""

import io
import struct
import zlib

import cv2
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


def packed(values: np.ndarray, bits: int, order: str) -> list[bytes]:
    """The rows of integers of some bits."""
    if bits in (8, 16, 32):
        return [row.astype(f"{order}u{bits // 8}").tobytes() for row in values & (1 << bits) - 1]
    digits = np.unpackbits(values.astype(">u2").view(np.uint8).reshape(*values.shape, 2), axis=2)[:, :, 16 - bits :]
    return [np.packbits(row).tobytes() for row in digits.reshape(len(values), -1)]


def png(values: np.ndarray, bits: int, color: int) -> bytes:
    """A PNG of gray values (color 0) or palette indices (color 3)."""
    chunks = {
        b"IHDR": struct.pack(">IIBBBBB", *values.shape[::-1], bits, color, 0, 0, 0),
        b"PLTE": bytes(3 << bits) if color == 3 else b"",
        b"IDAT": zlib.compress(b"".join(b"\0" + row for row in packed(values, bits, ">"))),
        b"IEND": b"",
    }
    parts = [
        struct.pack(">I", len(chunk)) + name + chunk + struct.pack(">I", zlib.crc32(name + chunk))
        for name, chunk in chunks.items()
        if chunk or name == b"IEND"
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def tiff(values: np.ndarray, bits: int, order: str, **tags: int) -> bytes:
    """A TIFF of one strip. `tags` are its photometric interpretation, compression, planes, fill order, and kind."""
    body = b"".join(packed(values, bits, order))
    if tags.get("compression") == 8:
        body = zlib.compress(body)
    if tags.get("fill") == 2:
        body = np.packbits(np.unpackbits(np.frombuffer(body, np.uint8)).reshape(-1, 8)[:, ::-1]).tobytes()
    colors = bytes(6 << bits) if tags.get("photometric") == 3 else b""
    entries = {
        256: values.shape[1],
        257: values.shape[0],
        258: bits,
        259: tags.get("compression", 1),
        262: tags.get("photometric", 1),
        266: tags.get("fill", 1),
        273: 8 + len(colors),
        277: 1,
        278: values.shape[0],
        279: len(body),
        284: tags.get("planes", 1),
        **({320: 8} if colors else {}),
        339: tags.get("kind", 1),
    }
    directory = struct.pack(f"{order}H", len(entries))
    for tag, value in entries.items():
        if tag == 320:
            directory += struct.pack(f"{order}HHII", tag, 3, 3 << bits, value)
        elif tag in (273, 279):
            directory += struct.pack(f"{order}HHII", tag, 4, 1, value)
        else:
            directory += struct.pack(f"{order}HHIHH", tag, 3, 1, value, 0)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(colors) + len(body))
    return head + colors + body + directory + bytes(4)


def numbers(bits: int, signed: bool = False) -> np.ndarray:
    """Random numbers of some bits."""
    values = np.random.default_rng(bits).integers(0, 1 << bits, (7, 16))
    return values - (1 << bits - 1) if signed else values


@pytest.mark.parametrize(("bits", "color"), [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (1, 3), (2, 3), (4, 3), (8, 3)])
def test_no_bit_depth_of_a_png_changes_its_numbers(bits: int, color: int) -> None:
    np.testing.assert_array_equal(read_label_map(png(numbers(bits), bits, color), "a.png"), numbers(bits))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("compression", [1, 8])
@pytest.mark.parametrize(
    ("bits", "tags"),
    [
        *[(bits, {}) for bits in (1, 2, 4, 8, 12, 16, 32)],
        *[(bits, {"kind": 2}) for bits in (8, 16, 32)],
        *[(bits, {"photometric": 3}) for bits in (1, 2, 4, 8)],
        *[(bits, {"photometric": 0}) for bits in (2, 4, 8, 16)],
        *[(bits, {"fill": 2}) for bits in (2, 4, 8)],
        *[(bits, {"planes": 2}) for bits in (1, 4, 8, 16, 32)],
        *[(8, {"planes": 2, "fill": 2}), (8, {"planes": 2, "photometric": 0}), (32, {"planes": 2, "kind": 2})],
    ],
)
def test_no_layout_of_a_tiff_changes_its_numbers(bits: int, tags: dict[str, int], compression: int, order: str) -> None:
    values = numbers(bits, tags.get("kind") == 2)
    try:
        read = read_label_map(tiff(values, bits, order, compression=compression, **tags), "a.tif")
    except UnreadableMapError:
        assert bits > 8 or "planes" in tags or ("fill" in tags and compression == 8)  # the rest can be read
    else:
        np.testing.assert_array_equal(read, values)


def test_pictures_of_few_bits_are_scaled() -> None:
    for bits in (1, 2, 4, 8):
        picture = read_label_map(png(numbers(bits), bits, 0), "a.png", is_picture=True)
        np.testing.assert_array_equal(picture, numbers(bits) * (255 // ((1 << bits) - 1)))


@pytest.mark.parametrize(
    ("name", "data", "why"),
    [
        ("a.jpg", b"", "extension is .jpg"),
        ("a.png", b"junk", "can't be decoded: cannot identify image file it"),
        ("a.png", picture(palette(), "PNG")[:60], "can't be decoded"),
        ("a.png", picture(palette().convert("RGB"), "PNG"), "RGB, a color"),
        ("a.npy", b"junk", "not a NumPy array"),
        ("a.npy", array(LABELS / 2), "float64"),
        ("a.npy", array(np.array([[{}]], object)), "not a NumPy array"),
        ("a.npy", array(LABELS[None]), r"its shape is \(1, 6, 5\)"),
        ("a.npy", array(np.array([[2**64 - 1]], np.uint64)), "over 2\\^63"),
        ("a.npy", of_shape((1 << 40, 1 << 40)), "not a NumPy array"),
        ("a.npy", of_shape((6, 5), "|V1000000000"), "not a NumPy array"),
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


def test_a_png_whose_rows_end_early_is_an_error() -> None:
    data = png(LABELS, 8, 0)
    taller = bad_images.png_chunk(b"IHDR", struct.pack(">II", 5, 7) + data[24:29])
    with pytest.raises(UnreadableMapError, match="the PNG's compressed pixels end early"):
        read_label_map(data[:8] + taller + data[33:], "a.png")


TORN = picture(Image.fromarray(LABELS.astype(np.uint8)), "PNG")[:-20]


@pytest.mark.parametrize(("name", "data"), [("a.npy", array(LABELS)), ("a.png", TORN)])
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


SHAPES = np.zeros((100, 150), np.uint8)
for _value, _center in ((255, (40, 40)), (90, (100, 60)), (180, (60, 75))):
    cv2.ellipse(SHAPES, _center, (25, 17), 30, 0, 360, _value, -1)
SQUARE = np.zeros((100, 150), np.uint8)
SQUARE[25:50, 50:100] = 255


def resized(values: np.ndarray, scale: float, interpolation: int) -> np.ndarray:
    return cv2.resize(values, None, fx=scale, fy=scale, interpolation=interpolation)


@pytest.mark.parametrize(
    "labels",
    [
        resized(resized(SQUARE, 0.5, cv2.INTER_LINEAR), 2, cv2.INTER_LINEAR),
        resized(SHAPES, 2, cv2.INTER_CUBIC),
        resized(SHAPES, 0.37, cv2.INTER_AREA),
        cv2.GaussianBlur(SHAPES, (0, 0), 4),
        cv2.circle(np.zeros((60, 60), np.uint8), (30, 30), 20, 255, -1, cv2.LINE_AA),
        np.tile(np.repeat([0, 64, 191, 255], [9, 1, 1, 9]), (20, 1)),
        np.hypot(*np.mgrid[-40:40, -60:60]).astype(np.uint8),
        *(cv2.imdecode(cv2.imencode(".jpg", SHAPES, [1, quality])[1], 0) for quality in (50, 75, 95)),
        np.random.default_rng(2).normal(128, 20, (60, 80)).astype(np.uint8),
    ],
)
def test_soft_edges_and_noise_are_no_objects(labels: np.ndarray) -> None:
    with pytest.raises(UnreadableMapError, match=r"soft: .* of its .* numbers, such as .*--ignore"):
        label_masks(labels.astype(np.int64))
    others = [number for number in np.unique(labels).tolist() if number not in (90, 180, 255)]
    assert len(label_masks(labels.astype(np.int64), others)) <= 3


def tiles(ids: np.ndarray, side: int, gap: int = 0) -> np.ndarray:
    return np.kron(ids, np.pad(np.ones((side, side), np.int64), (0, gap)))


OUTLINED = np.pad(np.pad(np.full((8, 8), 2), 1, constant_values=1), 5)
IDS = np.arange(1, 901).reshape(30, 30)


@pytest.mark.parametrize(
    "labels",
    [
        tiles(IDS, 2),
        tiles(np.random.default_rng(1).permutation(IDS.ravel()).reshape(IDS.shape), 2),
        tiles(IDS, 1, 1),
        tiles(IDS * (IDS % 3 > 0), 2),
        OUTLINED,
        SHAPES.astype(np.int64),
        np.repeat(np.arange(8), 2)[:, None].repeat(20, axis=1),  # layers
        tiles(IDS % 5, 1, 1),  # points of four classes
        tiles(IDS % 7, 2),
    ],
)
def test_small_and_thin_objects_stay(labels: np.ndarray) -> None:
    masks = label_masks(labels)
    assert [mask.id for mask in masks] == [number for number in np.unique(labels).tolist() if number]
    assert sum(mask.area for mask in masks) == np.count_nonzero(labels)


def test_thin_objects_beside_an_ignored_number_stay() -> None:
    labels = np.tile([0, 5, 255, 0, 6, 255], (9, 1)).astype(np.int64)
    assert [mask.id for mask in label_masks(labels, [255])] == [5, 6]


def test_files_are_paired_by_stem_and_never_guessed() -> None:
    paired = pair_by_stem(
        ["x/a.jpg", "b.jpg", "c.jpg", "c.png", "d.jpg"], ["a.png", "c.png", "d.png", "d.npy", "e.png"]
    )
    assert paired.pairs == [("x/a.jpg", "a.png")]
    assert paired.maps_alone == ["e.png"]
    assert paired.ambiguous == ["c: c.jpg, c.png and c.png", "d: d.jpg and d.png, d.npy"]
