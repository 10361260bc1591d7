"""Photographs that builds don't read are copied once, whole, and resumably; every row stays in the new catalog."""

import hashlib
import json
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from segmint.catalogs.parquet import SOURCE
from segmint.catalogs.source.check import check
from segmint.catalogs.source.collect import CollectResult, collect
from segmint.catalogs.source.readers import read_catalog
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import split_member
from segmint.operators.prepare.read_image import ImageReader
from tests.support.builds import digests, write_catalog
from tests.support.https_server import HOST, Answer, HttpsServer, https_server
from tests.support.locations import location_of
from tests.support.tars import tar_of

PHOTOS = {f"/{number}.jpg": bytes([number]) * (1000 + number) for number in range(1, 13)}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HttpsServer]:
    with https_server(tmp_path_factory.mktemp("https")) as server:
        server.answers = {path: Answer(data) for path, data in PHOTOS.items()}
        server.answers["/opted-out.jpg"] = Answer(b"x", headers={"X-Robots-Tag": "noai"})
        yield server


def rows_of(folder: Location) -> list[dict[str, Any]]:
    return pa.Table.from_batches(list(read_catalog(Location(folder.storage, f"{folder}/"))), schema=SOURCE).to_pylist()


def image_of(folder: Location, row: dict[str, Any]) -> bytes:
    """Read an image as a build does."""
    return ImageReader(folder.storage, f"{folder}/", 1 << 20).read(row)


@pytest.fixture
def urls(server: HttpsServer, tmp_path: Path) -> Location:
    rows = [{"uri": server.url(path), "license": "CC0-1.0"} for path in PHOTOS]
    rows[1] |= {"image_id": "two", "source_url": "https://photos.example/page", "sha256": "0" * 64}
    rows[2] |= {"image_id": "three", "sha256": hashlib.sha256(PHOTOS["/3.jpg"]).hexdigest().upper()}
    rows[3] |= {"uri": server.url("/absent.jpg")}
    rows[4] |= {"uri": server.url("/opted-out.jpg")}
    rows[5] |= {"opt_out": True}
    rows[6] |= {"refused_reason": "unfit"}
    rows[7] |= {"uri": "s3://bucket/8.jpg"}
    return location_of(write_catalog(tmp_path / "urls.jsonl", rows))


def test_urls_are_copied_into_tars_and_every_row_stays(
    urls: Location, server: HttpsServer, s3_bucket: str, s3_options: dict[str, Any]
) -> None:
    server.requests.clear()
    output = Location(Storage(s3_options), f"s3://{s3_bucket}/originals")
    done = collect(urls, output, server.downloader(), tar_bytes=4000)
    assert (done.rows, done.copied, done.before) == (12, 6, 0)
    assert done.failed == {
        "another SHA-256 than the row's": 1,
        "status 404": 1,
        "its server opts out": 1,
        "rejected by the catalog": 2,
        "not an https URL": 1,
    }
    assert server.requests["/6.jpg"] == server.requests["/7.jpg"] == 0
    names = [entry.name for entry in output.list()]
    tars = names[::2]
    assert all(re.fullmatch(rf"000{number}-[0-9a-f]{{12}}\.tar", tar) for number, tar in enumerate(tars, 1))
    assert names[1::2] == ["0001.parquet", "0002.parquet"]

    rows = rows_of(output)
    first = server.url("/1.jpg")
    assert (rows[0]["uri"], rows[0]["image_id"], rows[0]["source_url"]) == (f"{tars[0]}#512+1001", first, first)
    assert (rows[1]["image_id"], rows[1]["source_url"]) == ("two", "https://photos.example/page")
    assert [row["download_url"] for row in rows[:3]] == [None, server.url("/2.jpg"), None]
    assert [row["opt_out"] for row in rows[3:7]] == [None, True, True, None]
    assert [row["uri"] for row in rows[3:8]] == [
        server.url("/absent.jpg"),
        server.url("/opted-out.jpg"),
        server.url("/6.jpg"),
        server.url("/7.jpg"),
        "s3://bucket/8.jpg",
    ]
    copied = [row for row in rows if split_member(row["uri"])]
    assert [image_of(output, row) for row in copied] == [PHOTOS[f"/{n}.jpg"] for n in (1, 3, 9, 10, 11, 12)]
    assert all(row["sha256"] == hashlib.sha256(image_of(output, row)).hexdigest() for row in copied)
    found = check(Location(output.storage, f"{output}/"))
    assert (found.rows, found.refused_uris.rows, found.bad_values.count) == (12, [2, 4, 5, 6, 7], 0)


