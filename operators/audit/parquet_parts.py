"""Check of a Parquet file's bytes: those that its rows produce, or at least none that its structure does not name.

The footer and the page headers are structs of `parquet.thrift`, in Thrift's compact protocol.
"""

import base64
import functools
import hashlib
import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.parquet import PARQUET_OPTIONS, table_bytes

Struct = dict[int, Any]
"""Values by the number of their field; a list of structs is a list of dictionaries."""

_MAGIC = b"PAR1"
_UNREADABLE = (pa.ArrowException, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)
_WRITER = re.compile(rb"parquet-cpp-arrow version \d{1,3}\.\d{1,3}\.\d{1,3}")
_LIST_ITEMS = (b"item", b"element")  # names of lists' items, which depend on the version of pyarrow
_SHORT = 8  # bytes of the longest number in statistics; pyarrow versions differ in the sign of zero
_NO_FIELD = "bytes that are not a field of the footer or of a page's header"
_MOST_ITEMS = 16  # of a list of which this pyarrow writes fewer


class ParquetCheck(NamedTuple):
    """Result of `check_parquet`; `problem` is the first part of the file that is not accounted for, or None."""

    alike: bool  # every byte is what the rows produce
    by_other: bool  # written by another version of pyarrow
    problem: str | None = None


def check_parquet(stream: BinaryIO, sha256: str, schema: pa.Schema, group_rows: int) -> ParquetCheck:
    """Compare a readable file with the bytes that `catalogs/parquet.py` writes for its rows.

    `sha256` is the file's hash, and `group_rows` the number of rows in each row group except the last. Memory holds one
    row group. If the bytes differ or another version of pyarrow wrote them, the structure is checked instead.
    """
    with pq.ParquetFile(stream) as file:
        by_other = file.metadata.created_by != _created_by()
        try:
            groups = [file.metadata.row_group(index).num_rows for index in range(file.metadata.num_row_groups)]
            if any(rows != group_rows for rows in groups[:-1]) or max(groups, default=0) > group_rows:
                raise ValueError(f"row groups that do not have {group_rows:,} rows each")
            if not by_other and _rewritten_sha256(file, schema, group_rows) == sha256:
                return ParquetCheck(alike=True, by_other=False)
            _check_structure(stream, file, schema, by_other=by_other)
        except _UNREADABLE as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # from the store; Arrow's errors have no errno
            what = str(error) if type(error) is ValueError else f"fields that cannot be read ({type(error).__name__})"
            return ParquetCheck(False, by_other, what)
    return ParquetCheck(False, by_other)


@functools.cache
def _created_by() -> str:
    """Return the name that this pyarrow writes into a file."""
    schema = pa.schema([("x", pa.int64())])
    return str(pq.read_metadata(io.BytesIO(table_bytes(schema.empty_table(), schema))).created_by)


class _HashSink(io.RawIOBase):
    """A file that keeps only the hash of what is written to it."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


def _rewritten_sha256(file: pq.ParquetFile, schema: pa.Schema, group_rows: int) -> str:
    sink = _HashSink()
    with pq.ParquetWriter(sink, schema, **PARQUET_OPTIONS) as writer:
        for index in range(file.num_row_groups):
            writer.write_table(file.read_row_group(index).cast(schema).combine_chunks(), row_group_size=group_rows)
    return sink.hash.hexdigest()


def _check_structure(stream: BinaryIO, file: pq.ParquetFile, schema: pa.Schema, *, by_other: bool) -> None:
    """Compare each row group with one of the same rows; raises `ValueError` for parts that pyarrow would not write."""
    footer, end = _read_footer(stream)
    position = len(_MAGIC)
    for index in range(max(1, file.num_row_groups)):
        rows = file.read_row_group(index) if file.num_row_groups else schema.empty_table()
        again = io.BytesIO(table_bytes(rows, schema, max(1, rows.num_rows)))
        expected, _ = _read_footer(again)
        own = {**footer, 4: footer[4][index : index + 1]}
        if by_other and _WRITER.fullmatch(own[6]) and _is_schema(own[5][0][2], schema, len(expected[5][0][2])):
            own |= {5: [*expected[5], *own[5][1:]], 6: expected[6]}
        _compare(own, [expected], {*_texts(expected), *_LIST_ITEMS}, "the footer")
        for chunk, other in zip(own[4][0][1] if own[4] else (), expected[4][0][1], strict=False):
            column, name = chunk[3], f"the column {b'.'.join(chunk[3][3]).decode()}"
            if _start(column) != position:
                raise ValueError(f"{_start(column) - position:,} bytes before {name} that nothing names")
            position += column[7]
            headers, pages = _pages(stream, column, name)
            other_headers, other_pages = _pages(again, other[3], name)
            if by_other:  # which may split pages elsewhere
                other_headers += [text for text in _texts(headers) if text in b"".join(pages)]
            elif pages != other_pages:
                raise ValueError(f"pages of {name} that its rows do not produce")
            _compare(headers, [other_headers], {*_texts(other_headers)}, name)
    if position != end:
        raise ValueError(f"{end - position:,} bytes before the footer that nothing names")


def _read_footer(stream: BinaryIO) -> tuple[Struct, int]:
    """Return a file's footer and its position."""
    end = stream.seek(0, io.SEEK_END) - len(_MAGIC) - 4
    stream.seek(end)
    size = int.from_bytes(stream.read(4), "little")
    stream.seek(end - size)
    compact = _Compact(stream.read(size))
    footer = compact.struct()
    if compact.at != size:
        raise ValueError(f"{size - compact.at:,} bytes in the footer that no field names")
    return footer, end - size


