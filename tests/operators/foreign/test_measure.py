"""A shard of foreign data becomes Parquet, and its pairs belong together."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin, TiffImagePlugin

from segmint.catalogs.dataset.tables import Foreign
from segmint.catalogs.findings import Code
from segmint.operators.foreign.layouts import JPEGS, find_shards
from segmint.operators.foreign.measure import IMAGES_PER_SHARD_LIMIT, MeasuredShard, examine_picture, measure_shard
from segmint.operators.rows import IMAGES, MASKS
from segmint.pipeline.quality.statistics.masks import open_tables
from segmint.pipeline.quality.view.app import thumbnail
from tests.operators.foreign.test_masks import annotation, square
from tests.support.locations import location_of
from tests.support.photographs import photograph

HEIC = Path(__file__).parents[2] / "support" / "heic"
NO_PROFILE = "other data in place of a color profile"


def measure(data: Path, folder: Path) -> list[MeasuredShard]:
    folder.mkdir()
    return [measure_shard(location_of(data), shard, folder) for shard in find_shards(location_of(data), Foreign())]


def put(folder: Path, stem: str, comments: int = 0) -> None:
    folder.mkdir(exist_ok=True)
    path = folder / f"{stem}.jpg"
    Image.new("RGB", (40, 30)).save(path, "JPEG")
    data = path.read_bytes()
    comment = b"\xff\xfe\xff\xff" + bytes(65_533)
    path.write_bytes(data[:2] + comment * comments + data[2:])
    document = {"image": {"width": 40, "height": 30}, "annotations": [annotation(square())]}
    (folder / f"{stem}.json").write_text(json.dumps(document))


@pytest.mark.parametrize("name", ["a.jpg", "a.tif", "profile.jpg"])
@pytest.mark.usefixtures("processes")
def test_pictures_of_yolo_are_measured_upright(tmp_path: Path, name: str) -> None:
    """As ultralytics and imports see them, also behind a header of over 64 KB."""
    for kind in ("images", "labels"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    profile = bytes(70_000) if name == "profile.jpg" else None
    Image.new("RGB", (80, 60)).save(tmp_path / "data/images" / name, exif=exif, icc_profile=profile)
    (tmp_path / f"data/labels/{name[:-4]}.txt").write_text("0 0.25 0.25 0.75 0.25 0.75 0.75 0.25 0.75\n")
    (tmp_path / "data/data.yaml").write_text("names: [thing]\ntrain: images\n")
    with open_tables(location_of(tmp_path / "data")) as tables:
        (image,) = tables.query("SELECT width, height FROM images").to_pylist()
        (mask,) = tables.query("SELECT segmentation FROM masks").to_pylist()
    assert image == {"width": 60, "height": 80}
    assert mask["segmentation"]["size"] == [80, 60]
    if name != "a.tif":
        with Image.open(io.BytesIO(thumbnail((tmp_path / "data/images" / name).read_bytes()))) as small:
            assert small.size == (60, 80)


def test_tables_have_the_columns_of_a_dataset(tmp_path: Path) -> None:
    for index in range(20):
        put(tmp_path / "data", f"photo {index:02}")
    (measured,) = measure(tmp_path / "data", tmp_path / "out")
    schemas = {"images": IMAGES, "masks": MASKS, "jpegs": JPEGS}
    assert set(measured.files) == set(schemas)
    for kind, file in measured.files.items():
        table = pq.read_table(file.uri)
        assert table.schema.equals(schemas[kind])
        assert table.column("ordinal").to_pylist() == list(range(20))
    assert measured.images == 20
    assert measured.findings.total == 0
    images = pq.read_table(measured.files["images"].uri).to_pylist()
    assert [row["image_id"] for row in images[:2]] == ["photo 00", "photo 01"]
    assert images[7]["id"] == 8
    assert images[0]["statistics"]["coverage"] == 200 / 1200


def test_shards_never_share_ordinals(tmp_path: Path) -> None:
    put(tmp_path / "data", "a")
    (loose,) = find_shards(location_of(tmp_path / "data"), Foreign())
    (tmp_path / "out").mkdir()
    later = measure_shard(location_of(tmp_path / "data"), replace(loose, shard=5), tmp_path / "out")
    row = pq.read_table(later.files["masks"].uri).to_pylist()[0]
    assert row["ordinal"] == 5 * IMAGES_PER_SHARD_LIMIT
    assert row["annotation_id"] == 5 * IMAGES_PER_SHARD_LIMIT * 10_000


def test_a_frame_behind_long_metadata_is_found(tmp_path: Path) -> None:
    put(tmp_path / "data", "a", comments=3)
    (measured,) = measure(tmp_path / "data", tmp_path / "out")
    assert measured.findings.total == 0


def test_a_name_that_is_no_text_and_a_file_that_vanishes(tmp_path: Path) -> None:
    put(tmp_path / "data", "a\udcff")
    put(tmp_path / "data", "b")
    shards = list(find_shards(location_of(tmp_path / "data"), Foreign()))
    (tmp_path / "data" / "b.json").unlink()
    (tmp_path / "out").mkdir()
    (measured,) = [measure_shard(location_of(tmp_path / "data"), shard, tmp_path / "out") for shard in shards]
    assert measured.findings.counts == {Code.MISSING_FILE: 1}
    assert pq.read_table(measured.files["images"].uri).column("image_id").to_pylist() == ["a?"]


def test_a_picture_that_is_cut_before_its_frame_is_a_finding(tmp_path: Path) -> None:
    put(tmp_path / "data", "a")
    path = tmp_path / "data" / "a.jpg"
    path.write_bytes(path.read_bytes()[:20])
    (measured,) = measure(tmp_path / "data", tmp_path / "out")
    assert measured.findings.counts == {Code.BAD_JPEG: 1}
    assert measured.images == 1


def of_photograph(name: str) -> Image.Image:
    return Image.fromarray(photograph(name, (240, 180)))


def encoded(picture: Image.Image, container: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, container, **options)
    return stream.getvalue()


def in_png(**chunks: bytes | str) -> bytes:
    info = PngImagePlugin.PngInfo()
    for name, content in chunks.items():
        if isinstance(content, str):
            info.add_text(name, content)
        else:
            info.add(name.encode(), content)
    return encoded(of_photograph("coffee"), "PNG", pnginfo=info)


def in_tiff(tag: int, value: str | bytes) -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[tag] = value
    return encoded(of_photograph("coffee"), "TIFF", tiffinfo=tags)


def in_jpeg(marker: int, content: bytes) -> bytes:
    segment = bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content
    plain = encoded(of_photograph("coffee"), "JPEG")
    return plain[:2] + segment + plain[2:]


def in_webp(chunk: bytes, content: bytes) -> bytes:
    """A WebP with another chunk that its header doesn't announce, so Pillow ignores it and other programs read it."""
    content += b"\0" * (len(content) % 2)
    body = encoded(of_photograph("coffee"), "WEBP")[8:] + chunk + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", len(body)) + body