class Stopped(Exception):
    pass


def test_a_run_that_is_stopped_resumes_after_its_last_tar_with_the_same_bytes(
    urls: Location, server: HttpsServer, tmp_path: Path
) -> None:
    whole, halves = location_of(tmp_path / "whole"), location_of(tmp_path / "halves")
    told: list[str] = []
    collect(urls, whole, server.downloader(), tar_bytes=4000, tell=told.append)
    (first,) = (tmp_path / "whole").glob("0001-*")
    assert told[0] == f"{first}: 9 rows"

    def stop(line: str) -> None:
        raise Stopped

    with pytest.raises(Stopped):
        collect(urls, halves, server.downloader(), tar_bytes=4000, tell=stop)
    left = (tmp_path / "halves" / first.name).read_bytes()
    for number in ("0001", "0002"):  # as runs that are killed before they delete the tar, or write its rows
        (tmp_path / "halves" / f"{number}-{'0' * 12}.tar").write_bytes(left)
    assert len(rows_of(halves)) == 9
    server.requests.clear()
    done = collect(urls, halves, server.downloader(), tar_bytes=4000)
    assert (done.before, done.rows, done.copied) == (9, 3, 3)
    assert server.requests == {"/10.jpg": 1, "/11.jpg": 1, "/12.jpg": 1}
    assert digests(tmp_path / "halves") == digests(tmp_path / "whole")
    assert collect(urls, halves, server.downloader()).rows == 0
    assert digests(tmp_path / "halves") == digests(tmp_path / "whole")


def no_address(host: str, port: int) -> list[str]:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_a_run_stops_if_no_server_responds(server: HttpsServer, tmp_path: Path) -> None:
    rows = [{"uri": f"https://{number}.example/a.jpg", "license": "CC0-1.0"} for number in range(60)]
    catalog, output = location_of(write_catalog(tmp_path / "urls.jsonl", rows)), location_of(tmp_path / "out")
    with pytest.raises(UnfinishedError, match=r"no server responds, .* failed with: its host has no address\. Check"):
        collect(catalog, output, server.downloader(resolve_host=no_address))
    assert not (tmp_path / "out").exists()
    catalog = location_of(write_catalog(tmp_path / "few.jsonl", rows[:3]))
    few = collect(catalog, output, server.downloader(resolve_host=no_address))
    assert (few.rows, few.left, few.failed) == (3, 3, {"its host has no address": 3})
    assert not (tmp_path / "out").exists()


def test_rows_of_a_dead_host_wait_for_another_run_and_others_are_copied(server: HttpsServer, tmp_path: Path) -> None:
    rows = [{"uri": server.url("/3.jpg", f"dead.{HOST}"), "image_id": str(each)} for each in range(1, 61)]
    rows[30] |= {"uri": server.url("/absent.jpg")}
    rows += [{"uri": server.url(path)} for path in ("/1.jpg", "/2.jpg")]
    rows = [row | {"license": "CC0-1.0"} for row in rows]
    catalog, output = location_of(write_catalog(tmp_path / "urls.jsonl", rows)), location_of(tmp_path / "out")

    def resolve(host: str, port: int) -> list[str]:
        return no_address(host, port) if host.startswith("dead") else ["127.0.0.1"]

    server.requests.clear()
    for before, copied in ((0, 2), (3, 0)):  # the second run tries the dead host again
        done = collect(catalog, output, server.downloader(resolve_host=resolve, per_host=1), tar_bytes=4000)
        assert (done.before, done.copied, done.left) == (before, copied, 59)
        assert done.failed["its host has no address"] == 20
        assert done.failed["not tried, because other downloads from its host failed"] == 39
    assert server.requests == {"/absent.jpg": 1, "/1.jpg": 1, "/2.jpg": 1}
    assert [split_member(row["uri"]) is None for row in rows_of(output)] == [True, False, False]

    done = collect(catalog, output, server.downloader(), tar_bytes=4000)
    assert (done.before, done.copied, done.left) == (3, 59, 0)
    copied_ids = [row["image_id"] for row in rows_of(output)[3:]]
    assert copied_ids == [str(each) for each in range(1, 61) if each != 31]
    before = digests(tmp_path / "out")
    assert collect(catalog, output, server.downloader()).rows == 0
    assert digests(tmp_path / "out") == before


