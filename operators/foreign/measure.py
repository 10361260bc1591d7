"""Measures a shard of data that segmint did not write: Parquet with a dataset's columns, and the shard's faults.

Facts about a picture of unknown origin: its hash, and what its file contains besides the picture.
"""

import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageSequence, TiffImagePlugin, TiffTags

from segmint.catalogs.dataset.tables import TableFile, scratch_path
from segmint.catalogs.findings import Code, FindingCollector, FindingLocation
from segmint.catalogs.parquet import RowGroupWriter
from segmint.infra.arrays import Pixels, Size
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import check_size
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.infra.uris import base_name
from segmint.operators.audit.privacy import frame_size, is_profile_segment, metadata_name
from segmint.operators.describe import describe_table
from segmint.operators.foreign.layouts import (
    JPEGS,
    ForeignFile,
    ForeignShard,
    ListedImage,
    is_other_image,
    pair_files,
    read_file,
    read_labels,
)
from segmint.operators.foreign.masks import ForeignImage, read_header, read_masks
from segmint.operators.images import JpegDecoder, UndecodableError
from segmint.operators.opt_out import png_chunks, webp_chunks
from segmint.operators.prepare.ingest import ingest, open_image, stored_size, upright_size
from segmint.operators.prepare.ingest_config import ANY_SIZE, recognize
from segmint.operators.prepare.read_image import to_srgb
from segmint.operators.redactions import boxes
from segmint.operators.rows import IMAGES, MASKS, MASKS_PER_IMAGE_LIMIT, SEGMENTED, Row, to_table
from segmint.operators.shards.put import ROW_GROUP_ROWS
from segmint.operators.similar.near import FRAME, THUMBNAIL, Gray, luma, normalized_views, same_view, view_hashes

