"""Search of a file for an image: its names, and the SHA-256 of its JPEGs, including inside Parquet, tar, and zip."""

import hashlib
import html
import io
import json
import lzma
import re
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, NamedTuple, cast
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.dataset.tombstones import RemovedImage
from segmint.catalogs.layout import MOST_MEMBER_BYTES, image_stem
from segmint.infra.errors import SegmintError
from segmint.infra.storage.location import Location
from segmint.infra.tars import TarReader, is_plain_file
from segmint.infra.uris import base_name
from segmint.infra.wording import counted
from segmint.operators.schemas import MASKS_PER_IMAGE_LIMIT

_PIECE = 4 << 20
_OVERLAP = 8192  # longer than any name
_ROWS = 64  # rows of a Parquet file to hold in memory
SHORT_NAME = re.compile(r"\d*|.{1,3}")
_KIND = re.compile(
    rb"(?P<tar>.{100}(?:.{157}ustar|(?:[0-7 ]{7}\0){3}))|(?P<zip>PK(?:\x03\x04|\x05\x06))|(?P<parquet>PAR1)"
    rb"|(?P<encrypted>PARE)|(?P<gz>\x1f\x8b)|(?P<bz2>BZh)|(?P<xz>\xfd7zXZ)|(?P<zst>\x28\xb5\x2f\xfd)|(?P<rar>Rar!)"
    rb"|(?P<seven_zip>7z\xbc\xaf)|(?P<lz4>\x04\x22\x4d\x18)|(?P<arrow>ARROW1)|(?P<feather>FEA1)|(?P<pdf>%PDF)"
    rb"|(?P<sqlite>SQLite format 3\0)|(?P<hdf5>\x89HDF\r\n)|(?P<program>MZ|\x7fELF)",
    re.DOTALL,
)
_ENDINGS = "zip tar tgz gz bz2 xz zst lz4 7z rar cab iso dmg parquet arrow feather npz h5 hdf5 sqlite db pdf exe"
_IMAGE_COLUMNS = frozenset({"id", "image", "image_id", "segmint_id"})
_MASK_COLUMNS = frozenset({"annotation_id", "mask", "mask_id", "masks.id", "objects.id"})
_UNREADABLE = (
    *(SegmintError, OSError, EOFError, ValueError, RuntimeError, LookupError, ArithmeticError, TypeError),
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, pa.ArrowException),
)


class Trace(NamedTuple):
    """Place that contains the image. If `found` is false, the place couldn't be checked."""

    found: bool
    line: str


@dataclass(frozen=True)
class WantedImage:
    """Names and numbers of taken-down images, and the SHA-256 of their JPEGs and pixels.

    Without `images`, the search only looks for the JPEGs.
    """

    images: tuple[RemovedImage, ...] = ()
    jpegs: frozenset[str] = frozenset()

    @cached_property
    def _words(self) -> tuple[bytes, ...]:
        """Names as they appear in text, JSON, HTML, and URLs.

        Names with only digits or very few letters are omitted.
        """
        words = {word for each in self.images for word in (each.image_id, each.uri, each.sha256) if word}
        long = {image_stem(image.id) for image in self.images} | {w for w in words if not SHORT_NAME.fullmatch(w)}
        escaped = {form for word in long for form in (json.dumps(word)[1:-1], html.escape(word), quote(word))}
        return tuple(word.encode(errors="surrogateescape") for word in sorted(long | escaped))

    @cached_property
    def _pattern(self) -> re.Pattern[bytes]:
        words = b"|".join(map(re.escape, self._words))
        stems = "|".join(image_stem(image.id) for image in self.images).encode()
        hashed = rb"-[0-9a-f]{12}\."  # in a shard's name
        return re.compile(rb"(?<![\w-])(?:%b)(?![\w-])|(?<![A-Za-z0-9])(?:%b)(?![0-9]|%b)" % (words, stems, hashed))

    @cached_property
    def _numbers(self) -> re.Pattern[bytes]:
        numbers = "|".join(str(image.id) for image in self.images).encode()
        region = rb'id(?="\s*:\s*\d+\s*,\s*"kind")'  # in the format of `redact`; other ids may belong to masks
        return re.compile(rb'"(?:image|image_id|segmint_id|%b)"\s*:\s*(?:%b)(?![\w.])' % (region, numbers))

    def is_mentioned(self, data: bytes) -> bool:
        """Return whether bytes contain one of the names as a word, or one of the numbers in JSON."""
        named = any(word in data for word in self._words) and self._pattern.search(data)
        return bool(named or (self.images and self._numbers.search(data)))

    def is_named(self, path: str) -> bool:
        """Return whether a path contains one of the names, or names the source file or an embedding of the image."""
        own = base_name(path).partition(".")[0] in self.jpegs
        own = own or any(base_name(path) == base_name(image.uri) for image in self.images if image.uri)
        return own or self.is_mentioned(path.encode(errors="surrogateescape"))

    def is_value(self, column: str, value: Any) -> bool:
        """Return whether a table's value is one of the JPEGs or numbers, or contains one of the names."""
        if isinstance(value, int):
            number = value // MASKS_PER_IMAGE_LIMIT if column in _MASK_COLUMNS else value
            return column in _MASK_COLUMNS | _IMAGE_COLUMNS and any(image.id == number for image in self.images)
        if not isinstance(value, bytes | str):
            return False
        data = value.encode(errors="surrogateescape") if isinstance(value, str) else value
        named = column in _IMAGE_COLUMNS and any(image.image_id == value for image in self.images)
        return named or self.is_mentioned(data) or hashlib.sha256(data).hexdigest() in self.jpegs


