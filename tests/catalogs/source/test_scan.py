"""Catalogs made from a folder or a prefix of images."""

import gzip
import hashlib
import io
import json
import os
import tarfile
import threading
from collections.abc import Iterator
from datetime import date
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote

import pytest

from segmint.catalogs.source.readers import read_catalog
from segmint.catalogs.source.scan import check_relative, relative_rows, scan, write_catalog
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import relative_to
from tests.support.locations import location_of
from tests.support.tars import member_uris, tar_of


def make(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def test_every_image_gets_a_row_in_order(tmp_path: Path) -> None:
    make(
        tmp_path,
        {"b.JPG": "", "a/z.png": "", "a/notes.txt": "", "a.webp": "", "catalog.jsonl": "", "sub/deep/c.tiff": ""},
    )
    rows = list(scan(location_of(tmp_path), license="cc0-1.0", provider="acme"))
    assert [row["image_id"] for row in rows] == ["a.webp", "a/z.png", "b.JPG", "sub/deep/c.tiff"]
    assert rows[1] == {
        "uri": str(tmp_path / "a/z.png"), "image_id": "a/z.png", "license": "CC0-1.0", "provider": "acme",
    }  # fmt: skip


def test_sidecars_override_the_arguments(tmp_path: Path) -> None:
    everything: dict[str, Any] = {
        "license": "LicenseRef-acme",
        "attribution": "Ann",
        "redistributable": False,
        "valid_until": "2030-05-06",
        "country": "no",
        "uri": "elsewhere.jpg",
        "camera": {"iso": 100},
    }
    make(
        tmp_path,
        {
            "1.jpg": "",
            "1.jpg.json": json.dumps(everything),
            "2.jpg": "",
            "2.jpg.license": "SPDX-FileCopyrightText: 2020 Bo\n"
            "SPDX-FileCopyrightText: 2021 Cy\n\n"
            "SPDX-License-Identifier: CC-BY-4.0\n",
            "3.jpg": "",
            "3.jpg.license": "CC-BY-SA-4.0\n",
            # Names that a listing sorts between an image and its sidecar.
            "4.jpg": "",
            "4.jpg-copy.jpg": "",
            "4.jpg-copy.jpg.license": "MIT",
            "4.jpg.json": '{"attribution": "Di"}',
            "4.jpg.license": "CC-BY-2.0",
            "5.jpg": "",
            "5.json": '{"license": "MIT"}',
        },
    )
    rows = {row["image_id"]: row for row in scan(location_of(tmp_path), license="CC0-1.0")}
    assert list(rows) == ["1.jpg", "2.jpg", "3.jpg", "4.jpg", "4.jpg-copy.jpg", "5.jpg"]
    assert rows["1.jpg"] == {
        "uri": str(tmp_path / "1.jpg"),
        "image_id": "1.jpg",
        "license": "LicenseRef-acme",
        "attribution": "Ann",
        "redistributable": False,
        "valid_until": date(2030, 5, 6),
        "country": "NO",
    }
    assert (rows["2.jpg"]["license"], rows["2.jpg"]["attribution"]) == ("CC-BY-4.0", "2020 Bo; 2021 Cy")
    assert rows["3.jpg"]["license"] == "CC-BY-SA-4.0"
    assert (rows["4.jpg"]["license"], rows["4.jpg"]["attribution"]) == ("CC-BY-2.0", "Di")
    assert rows["4.jpg-copy.jpg"]["license"] == "MIT"
    assert rows["5.jpg"]["license"] == "MIT"


def test_a_json_file_named_like_a_photograph_is_its_sidecar(tmp_path: Path) -> None:
    """img2dataset writes `0.json` beside `0.jpg`; other tools write annotations there."""
    stated = {"license": "CC-BY-NC-4.0", "sha256": "0" * 64, "opt_out": True, "shapes": []}
    make(
        tmp_path,
        {
            "0.jpg": "",
            "0.json": json.dumps(stated),
            "0.jpg.json": '{"license": "MIT", "opt_out": false}',
            "1.json": json.dumps(stated),  # listed before its image
            "1.png": "",
            "2.jpg": "",
            "2.json": "[1]",
            "3.JPEG": "",
            "3.json": "no JSON",
            "4.jpg": "",
            "4.json": " " * (1 << 20) + '{"license": "CC-BY-4.0"}',
            "4.x.jpg": "",
            "5.json": "[1]",
        },
    )
    skipped: dict[str, str] = {}
    found = scan(location_of(tmp_path), license="CC0-1.0", on_skip=skipped.__setitem__)
    rows = {row["image_id"]: (row["license"], row.get("opt_out"), row.get("sha256")) for row in found}
    asserted = ("CC0-1.0", None, None)
    assert rows == {
        "0.jpg": ("MIT", True, None),
        "1.png": ("CC-BY-NC-4.0", True, None),
        "4.jpg": ("CC-BY-4.0", None, None),
        **dict.fromkeys(("2.jpg", "3.JPEG", "4.x.jpg"), asserted),
    }
    assert skipped == {}


def test_what_no_catalog_can_name_is_skipped_by_name(tmp_path: Path) -> None:
    make(tmp_path, {"a.jpg": "", "b%0A.jpg": "", "z.jpg": ""})
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "gone.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "more").symlink_to(tmp_path)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")).write_bytes(b"")
    (tmp_path / "line\nbreak.jpg").write_bytes(b"")
    (tmp_path / "line\nbreak.jpg.license").write_text("MIT")
    skipped: dict[str, str] = {}
    rows = list(scan(location_of(tmp_path), on_skip=skipped.__setitem__))
    assert [row["image_id"] for row in rows] == ["a.jpg", "z.jpg"]
    assert skipped.pop("loop.jpg") == "a circular link"
    assert skipped.pop("more") == "a link to a folder"
    assert skipped.pop("caf\udce9.jpg") == "its name is not UTF-8"
    assert skipped.keys() == {"b%0A.jpg", "line\nbreak.jpg", "line\nbreak.jpg.license"}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.jpg.json", "{", "a.jpg.json is not JSON"),
        ("a.jpg.json", "[]", "a.jpg.json: found [];"),
        ("a.jpg.json", '{"license": "CC-BY"}', "did you mean CC-BY-4.0"),
        ("a.jpg.json", '{"license": "CC0-1.0", "license": "CC-BY-4.0"}', "a column occurs twice"),
        ("a.jpg.json", '{"License": "CC0-1.0"}', "a.jpg.json: 'License' would be ignored"),
        ("a.jpg.json", '{"redistributable": "no"}', "a.jpg.json, key redistributable"),
        ("a.jpg.json", '{"valid_until": "tomorrow"}', "YYYY-MM-DD"),
        ("a.jpg.license", "All rights reserved", "a.jpg.license: 'All rights reserved' is not a license identifier"),
        (
            "a.jpg.license",
            "SPDX-License-Identifier: CC-BY-NC-4.0\nSPDX-License-Identifier: CC0-1.0",
            "a.jpg.license: 'CC-BY-NC-4.0 AND CC0-1.0' is not a license identifier",
        ),
        ("a.jpg.license", "SPDX-FileCopyrightText: 2020 Bo", "a.jpg.license has no license"),
        ("a.json", '{"license": "CC-BY"}', "did you mean CC-BY-4.0"),
    ],
)
def test_a_bad_sidecar_is_named(tmp_path: Path, name: str, text: str, says: str) -> None:
    make(tmp_path, {"a.jpg": "", name: text})
    with pytest.raises(UsageError) as caught:
        list(scan(location_of(tmp_path)))
    assert says in str(caught.value)


