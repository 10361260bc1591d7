"""Catalogs in every format are read the same way, and errors name file, column and row."""

import gzip
import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.parquet import SOURCE
from segmint.catalogs.source import readers
from segmint.catalogs.source.conform import InvalidValue
from segmint.catalogs.source.readers import read_catalog
from segmint.catalogs.source.scan import write_catalog
from segmint.infra.errors import UsageError
from tests.support.locations import location_of

ROWS: list[dict[str, Any]] = [
    {
        "uri": "a/första.jpg",
        "license": "CC-BY-4.0",
        "image_id": "00012",
        "sha256": "ab" * 32,
        "attribution": 'Zoë "Z", the\tphotographer',
        "redistributable": True,
        "valid_until": date(2031, 2, 28),
        "country": "SE",
        "caption": "two\nlines, and a comma",
    },
    {"uri": "s3://vendor/b.jpg", "license": "LicenseRef-acme-2026", "redistributable": False},
    {"uri": "c.jpg"},
]


def read(path: Path, **options: Any) -> pa.Table:
    return pa.Table.from_batches(list(read_catalog(location_of(path), **options)), schema=SOURCE)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("ending", ["parquet", "jsonl", "ndjson", "csv"])
def test_the_same_rows_come_from_every_format(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"catalog.{ending}"
    assert write_catalog(iter(ROWS), location_of(path)) == 3

    expected = pa.Table.from_pylist(ROWS, schema=SOURCE)
    assert read(path).equals(expected)
    if ending in ("jsonl", "csv"):
        packed = tmp_path / f"catalog.{ending}.gz"
        packed.write_bytes(gzip.compress(path.read_bytes()))
        assert read(packed).equals(expected)


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_rows_across_block_borders_are_read_whole(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"uri": f"{i}.jpg", "license": "CC0-1.0", "caption": "å" * (i % 97)} for i in range(500)]
    path = tmp_path / f"catalog.{ending}"
    write_catalog(iter(rows), location_of(path))
    whole = read(path)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 1000)
    assert read(path).equals(whole)
    assert whole.num_rows == 500


def test_unknown_columns_any_order_and_blank_lines_are_accepted(tmp_path: Path) -> None:
    text = '{"size": [1, {"a": 2}], "license": "CC0-1.0", "uri": "a.jpg"}\n\n{"uri": "b.jpg", "license": null}'
    table = read(write(tmp_path / "c.jsonl", "\ufeff" + text))
    assert table.column("uri").to_pylist() == ["a.jpg", "b.jpg"]
    assert table.column("license").to_pylist() == ["CC0-1.0", None]

    table = read(write(tmp_path / "c.csv", "\ufeffsize,license,uri\n12,CC0-1.0,a.jpg\n\nlarge, ,b.jpg\n"))
    assert table.column("uri").to_pylist() == ["a.jpg", "b.jpg"]
    assert table.column("license").to_pylist() == ["CC0-1.0", None]


def test_the_first_row_may_omit_a_key(tmp_path: Path) -> None:
    table = read(write(tmp_path / "c.jsonl", '{"uri": "a.jpg"}\n{"uri": "b.jpg", "license": "CC0-1.0"}\n'))
    assert table.column("license").to_pylist() == [None, "CC0-1.0"]


def test_equivalent_column_types_are_accepted(tmp_path: Path) -> None:
    table = pa.table(
        {
            "uri": pa.array(["a.jpg", "b.jpg"], pa.large_string()),
            "license": pa.array(["CC0-1.0", "CC0-1.0"]).dictionary_encode(),
            "valid_until": ["2030-01-01", ""],
            "country": ["se", None],
            "attribution": pa.nulls(2),
            "sha256": ["AB" * 32, None],
        }
    )
    pq.write_table(table, tmp_path / "c.parquet")
    rows = read(tmp_path / "c.parquet").to_pylist()
    assert rows[0]["valid_until"] == date(2030, 1, 1)
    assert rows[1]["valid_until"] is None
    assert (rows[0]["country"], rows[0]["sha256"]) == ("SE", "ab" * 32)


