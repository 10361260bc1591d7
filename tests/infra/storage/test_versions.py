"""One version of an object is read from its start to its end, or the read fails: in S3, in fsspec stores, locally."""

import gzip
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.source import readers
from segmint.catalogs.source.readers import read_catalog
from segmint.catalogs.source.sampling import WholeCatalog
from segmint.infra.storage import storage as storage_module
from segmint.infra.storage.connections import FsspecStore
from segmint.infra.storage.errors import ObjectChangedError, StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.storage.retry import RetryPolicy
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import NO_TIME, ObjectVersion, check_version
from tests.support.tiny_s3 import Answer, Request, TinyS3, tiny_s3

QUICK = RetryPolicy(attempts=3, first_wait_s=0.01, max_wait_s=0.02, deadline_s=10)
OLD, NEW = b"a" * 5000, b"b" * 5000
URI = "s3://acme/c"


@pytest.fixture(scope="module")
def server() -> Iterator[TinyS3]:
    with tiny_s3() as server:
        yield server


@pytest.fixture
def s3(server: TinyS3) -> TinyS3:
    """The server with one object, `OLD`. All tests share it, and its client."""
    server.reset()
    server.objects["c"] = OLD
    return server


@pytest.fixture(autouse=True)
def short_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "READ_AHEAD", 1000)


def in_pieces(stream: BinaryIO) -> bytes:
    """Read a stream to its end, a buffer at a time."""
    return b"".join(iter(lambda: stream.read(1000), b""))


def replace_after(server: TinyS3, ranges: int, new: bytes) -> None:
    """Replace the object once so many of its ranges were sent, whose number is the policy's to count."""
    usual = server.policy
    left = ranges

    def policy(request: Request, answer: Answer) -> Answer:
        nonlocal left
        if "range" in request.headers:
            left -= 1
            if left == 0:
                server.objects[request.key] = new
        return usual(request, answer)

    server.policy = policy


def without(*names: str, weak: bool = False) -> Callable[[Request, Answer], Answer]:
    """A policy of a store that leaves out headers, or whose ETags are weak."""

    def policy(request: Request, answer: Answer) -> Answer:
        for name in names:
            answer.headers.pop(name, None)
        if weak and "ETag" in answer.headers:
            answer.headers["ETag"] = f"W/{answer.headers['ETag']}"
        return answer

    return policy


@pytest.mark.parametrize(
    "new", [NEW, NEW[:-1], NEW + b"b", NEW[:1500], b""], ids=["same size", "-1", "+1", "short", "0"]
)
@pytest.mark.parametrize("ranges", [1, 3])
def test_an_object_that_is_replaced_while_it_is_read_is_not_read(s3: TinyS3, new: bytes, ranges: int) -> None:
    replace_after(s3, ranges, new)
    with Storage(s3.options, QUICK).open(URI) as stream:
        changed = pytest.raises(ObjectChangedError, match=r"s3://acme/c: it was changed while it was read\. Run")
        with changed:
            in_pieces(stream)
    assert len([request for request in s3.requests if "range" in request.headers]) == ranges + 1, "no second attempt"


def test_another_range_of_the_same_length_is_not_read(s3: TinyS3) -> None:
    def policy(request: Request, answer: Answer) -> Answer:
        if request.headers.get("range", "").startswith("bytes=2000-"):
            answer.body, answer.headers["Content-Range"] = OLD[:1000], "bytes 0-999/5000"
        return answer

    s3.policy = policy
    with (
        Storage(s3.options, QUICK).open(URI) as stream,
        pytest.raises(StorageFaultError, match="received bytes 0-999, but requested other bytes"),
    ):
        in_pieces(stream)