def test_a_sidecar_whose_name_has_another_case_is_reported(tmp_path: Path) -> None:
    make(tmp_path, {"b.JPG": "", "b.jpg.json": "{}", "c.jpg": "", "c.JPG.license": "CC0-1.0", "d.json": "{}"})
    skipped: dict[str, str] = {}
    rows = list(scan(location_of(tmp_path), "CC-BY-4.0", on_skip=skipped.__setitem__))
    assert [row["image_id"] for row in rows] == ["b.JPG", "c.jpg"]
    assert skipped == {
        "b.jpg.json": "no image is named exactly b.jpg",
        "c.JPG.license": "no image is named exactly c.JPG",
    }


def test_json_overrides_a_license_file_in_any_case(tmp_path: Path) -> None:
    make(tmp_path, {"a.jpg": "", "a.jpg.json": '{"license": "CC-BY-4.0"}', "a.jpg.LICENSE": "CC0-1.0"})
    make(tmp_path, {"b.jpg": "", "b.jpg.JSON": '{"license": "CC-BY-4.0"}', "b.jpg.license": "CC0-1.0"})
    assert [row["license"] for row in scan(location_of(tmp_path))] == ["CC-BY-4.0", "CC-BY-4.0"]


def test_an_empty_value_in_a_sidecar_does_not_take_back_a_license(tmp_path: Path) -> None:
    """Else, an image whose license is stated would get the license that a build asserts for those without one."""
    make(tmp_path, {"a.jpg": "", "a.jpg.license": "CC-BY-4.0", "a.jpg.json": '{"license": "", "sha256": ""}'})
    (tmp_path / "b.tar").write_bytes(tar_of({"b.jpg": b"", "b.json": license_of(" "), "b.jpg.json": license_of("")}))
    (tmp_path / "b.tar.license").write_text("CC-BY-3.0")
    rows, _ = scanned(tmp_path, license="CC0-1.0", attribution="Ann")
    assert [row["license"] for row in rows.values()] == ["CC-BY-4.0", "CC-BY-3.0"]
    (tmp_path / "a.jpg.license").unlink()
    assert scanned(tmp_path, license="CC0-1.0")[0]["a.jpg"]["license"] == "CC0-1.0"