def search_file(file: Location, where: str, path: str, wanted: WantedImage) -> list[Trace]:
    """Return the traces of the image in a file. Messages call the file `where`. The file is streamed.

    `path` is the part of the file's path that may contain a name of the image.
    """
    if wanted.is_named(path):
        return [Trace(True, where)]
    traces: list[Trace] = []
    try:
        with file.open() as stream:
            traces.extend(_search(stream, where, wanted))
    except _UNREADABLE as error:
        traces.append(Trace(False, f"{where}: can't be read to its end: {' '.join(str(error).split())[:200]}"))
    return traces


def _search(stream: BinaryIO, where: str, wanted: WantedImage, archives: int = 0) -> Iterator[Trace]:
    """Yield the traces in a seekable stream. `archives` is the number of archives that enclose the stream."""
    head = stream.read(512)
    stream.seek(0)
    kind = (match.lastgroup or "") if (match := _KIND.match(head)) else ""
    ending = where.rpartition(".")[2].lower()
    if kind == "parquet":
        yield from _in_parquet(stream, where, wanted)
    elif kind in {"tar", "zip"} and archives < 2:
        yield from (_in_tar if kind == "tar" else _in_zip)(stream, where, wanted, archives + 1)
    else:
        if kind or (head and ending in _ENDINGS.split()):
            why = "an archive inside two others" if kind in {"tar", "zip"} else f"{kind} files aren't opened"
            yield Trace(False, f"{where}: {why if kind else f'not opened as a {ending} file'}")
        digest, before, mentioned = hashlib.sha256(), b"", False
        while piece := stream.read(_PIECE):
            digest.update(piece)
            mentioned = mentioned or wanted.is_mentioned(before + piece)
            before = piece[-_OVERLAP:]
        if digest.hexdigest() in wanted.jpegs:
            yield Trace(True, f"{where} is its JPEG")
        elif mentioned:
            yield Trace(True, f"{where} mentions it")


def _in_tar(stream: BinaryIO, where: str, wanted: WantedImage, archives: int) -> Iterator[Trace]:
    reader, end = TarReader(stream), 0
    for member in reader:
        name = f"{where}, {member.name}"
        end = member.offset_data + (-(-member.size // 512) * 512 if is_plain_file(member) else 0)
        if wanted.is_named(member.name):
            yield Trace(True, name)
        elif is_plain_file(member) and member.size <= MOST_MEMBER_BYTES:
            yield from _search(io.BytesIO(reader.read(member)), name, wanted, archives)
        elif not (member.isdir() or member.islnk()):  # a hard link's file is a member as well
            yield Trace(False, f"{name}: a link, a special or sparse file, or over {MOST_MEMBER_BYTES >> 20} MiB")
    stream.seek(end)
    if any(piece.strip(b"\0") for piece in iter(lambda: stream.read(_PIECE), b"")):
        yield Trace(False, f"{where}: bytes after its last file")


def _in_zip(stream: BinaryIO, where: str, wanted: WantedImage, archives: int) -> Iterator[Trace]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            name = f"{where}, {info.filename}"
            if wanted.is_named(info.filename):
                yield Trace(True, name)
            elif info.flag_bits & 1:
                yield Trace(False, f"{name}: encrypted")
            elif not info.is_dir():
                with archive.open(info) as member:
                    yield from _search(cast(BinaryIO, member), name, wanted, archives)


def _in_parquet(stream: BinaryIO, where: str, wanted: WantedImage) -> Iterator[Trace]:
    rows, first, number, columns = 0, 0, 0, set[str]()
    with pq.ParquetFile(stream) as file:
        about = b"\n".join(part for pair in (file.schema_arrow.metadata or {}).items() for part in pair)
        for batch in file.iter_batches(batch_size=_ROWS):
            for row in batch.to_pylist():
                if found := {column for column, value in plain_values("", row) if wanted.is_value(column, value)}:
                    rows, first, columns = rows + 1, first if rows else number, columns | found
                number += 1
    if rows:
        yield Trace(True, f"{where}, {counted(rows, 'row')} from row {first} on ({', '.join(sorted(columns))})")
    elif wanted.is_mentioned(about):
        yield Trace(True, f"{where} mentions it")


def plain_values(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Yield the plain values in a row with their column names. The names of nested columns contain dots."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from plain_values(f"{name}.{key}" if name else str(key), each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from plain_values(name, each)
    else:
        yield name, value
