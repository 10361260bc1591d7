"""Audit of a shard's tar as a stream: its members, each JSON against the tables, each JPEG against its image's row."""

import hashlib
import json
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

import simplejpeg

from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import MOST_MEMBER_BYTES, annotation_name, image_name
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.operators.audit.jpeg_parts import frame_size, metadata_names
from segmint.operators.decoding import JpegDecoder
from segmint.operators.prepare.release import release_header
from segmint.operators.rows import Row
from segmint.operators.shards.files import annotations_json

_PIECE = 1 << 20
_END = b"\xff\xd9"
_NO_PICTURE = (Code.BAD_JPEG, Code.JPEG_SIZE)


class HashedStream:
    """A stream that hashes everything read from it, so that the file needs to be read only once."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._hash = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """Return the next bytes."""
        data = self._stream.read(size)
        self._hash.update(data)
        return data

    def digest(self) -> str:
        """Read the rest of the stream. Return the SHA-256 of the whole stream as 64 hexadecimal digits."""
        while self.read(_PIECE):
            pass
        return self._hash.hexdigest()


def audit_tar(
    stream: HashedStream,
    images: Iterable[Row],
    masks_of: Callable[[int], Sequence[Row]],
    place: FindingLocation,
    *,
    with_images: bool,
    decode: Container[int],
    decoder: JpegDecoder,
    quality: int | None = None,
    look: Callable[[Row, bytes], Iterable[Finding]] | None = None,
) -> Iterator[Finding]:
    """Yield findings about a tar that should contain the images of these rows of `images/*.parquet`, in the same order.

    - `masks_of`: returns the mask rows for an ordinal.
    - `decode`: the ids of the JPEGs that `decoder` decodes.
    - `quality`: the JPEG quality of the release, if known. It determines the bytes before the image data.
    - `look`: yields more findings for intact JPEGs of the right size.

    The audit stops at the first unexpected member.
    """
    try:
        members = _members(TarReader(stream))
        for row in images:
            image, names = place.of_image(row["id"]), [image_name(row["id"])] if with_images else []
            for name in [*names, annotation_name(row["id"])]:
                found, data = next(members, ("the end", b""))
                if found != name:
                    yield image.finding(Code.TAR_MEMBERS, name, found, f"id {row['id']}")
                    return
                if name.endswith(".jpg"):
                    findings = list(audit_jpeg(data, row, image, decoder if row["id"] in decode else None, quality))
                    yield from findings or _other_release(data, row, image)
                    if look is not None and not any(finding.code in _NO_PICTURE for finding in findings):
                        yield from look(row, data)
                else:
                    yield from audit_json(data, row, masks_of(row["ordinal"]), image)
        more = next(members, None)
        if more is not None:
            yield place.finding(Code.TAR_MEMBERS, "the end", more[0])
    except BadTarError as error:
        yield place.finding(Code.BAD_TAR, "a tar of plain files", error)


def _members(archive: TarReader) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        if not is_plain_file(member):
            yield f"{member.name}, no plain file", b""
        elif member.size > MOST_MEMBER_BYTES:
            yield f"{member.name}, of {member.size:,} bytes; at most {MOST_MEMBER_BYTES:,} are read", b""
        else:
            yield member.name, archive.read(member)


def audit_json(data: bytes, row: Row, masks: Sequence[Row], place: FindingLocation) -> Iterator[Finding]:
    """Yield a finding unless an image's JSON is byte-identical to the JSON built from its image and mask rows."""
    name = annotation_name(row["id"])
    try:
        expected = annotations_json(row["id"], image_name(row["id"]), (row["height"], row["width"]), masks)
    except (ValueError, TypeError):
        return  # the tables contain values that JSON cannot represent; `segmint.operators.audit.masks` reports them
    if data == expected:
        return
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        yield place.finding(Code.OTHER_JSON, "JSON", error, name)
        return
    path, wanted, got = _first_difference(json.loads(expected), found) or ("", "canonical JSON", "other bytes")
    yield place.finding(Code.OTHER_JSON, f"{wanted}, as in the tables", got, f"{name}: {path}" if path else name)