def test_a_later_sidecar_of_the_same_name_does_not_take_back_an_opt_out(tmp_path: Path) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name, data in (("a.jpg", b""), ("a.json", b'{"opt_out": true}'), ("a.json", license_of("MIT"))):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    (tmp_path / "0.tar").write_bytes(stream.getvalue())
    rows, _ = scanned(tmp_path)
    assert rows["0.tar/a.jpg"].items() >= {"license": "MIT", "opt_out": True}.items()


def test_names_in_a_tar_are_compared_as_they_would_be_unpacked(tmp_path: Path) -> None:
    """Else, an image misses its sidecar, and an older image of the same name is listed, too."""
    files = {
        "/s//a.jpg": b"old",
        "s/./a.json": license_of("MIT"),
        "././s/b.jpg.license": b"CC-BY-4.0",
        "s/a.jpg": b"",
        ".//s/b.jpg": b"",
    }
    (tmp_path / "0.tar").write_bytes(tar_of(files))
    rows, skipped = scanned(tmp_path, license="CC0-1.0")
    assert [row["license"] for row in rows.values()] == ["MIT", "CC-BY-4.0"]
    assert list(rows) == ["0.tar/s/a.jpg", "0.tar/s/b.jpg"]
    assert list(skipped) == ["0.tar/s/a.jpg"]


def test_a_sidecar_that_leads_nowhere_is_refused(tmp_path: Path) -> None:
    """Else, its image would get the license that is given for images without a sidecar."""
    make(tmp_path, {"f/a.jpg": "", "MIT": "MIT"})
    (tmp_path / "f/0.tar").write_bytes(tar_of({"b.jpg": b""}))
    for place, name in (("f", "a.jpg.license"), ("f", "0.tar.JSON"), ("f/0.tar", "0.tar.license")):
        sidecar = tmp_path / "f" / name
        for target in ("gone", ".", name):
            sidecar.symlink_to(target)
            with pytest.raises(UsageError, match=f"{name} is a link to a folder or to nothing"):
                scanned(tmp_path / place, license="CC0-1.0")
            sidecar.unlink()
    (tmp_path / "f/note.json").symlink_to("gone")  # no image's
    (tmp_path / "f/a.jpg.license").symlink_to("../MIT")
    assert scanned(tmp_path / "f", license="CC0-1.0")[0]["a.jpg"]["license"] == "MIT"