@pytest.mark.parametrize(
    ("name", "text", "names"),
    [
        ("c.jsonl", '{"uri": "a.jpg"}\n', ["c.jsonl", "'license' is missing"]),
        ("c.csv", "url,license\na.jpg,CC0-1.0\n", ["c.csv", "'uri' is missing", "url, license"]),
        ("c.csv", "uri,license,uri\n", ["c.csv", "'uri' occurs 2 times"]),
        (
            "c.csv",
            "uri,license,Valid_Until\n",
            ["c.csv", "'Valid_Until' would be ignored", "the column is 'valid_until'"],
        ),
        ("c.csv", "uri,license,License\na,b,c\n", ["c.csv", "'License' would be ignored"]),
        ("c.jsonl", '{"uri": "a", "license": "x", "URI": "b"}\n', ["c.jsonl, row 1", "'URI' would be ignored"]),
        (
            "c.jsonl",
            '{"uri": "a", "license": "x"}\n{"uri": "a", "license": "x", "Opt_Out" : true}\n',
            ["c.jsonl, row 2", "'Opt_Out' would be ignored"],
        ),
        ("c.csv", "", ["c.csv", "'uri' is missing"]),
        ("c.csv", "uri,license\na,b\nc,d,e\n", ["c.csv, line 3", "found 3 values", "expected 2"]),
        ("c.jsonl", '{"uri": "a", "license": "x"}\n{"uri": "b"\n', ["c.jsonl, row 2", "not JSON"]),
        ("c.jsonl", '{"uri": "a", "license": "x"} {"uri": "b"}\n', ["c.jsonl, row 1", "not JSON"]),
        ("c.jsonl", '["a", "b"]\n', ["c.jsonl, row 1", "expected one JSON object per line"]),
        ("c.jsonl", '{"uri": "a", "license": "x"}\n{"uri": 7}\n', ["c.jsonl, row 2, column uri", "7"]),
        ("c.jsonl", '{"uri": "a", "license": 4.0}\n', ["row 1, column license", "expected text"]),
        (
            "c.jsonl",
            '{"uri": "a", "license": "x", "redistributable": "maybe"}',
            ["row 1, column redistributable", "'maybe'", "true, false"],
        ),
        ("c.csv", "uri,license\na,b\n,b\n", ["c.csv, row 2, column uri", "nothing"]),
        ("c.csv", "uri,license,valid_until\na,b,\nc,d,2026-02-30\n", ["row 2, column valid_until", "YYYY-MM-DD"]),
        ("c.csv", "uri,license,valid_until\na,b,31/12/2026\n", ["row 1, column valid_until", "31/12/2026"]),
        ("c.csv", "uri,license,sha256\na,b,xyz\n", ["row 1, column sha256", "'xyz'", "64 hexadecimal digits"]),
        ("c.csv", "uri,license,country\na,b,Sweden\n", ["row 1, column country", "'SWEDEN'", "two letters"]),
        ("c.csv", "uri,license,redistributable\na,b,perhaps\n", ["row 1, column redistributable", "'perhaps'"]),
        ("c.txt", "", ["c.txt", ".parquet", ".jsonl", ".csv"]),
        ("c.parquet", "no parquet", ["c.parquet", "cannot be read as Parquet"]),
        ("c.csv.gz", "no gzip", ["c.csv.gz", "cannot be read as gzip"]),
    ],
)
def test_errors_say_what_is_wrong(tmp_path: Path, name: str, text: str, names: list[str]) -> None:
    with pytest.raises(UsageError) as caught:
        read(write(tmp_path / name, text))
    for part in names:
        assert part in str(caught.value)


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_text_that_is_not_utf8_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"c.{ending}"
    good = {"csv": b"uri,license\n", "jsonl": b""}[ending]
    bad = {"csv": b"caf\xe9.jpg,CC0-1.0\n", "jsonl": b'{"uri": "caf\xe9.jpg", "license": "CC0-1.0"}\n'}[ending]
    path.write_bytes(good + bad)
    with pytest.raises(UsageError, match=rf"c\.{ending}"):
        read(path)