def audit_jpeg(
    data: bytes, row: Row, place: FindingLocation, decoder: JpegDecoder | None, quality: int | None = None
) -> Iterator[Finding]:
    """Yield findings unless a JPEG has the size in its row and contains no metadata or other bytes around its picture.

    Without a `quality`, the bytes around the picture aren't checked. With a `decoder`, the JPEG is decoded completely.
    """
    name, size = image_name(row["id"]), (row["width"], row["height"])
    try:
        found = frame_size(data)
    except ValueError as error:
        yield place.finding(Code.BAD_JPEG, "a JPEG", error, name)
        return
    problem = None
    if found is None:
        problem = Code.BAD_JPEG, "it has no frame"
    elif found != size:
        problem = Code.JPEG_SIZE, f"{found[0]} x {found[1]}"
    elif quality is not None:
        problem = _layout_problem(data, release_header(*size, quality))
    if problem is not None:
        expected = f"{size[0]} x {size[1]} pixels, as segmint encodes them"
        yield place.finding(problem[0], expected, problem[1], name)
    if decoder is None or found is None or (problem is not None and problem[0] is Code.BAD_JPEG):
        return
    try:
        height, width = decoder.run(_decoded_size, data)
    except ValueError as error:
        yield place.finding(Code.BAD_JPEG, "a picture that decodes to its end", error, name)
        return
    if (width, height) != found:
        yield place.finding(Code.JPEG_SIZE, f"{found[0]} x {found[1]} pixels", f"{width} x {height}", name)


def _other_release(data: bytes, row: Row, place: FindingLocation) -> Iterator[Finding]:
    digest = hashlib.sha256(data).hexdigest()
    if digest != row["release_sha256"]:
        expected = f"SHA-256 {row['release_sha256']}, as in the image's row"
        yield place.finding(Code.OTHER_RELEASE, expected, digest, image_name(row["id"]))


def _layout_problem(data: bytes, header: bytes) -> tuple[Code, str] | None:
    """Explain what a JPEG contains besides `header`, image data, and an end marker, or return None."""
    end = data.find(_END, len(header))
    if end < 0:
        return Code.BAD_JPEG, "it ends before the picture does"
    if not data.startswith(header):
        names = metadata_names(data) or [f"other bytes before byte {len(header)}, where the image data begins"]
        return Code.JPEG_METADATA, ", ".join(names)
    if len(data) > end + len(_END):
        return Code.JPEG_METADATA, f"{len(data) - end - len(_END)} bytes after the picture's end"
    return None


def _decoded_size(jpeg: bytes) -> tuple[int, int]:
    """Decode an image completely and return its (height, width). Raise ValueError if it doesn't decode."""
    height, width = simplejpeg.decode_jpeg(jpeg, colorspace="RGB", strict=True).shape[:2]
    return height, width


def _first_difference(expected: Any, found: Any, path: str = "") -> tuple[str, str, str] | None:
    """Return two JSON values' first difference as (path, expected, found), shortened, or None if there is none."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        if list(expected) != list(found):
            missing, more = [k for k in expected if k not in found], [k for k in found if k not in expected]
            return path, f"keys {missing or 'in their order'}", f"keys {more or list(found)}"
        pairs = [(f"{path}.{key}".lstrip("."), expected[key], found[key]) for key in expected]
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            return path, f"{len(expected)} entries", f"{len(found)}"
        pairs = [(f"{path}[{i}]", one, other) for i, (one, other) in enumerate(zip(expected, found, strict=True))]
    else:
        return None if expected == found else (path, _short(expected), _short(found))
    for inner, one, other in pairs:
        difference = _first_difference(one, other, inner)
        if difference is not None:
            return difference
    return None


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