def in_gif(extension: bytes) -> bytes:
    plain = encoded(of_photograph("coffee"), "GIF")
    start = 13 + (3 << ((plain[10] & 7) + 1))
    return plain[:start] + extension + plain[start:]


def with_box(container: str, name: bytes, content: bytes) -> bytes:
    return encoded(of_photograph("coffee"), container) + struct.pack(">I", len(content) + 8) + name + content


def with_png_profile(content: bytes) -> bytes:
    chunk = b"iCCP" + b"icc\0\0" + zlib.compress(content)
    chunk = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    plain = encoded(of_photograph("coffee"), "PNG")
    return plain[:33] + chunk + plain[33:]


def a_face() -> bytes:
    return encoded(of_photograph("astronaut"), "JPEG")


def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def with_reduced_copy(of: str) -> bytes:
    """A TIFF whose second page says that it's a reduced copy of the first, and is one of the photograph `of`."""
    stream = io.BytesIO()
    is_reduced = TiffImagePlugin.ImageFileDirectory_v2()
    is_reduced[254] = 1
    with TiffImagePlugin.AppendingTiffWriter(stream, new=True) as pages:
        of_photograph("coffee").save(pages, "TIFF")
        pages.newFrame()
        of_photograph(of).resize((120, 90)).save(pages, "TIFF", tiffinfo=is_reduced)
        pages.newFrame()
    return stream.getvalue()


def with_hole(under: str | None) -> Image.Image:
    """A photograph with a transparent part that has the colors of the photograph `under`, or one color."""
    pixels = np.array(of_photograph("coffee").convert("RGBA"))
    pixels[40:140, 60:180] = 0
    if under is not None:
        pixels[40:140, 60:180, :3] = np.asarray(of_photograph(under))[40:140, 60:180]
    return Image.fromarray(pixels)