def _is_schema(text: bytes, schema: pa.Schema, size: int) -> bool:
    """Return whether the text of `ARROW:schema` is the schema in another layout of the same size."""
    found = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text, validate=True)))
    return len(text) == size and bool(found.equals(schema, check_metadata=True))


def _start(column: Struct) -> int:
    return int(column[11] if 11 in column else column[9])


def _pages(stream: BinaryIO, column: Struct, name: str) -> tuple[list[Any], list[bytes]]:
    """Return the headers and the decompressed pages of a column chunk; raises `ValueError` unless they fill it."""
    stream.seek(_start(column))
    compact = _Compact(stream.read(column[7]))
    headers, pages = [], []
    while compact.at < column[7]:
        headers.append(header := compact.struct())
        page = compact.take(header[3])
        if not _is_one_frame(page):
            raise ValueError(f"a page of {name} that is not a single Zstandard frame")
        pages.append(pa.Codec("zstd").decompress(page, header[2], asbytes=True))
    if sum(header.get(5, {}).get(1, 0) for header in headers) != column[5]:
        raise ValueError(f"pages of {name} with another number of values than the footer says")
    return headers, pages


def _is_one_frame(page: bytes) -> bool:
    """Return whether a page is one frame of Zstandard's format (RFC 8878), with nothing after it."""
    flags = page[4]
    single = flags >> 5 & 1
    at = 6 - single + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
    last = page[:4] != b"\x28\xb5\x2f\xfd"
    while not last and at < len(page):
        block = int.from_bytes(page[at : at + 3], "little")
        last = bool(block & 1)
        at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
    return at + 4 * (flags >> 2 & 1) == len(page)


def _compare(value: Any, examples: list[Any], texts: set[bytes], name: str) -> None:
    """Raise `ValueError` if a value has fields that no example has, long lists, or texts that are not in `texts`."""
    alike = [example for example in examples if type(example) is type(value)]
    if isinstance(value, dict) and alike:
        for key, each in value.items():
            _compare(each, [example[key] for example in alike if key in example], texts, name)
    elif isinstance(value, list) and len(value) <= max([_MOST_ITEMS, *map(len, alike)]):
        for each in value:
            _compare(each, [item for example in alike for item in example], texts, name)
    elif (
        not alike
        or isinstance(value, list)
        or (isinstance(value, bytes) and len(value) > _SHORT and value not in texts)
    ):
        raise ValueError(f"fields or texts in {name} that pyarrow does not write for its rows")


def _texts(value: Any) -> Iterator[bytes]:
    """Yield all texts in a value."""
    if isinstance(value, bytes):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(each)


class _Compact:
    """Reader of Thrift's compact protocol; raises `ValueError` for a form in which no writer puts a value."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.at = 0

    def struct(self) -> Struct:
        """Read a struct."""
        fields: Struct = {}
        last = 0
        while head := self.take(1)[0]:
            kind = head & 15
            number = last + (head >> 4) if head >> 4 else self._zigzag()
            if number <= last or (head < 16 and number - last < 16):
                raise ValueError(_NO_FIELD)
            fields[number] = kind == 1 if kind in (1, 2) else self._value(kind)
            last = number
        return fields

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        piece = self._data[self.at : self.at + size]
        if size < 0 or len(piece) != size:
            raise ValueError(_NO_FIELD)
        self.at += size
        return piece

    def _value(self, kind: int) -> Any:
        if kind in (1, 2, 3):
            return self.take(1)[0]
        if kind in (4, 5, 6):
            return self._zigzag()
        if kind == 8:
            return self.take(self._unsigned())
        if kind == 9:
            head = self.take(1)[0]
            return [self._value(head & 15) for _ in range(self._unsigned() if head >> 4 == 15 else head >> 4)]
        if kind == 12:
            return self.struct()
        raise ValueError(_NO_FIELD)

    def _unsigned(self) -> int:
        value = shift = 0
        while True:
            byte = self.take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        if shift > 70 or (shift > 7 and byte == 0):
            raise ValueError(_NO_FIELD)
        return value

    def _zigzag(self) -> int:
        value = self._unsigned()
        return value >> 1 ^ -(value & 1)