def test_a_single_tar_has_the_sidecars_that_it_has_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(tar_of({"b.jpg": b""}))
    make(tmp_path, {"b.tar.LICENSE": "CC-BY-3.0", "b.tar.Json": '{"provider": "acme"}', "b.tar.x.json": "?"})
    rows, _ = scanned(tmp_path / "b.tar", license="CC0-1.0")
    assert rows == scanned(tmp_path)[0]
    assert rows["b.tar/b.jpg"].items() >= {"license": "CC-BY-3.0", "provider": "acme"}.items()


def test_an_invalid_license_is_refused_before_anything_is_read() -> None:
    with pytest.raises(UsageError, match="did you mean CC-BY-4"):
        next(scan(Location(Storage(), "/nowhere"), license="CC-BY"))


@pytest.mark.s3
def test_a_prefix_of_a_bucket(s3_bucket: str, s3_options: dict[str, dict[str, str]], tmp_path: Path) -> None:
    storage, base = Storage(s3_options), f"s3://{s3_bucket}/photos"
    for name in ("x/å 1.jpg", "x/2.jpg", "y.txt"):
        storage.put(f"{base}/{name}", b"")
    storage.put(f"{base}/x/2.jpg.json", b'{"license": "CC-BY-4.0"}')
    catalog = f"s3://{s3_bucket}/lists/catalog.parquet"
    assert write_catalog(scan(Location(storage, base), license="CC0-1.0"), Location(storage, catalog)) == 2
    (batch,) = read_catalog(Location(storage, catalog))
    assert batch.select(["uri", "license", "image_id"]).to_pylist() == [
        {"uri": f"{base}/x/2.jpg", "license": "CC-BY-4.0", "image_id": "x/2.jpg"},
        {"uri": f"{base}/x/å 1.jpg", "license": "CC0-1.0", "image_id": "x/å 1.jpg"},
    ]


