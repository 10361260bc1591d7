"""CSV and JSON Lines catalogs: limits, blocks of lines, and background threads after the reader is closed."""

import csv
import gzip
import io
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmint.catalogs.parquet import SOURCE
from segmint.catalogs.source import readers
from segmint.catalogs.source.conform import refuse
from segmint.catalogs.source.readers import (
    csv_batches,
    json_blocks,
    line_blocks,
    open_text,
    read_csv,
    read_json_lines,
    split_lines,
)
from segmint.infra.errors import UsageError
from tests.support.locations import location_of

ROWS = st.fixed_dictionaries({"uri": st.text(min_size=1), "license": st.none() | st.just("CC0-1.0")})
BLANK = st.sampled_from(["", " ", "\t", "\r", "  \r"])


def read(path: Path) -> pa.Table:
    return pa.Table.from_batches(list(read_csv(location_of(path), refuse, ())))


def test_endless_columns_are_refused(tmp_path: Path) -> None:
    for count in (9_998, 9_999):
        names = [f"c{index}" for index in range(count)]
        path = tmp_path / "c.csv"
        path.write_text(",".join(["uri", "license", *names]) + "\na,b" + "," * count + "\n")
        if count == 9_998:
            assert read(path).num_rows == 1
    with pytest.raises(UsageError, match="the header has 10,001 columns; expected at most 10,000"):
        read(path)


CSV_ROWS = "uri,license\n" + "a.jpg,CC0-1.0\n" * 2_000_000


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ('p0.jpg,CC0-1.0,Jo\np1.jpg,CC-BY-4.0,"Acme\np2.jpg,CC0-1.0,Jo\n', "line 3: a quote is never closed"),
        ('a,b,"', "line 2: a quote is never closed"),
        ('a,b,"c""', "line 2: a quote is never closed"),
        ('a,b,"c\r\n\r\nd', "line 2: a quote is never closed"),
        ('a,b,c\ra,b,"c', "line 3: a quote is never closed"),
        (
            'a,b,"x\n""y\na,b,c\na,b,"c, d"\n',
            """line 2: a quote is inside a value, near '"x\\n""y\\na,b,c\\na,b,"c,'. Put """,
        ),
        ('a,b,"x"y\n', """line 2: a quote is inside a value, near '"x"y\\n'"""),
        ('a,b,"x" \n', "line 2: a quote is inside a value"),
        ('a,b,""x""\n', "line 2: a quote is inside a value"),
        ('\n\na,b,x"y\n', """line 4: a quote is inside a value, near '"y\\n'"""),
        ('a,b, "x"\n', "line 2: a quote is inside a value"),
    ],
)
def test_a_quote_that_breaks_the_rules_is_an_error_with_its_line(tmp_path: Path, rows: str, says: str) -> None:
    path = tmp_path / "c.csv"
    for header in ("uri,license,attribution\n", '\ufeff"uri","license","attribution"\n'):
        path.write_bytes((header + rows).encode())
        with pytest.raises(UsageError) as caught:
            read(path)
        assert f"{path}, {says}" in str(caught.value)


def test_a_wrong_quote_in_the_header_is_an_error_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    for header, says in (
        ('\nuri,"license', "line 2: a quote is never closed"),
        ('uri,"lic"ense', "line 1: a quote is inside a value"),
        ('uri,license,cred"it', "line 1: a quote is inside a value"),
    ):
        path.write_text(f"{header}\na.jpg,CC0-1.0\n")
        with pytest.raises(UsageError, match=says):
            read(path)


def test_commas_line_breaks_and_doubled_quotes_may_be_in_quoted_values(tmp_path: Path) -> None:
    credits = ["a,b", 'a "b" c', '"', '""', "a\nb", "a\r\nb\r", "", " ", "é, ü"]
    path = tmp_path / "c.csv"
    for end in ("\n", "\r\n"):
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator=end)
            writer.writerow(["uri", "license", "attribution"])
            writer.writerows(["a.jpg", "CC0-1.0", credit] for credit in credits)
        assert read(path).column("attribution").to_pylist() == [credit or None for credit in credits]
        path.write_bytes(path.read_bytes().removesuffix(end.encode()))
        assert read(path).num_rows == len(credits)