@pytest.mark.parametrize(
    ("data", "names"),
    [
        (lambda: in_png(Author="Ada"), ("text",)),
        (lambda: in_png(prVt=b"more"), ("data in a chunk 'prVt'",)),
        (lambda: in_tiff(315, "Ada"), ("text",)),
        (lambda: in_tiff(34377, b"8BIM"), ("Photoshop data",)),
        (lambda: encoded(with_hole("astronaut"), "PNG"), ("a picture under transparent pixels",)),
        (
            lambda: encoded(with_hole("astronaut"), "WEBP", lossless=True, exact=True),
            ("a picture under transparent pixels",),
        ),
        (lambda: encoded(with_hole(None), "PNG"), ()),
        (lambda: encoded(of_photograph("coffee"), "PNG"), ()),
        (lambda: encoded(of_photograph("coffee"), "WEBP"), ()),
        (lambda: encoded(of_photograph("coffee"), "TIFF"), ()),
        (lambda: in_tiff(37724, b"Adobe Photoshop Document Data Block"), ("Photoshop data",)),
        (lambda: in_tiff(34264, (0.0,) * 16), ("a place on a map",)),
        (lambda: in_webp(b"prVt", a_face()), ("data in a chunk 'prVt'",)),
        (lambda: in_webp(b"EXIF", a_face()), ("EXIF",)),
        (lambda: in_webp(b"VP8 ", encoded(of_photograph("astronaut"), "WEBP")[20:]), ("more pictures",)),
        (lambda: in_webp(b"ICCP", profile()), (NO_PROFILE,)),
        (lambda: with_png_profile(a_face()), (NO_PROFILE,)),
        (lambda: encoded(of_photograph("coffee"), "PNG", icc_profile=profile()), ()),
        (lambda: encoded(of_photograph("coffee"), "WEBP", icc_profile=profile()), ()),
        (lambda: in_gif(b"\x21\xff\x0bXMP DataXMP<x/>\1" + bytes(range(255, -1, -1)) + b"\0"), ("XMP",)),
        (lambda: in_gif(b"\x21\xff\x0bPRIVATE1234\5hello\0"), ("data of an application",)),
        (lambda: in_gif(b"\x21\xff\x0bNETSCAPE2.0\3\1\0\0\0"), ()),
        (lambda: encoded(of_photograph("coffee"), "GIF")[:-1] + b"\x21\xfe\5hello\0\x3b", ("a comment",)),
        (lambda: with_box("AVIF", b"uuid", b"more"), ("data in a box 'uuid'",)),
        (lambda: with_box("AVIF", b"free", b"\0" * 9), ()),
        ((HEIC / "two.heic").read_bytes, ("more pictures",)),
        ((HEIC / "photograph.heic").read_bytes, ()),
        (lambda: in_jpeg(0xE0, b"JFIF\0\1\1\0\0\1\0\1\0\0" + a_face()), ("a thumbnail",)),
        (lambda: in_jpeg(0xE1, b"JFIF\0\1\1\0\0\1\0\1\0\0"), ("data in APP1",)),
        (lambda: in_jpeg(0xEE, b"Adobe" + a_face()), ("data in APP14",)),
        (lambda: in_jpeg(0xEE, b"Adobe\0\x64\0\0\0\0\1"), ()),
        (lambda: in_jpeg(0xE2, b"ICC_PROFILE\0\1\1" + a_face()), (NO_PROFILE,)),
        (lambda: in_jpeg(0xE2, b"ICC_PROFILE\0\1\1" + profile() + a_face()), (NO_PROFILE,)),
        (lambda: in_jpeg(0xE2, b"ICC_PROFILE\0\1\1" + profile()), ()),
    ],
)
def test_what_files_contain_besides_the_picture(data: Callable[[], bytes], names: tuple[str, ...]) -> None:
    facts = examine_picture(data(), with_pixels=False)
    assert (facts.metadata, facts.other_thumbnail, facts.more_bytes) == (names, False, 0)


@pytest.mark.parametrize("container", ["JPEG", "PNG", "WEBP", "GIF"])
def test_bytes_after_the_end_of_a_picture_are_counted(container: str) -> None:
    data = encoded(of_photograph("coffee"), container)
    hidden = encoded(of_photograph("astronaut"), "JPEG")
    assert examine_picture(data, with_pixels=False).more_bytes == 0
    assert examine_picture(data + hidden, with_pixels=False).more_bytes == len(hidden)


def test_a_reduced_copy_in_a_tiff_must_show_the_same_picture() -> None:
    assert not examine_picture(with_reduced_copy("coffee"), with_pixels=False).other_thumbnail
    assert examine_picture(with_reduced_copy("astronaut"), with_pixels=False).other_thumbnail