@pytest.mark.parametrize("ranges", [True, False])
def test_each_request_after_the_first_names_the_version(s3: TinyS3, ranges: bool) -> None:
    storage, etag = Storage(s3.options, QUICK), f'"{hashlib.md5(OLD).hexdigest()}"'
    with storage.open_ranges(URI, len(OLD)) if ranges else storage.open(URI) as stream:
        assert stream.read(1000) + stream.read(1000) == OLD[:2000]
    asked = [request.headers.get("if-match") for request in s3.requests]
    assert asked[0] is None
    assert set(asked[1:]) == {etag}


def test_a_known_size_does_not_untie_the_ranges(s3: TinyS3, tmp_path: Path) -> None:
    storage = Storage(s3.options, QUICK)
    with storage.open_ranges(URI, len(OLD)) as stream:
        assert stream.read(10) == OLD[:10]
        s3.objects["c"] = NEW
        with pytest.raises(ObjectChangedError):
            stream.read(10)
    with storage.open_ranges(URI, len(OLD)) as stream:
        assert stream.read(10) == NEW[:10]


def test_a_copy_and_a_hash_are_of_one_version(s3: TinyS3, tmp_path: Path) -> None:
    storage = Storage(s3.options, QUICK)
    for use in (lambda: storage.get_file(URI, tmp_path / "copy"), lambda: storage.sha256(URI)):
        s3.objects["c"] = OLD * 1000
        replace_after(s3, 1, NEW * 1000)
        with pytest.raises(ObjectChangedError):
            use()
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_ignores_conditions_is_watched_by_its_answers(s3: TinyS3) -> None:
    def policy(request: Request, answer: Answer) -> Answer:
        if answer.status != 412:
            return answer
        return s3.usual(request._replace(headers={"range": request.headers["range"]}), b"")

    s3.policy = policy
    replace_after(s3, 2, NEW)
    with Storage(s3.options, QUICK).open(URI) as stream, pytest.raises(ObjectChangedError):
        in_pieces(stream)


def test_a_store_that_ignores_ranges_is_named(s3: TinyS3) -> None:
    s3.policy = lambda request, answer: s3.usual(request._replace(headers={}), b"")
    for size in (None, len(OLD)):
        ignored = pytest.raises(
            StorageFaultError, match="cannot read s3://acme/c: the store ignored the requested range"
        )
        with Storage(s3.options, QUICK).open_ranges(URI, size) as stream, ignored:
            stream.read(10)
        assert len([request for request in s3.requests if "range" in request.headers]) == 1, "no second attempt"
        s3.requests.clear()
    with Storage(s3.options, QUICK).open_ranges(URI) as stream:
        assert stream.read(5000) == OLD


@pytest.mark.parametrize("ignores_conditions", [True, False])
def test_an_etag_that_differs_in_each_response_is_named(s3: TinyS3, ignores_conditions: bool) -> None:
    numbers = itertools.count()

    def policy(request: Request, answer: Answer) -> Answer:
        if ignores_conditions and answer.status == 412:
            answer = s3.usual(request._replace(headers={"range": request.headers["range"]}), b"")
        answer.headers["ETag"] = f'"{next(numbers)}"'
        return answer

    s3.policy = policy
    seen = "If nothing changed it, its store or file system sent another ETag"
    with Storage(s3.options, QUICK).open(URI) as stream, pytest.raises(ObjectChangedError, match=seen):
        in_pieces(stream)


@pytest.mark.parametrize("headers", [("ETag",), ("ETag", "Last-Modified"), ()], ids=["time", "nothing", "weak"])
def test_stores_without_etags_stay_readable(s3: TinyS3, headers: tuple[str, ...]) -> None:
    s3.policy = without(*headers, weak=not headers)
    with Storage(s3.options, QUICK).open(URI) as stream:
        assert in_pieces(stream) == OLD
    assert all("if-match" not in request.headers for request in s3.requests)