def test_lines_are_counted_across_blocks(tmp_path: Path) -> None:
    path = tmp_path / "c.csv"
    rows = 'a.jpg,"CC0-1.0","a\nb ""c"""\n' * 200_000
    path.write_text(f"uri,license,attribution\n{rows}")
    assert path.stat().st_size > readers.BLOCK_BYTES
    assert read(path).num_rows == 200_000
    path.write_text(f'uri,license,attribution\n{rows}a.jpg,CC0-1.0,"a\n')
    with pytest.raises(UsageError, match="line 400002: a quote is never closed"):
        read(path)


_VALUE = r'(?:"(?:[^"]|"")*"|[^",\r\n]*)'


@given(st.lists(st.text('",\r\na', max_size=6), max_size=8))
def test_exactly_the_texts_that_break_the_rules_are_refused_however_they_are_split(blocks: list[str]) -> None:
    text = "".join(blocks)
    splits = iter([block.encode() for block in blocks if block])
    stream = cast(BinaryIO, SimpleNamespace(read=lambda size: next(splits, b"")))
    try:
        read = [block for block, _ in readers.row_blocks(location_of("c.csv"), stream)]
    except UsageError:
        assert not re.fullmatch(rf"{_VALUE}(?:[,\r\n]{_VALUE})*", text)
    else:
        assert re.fullmatch(rf"{_VALUE}(?:[,\r\n]{_VALUE})*", text)
        assert b"".join(read).decode() in (text, f"{text}\n")
        for block in read:
            assert len(block) == 1 or re.fullmatch(rf"({_VALUE}(?:,{_VALUE})*(\r?\n|\r))+", block.decode())


def stop_after_a_batch(batches: Iterator[pa.RecordBatch]) -> None:
    next(batches)
    batches.close()  # type: ignore[attr-defined]


def read_to_the_error(batches: Iterator[pa.RecordBatch]) -> None:
    with pytest.raises(UsageError) as caught:
        list(batches)
    # An error that is kept, with its frames, must not delay closing the reader.
    assert caught.value.__traceback__ is not None


@pytest.mark.parametrize(
    ("text", "reading"),
    [
        (CSV_ROWS, stop_after_a_batch),
        (CSV_ROWS, list),
        (CSV_ROWS.replace("a", '"', 3), read_to_the_error),
        (CSV_ROWS.replace("a.jpg", "a.jpg,b", 1), read_to_the_error),
    ],
    ids=["left", "whole", "quote", "row"],
)
def test_no_thread_reads_on_after_the_reader_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, reading: Callable[[Iterator[pa.RecordBatch]], object]
) -> None:
    """Arrow reads ahead in its own threads: a process that exited meanwhile was aborted."""
    path = tmp_path / "c.csv.gz"
    path.write_bytes(gzip.compress(text.encode(), 1))
    under_way: set[int] = set()
    unpack = gzip.GzipFile.read

    def slow_read(stream: gzip.GzipFile, size: int | None = -1) -> bytes:
        under_way.add(threading.get_ident())
        time.sleep(0.1)
        data = unpack(stream, size)
        under_way.remove(threading.get_ident())
        return data

    monkeypatch.setattr(gzip.GzipFile, "read", slow_read)
    began = time.monotonic()
    reading(csv_batches(location_of(path)))
    assert not under_way
    assert time.monotonic() - began < 30  # it is notified when a read ends, and does not wait for its limit


@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=30), st.booleans())
def test_blocks_are_the_text_split_at_line_ends(lines: list[bytes], marked: bool) -> None:
    text = b"\n".join(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK_BYTES", 50)
        blocks = list(line_blocks(io.BytesIO(b"\xef\xbb\xbf" * marked + text)))
    assert b"".join(blocks) == text.removeprefix(b"" if marked else b"\xef\xbb\xbf")
    assert all(block.endswith(b"\n") for block in blocks[:-1])


def test_an_endless_line_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "BLOCK_BYTES", 50)
    monkeypatch.setattr(readers, "ROW_BYTES", 100)
    (block,) = line_blocks(io.BytesIO(b"a" * 10_000))
    assert 150 < len(block) < 300