_START, _END = 0xD8, 0xD9
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # the next marker behind entropy-coded data
_POSITION = (ExifTags.GPS.GPSLatitude, ExifTags.GPS.GPSLongitude)
_THUMBNAIL_SIDE = 2_000  # pixels; larger thumbnails aren't decoded
_LEAST_HIDDEN = 400  # pixels; detectors find no face in fewer
_LEAST_ALPHA = 32  # of 255; a picture with less is hardly visible
_PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_PNG_PLAIN = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP sBIT bKGD hIST pHYs sPLT cICP mDCV cLLI eXIf".split()
)
"""Chunks of a PNG that describe its pixels, and `eXIf`, which Pillow reads."""
_WEBP_PLAIN = frozenset({b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP"})
_WEBP_METADATA = {b"EXIF": "EXIF", b"XMP ": "XMP"}  # also if the header doesn't announce them, and Pillow ignores them
_GIF_TEXTS = {b"\xfe": "a comment", b"\x01": "text"}
_GIF_PLAIN = frozenset({b"NETSCAPE2.0", b"ANIMEXTS1.0", b"ICCRGBG1012"})  # how often to play it, and its colors
_BOXES = frozenset({b"ftyp", b"meta", b"mdat", b"moov"})
_TIFF_METADATA = {
    330: "more pictures",
    33723: "IPTC data",
    33922: "a place on a map",
    34264: "a place on a map",
    34377: "Photoshop data",
    34665: "EXIF",
    37724: "Photoshop data",  # the layers, which may show what the picture doesn't
}


@dataclass(frozen=True)
class PictureFacts:
    """Facts about a picture's file.

    - `bits`: the perceptual hash of the upright picture, or `NO_HASH`.
    - `metadata`: names of the kinds of metadata, except for EXIF with a position or another thumbnail. A color profile
      isn't one.
    - `has_position`: whether the metadata contains where the picture was taken.
    - `other_thumbnail`: whether the file contains a thumbnail or a reduced copy that shows something else.
    - `more_bytes`: number of bytes after the end of a JPEG's, PNG's, WebP's, or GIF's picture.
    - `pixels`: the upright picture, (H, W, 3) uint8 RGB, if requested.
    """

    bits: int
    metadata: tuple[str, ...]
    has_position: bool
    other_thumbnail: bool
    more_bytes: int
    pixels: Pixels | None


def examine_picture(data: bytes, *, with_pixels: bool) -> PictureFacts:
    """Decode a picture to its end, and return the facts about it. Raises `RejectedError` if it can't be decoded.

    This is for a child process with limits, because the bytes are untrusted.
    """
    kind = recognize(data, ANY_SIZE.decoded)
    pixels = ingest(data, ANY_SIZE).image
    gray = luma(pixels)
    image = open_image(data, kind)
    names, end, has_profile = _parts(data, kind)
    profile = image.info.get("icc_profile")
    if has_profile and not _is_profile(profile):
        names.add("other data in place of a color profile")
    names |= set(_tiff_metadata(image))
    has_position, other_thumbnail = False, False
    try:
        exif = image.getexif()
        has_position = any(key in exif.get_ifd(ExifTags.IFD.GPSInfo) for key in _POSITION)
        thumbnail = _thumbnail(image, exif)
        other_thumbnail = thumbnail is not None and not _shows(thumbnail, gray)
    except Exception:  # noqa: BLE001 - Pillow raises many kinds for damaged metadata of a sound picture
        names.add("EXIF that can't be read")
    if _hides_colors(image):
        names.add("a picture under transparent pixels")
    other_thumbnail = other_thumbnail or not all(_shows(copy, gray) for copy in _reduced_copies(image))
    about = (("exif", "EXIF"), ("xmp", "XMP"), ("comment", "a comment"), ("thumbnails", "a thumbnail"))
    names |= {name for key, name in about if image.info.get(key)}
    depths = any(image.info.get(key) for key in ("depth_images", "aux"))
    if depths or (getattr(image, "n_frames", 1) > 1 and kind == "HEIC"):  # a TIFF's pages are compared below
        names.add("more pictures")
    if has_position or other_thumbnail:
        names.discard("EXIF")
    return PictureFacts(
        bits=int(view_hashes(gray)[FRAME]),
        metadata=tuple(sorted(names)),
        has_position=has_position,
        other_thumbnail=other_thumbnail,
        more_bytes=len(data) - end,
        pixels=pixels if with_pixels else None,
    )


def picture_sizes(data: bytes) -> tuple[Size, Size]:
    """Return the (height, width) of a picture as it is stored, and as it is shown. Raises an exception for other bytes.

    The two differ if the metadata says that the picture is turned by 90 degrees.
    """
    image = open_image(data, recognize(data, ANY_SIZE.decoded))
    (width, height), upright = stored_size(image), upright_size(image)
    return (height, width), (upright[1], upright[0])


def _parts(data: bytes, kind: str) -> tuple[set[str], int, bool]:
    """Return the names of the metadata in the parts of a file, where its picture ends, and whether it has a profile.

    In TIFF, BMP, AVIF, and HEIC, the picture ends with the file.
    """
    names, end, has_profile = set[str](), len(data), False
    if kind == "JPEG":
        for marker, start, stop in _segments(data):
            has_profile = has_profile or is_profile_segment(marker, data[start:stop])
            if marker == _END:
                end = stop
            elif name := metadata_name(marker, data[start:stop]):
                names.add(name)
    elif kind == "PNG":
        for chunk, _, stop in png_chunks(data):
            has_profile = has_profile or chunk == b"iCCP"
            if chunk in _PNG_TEXTS:
                names.add("text")
            elif chunk not in _PNG_PLAIN:
                names.add(_chunk_name(chunk))
            if chunk == b"IEND":
                end = stop + 4  # after its checksum
                break
    elif kind == "WEBP":
        end = min(end, 8 + int.from_bytes(data[4:8], "little"))
        pictures = 0
        for chunk, _, _ in webp_chunks(data[:end]):
            has_profile = has_profile or chunk == b"ICCP"
            pictures += chunk in (b"VP8 ", b"VP8L")
            if pictures > 1:
                names.add("more pictures")
            if chunk not in _WEBP_PLAIN:
                names.add(_WEBP_METADATA.get(chunk) or _chunk_name(chunk))
    elif kind == "GIF":
        names, end = _gif_parts(data)
    elif kind in ("AVIF", "HEIC"):
        for box, start, stop in boxes(data):
            if box not in _BOXES and data[start:stop].strip(b"\0"):  # zeros fill a box that isn't used
                names.add(f"data in a box {box.decode('ascii', 'replace')!r}")
    return names, end, has_profile


def _gif_parts(data: bytes) -> tuple[set[str], int]:
    """Return the names of the metadata in a GIF's extensions, and where its picture ends (GIF89a, sections 17-27)."""
    names = set[str]()
    position = 13 + _color_table_bytes(data[10:11])
    while (start := data[position : position + 1]) in (b",", b"!"):  # a frame or an extension
        if start == b",":
            position += 11 + _color_table_bytes(data[position + 9 : position + 10])
        else:
            label, content = data[position + 1 : position + 2], data[position + 3 : position + 14]
            if label == b"\xff" and content not in _GIF_PLAIN:
                names.add("XMP" if content == b"XMP DataXMP" else "data of an application")
            elif label in _GIF_TEXTS:
                names.add(_GIF_TEXTS[label])
            position += 2
        while position < len(data) and data[position]:  # blocks, each behind its size
            position += 1 + data[position]
        position += 1
    return names, min(position + 1, len(data))


def _color_table_bytes(flags: bytes) -> int:
    bits = int.from_bytes(flags)
    return 3 << ((bits & 7) + 1) if bits & 0x80 else 0


def _chunk_name(chunk: bytes) -> str:
    return f"data in a chunk {chunk.decode('ascii', 'replace')!r}"


def _is_profile(profile: bytes | None) -> bool:
    """Return whether bytes are a color profile of the size that its header states (ICC.1, 7.2), and nothing else."""
    if profile is None or profile[36:40] != b"acsp":
        return False
    return not profile[int.from_bytes(profile[:4]) :].strip(b"\0")


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield the markers of a JPEG that decodes, and the first and last byte of their contents, up to the end marker."""
    position = 2
    while found := _MARKER.search(data, position):
        marker, start = data[found.start() + 1], found.end()
        if marker in (_START, _END):
            yield marker, start, start
            position = start
            if marker == _END:
                return
            continue
        position = start + int.from_bytes(data[start : start + 2], "big")
        yield marker, start + 2, position


def _tiff_metadata(image: ImageFile.ImageFile) -> Iterator[str]:
    """Yield the names of the metadata in a TIFF's tags."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return
    for tag in image.tag_v2:
        if tag in _TIFF_METADATA:
            yield _TIFF_METADATA[tag]
        elif image.tag_v2.tagtype.get(tag) == TiffTags.ASCII:
            yield "text"


def _reduced_copies(image: ImageFile.ImageFile) -> Iterator[Gray]:
    """Yield the gray values of a TIFF's further pages, all of which say that they're reduced copies of the first."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        for page in islice(ImageSequence.Iterator(image), 1, None):
            yield luma(to_srgb(page, None))


def _hides_colors(image: ImageFile.ImageFile) -> bool:
    """Return whether pixels that are hardly visible differ in color, because many programs ignore transparency."""
    if not image.has_transparency_data:
        return False
    picture = image.convert("LA") if image.mode == "La" else image
    *colors, alpha = picture.convert("RGBA").split()
    hidden = np.asarray(alpha) < _LEAST_ALPHA
    if hidden.sum() < _LEAST_HIDDEN:
        return False
    return any(np.ptp(np.asarray(color)[hidden]) > 0 for color in colors)


def _thumbnail(image: ImageFile.ImageFile, exif: Image.Exif) -> Gray | None:
    """Return the gray values of the thumbnail in a picture's EXIF data, or None if there is none."""
    inside = exif.get_ifd(ExifTags.IFD.IFD1)
    start, size = (inside.get(tag) for tag in (ExifTags.Base.JpegIFOffset, ExifTags.Base.JpegIFByteCount))
    if not isinstance(start, int) or not isinstance(size, int):
        return None
    written = image.info.get("exif", b"").removeprefix(b"Exif\0\0")[start : start + size]
    with Image.open(io.BytesIO(written), formats=["JPEG"]) as thumbnail:
        if max(thumbnail.size) > _THUMBNAIL_SIDE:
            return None
        return np.asarray(thumbnail.convert("L"))


def _shows(thumbnail: Gray, gray: Gray) -> bool:
    """Return whether a thumbnail shows the same picture, maybe turned, or between black bars."""
    for turns in range(4):
        turned = np.rot90(thumbnail, turns)
        height, width = turned.shape
        scale = min(height / gray.shape[0], width / gray.shape[1])
        high, wide = (max(1, round(side * scale)) for side in gray.shape)
        top, left = (height - high) // 2, (width - wide) // 2
        pair = np.stack([_small(turned[top : top + high, left : left + wide]), _small(gray)])
        views = normalized_views(pair, np.zeros(2, np.int64))
        if not views[1].any() or same_view(views[:1], views[1:])[0]:
            return True
    return False


def _small(gray: Gray) -> Gray:
    picture = Image.fromarray(np.ascontiguousarray(gray))
    return np.asarray(picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


IMAGES_PER_SHARD_LIMIT = 10_000_000
"""Upper bound on a shard's images. An ordinal is the shard's number times this, plus the image's index.

With these ordinals, shards can be measured independently.
"""

_SCHEMAS = {"images": IMAGES, "masks": MASKS, "jpegs": JPEGS}
_JSON_BYTES = 256 << 20
_HEAD = 64 << 10
"""Number of bytes to read first. In most JPEGs, the frame header begins within these bytes."""
_AT_ONCE = 16


@dataclass
class MeasuredShard:
    """Result of measuring a shard: its Parquet files, keyed by table, its number of images, and its findings."""

    files: dict[str, TableFile] = field(default_factory=dict)
    images: int = 0
    boxes: int = 0  # boxes without a mask
    unlisted: int = 0  # images in a tar that aren't JPEGs
    findings: FindingCollector = field(default_factory=FindingCollector)


def measure_shard(data: Location, shard: ForeignShard, folder: Path) -> MeasuredShard:
    """Measure a shard and write its tables into `folder`.

    Memory holds the masks of a few images, one row group, and the places of files in a tar whose counterpart hasn't
    been found yet.
    """
    measured = MeasuredShard()
    with ExitStack() as stack:
        writers = {}
        for kind, schema in _SCHEMAS.items():
            path = folder / scratch_path(kind, shard.shard)
            path.parent.mkdir(exist_ok=True)
            writers[kind] = stack.enter_context(RowGroupWriter(path, schema, ROW_GROUP_ROWS))
        decoder = stack.enter_context(JpegDecoder(own=False, processes=1))
        images: Iterable[ListedImage] = shard.images
        read = partial(read_file, data.storage)
        if shard.tar is not None:
            tar = data / shard.tar
            stream = stack.enter_context(tar.open())
            place = FindingLocation(shard.tar, shard.shard)
            images = pair_files(_members(tar, stream, place, measured))
            read = partial(_read_member, stream)
        rows = filter(None, map(_ShardReader(shard, measured, decoder, read).measure, images))
        while batch := list(islice(rows, _AT_ONCE)):
            _write(batch, writers)
    for kind in _SCHEMAS:
        path = folder / scratch_path(kind, shard.shard)
        measured.files[kind] = TableFile(str(path), path.stat().st_size)
    return measured


def _members(tar: Location, stream: BinaryIO, place: FindingLocation, measured: MeasuredShard) -> Iterator[ForeignFile]:
    """Yield the plain files in a tar. Report a tar that can't be read to its end, and count images but JPEGs."""
    try:
        for member in TarReader(stream):
            if is_plain_file(member):
                measured.unlisted += is_other_image(member.name)
                yield ForeignFile(member.name, tar.uri, member.size, member.offset_data)
    except BadTarError as error:
        measured.findings.add(place.finding(Code.BAD_TAR, "a tar of plain files", error))


def _read_member(tar: BinaryIO, file: ForeignFile, most: int) -> bytes:
    tar.seek(file.offset)
    return tar.read(min(file.size, most))


@dataclass(frozen=True)
class _ShardReader:
    """Reader of the images of a shard in any layout. It adds findings and counts to `measured`.

    `read` returns the first bytes of a file, up to a number.
    """

    shard: ForeignShard
    measured: MeasuredShard
    decoder: JpegDecoder
    read: Callable[[ForeignFile, int], bytes]

    def measure(self, listed: ListedImage) -> Row | None:
        """Return an image's row for `describe`, and in its key `picture`, its row in `jpegs`, if there is one.

        Return None for a pair whose JSON can't be read, and for an image of an earlier file.
        """
        ordinal = self.shard.shard * IMAGES_PER_SHARD_LIMIT + self.measured.images
        image = ForeignImage(ordinal + 1, listed.size)
        place = FindingLocation(_text(listed.file), image=image.number, part=_text(listed.name))
        annotations: Sequence[Any] | None = listed.annotations
        if self._has_pairs:
            place, annotations = FindingLocation(self._path(listed.file), self.shard.shard), None
        picture, classes = listed.picture, self.shard.classes
        try:
            if self._has_pairs:
                annotations = self._read_json(listed, image, place)
                place = place.of_image(None if annotations is None else image.number)
            if picture is not None:
                self._check_size(picture, image, place)
            elif annotations is not None and not listed.is_repeated:
                code, expected = Code.MISSING_FILE, f"a file below {listed.folder}"
                if self._has_pairs:
                    code, expected = Code.MISSING_PAIR, f"a JPEG {base_name(listed.name)}.jpg"
                image.findings.add(place.finding(code, expected, "none"))
            if classes.names and listed.labels is not None:
                annotations = read_labels(self._whole(listed.labels), image, classes, place)
            if annotations is not None:
                read_masks(annotations, image, place, exact=self._has_pairs, contours=classes.through_centers)
        except (NotFoundError, ObjectTooLargeError) as error:
            image.findings.add(place.finding(Code.MISSING_FILE, "a file that can be read", error))
            picture = None
        if self._has_pairs and annotations is not None and image.size is None:
            self._report_json(listed, image, place, "no size of its image")
            annotations = None
        self.measured.findings.extend(image.findings)
        if annotations is None or listed.is_repeated:
            return None
        self.measured.images += 1
        self.measured.boxes += image.boxes_alone
        height, width = image.size or (0, 0)
        jpeg = None
        if picture is not None:
            where = {"uri": _text(picture.uri), "offset": picture.offset, "size": picture.size}
            jpeg = {"ordinal": ordinal, **where, "split": listed.split}
        return {
            "ordinal": ordinal,
            "id": image.number,
            "image_id": _text(listed.name),
            "width": width,
            "height": height,
            "license": listed.license,
            "source_url": listed.source_url,
            "masks": image.masks,
            "picture": jpeg,
        }

    @property
    def _has_pairs(self) -> bool:
        return self.shard.kind == "sa1b"

    def _path(self, name: str) -> str:
        return _text(name if self.shard.tar is None else f"{self.shard.tar}/{name}")

    def _whole(self, file: ForeignFile) -> bytes:
        check_size(file.uri, file.size, _JSON_BYTES)
        return self.read(file, file.size)

    def _read_json(self, listed: ListedImage, image: ForeignImage, place: FindingLocation) -> list[Any] | None:
        """Return the annotations in the JSON of a pair, or None if it can't be read. Set what it says of its image."""
        if listed.labels is None:
            expected, found = f"a JSON {base_name(listed.name)}.json", "none that can be read"
            image.findings.add(place.finding(Code.MISSING_PAIR, expected, found))
            return None
        try:
            return read_header(json.loads(self._whole(listed.labels)), image)
        except (ValueError, RecursionError, ObjectTooLargeError) as error:
            self._report_json(listed, image, place, error)
            return None

    def _report_json(self, listed: ListedImage, image: ForeignImage, place: FindingLocation, why: object) -> None:
        """Report a JSON that doesn't describe an image, unless it may be a file about something else."""
        if listed.picture is not None or base_name(listed.name).startswith("sa_"):
            image.findings.add(place.finding(Code.BAD_JSON, "the JSON of an image with annotations", why))

    def _check_size(self, picture: ForeignFile, image: ForeignImage, place: FindingLocation) -> None:
        """Compare the size of a picture with the stated one, or set it to the shown size if it isn't stated.

        Pairs contain JPEGs. Other pictures that can't be read have no size, and the audit of pictures reports them.
        """
        says = place.file
        if self._has_pairs:
            says, place = "its JSON", replace(place, file=self._path(picture.name))
        sizes: tuple[Size, ...] = ()
        try:
            sizes = (self._jpeg_size(picture),)
        except ValueError as error:
            if self._has_pairs:
                image.findings.add(place.finding(Code.BAD_JPEG, "a JPEG", error))
                return
        unstated = image.size is None and not self._has_pairs
        if not sizes or unstated or image.size not in (None, *sizes):
            for most in (_HEAD, ANY_SIZE.max_bytes):  # most headers are short
                with suppress(UndecodableError):
                    sizes = self.decoder.run(picture_sizes, self.read(picture, most))
                    break
        if not sizes:
            return
        image.size = image.size or sizes[-1]
        if image.size not in sizes:
            (height, width), found = image.size, " or ".join(f"{w} x {h} pixels" for h, w in dict.fromkeys(sizes))
            image.findings.add(place.finding(Code.JPEG_SIZE, f"{width} x {height} pixels, as {says} says", found))

    def _jpeg_size(self, file: ForeignFile) -> Size:
        """Return the (height, width) of a JPEG. Read no more bytes than needed. Raise `ValueError` for other files."""
        size = frame_size(self.read(file, _HEAD)) or frame_size(self.read(file, file.size))
        if size is None:
            raise ValueError("it ends before the picture begins")
        return size[1], size[0]


def _write(rows: list[Row], writers: Mapping[str, RowGroupWriter]) -> None:
    """Describe images and masks as a build would, and write their rows."""
    described = describe_table(to_table(rows, SEGMENTED)).to_pylist()
    images, masks = [], []
    for row, given in zip(described, rows, strict=True):
        images.append({**row, "masks": len(row["masks"]), "funnel": None, "next_mask": None})
        identity = {name: row[name] for name in ("ordinal", "id", "image_id")}
        first = row["ordinal"] * MASKS_PER_IMAGE_LIMIT
        ids = [mask["annotation_id"] for mask in given["masks"]]
        numbers = [first + index if own is None else own for index, own in enumerate(ids)]
        for number, mask in zip(numbers, row["masks"], strict=True):
            container = mask["container"]  # the id that a build would assign
            known = {"container": None if container is None else numbers[container - first - MASKS_PER_IMAGE_LIMIT]}
            masks.append({**identity, "annotation_id": number, **mask, "source": None, **known})
    jpegs = [row["picture"] for row in rows if row["picture"] is not None]
    for kind, found in (("images", images), ("masks", masks), ("jpegs", jpegs)):
        writers[kind].add(to_table(found, _SCHEMAS[kind]).to_batches())


def _text(name: str) -> str:
    """Replace invalid UTF-8 in a name, which file systems and tars allow, so that tables and reports can store it."""
    return name.encode(errors="replace").decode()