@pytest.fixture
def bytes_catalog(tmp_path: Path) -> Path:
    folder = tmp_path / "rows"
    folder.mkdir()
    for name, numbers in (("a", range(1, 8)), ("b", range(8, 13))):
        rows: list[dict[str, Any]] = [
            {
                "uri": f"{number}.jpg",
                "license": "CC0-1.0",
                "image": {"bytes": PHOTOS[f"/{number}.jpg"], "path": "x"},
                "list": [b"1"],
            }
            for number in numbers
        ]
        if name == "b":
            rows[0]["image"], rows[1]["image"]["bytes"] = None, b""
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet", row_group_size=3)
    return folder


def test_bytes_in_parquet_are_copied(bytes_catalog: Path, server: HttpsServer, tmp_path: Path) -> None:
    source, output = location_of(f"{bytes_catalog}/"), location_of(tmp_path / "out")
    done = collect(source, output, server.downloader(), "image.bytes", tar_bytes=7000)
    assert (done.rows, done.copied, done.failed) == (12, 10, {"no bytes in image.bytes": 2})
    rows = rows_of(output)
    assert [row["image_id"] for row in rows] == [f"{number}.jpg" for number in range(1, 13)]
    expected = [PHOTOS[f"/{number}.jpg"] for number in range(1, 13)]
    expected[7:9] = [b"", b""]  # a build rejects them as empty
    assert [image_of(output, row) for row in rows] == expected
    assert {row["source_url"] for row in rows} == {None}

    # Resumed in the middle of a file, and of a row group.
    for path in (tmp_path / "out").glob("000[2-9]*"):
        path.unlink()
    kept = len(rows_of(output))
    assert 0 < kept < 7
    before = [row["uri"] for row in rows]
    again = collect(source, output, server.downloader(), "image.bytes", tar_bytes=7000)
    assert (again.before, again.rows) == (kept, 12 - kept)
    assert [row["uri"] for row in rows_of(output)] == before


def test_prompts_of_the_rows_are_kept_and_an_unrelated_column_is_refused(
    bytes_catalog: Path, server: HttpsServer, tmp_path: Path
) -> None:
    path, output = bytes_catalog / "a.parquet", location_of(tmp_path / "out")
    (bytes_catalog / "b.parquet").unlink()
    table = pq.read_table(path)
    box = {"box": [1.0, 2.0, 3.0, 4.0], "points": None, "point_labels": None, "label": "cat", "score": None}
    prompts = {"width": 64.0, "height": 48.0, "prompts": [box]}
    pq.write_table(table.append_column("prompts", [[json.dumps(prompts), *[None] * 5, ""]]), path)
    source = location_of(f"{bytes_catalog}/")
    collect(source, output, server.downloader(), "image.bytes", tar_bytes=7000)
    assert [row["prompts"] for row in rows_of(output)] == [prompts, *[None] * 6]

    pq.write_table(table.append_column("prompts", [["a cat", *[None] * 6]]), path)
    with pytest.raises(UsageError, match=r"row 1, column prompts: .*; expected JSON of an object with width"):
        collect(source, location_of(tmp_path / "other"), server.downloader(), "image.bytes")
    assert not (tmp_path / "other").exists()


def test_what_does_not_fit_is_refused_before_anything_is_written(
    bytes_catalog: Path, urls: Location, server: HttpsServer, tmp_path: Path
) -> None:
    load = server.downloader()
    rows, output = location_of(f"{bytes_catalog}/"), location_of(tmp_path / "out")
    for catalog, folder, column, said in (
        (rows, output, "image.path2", r"the binary column 'image\.path2' is missing; it has: .*image\.bytes"),
        (rows, output, "image.path", r"the binary column 'image\.path' is missing"),  # text
        (rows, output, "image", r"the binary column 'image' is missing"),
        (rows, output, "list.list.element", r"the binary column 'list\.list\.element' is missing"),
        (urls, output, "image.bytes", "has no binary columns; expected Parquet"),
        (urls, location_of(tmp_path), None, "are in each other's folder"),
        (rows, location_of(bytes_catalog / "out"), "image.bytes", "are in each other's folder"),
        (rows, output, None, r"row 1, column uri: found '1\.jpg'; expected an https URL"),
        (location_of(tmp_path / "absent.csv"), output, None, "does not exist"),
    ):
        with pytest.raises(UsageError, match=said):
            collect(catalog, folder, load, column)
        assert not (tmp_path / "out").exists()


