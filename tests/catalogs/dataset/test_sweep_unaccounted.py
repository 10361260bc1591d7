"""Files below a dataset's root: segmint's are known by name, and others are judged by their names and sizes."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from segmint.catalogs.dataset.commits import CommitLog, Reservation
from segmint.catalogs.dataset.inventory import Inventory, UnaccountedFiles, judge_unnamed, take_inventory
from segmint.catalogs.findings import Code
from segmint.catalogs.layout import commit_path, data_path, is_known, part_path
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import ObjectInfo
from segmint.infra.uris import local_path
from tests.support.faulty_proxy import faulty_proxy
from tests.support.locations import location_of
from tests.support.many_shards import write_many_shards
from tests.support.s3_server import S3Server
from tests.support.tiny_s3 import tiny_s3

DIGEST = "0123456789ab"
NOW = datetime.now(UTC)


def account(dataset: Location, now: datetime = NOW) -> UnaccountedFiles:
    """Judge everything that the manifest and the latest commits don't name."""
    inventory = take_inventory(dataset)
    for commit in CommitLog(dataset).read_all():
        assert {file.entry for file in inventory.find_files(commit)} == set(commit.files)
    return judge_unnamed(inventory, now - timedelta(hours=24))


def test_keys_that_lead_elsewhere_are_findings(tmp_path: Path) -> None:
    """Reading them would read another object or none."""
    (tmp_path / "notes.txt").write_text("small")
    keys = ("/notes.txt", "a//b", "a/../notes.txt", "./notes.txt", "a/")
    unnamed = {key: ObjectInfo(key, 5, NOW) for key in (*keys, "notes.txt", ".hidden", "..more/x..")}
    found = judge_unnamed(Inventory(location_of(tmp_path), [], unnamed), NOW)
    assert [finding.file for finding in found.findings] == sorted(keys)


@pytest.mark.parametrize(
    "path",
    [
        "dataset.json", "dataset.g12.json", "id.json", "shards.json", f"catalog/part-0-{DIGEST}.parquet",
        f"shards/sa_1234567-{DIGEST}.tar", f"rejects/sa_000001-{DIGEST}.parquet", "commits/000001.g10.json",
        f"reservations/000001.g2-{DIGEST}.json", f"reservations/amended.g2-{DIGEST}.json",
        f"summaries/000000-{DIGEST}.json", f"summaries/leaves-001000-{DIGEST}-{DIGEST}.json",
        f"tombstones/{DIGEST}.json", f"outputs/{DIGEST}.json", "versions/1.json", "versions/1.0123456789abcdef.sig",
        "annotations/0/1.2.json", f"annotations/ratings/5/501.{DIGEST}.1.json", "report/figures/scores.png",
    ],
)  # fmt: skip
def test_names_of_the_format_are_known_and_others_beside_them_are_not(path: str) -> None:
    assert is_known(path)
    folder, _, name = path.rpartition("/")
    wrong = (
        f"{path}.zip",
        f"{path}/",
        f"x/{path}",
        path.upper(),
        f"{path}\n",
        f"{folder}/deep/{name}",
        f"{folder}/.{name}",
    )
    assert [each for each in wrong if is_known(each)] == []


def test_names_and_sizes_decide(dataset: str) -> None:
    suspect = {
        "originals.zip": 9, "report/figures/photo.png": 9, "photo.JPG": 9, "a/b/c/x.parquet": 9, "outputs/x.jxl": 9,
        "logs.txt": 1_000_001, ".DS_Store": 1_000_001, f"shards/sa_000001-{DIGEST}.tar.txt": 9, "shards/.tmp-0123": 9,
    }  # fmt: skip
    harmless = {
        "README.md": 9, "logs/1.txt": 1_000_000, "report/README.txt": 9, "outputs/x.json": 9, "photos/.DS_Store": 9,
        "shards/_SUCCESS": 0, "shards/.sa_0.tar.crc": 9, "masks/.gitattributes": 9, "empty.zip": 0,
    }  # fmt: skip
    for path, size in (suspect | harmless).items():
        (location_of(dataset) / path).put(b"x" * size)
    (Path(dataset) / "empty" / "folder").mkdir(parents=True)
    found = account(location_of(dataset))
    assert sorted(finding.file for finding in found.findings) == sorted(suspect)
    assert {finding.code for finding in found.findings} == {Code.STRAY_FILE}
    assert sorted(found.others) == sorted(harmless)