class BucketOfKeys(BaseHTTPRequestHandler):
    """A bucket whose keys are any texts, as in Amazon S3. SeaweedFS stores keys as paths of a file system."""

    objects: ClassVar[dict[str, bytes]] = {}

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        key = unquote(path).removeprefix("/bkt").removeprefix("/")
        if "list-type" in query:
            prefix = parse_qs(query).get("prefix", [""])[0]
            entries = "".join(
                f"<Contents><Key>{key}</Key><Size>{len(data)}</Size><LastModified>2026-01-01T00:00:00Z</LastModified>"
                "</Contents>"
                for key, data in sorted(self.objects.items())
                if key.startswith(prefix)
            )
            body = f"<ListBucketResult><IsTruncated>false</IsTruncated>{entries}</ListBucketResult>".encode()
        else:
            body = self.objects.get(key, b"")
        self.send_response(200 if body else 404)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_every_key_of_a_bucket_gets_its_own_uri_license_and_credit(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = ["photos/./y.jpg", "photos//y.jpg", "photos/x/./y.jpg", "photos/x//y.jpg", "photos/x/y.jpg", "photos/y.jpg"]
    licenses = [f"LicenseRef-{number}" for number in range(len(keys))]
    objects = {key: license.encode() for key, license in zip(keys, licenses, strict=True)}
    objects |= {f"{key}.license": license for key, license in objects.items()}
    objects |= {f"{key}.json": json.dumps({"attribution": key}).encode() for key in keys}
    monkeypatch.setattr(BucketOfKeys, "objects", objects)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with ThreadingHTTPServer(("127.0.0.1", 0), BucketOfKeys) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        storage = Storage({"s3://bkt": {"endpoint_url": f"http://127.0.0.1:{server.server_port}"}})
        for folder in ("s3://bkt/photos", "s3://bkt/photos//"):
            rows = list(scan(Location(storage, folder)))
            assert [row["uri"] for row in rows] == [f"s3://bkt/{key}" for key in keys]
            assert [row["license"] for row in rows] == licenses
            assert [row["attribution"] for row in rows] == keys
        for catalog in (
            "s3://bkt/c.jsonl",
            "s3://bkt/photos/c.jsonl",
            "s3://bkt/photos//c.jsonl",
            "s3://bkt/x/c.jsonl",
        ):
            for row in relative_rows(iter(rows), Location(storage, catalog)):
                assert storage.read(relative_to(catalog, row["uri"])) == row["license"].encode()
        server.shutdown()


def listed(folder: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> Location:
    """A folder that lists its files in this order."""
    make(folder, {name: '{"license": "CC-BY-NC-4.0"}' if "json" in name else "" for name in names})
    found = {entry.name: entry for entry in location_of(folder).walk()}
    monkeypatch.setattr(Storage, "walk", lambda *arguments, **options: map(found.__getitem__, names))
    return location_of(folder)


@pytest.mark.parametrize(
    "names", [["b.jpg", "a.jpg", "a.jpg.json", "b.jpg.json"], ["a.jpg.json", "a.jpg"], ["b.jpg.json", "a.jpg", "b.jpg"]]
)
def test_a_sidecar_that_is_listed_away_from_its_image_is_refused(
    tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = listed(tmp_path, names, monkeypatch)
    with pytest.raises(UsageError, match=r"jpg\.json is not listed after its image"):
        list(scan(folder, license="CC0-1.0"))


@pytest.mark.parametrize("names", [["b/z.jpg", "b-1.jpg", "b-1.jpg.json"], ["b.jpg", "b.jpg.json", "a.jpg"]])
def test_other_orders_of_a_listing_are_fine(tmp_path: Path, names: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rows = {row["image_id"]: row["license"] for row in scan(listed(tmp_path, names, monkeypatch), license="CC0-1.0")}
    assert rows == {
        name: "CC-BY-NC-4.0" if f"{name}.json" in names else "CC0-1.0" for name in names if "json" not in name
    }


def test_a_catalog_that_is_put_while_another_is_written_stays(tmp_path: Path) -> None:
    file = tmp_path / "c.jsonl"

    def rows() -> Iterator[dict[str, Any]]:
        file.write_text("the other one\n")
        yield {"uri": "a.jpg"}

    with pytest.raises(UsageError, match="already exists"):
        write_catalog(rows(), location_of(file))
    assert file.read_text() == "the other one\n"


def test_a_compressed_catalog_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"remove \.gz"):
        write_catalog(iter([]), location_of(tmp_path / "c.csv.gz"))


def test_uris_are_relative_to_the_catalog_and_are_found_from_it(tmp_path: Path) -> None:
    make(tmp_path, {"photos/a b%25.jpg": "", "photos/x/c.jpg": ""})
    (tmp_path / "link").symlink_to("photos")
    catalog = location_of(tmp_path / "c.jsonl")
    rows = list(relative_rows(scan(location_of(tmp_path / "link"), attribution="Ann"), catalog))
    assert [row["uri"] for row in rows] == ["photos/a b%25.jpg", "photos/x/c.jpg"]
    assert [relative_to(catalog.uri, row["uri"]) for row in rows] == [str(tmp_path / row["uri"]) for row in rows]
    assert {row["attribution"] for row in rows} == {"Ann"}


def test_keys_of_a_store_are_relative_where_that_names_them() -> None:
    keys = ["s3://b/p/x/1.jpg", "s3://b/p/x//2.jpg", "s3://b/q/3.jpg", "s3://b/p//4.jpg", "s3://b/p/./5.jpg"]
    keys += ["s3://b/p/http://h/6.jpg", "s3://b/p/file:///7.jpg"]
    rows = relative_rows(({"uri": uri} for uri in keys), Location(Storage(), "s3://b/p/c.parquet"))
    assert [row["uri"] for row in rows] == ["x/1.jpg", *keys[1:]]


def test_local_images_that_a_catalog_cannot_name_relatively_are_refused(tmp_path: Path) -> None:
    make(tmp_path, {"photos/a.jpg": "", "lists/other.txt": ""})
    photos = location_of(tmp_path / "photos")
    with pytest.raises(UsageError, match=f"such as -o {tmp_path}/c.jsonl, or pass --absolute"):
        check_relative(photos, location_of(tmp_path / "lists/c.jsonl"), absolute=False)
    check_relative(photos, location_of(tmp_path / "lists/c.jsonl"), absolute=True)
    check_relative(photos, location_of(tmp_path / "photos/c.jsonl"), absolute=False)
    with pytest.raises(UsageError, match="a catalog in a store, s3://b/c"):
        check_relative(photos, Location(Storage(), "s3://b/c.jsonl"), absolute=True)
    check_relative(Location(Storage(), "s3://b/photos"), location_of(tmp_path / "c.jsonl"), absolute=False)


def scanned(folder: Path, **options: Any) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """The rows of a scan by image_id, and what was skipped."""
    skipped: dict[str, str] = {}
    rows = list(scan(location_of(folder), on_skip=skipped.__setitem__, **options))
    found = {row["image_id"]: row for row in rows}
    assert len(found) == len(rows)
    return found, skipped


def license_of(text: str) -> bytes:
    return json.dumps({"license": text}).encode()


@pytest.mark.parametrize("tar_format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_the_images_in_a_tar_get_rows_between_those_of_loose_images(tmp_path: Path, tar_format: int) -> None:
    long = f"{'folder/' * 40}ünïcödé.JPG"
    files = {"./b.jpg": b"b" * 700, long: b"long", "a/a.png": b"", "notes.txt": b"", "b.jpg.txt": b"", ".jpg": b"."}
    data = tar_of(files, tar_format)
    make(tmp_path, {"a.jpg": "", "z.jpg": "", "x.tar/a.jpg": ""})
    (tmp_path / "p" / "shards").mkdir(parents=True)
    (tmp_path / "p" / "0001.tar").write_bytes(data)
    (tmp_path / "p" / "shards" / "sa_000000-0123456789ab.tar").write_bytes(data)  # of a dataset
    rows, skipped = scanned(tmp_path, license="CC0-1.0", hashed=True)
    names = ["b.jpg", long, "a/a.png", ".jpg"]
    assert list(rows) == ["a.jpg", *(f"p/0001.tar/{name}" for name in names), "x.tar/a.jpg", "z.jpg"]
    assert skipped == {}
    uris = member_uris(str(tmp_path / "p" / "0001.tar"), data)
    assert [row["uri"] for row in rows.values()][1:5] == [uris[0], uris[1], uris[2], uris[5]]
    for name, content in (("b.jpg", b"b" * 700), (long, b"long"), ("a/a.png", b""), (".jpg", b".")):
        assert rows[f"p/0001.tar/{name}"]["sha256"] == hashlib.sha256(content).hexdigest()
    assert rows["a.jpg"]["sha256"] == hashlib.sha256(b"").hexdigest()
    catalog = location_of(tmp_path / "catalog.jsonl")
    relative = [row["uri"] for row in relative_rows(iter(rows.values()), catalog)]
    assert relative[1:5] == [uri.removeprefix(f"{tmp_path}/") for uri in (uris[0], uris[1], uris[2], uris[5])]
    assert [relative_to(catalog.uri, uri) for uri in relative] == [row["uri"] for row in rows.values()]

    only, _ = scanned(tmp_path / "p" / "0001.tar")
    assert list(only) == [f"0001.tar/{name}" for name in names]
    assert [row["uri"] for row in only.values()] == [row["uri"] for row in rows.values()][1:5]


def test_sidecars_in_a_tar_belong_to_an_image_a_sample_or_the_whole_tar(tmp_path: Path) -> None:
    files = {
        "late.json": license_of("CC-BY-4.0"),  # in any place
        "1.jpg": b"1",
        "1.jpg.license": b"SPDX-License-Identifier: CC-BY-2.0\nSPDX-FileCopyrightText: Ann\n",
        "2.left.jpg": b"2",
        "2.right.jpg": b"3",
        "2.json": json.dumps(
            {"license": "MIT", "image_id": "i", "sha256": "0" * 64, "caption": "two", "opt_out": True, "key": 2}
        ).encode(),
        "2.right.jpg.json": b'{"image_id": "right", "opt_out": false}',
        "f/late.x.jpg": b"4",
        "f/late.JSON": license_of("CC-BY-3.0"),
        "late.jpg": b"5",
        "none.json": b"[1]",  # belongs to no image, so it needn't be a sidecar
        "none.cls": b"7",
        "plain.jpg": b"6",
        "LATE.jpg": b"7",
        "gone.jpg.license": b"MIT",
    }
    (tmp_path / "0.tar").write_bytes(tar_of(files))
    (tmp_path / "0.tar.license").write_text("CC-BY-SA-4.0")
    shared = {"provider": "acme", "image_id": "x", "sha256": "1" * 64}
    (tmp_path / "0.tar.json").write_text(json.dumps(shared))
    make(tmp_path, {"1.jpg": "", "1.tar.json": "{}"})
    for place in (tmp_path, tmp_path / "0.tar"):
        rows, skipped = scanned(place, license="CC0-1.0")
        assert skipped.pop("0.tar/gone.jpg.license") == "no image is named exactly gone.jpg"
        assert skipped.keys() == ({"1.tar.json"} if place == tmp_path else set())
        assert {name: row["license"] for name, row in rows.items() if name != "1.jpg"} == {
            "0.tar/1.jpg": "CC-BY-2.0",
            "0.tar/2.left.jpg": "MIT",
            "right": "MIT",
            "0.tar/f/late.x.jpg": "CC-BY-3.0",
            "0.tar/late.jpg": "CC-BY-4.0",
            "0.tar/plain.jpg": "CC-BY-SA-4.0",
            "0.tar/LATE.jpg": "CC-BY-SA-4.0",
        }
        assert "sha256" not in rows["0.tar/2.left.jpg"]
        assert rows["0.tar/2.left.jpg"]["opt_out"]
        assert rows["right"]["opt_out"]  # once said, it stays
        assert "opt_out" not in rows["0.tar/plain.jpg"]
        assert rows["right"]["caption"] == "two"
        assert rows["0.tar/1.jpg"]["attribution"] == "Ann"
        assert {row.get("provider") for name, row in rows.items() if name != "1.jpg"} == {"acme"}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.json", b"[]", "0.tar, a.json: found \\[\\]"),
        ("a.json", b'{"LICENSE": "?"}', "0.tar, a.json: 'LICENSE' would be ignored"),
        ("a.jpg.license", b"All rights reserved", "0.tar, a.jpg.license: 'All rights reserved' is not a license"),
        ("a.jpg.JSON", license_of("CC-BY"), "did you mean CC-BY-4.0"),
        ("a.json", b" " * ((8 << 20) + 1), "0.tar, a.json: a link, a sparse file, or over 8,388,608 bytes"),
    ],
)
def test_a_wrong_sidecar_in_a_tar_is_refused_by_name(tmp_path: Path, name: str, text: bytes, says: str) -> None:
    (tmp_path / "0.tar").write_bytes(tar_of({"a.jpg": b"", name: text}))
    with pytest.raises(UsageError, match=says):
        scanned(tmp_path, license="CC0-1.0")


def test_a_sidecar_that_is_a_link_is_not_passed_over(tmp_path: Path) -> None:
    """Else, its image would get another license."""
    with tarfile.open(tmp_path / "0.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("a.jpg"))
        link = tarfile.TarInfo("a.jpg.license")
        link.type, link.linkname = tarfile.LNKTYPE, "LICENSE"
        archive.addfile(link)
    with pytest.raises(UsageError, match=r"0\.tar, a\.jpg\.license: a link"):
        scanned(tmp_path, license="CC0-1.0")


def test_what_a_tar_does_not_hold_in_one_piece_is_skipped_by_name(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:

        def add(name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, **more: Any) -> None:
            member = tarfile.TarInfo(name)
            member.size, member.type, member.linkname = len(data), kind, "a.jpg"
            member.pax_headers = more
            archive.addfile(member, io.BytesIO(data))

        add("a.jpg", b"old")
        add("a.jpg", b"new")
        add("folder.jpg", kind=tarfile.DIRTYPE)
        add("hard.jpg", kind=tarfile.LNKTYPE)
        add("soft.jpg", kind=tarfile.SYMTYPE)
        add("pipe.jpg", kind=tarfile.FIFOTYPE)
        add("b.jpg", b"b")
        add("b.jpg", kind=tarfile.SYMTYPE)
        add("../up.jpg", b"u")
        add("line\nbreak.jpg", b"l")
        add("caf\udce9.jpg", b"c")
        add("sized.jpg", b"7 bytes", size="7")
        add("real.jpg", b"7 bytes", **{"GNU.sparse.realsize": "3"})
        add("z.jpg", b"z")
    (tmp_path / "0.tar").write_bytes(buffer.getvalue())
    rows, skipped = scanned(tmp_path, hashed=True)
    assert list(rows) == ["0.tar/a.jpg", "0.tar/z.jpg"]
    assert rows["0.tar/a.jpg"]["sha256"] == hashlib.sha256(b"new").hexdigest()
    assert {name: why.split()[0] for name, why in skipped.items()} == {
        "0.tar/a.jpg": "a",
        **{f"0.tar/{name}.jpg": "it's" for name in ("hard", "soft", "pipe", "b", "sized", "real")},
        "0.tar/../up.jpg": "'..'",
        "0.tar/line\nbreak.jpg": "the",
        "0.tar/caf\udce9.jpg": "its",
    }


WHOLE = tar_of({"a.jpg": b"a" * 600, "b.jpg": b"b", "b.json": b'{"license": "CC-BY-NC-4.0"}'})


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (gzip.compress(WHOLE), "not a whole, uncompressed tar"),
        (b"", "not a whole, uncompressed tar"),
        (b"a catalog" * 100, "not a whole, uncompressed tar"),
        (WHOLE[:1700], "unexpected end of data"),  # in a.jpg
        (WHOLE[:4700], "at byte 4,608, neither a file nor the end marker follows"),  # in a header
        (WHOLE[:4608], "at byte 4,608, neither a file nor the end marker follows"),  # b.json is missing
        (WHOLE + WHOLE, "several tars in one file"),
        (WHOLE[:2560] + b"?" * 512 + WHOLE[3072:], "at byte 2,560, neither a file nor the end marker follows"),
    ],
)
def test_a_tar_that_is_not_whole_is_reported_and_not_listed(tmp_path: Path, data: bytes, says: str) -> None:
    """A sidecar with another license may be in the part that is missing."""
    (tmp_path / "bad.tar").write_bytes(data)
    (tmp_path / "good.TAR").write_bytes(WHOLE)
    (tmp_path / "bad.tar.gz").write_bytes(gzip.compress(WHOLE))
    rows, skipped = scanned(tmp_path, license="CC0-1.0")
    assert list(rows) == ["good.TAR/a.jpg", "good.TAR/b.jpg"]
    assert says in skipped.pop("bad.tar")
    assert "decompress it to a .tar" in skipped.pop("bad.tar.gz")
    assert skipped == {}