def test_a_folder_of_another_collection_is_left_alone(
    bytes_catalog: Path, urls: Location, server: HttpsServer, tmp_path: Path
) -> None:
    rows, output = location_of(f"{bytes_catalog}/"), location_of(tmp_path / "out")
    collect(rows, output, server.downloader(), "image.bytes", tar_bytes=5000)
    before = digests(tmp_path / "out")
    with pytest.raises(UsageError, match="is of another catalog or column, or the catalog changed"):
        collect(urls, output, server.downloader())
    (bytes_catalog / "c.parquet").write_bytes((bytes_catalog / "b.parquet").read_bytes())
    with pytest.raises(UsageError, match="is of another catalog or column, or the catalog changed"):
        collect(rows, output, server.downloader(), "image.bytes")
    (bytes_catalog / "c.parquet").unlink()
    assert digests(tmp_path / "out") == before
    (tmp_path / "out" / "0001.parquet").rename(tmp_path / "0001.parquet")
    with pytest.raises(UsageError, match=r"0002-[0-9a-f]+\.tar isn't the next file of a collection"):
        collect(rows, output, server.downloader(), "image.bytes")


def test_a_tar_of_somebody_else_is_left_alone(bytes_catalog: Path, server: HttpsServer, tmp_path: Path) -> None:
    """Such as those of a WebDataset."""
    for name in ("0001.tar", "0001-0123456789ab.tar", "0002-0123456789ab.tar"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_bytes(tar_of({"000000.jpg": b"x"}))
        before = digests(tmp_path / name)
        with pytest.raises(UsageError, match=rf"{name}/{name} isn't the next file of a collection"):
            collect(location_of(f"{bytes_catalog}/"), location_of(tmp_path / name), server.downloader(), "image.bytes")
        assert digests(tmp_path / name) == before


def test_a_run_stops_if_the_catalog_changes(bytes_catalog: Path, server: HttpsServer, tmp_path: Path) -> None:
    """Else, later rows would be those of another catalog, and the folder's files would say the first one's version."""

    def change(line: str) -> None:
        table = pq.read_table(bytes_catalog / "a.parquet")
        pq.write_table(table.slice(1), bytes_catalog / "b.parquet")

    output = location_of(tmp_path / "out")
    with pytest.raises(UsageError, match="changed while it was read"):
        collect(location_of(f"{bytes_catalog}/"), output, server.downloader(), "image.bytes", tar_bytes=1, tell=change)
    assert [row["image_id"] for row in rows_of(output)] == ["1.jpg"]


def test_a_second_run_at_once_leaves_the_tars_of_the_first_one(
    bytes_catalog: Path, server: HttpsServer, tmp_path: Path
) -> None:
    """Both write the same tars, but downloads may fail in one run only, so that the other's places aren't its own."""
    source, output = location_of(f"{bytes_catalog}/"), location_of(tmp_path / "out")
    tars: list[bytes] = []

    def other(line: str) -> None:
        if not tars:
            collect(source, output, server.downloader(), "image.bytes", tar_bytes=5000)
            (second,) = (tmp_path / "out").glob("0002-*")
            tars.append(second.read_bytes())
            second.write_bytes(tars[0] + b"\0")  # to notice another write

    with pytest.raises(UsageError, match="another run writes to"):
        collect(source, output, server.downloader(), "image.bytes", tar_bytes=5000, tell=other)
    (second,) = (tmp_path / "out").glob("0002-*")
    assert second.read_bytes() == tars[0] + b"\0"


def test_of_two_runs_at_once_one_adds_its_tar(
    urls: Location, server: HttpsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other run ends, although its tar has other places: it was uploaded before the rows were written."""
    output, put_file = location_of(tmp_path / "out"), Location.put_file

    def slowly(tar: Location, path: Path) -> None:
        monkeypatch.setattr(Location, "put_file", put_file)
        collect(urls, output, server.downloader(), tar_bytes=2000)
        put_file(tar, path)

    monkeypatch.setattr(Location, "put_file", slowly)
    with pytest.raises(UsageError, match="another run writes to"):
        collect(urls, output, server.downloader(), tar_bytes=4000)
    copied = [row for row in rows_of(output) if split_member(row["uri"])]
    assert [image_of(output, row) for row in copied] == [PHOTOS[f"/{n}.jpg"] for n in (1, 3, 9, 10, 11, 12)]
    assert len(list((tmp_path / "out").glob("*.tar"))) == len(list((tmp_path / "out").glob("*.parquet")))


def test_the_result_as_text() -> None:
    done = CollectResult("s3://b/originals", 5, rows=10, copied=8, copied_bytes=3000)
    done.failed.update({"status 404": 2})
    assert done.lines() == [
        "s3://b/originals: copied 8 photographs of 10 rows, 3 kB; 5 rows completed before",
        "  not copied:        2  status 404",
        "the tars contain originals, not redacted: restrict who can read s3://b/originals",
    ]