def test_without_etags_the_time_or_the_size_tells_a_change(s3: TinyS3) -> None:
    s3.policy = without("ETag", "Last-Modified")
    replace_after(s3, 2, NEW + b"b")
    with Storage(s3.options, QUICK).open(URI) as stream, pytest.raises(ObjectChangedError):
        in_pieces(stream)
    s3.objects["c"] = OLD

    def policy(request: Request, answer: Answer) -> Answer:
        answer.headers.pop("ETag", None)
        if s3.objects["c"] == NEW:
            answer.headers["Last-Modified"] = "Tue, 03 Feb 2026 04:05:07 GMT"
        return answer

    s3.policy = policy
    replace_after(s3, 2, NEW)
    with Storage(s3.options, QUICK).open(URI) as stream, pytest.raises(ObjectChangedError):
        in_pieces(stream)


def test_what_responses_share_is_compared() -> None:
    first = ObjectVersion(10, '"a"', None)
    assert check_version("x", first, ObjectVersion()) == first
    assert check_version("x", ObjectVersion(), first) == first
    assert check_version("x", first, ObjectVersion(None, 'W/"a"', "noon")) == ObjectVersion(10, '"a"', "noon")
    assert check_version("x", ObjectVersion(10, '"a"', "noon"), ObjectVersion(10, '"a"', "one")).etag == '"a"'
    for now in (ObjectVersion(11, '"a"'), ObjectVersion(10, '"b"'), ObjectVersion(etag='W/"b"')):
        with pytest.raises(ObjectChangedError):
            check_version("x", first, now)


def edit(path: Path, data: bytes) -> None:
    """Write into a file as an editor does, at another time than it was written before."""
    before = path.stat().st_mtime_ns
    path.write_bytes(data)
    os.utime(path, ns=(before + 10**9, before + 10**9))


@pytest.mark.parametrize("new", [NEW * 100, NEW, b""], ids=["same size", "shorter", "empty"])
def test_a_local_file_that_is_edited_while_it_is_read_is_not_read(tmp_path: Path, new: bytes) -> None:
    path = tmp_path / "c"
    for read in (lambda stream: stream.read(), in_pieces):
        edit(path, OLD * 100) if path.exists() else path.write_bytes(OLD * 100)
        with Storage().open(str(path)) as stream:
            assert stream.read(1000) == OLD[:1000]
            edit(path, new)
            with pytest.raises(ObjectChangedError, match="it was changed while it was read"):
                read(stream)


def test_a_local_file_that_is_replaced_is_read_to_its_end(tmp_path: Path) -> None:
    path = tmp_path / "c"
    path.write_bytes(OLD * 100)
    with Storage().open(str(path)) as stream:
        assert stream.read(10) == OLD[:10]
        Storage().put(str(path), NEW)
        assert stream.read() == (OLD * 100)[10:]
    assert Storage().read(str(path)) == NEW


def test_a_local_read_that_meets_an_edit_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c"
    path.write_bytes(OLD)
    edits = [NEW]

    def edited(uri: str, size: int, max_bytes: int | None) -> None:
        if edits:
            edit(path, edits.pop())

    monkeypatch.setattr("segmint.infra.storage.stores.check_size", edited)
    assert Storage(retry=QUICK).read(str(path)) == NEW


def test_fsspec_stores_are_asked_for_the_version_after_each_read(monkeypatch: pytest.MonkeyPatch) -> None:
    filesystem = fsspec.filesystem("memory", skip_instance_cache=True)
    filesystem.store.clear()
    store, storage, uri = FsspecStore(filesystem), Storage(), "gs://acme/c"
    monkeypatch.setattr(storage_module, "connect", lambda *_: store)
    store.put(uri, OLD)
    with storage.open_ranges(uri) as watched, storage.open_ranges(uri, len(OLD)) as unwatched:
        assert watched.read(10) == unwatched.read(10) == OLD[:10]
        store.put(uri, NEW)
        assert unwatched.read(10) == NEW[10:20]
        with pytest.raises(ObjectChangedError):
            watched.read(10)
    infos: list[dict[str, Any]] = [{"size": 5000, "type": "file", "generation": 1, "etag": "x"}]
    filesystem.info = lambda path: infos[-1]
    assert store.version(uri) == ObjectVersion(5000, "1", NO_TIME)
    with storage.open_ranges(uri) as watched:
        infos.append(infos[0] | {"generation": 2})
        with pytest.raises(ObjectChangedError):
            watched.read(10)


