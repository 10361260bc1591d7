"""Check of a Parquet file's bytes: each must follow from the rows, or at least belong to a part that the file declares.

The footer and the page headers are structs of `parquet.thrift`, in Thrift's compact protocol.
"""

import hashlib
import io
import re
from collections.abc import Iterator
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.parquet import PARQUET_OPTIONS, table_bytes

Struct = dict[int, Any]
"""Values of a struct, keyed by field number. A list of structs is a list of dictionaries."""

_MAGIC = b"PAR1"
_WRITER = re.compile(rb"parquet-cpp-arrow version \d{1,3}\.\d{1,3}\.\d{1,3}")
_UNREADABLE = (pa.ArrowException, AttributeError, LookupError, OSError, RecursionError, TypeError, ValueError)
_SHORT = 8  # bytes of the longest number in statistics; versions of pyarrow differ in the sign of zero
_LAST_FIELD = 20  # highest number of a field in which another version of pyarrow may write a number
_FEW = 16  # accepted items of a list, even if this version of pyarrow writes fewer


class ParquetCheck(NamedTuple):
    """Result of `check_parquet`.

    - `alike`: whether writing the rows again produces exactly the same bytes.
    - `by_other`: whether another version of pyarrow wrote the file.
    - `problem`: a description of the first part of the file that the rows don't explain, or None.
    """

    alike: bool
    by_other: bool
    problem: str | None = None


class _HashSink(io.RawIOBase):
    """A writable file that keeps only the hash of the data."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.hash.update(data)
        return len(data)


def check_parquet(stream: BinaryIO, sha256: str, schema: pa.Schema, group_rows: int) -> ParquetCheck:
    """Compare a readable file with the bytes that `catalogs/parquet.py` writes for its rows.

    `sha256` is the file's hash. `group_rows` is the number of rows in each row group except the last. Memory holds one
    row group at a time. If the bytes differ, or another version of pyarrow wrote the file, its structure is checked
    instead.
    """
    with pq.ParquetFile(stream) as file:
        by_other = file.metadata.created_by != f"parquet-cpp-arrow version {pa.cpp_version}"
        try:
            groups = [file.metadata.row_group(index).num_rows for index in range(file.num_row_groups)]
            if any(rows != group_rows for rows in groups[:-1]) or max(groups, default=0) > group_rows:
                raise ValueError(f"row groups that do not have {group_rows:,} rows each")
            sink = _HashSink()
            with pq.ParquetWriter(sink, schema, **PARQUET_OPTIONS) as writer:
                for index in range(0 if by_other else len(groups)):
                    rows = file.read_row_group(index).cast(schema).combine_chunks()
                    writer.write_table(rows, row_group_size=group_rows)
            if sink.hash.hexdigest() != sha256:
                _check_structure(stream, file, schema, by_other=by_other)
                return ParquetCheck(False, by_other)
        except _UNREADABLE as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # this error comes from the store, because Arrow's errors have no errno
            problem = str(error) if type(error) is ValueError else f"fields that are not readable: {error!r}"
            return ParquetCheck(False, by_other, problem)
    return ParquetCheck(alike=True, by_other=by_other)


def _check_structure(stream: BinaryIO, file: pq.ParquetFile, schema: pa.Schema, *, by_other: bool) -> None:
    """Write the rows of each row group again and compare the structure.

    Raises `ValueError` for parts that pyarrow wouldn't write.
    """
    footer, end = _read_footer(stream)
    position = len(_MAGIC)
    for index in range(max(1, file.num_row_groups)):
        rows = file.read_row_group(index) if file.num_row_groups else schema.empty_table()
        again = io.BytesIO(table_bytes(rows, schema, max(1, rows.num_rows)))
        expected, _ = _read_footer(again)
        writer = {6: expected[6]} if by_other and _WRITER.fullmatch(footer[6]) else {}
        own = {**footer, 4: footer[4][index : index + 1], **writer}
        _compare(own, [expected], {*_texts(expected)}, "the footer", by_other=by_other)
        for chunk, other in zip(own[4][0][1] if own[4] else (), expected[4][0][1], strict=False):
            column, name = chunk[3], f"the column {b'.'.join(chunk[3][3]).decode()}"
            if column[7] == other[3][7] == 0:
                continue  # there are no pages, and versions of pyarrow place an empty table's booleans differently
            if _start(column) != position:
                raise ValueError(f"{_start(column) - position:,} bytes before {name} that nothing names")
            position += column[7]
            headers, pages = _pages(stream, column, name)
            other_headers, other_pages = _pages(again, other[3], name)
            texts = {*_texts(other_headers)}
            if by_other:  # another version of pyarrow may split pages elsewhere
                texts |= {text for text in _texts(headers) if text in b"".join(pages)}
            elif pages != other_pages:
                raise ValueError(f"pages of {name} that its rows do not produce")
            _compare(headers, [other_headers], texts, name, by_other=by_other)
    if position != end:
        raise ValueError(f"{end - position:,} bytes before the footer that nothing names")


def _read_footer(stream: BinaryIO) -> tuple[Struct, int]:
    """Return a file's footer and its byte position."""
    end = stream.seek(0, io.SEEK_END) - len(_MAGIC) - 4
    stream.seek(end)
    size = int.from_bytes(stream.read(4), "little")
    stream.seek(end - size)
    data = io.BytesIO(stream.read(size))
    footer = _struct(data)
    if data.tell() != size:
        raise ValueError(f"{size - data.tell():,} bytes in the footer that no field names")
    return footer, end - size


