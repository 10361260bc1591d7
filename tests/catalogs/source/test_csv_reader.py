"""CSV catalogs: limits on headers, and background threads after the reader is closed."""

import gzip
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest

from segmint.catalogs.source.csv_reader import csv_batches, read_csv
from segmint.infra.errors import UsageError
from tests.support.locations import location_of


def read(path: Path) -> pa.Table:
    return pa.Table.from_batches(list(read_csv(location_of(path))))


def test_endless_columns_are_refused(tmp_path: Path) -> None:
    for count in (9_998, 9_999):
        names = [f"c{index}" for index in range(count)]
        path = tmp_path / "c.csv"
        path.write_text(",".join(["uri", "license", *names]) + "\na,b" + "," * count + "\n")
        if count == 9_998:
            assert read(path).num_rows == 1
    with pytest.raises(UsageError, match="the header has 10,001 columns; expected at most 10,000"):
        read(path)


ROWS = "uri,license\n" + "a.jpg,CC0-1.0\n" * 2_000_000


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
        (ROWS, stop_after_a_batch),
        (ROWS, list),
        (ROWS.replace("a", '"', 3), read_to_the_error),
        (ROWS.replace("a.jpg", "a.jpg,b", 1), read_to_the_error),
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