def test_every_problem_is_passed_to_the_handler(tmp_path: Path) -> None:
    """`segmint catalog check` needs all of them, with row numbers that continue across blocks."""
    rows = [{"uri": f"{i}.jpg", "license": "CC0-1.0"} for i in range(100)]
    rows[10]["valid_until"] = "soon"
    rows[99]["country"] = "Norway"
    path = write(tmp_path / "c.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + '{"uri": 5}\n')
    found: list[InvalidValue] = []
    table = read(path, on_problem=found.append)
    assert sorted((p.row, p.column) for p in found) == [
        (11, "valid_until"),
        (100, "country"),
        (101, "uri"),
        (101, "uri"),
    ]
    assert table.num_rows == 101
    assert table.column("valid_until")[10].as_py() is None


GIGABYTE = 1 << 30

IN_LITTLE_MEMORY = """
import os, resource, sys
from segmint.catalogs.source.readers import read_catalog
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage

now = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmData:"))
resource.setrlimit(resource.RLIMIT_DATA, (now + (512 << 20),) * 2)
for path in sys.argv[1:]:
    try:
        rows = sum(batch.num_rows for batch in read_catalog(Location(Storage(), path)))
        print(f"{rows} rows")
    except UsageError as error:
        print(str(error).replace("\\n", " "))
sys.stdout.flush()
os._exit(0)  # Arrow's threads may be unable to end in so little memory
"""


def read_in_little_memory(*paths: Path) -> list[str]:
    """Read catalogs in a process limited to half a gigabyte; return one line of output for each."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", IN_LITTLE_MEMORY, *map(str, paths)],
        env={**os.environ, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def gzip_bomb(path: Path, start: str, filling: bytes) -> Path:
    """A gzip file of a few megabytes that decompresses to `start` and a gigabyte of one letter."""
    piece = gzip.compress(filling * (16 << 20))
    path.write_bytes(gzip.compress(start.encode()) + piece * (GIGABYTE // (16 << 20)))
    assert path.stat().st_size < 10 << 20
    return path


def test_rows_of_a_gigabyte_are_refused_in_little_memory(tmp_path: Path) -> None:
    lines = read_in_little_memory(
        gzip_bomb(tmp_path / "line.jsonl.gz", '{"uri": "', b"a"),
        gzip_bomb(tmp_path / "spaces.jsonl.gz", '{"uri": "a", "license": "x"}\n', b" "),
        gzip_bomb(tmp_path / "header.csv.gz", "uri,license,", b"a"),
        gzip_bomb(tmp_path / "blank.csv.gz", "", b"\n"),
        gzip_bomb(tmp_path / "value.csv.gz", "uri,license\n", b"a"),
        gzip_bomb(tmp_path / "quote.csv.gz", 'uri,license\na,b\n"', b"a"),
    )
    for name, line in zip(("line", "spaces", "header", "blank", "value", "quote"), lines, strict=True):
        assert f"/{name}." in line
    for line in lines[:2]:
        assert "longer than 4,194,304 bytes" in line
    assert "the column 'uri' is missing" in lines[3]
    for line in (lines[2], *lines[4:]):
        assert "a row is longer than 4,194,304 bytes, or a quote is never closed" in line


def test_json_nested_a_million_times_is_an_error(tmp_path: Path) -> None:
    paths = []
    for number, opening in enumerate(("[", '{"a":')):
        deep = opening * (3_000_000 // len(opening))
        paths.append(write(tmp_path / f"first{number}.jsonl", f'{{"size": {deep}\n'))
        text = f'{{"uri": "a", "license": "x"}}\n{{"uri": "b", "size": {deep}\n'
        paths.append(write(tmp_path / f"later{number}.jsonl", text))
    lines = read_in_little_memory(*paths)
    for number in range(2):
        assert f"first{number}.jsonl, row 1 is not JSON" in lines[2 * number]
        assert f"later{number}.jsonl, row 2 is not JSON" in lines[2 * number + 1]


def test_a_parquet_catalog_that_repeats_a_megabyte_is_read_in_pieces(tmp_path: Path) -> None:
    rows, caption = 700, "a" * (1 << 20)
    text = pa.array([caption] * 10).dictionary_encode()
    column = pa.DictionaryArray.from_arrays(pa.array([0] * rows, pa.int32()), text.dictionary)
    plain = pa.array(["x"] * rows)
    pq.write_table(pa.table({"uri": plain, "license": plain, "caption": column}), tmp_path / "c.parquet")
    assert (tmp_path / "c.parquet").stat().st_size < 1 << 20
    assert read_in_little_memory(tmp_path / "c.parquet") == ["700 rows"]