def rows(license: str, name: str) -> list[dict[str, str]]:
    return [{"uri": f"{name}{number:04}.jpg", "license": license, "extra": name} for number in range(300)]


def as_csv(license: str, name: str) -> bytes:
    lines = ["uri,license,extra" if name == "old" else "license,uri,extra"]
    for row in rows(license, name):
        columns = lines[0].split(",")
        lines.append(",".join(row[column] for column in columns))
    return "\n".join(lines).encode()


def as_parquet(license: str, name: str) -> bytes:
    stream = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows(license, name)), stream, row_group_size=30)
    return stream.getvalue().to_pybytes()


def as_json(license: str, name: str) -> bytes:
    return b"".join(
        f'{{"uri":"{row["uri"]}","license":"{license}","extra":"{name}"}}\n'.encode() for row in rows(license, name)
    )


FORMATS: dict[str, Callable[[str, str], bytes]] = {
    "c.csv": as_csv,
    "c.csv.gz": lambda license, name: gzip.compress(as_csv(license, name), 1),
    "c.jsonl": as_json,
    "c.jsonl.gz": lambda license, name: gzip.compress(as_json(license, name), 1),
    "c.parquet": as_parquet,
}


@pytest.mark.parametrize("name", FORMATS)
def test_no_catalog_mixes_two_versions(s3: TinyS3, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage_module, "READ_AHEAD", 400)
    monkeypatch.setattr(readers, "BLOCK_BYTES", 400)
    old, new = FORMATS[name]("CC0-1.0", "old"), FORMATS[name]("CC-BY-4.0", "new")
    catalog = Location(Storage(s3.options, QUICK), f"s3://acme/{name}")
    s3.objects[name] = old
    s3.requests.clear()
    expected = pa.Table.from_batches(read_catalog(catalog))
    assert expected["license"].unique().to_pylist() == ["CC0-1.0"]
    ranges = len([request for request in s3.requests if "range" in request.headers])
    for number in sorted({1, 2, ranges // 2} & set(range(1, ranges))):
        s3.objects[name], s3.policy = old, lambda request, answer: answer
        replace_after(s3, number, new)
        with pytest.raises(ObjectChangedError):
            list(read_catalog(catalog))
    s3.policy = lambda request, answer: answer
    assert pa.Table.from_batches(read_catalog(catalog))["license"].unique().to_pylist() == ["CC-BY-4.0"]


@pytest.mark.parametrize("name", ["c.csv", "c.jsonl", "c.parquet"])
def test_a_whole_catalog_is_of_one_version_although_it_is_opened_twice(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FORMATS[name]("CC0-1.0", "old"))
    whole = WholeCatalog(Location(Storage(), str(path)))
    assert sum(batch.num_rows for batch in whole.batches()) == 300
    batches = whole.batches()
    next(batches)
    (tmp_path / "new").write_bytes(FORMATS[name]("CC-BY-4.0", "old"))
    (tmp_path / "new").replace(path)
    with pytest.raises(ObjectChangedError):
        list(batches)


def test_a_block_notices_that_its_object_changed(s3: TinyS3) -> None:
    location = Location(Storage(s3.options, QUICK), URI)
    with location.unchanged():
        assert location.read() == OLD
    with pytest.raises(ObjectChangedError), location.unchanged():
        s3.objects["c"] = NEW
    with pytest.raises(ZeroDivisionError), location.unchanged():
        raise ZeroDivisionError


def test_an_object_without_a_size_is_a_fault(s3: TinyS3) -> None:
    s3.policy = lambda request, answer: Answer(200, answer.body, answer.headers, length=None)
    with pytest.raises(StorageFaultError, match="doesn't say how many bytes it has"):
        Storage(s3.options, QUICK).open(URI)