def _start(column: Struct) -> int:
    return int(column[11] if 11 in column else column[9])


def _pages(stream: BinaryIO, column: Struct, name: str) -> tuple[list[Struct], list[bytes]]:
    """Return the headers and the decompressed pages of a column chunk. Raise `ValueError` unless they fill it."""
    stream.seek(_start(column))
    data = io.BytesIO(stream.read(column[7]))
    headers, pages = [], []
    while data.tell() < column[7]:
        headers.append(header := _struct(data))
        page = _take(data, header[3])
        if not _is_one_frame(page):
            raise ValueError(f"a page of {name} that is not a single Zstandard frame")
        pages.append(pa.Codec("zstd").decompress(page, header[2], asbytes=True))
    if sum(header.get(5, {}).get(1, 0) for header in headers) != column[5]:
        raise ValueError(f"pages of {name} with another number of values than the footer says")
    return headers, pages


def _is_one_frame(page: bytes) -> bool:
    """Return whether a page is a single frame of Zstandard's format (RFC 8878), with nothing after it."""
    flags = page[4]
    single = flags >> 5 & 1
    at = 6 - single + (0, 1, 2, 4)[flags & 3] + (single, 2, 4, 8)[flags >> 6]
    last = page[:4] != b"\x28\xb5\x2f\xfd"
    while not last and at < len(page):
        block = int.from_bytes(page[at : at + 3], "little")
        last = bool(block & 1)
        at += 3 + (1 if block >> 1 & 3 == 1 else block >> 3)
    return at + 4 * (flags >> 2 & 1) == len(page)


def _compare(value: Any, examples: list[Any], texts: set[bytes], name: str, *, by_other: bool) -> None:
    """Raise `ValueError` if a value has fields that no example has, long lists, or texts that aren't in `texts`."""
    alike = [example for example in examples if type(example) is type(value)]
    inner: list[tuple[Any, list[Any]]] = []
    if isinstance(value, dict) and alike:
        for key, each in value.items():
            known = [example[key] for example in alike if key in example]
            if known or not (by_other and isinstance(each, int) and key <= _LAST_FIELD):
                inner.append((each, known))
    elif isinstance(value, list) and len(value) <= max([_FEW, *map(len, alike)]):
        inner = [(each, [item for example in alike for item in example]) for each in value]
    elif (
        not alike
        or isinstance(value, list)
        or (isinstance(value, bytes) and not (len(value) <= _SHORT or value in texts))
    ):
        raise ValueError(f"fields or texts in {name} that pyarrow does not write for its rows")
    for each, known in inner:
        _compare(each, known, texts, name, by_other=by_other)


def _texts(value: Any) -> Iterator[bytes]:
    """Yield all texts in a value, at any depth."""
    if isinstance(value, bytes):
        yield value
    for each in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(each)


def _struct(data: BinaryIO) -> Struct:
    """Read a struct. Raise `ValueError` if the bytes aren't a struct."""
    fields: Struct = {}
    last = 0
    while head := _take(data, 1)[0]:
        kind, number = head & 15, last + (head >> 4) if head >> 4 else _signed(data)
        if number <= last:
            raise ValueError("fields that are out of order")
        fields[number] = kind == 1 if kind in (1, 2) else _value(data, kind)
        last = number
    return fields


def _value(data: BinaryIO, kind: int) -> Any:
    if kind in (1, 2, 3):
        return _take(data, 1)[0]
    if kind in (4, 5, 6):
        return _signed(data)
    if kind == 8:
        return _take(data, _unsigned(data))
    if kind == 9:
        head = _take(data, 1)[0]
        return [_value(data, head & 15) for _ in range(_unsigned(data) if head >> 4 == 15 else head >> 4)]
    if kind != 12:
        raise ValueError("bytes that are not a field of the footer or of a page's header")
    return _struct(data)


def _take(data: BinaryIO, size: int) -> bytes:
    piece = data.read(size)
    if len(piece) != size:
        raise ValueError("a field or page that is cut off")
    return piece


def _unsigned(data: BinaryIO) -> int:
    value = shift = 0
    while (byte := _take(data, 1)[0]) & 128:
        value |= (byte & 127) << shift
        shift += 7
    return value | byte << shift


def _signed(data: BinaryIO) -> int:
    value = _unsigned(data)
    return value >> 1 ^ -(value & 1)