def test_links_are_findings_even_under_a_known_name(
    dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(dataset)
    listing = os.scandir

    def scandir_then_delete(path: Path) -> AbstractContextManager[Iterator[os.DirEntry[str]]]:
        with listing(path) as entries:
            found = list(entries)
        (root / "going.txt").unlink(missing_ok=True)
        return nullcontext(iter(found))

    tar = root / CommitLog(location_of(dataset)).read(0, 1).file("shards").path
    tar.rename(tmp_path / tar.name)
    tar.symlink_to(tmp_path / tar.name)
    (root / "masks").rename(tmp_path / "masks")
    (root / "masks").symlink_to(tmp_path / "masks")
    (root / "circle").symlink_to(root / "circle")
    (root / "report").mkdir()
    (root / "report/index.html").symlink_to(tmp_path / "absent")
    os.mkfifo(root / "pipe")
    (root / "report/a\nb").symlink_to("b")
    (root / "report/note\n.txt").write_text("x")
    (root / "going.txt").write_text("x")
    inventory = take_inventory(location_of(dataset))
    monkeypatch.setattr(os, "scandir", scandir_then_delete)
    found = judge_unnamed(inventory, NOW - timedelta(days=1))
    links = {finding.file: finding.found for finding in found.findings}
    assert links == {
        path: f"a link to {(root / path).readlink()}"
        for path in ("circle", "masks", "report/index.html", str(tar.relative_to(root)))
    } | {
        "pipe": "a special file",
        "'report/a\\nb'": "a name with a control character",
        "'report/note\\n.txt'": "a name with a control character",
    }


def test_old_files_of_a_backup_are_findings_and_those_of_running_commands_are_not(dataset: str) -> None:
    location = location_of(dataset)
    kept = {path: (location / path).read() for path in ("commits/000001.g1.json",)}
    old = data_path("masks", 1, "0" * 64), part_path(0, "1" * 64), f"shards/.tmp-{0:032}"
    for path in old:
        (location / path).put(b"left over")
    (location / data_path("masks", 3, "0" * 64)).put(b"of no shard")
    assert [finding.file for finding in account(location).findings] == [data_path("masks", 3, "0" * 64)]
    assert sorted(account(location).recent) == sorted(old)
    later = account(location, NOW + timedelta(days=2))
    assert sorted(finding.file for finding in later.findings if finding.code is Code.LEFTOVER_FILE) == sorted(old)
    # A correction has replaced a commit, and is about to delete the older one: the files are old, the new commit isn't.
    (location / commit_path(1, 2)).put(kept["commits/000001.g1.json"].replace(b'"generation":1', b'"generation":2'))
    past = (NOW - timedelta(days=3)).timestamp()
    for path in (commit_path(1, 1), *old):
        os.utime(Path(dataset) / path, (past, past))
    now = account(location)
    assert {finding.file for finding in now.findings} == {data_path("masks", 3, "0" * 64), old[2]}
    assert sorted(now.recent) == sorted([commit_path(1, 1), *old[:2]])
    # Nobody deletes a commit that is newer than the one that replaced it: it was copied there.
    os.utime(Path(dataset) / commit_path(1, 2), (past - 1, past - 1))
    os.utime(Path(dataset) / "dataset.json", (past, past))
    codes = {finding.file: finding.code for finding in account(location).findings}
    assert codes[commit_path(1, 1)] is Code.REPLACED_GENERATION
    assert codes[old[0]] is codes[old[1]] is Code.LEFTOVER_FILE
    # A reservation protects a file for a day, and no writer's file is of the future.
    reservation = Reservation(1, 9, (old[0],)).location(location)
    reservation.put(Reservation(1, 9, (old[0],)).to_json())
    os.utime(Path(dataset) / old[1], (-past + 2 * NOW.timestamp(),) * 2)
    assert account(location).recent == (old[0],)
    os.utime(local_path(reservation.uri), (past, past))
    assert account(location).recent == ()


def test_an_object_hidden_under_the_name_of_a_folder_is_a_finding() -> None:
    with tiny_s3() as server:
        server.objects |= {"ds/": b"", "ds/folder/": b"", "ds/hidden/": b"11 bytes of", "ds/notes.txt": b""}
        found = account(Location(Storage(server.options), "s3://acme/ds"))
    assert [(finding.file, finding.found) for finding in found.findings] == [("hidden/", "a file of 11 bytes")]
    assert found.others == ("notes.txt",)


@pytest.mark.s3
def test_one_listing_and_a_few_requests_on_s3(s3_server: S3Server, s3_bucket: str) -> None:
    with faulty_proxy(s3_server.port) as proxy:
        dataset = Location(Storage({"s3://": {"endpoint_url": proxy.url}}), f"s3://{s3_bucket}/some/dataset")
        write_many_shards(dataset, 25)
        proxy.requests.clear()
        inventory = take_inventory(dataset)
        assert (proxy.requests, len(inventory.unnamed)) == (["GET"] * 2, 4 * 25 + 1)  # files, then commits
        assert judge_unnamed(Inventory(dataset, [], {}), NOW) == UnaccountedFiles((), (), ())
        assert proxy.requests == ["GET"] * 2
        s3_server.client().put_object(Bucket=s3_bucket, Key="some/dataset/folder/", Body=b"")
        (dataset / f"shards/sa_000001-{DIGEST}.tar").put(b"x")
        (dataset / "originals.zip").put(b"an original")
        proxy.requests.clear()
        found = account(dataset)
        assert [finding.file for finding in found.findings] == ["originals.zip"]
        assert found.recent == (f"shards/sa_000001-{DIGEST}.tar",)
        commits = 1 + 25  # read by `account`
        assert len(proxy.requests) - commits <= 20