def test_a_compressed_text_is_decompressed_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "c.csv.GZ").write_bytes(gzip.compress(b"uri,license\n"))
    with open_text(location_of(tmp_path / "c.csv.GZ")) as stream:
        assert stream.read() == b"uri,license\n"
    (tmp_path / "bad.csv.gz").write_bytes(b"uri,license\n")
    with (
        pytest.raises(UsageError, match=r"bad\.csv\.gz cannot be read as gzip"),
        open_text(location_of(tmp_path / "bad.csv.gz")) as stream,
    ):
        stream.read()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


def read_lines(path: Path) -> pa.Table:
    return pa.Table.from_batches(list(read_json_lines(location_of(path), refuse, ())), schema=SOURCE)


def spelled(row: dict[str, Any], before: str, after: str) -> str:
    return f"{before}{json.dumps(row)}{after}"


@given(
    st.lists(
        st.tuples(ROWS, st.sampled_from(["", "", " ", "\t "]), st.sampled_from(["", "", "\r", " "]), st.lists(BLANK)),
        min_size=1,
        max_size=20,
    ),
    st.booleans(),
    st.sampled_from([1 << 20, 200]),
)
def test_blank_lines_spaces_and_any_line_ends_are_not_rows(
    folder: Path, parts: list[tuple[dict[str, Any], str, str, list[str]]], ended: bool, block_bytes: int
) -> None:
    lines = [text for row, before, after, blank in parts for text in (*blank, spelled(row, before, after))]
    path = folder / "c.jsonl"
    path.write_text("\n".join(lines) + "\n" * ended, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(readers, "BLOCK_BYTES", block_bytes)
        blocks = list(json_blocks(location_of(path)))
        table = read_lines(path)
    assert [rows for _, rows in blocks] == [len(split_lines(block)) for block, _ in blocks]
    assert sum(rows for _, rows in blocks) == len(parts)
    assert table.column("uri").to_pylist() == [row["uri"] for row, *_ in parts]
    assert table.column("license").to_pylist() == [row["license"] for row, *_ in parts]


@pytest.mark.parametrize(
    "text",
    [
        '{"uri": "a", "license": "x"}\n{"uri": "b"} {"uri": "c"}\n\n',
        '{"uri": "a", "license": "x"}\n{"uri": "b"}\r{"uri": "c"\n',
        '{"uri": "a", "license": "x"}\n{"uri":\n"b"}\n',
    ],
)
def test_a_line_is_a_row_even_if_others_even_out_the_count(folder: Path, text: str) -> None:
    """Two objects on one line plus a blank line add up to two rows, but are still an error."""
    (folder / "bad.jsonl").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(UsageError, match=r"bad\.jsonl, row \d is not JSON"):
        read_lines(folder / "bad.jsonl")


@pytest.mark.parametrize(
    "row",
    [
        '{"uri": "b", "license": "CC-BY-NC-4.0", "license": "CC0-1.0"}',
        '{"uri": "b", "license": "CC-BY-NC-4.0", "license": null}',
        '{"uri": "b", "license": "x", "uri": "c"}',
    ],
)
def test_a_row_that_has_a_column_twice_is_refused(folder: Path, row: str) -> None:
    text = '{"uri": "a", "license": "x", "note": 1, "note": 2}\n'
    (folder / "twice.jsonl").write_text(text * 2 + row + "\n", encoding="utf-8")
    with pytest.raises(UsageError, match=r"twice\.jsonl, row 3 is not JSON .a column occurs twice"):
        read_lines(folder / "twice.jsonl")


@pytest.mark.parametrize("start", ["", "\n"])
def test_a_row_that_is_too_long_is_refused(folder: Path, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmint.catalogs.source.readers.ROW_BYTES", 1000)
    row = json.dumps({"uri": "a.jpg", "license": "x"})
    long = json.dumps({"uri": "b" * 1000, "license": "x"})
    (folder / "long.jsonl").write_text(f"{start}{row}\n{long}\n{row}\n")
    with pytest.raises(UsageError, match="one of the rows up to 3 is longer than 1,000 bytes"):
        read_lines(folder / "long.jsonl")
