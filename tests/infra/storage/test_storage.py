"""Every operation on local folders and on a real S3 server, by the same tests; races; faults of S3."""

import os
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage import s3 as s3_store
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError, StorageFaultError
from segmint.infra.storage.location import Location, probe
from segmint.infra.storage.retry import RetryPolicy
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import ObjectVersion
from segmint.infra.uris import UriNotAllowedError
from tests.support.contenders import PROCESSES
from tests.support.faulty_proxy import CUT_BODY, LOSE_ANSWER, answer, faulty_proxy
from tests.support.s3_server import S3Server

QUICK = RetryPolicy(attempts=3, first_wait_s=0.01, max_wait_s=0.05, deadline_s=20)


@pytest.fixture
def local(tmp_path: Path) -> tuple[Storage, str]:
    return Storage(retry=QUICK), str(tmp_path / "set")


@pytest.fixture
def s3(s3_options, s3_bucket: str) -> tuple[Storage, str]:
    return Storage(s3_options, retry=QUICK), f"s3://{s3_bucket}/set"


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest) -> tuple[Storage, str]:
    return request.getfixturevalue(request.param)


def test_what_was_put_is_read(place, tmp_path: Path) -> None:
    storage, base = place
    storage.put(f"{base}/a", b"old")
    storage.put(f"{base}/a", b"new")
    assert storage.read(f"{base}/a") == b"new"
    assert storage.read(f"{base}/a", max_bytes=3) == b"new"
    with pytest.raises(ObjectTooLargeError) as caught:
        storage.read(f"{base}/a", max_bytes=2)
    assert (caught.value.size, caught.value.limit) == (3, 2)
    storage.put(f"{base}/empty", b"")
    assert storage.read(f"{base}/empty") == b""
    assert (storage.size(f"{base}/a"), storage.size(f"{base}/empty")) == (3, 0)

    big = os.urandom(6_000_000)
    (tmp_path / "up").write_bytes(big)
    storage.put_file(f"{base}/big", tmp_path / "up")
    storage.get_file(f"{base}/big", tmp_path / "deep" / "down")
    assert (tmp_path / "deep" / "down").read_bytes() == big
    with storage.open(f"{base}/big") as stream:
        assert stream.seekable()
        stream.seek(-7, os.SEEK_END)
        assert stream.read() == big[-7:]
        stream.seek(5_000_000)
        assert stream.read(10) == big[5_000_000:5_000_010]
        stream.seek(0)
        assert stream.read() == big
        assert stream.read() == b""
    with pytest.raises(UsageError, match="is not a file"):
        storage.put_file(f"{base}/x", tmp_path / "none")


def test_a_part_of_an_object_ends_where_the_object_ends(place) -> None:
    storage, base = place
    storage.put(f"{base}/a", b"0123456789")
    for start, stop, part in ((0, 10, b"0123456789"), (2, 5, b"234"), (8, 12, b"89"), (10, 12, b""), (99, 999, b"")):
        assert storage.read_part(f"{base}/a", start, stop) == part
    with pytest.raises(NotFoundError):
        storage.read_part(f"{base}/none", 0, 1)


def test_what_is_absent(place, tmp_path: Path) -> None:
    storage, base = place
    storage.put(f"{base}/a/b", b"1")
    for uri in (f"{base}/none", f"{base}/a", f"{base}/a/b/c"):
        assert not storage.exists(uri)
        for operation in (storage.read, storage.size, storage.open):
            with pytest.raises(NotFoundError, match=r"is not there|is a folder, but expected a file"):
                operation(uri)
    assert storage.exists(f"{base}/a/b")
    with pytest.raises(NotFoundError):
        storage.get_file(f"{base}/none", tmp_path / "down")
    assert not (tmp_path / "down").exists()
    assert storage.list(f"{base}/none") == []
    assert list(storage.walk(f"{base}/none")) == []
    assert storage.answers(f"{base}/none")


def test_a_folder_is_no_file_and_says_so(place, tmp_path: Path) -> None:
    storage, base = place
    storage.put(f"{base}/c.parquet/part-0.parquet", b"1")
    storage.put(f"{base}/c.parquet2", b"1")
    for use in (storage.open, storage.size, storage.sha256, lambda uri: storage.get_file(uri, tmp_path / "copy")):
        with pytest.raises(NotFoundError, match=r"c\.parquet: it is a folder, but expected a file"):
            use(f"{base}/c.parquet")
        with pytest.raises(NotFoundError, match="it is not there"):
            use(f"{base}/c.parque")
    assert not storage.exists(f"{base}/c.parquet")


def test_listings(place) -> None:
    storage, base = place
    for name in ("b", "a", "a-b", "sub/c", "sub/.tmp-died", ".tmp-died", "é"):
        storage.put(f"{base}/{name}", name.encode())
    storage.put(f"{base}-beside/x", b"")
    assert [entry.name for entry in storage.list(base)] == ["a", "a-b", "b", "é"]
    assert [entry.name for entry in storage.list(f"{base}/")] == ["a", "a-b", "b", "é"]
    assert storage.list(base, include_temporary=True)[0].name == ".tmp-died"
    assert [entry.name for entry in storage.walk(base)] == ["a", "a-b", "b", "sub/c", "é"]
    assert {entry.name for entry in storage.walk(base, include_temporary=True)} >= {"sub/.tmp-died", ".tmp-died"}
    first = storage.list(base)[0]
    assert first.size == 1
    assert timedelta(minutes=-1) < datetime.now(UTC) - first.modified < timedelta(minutes=5)


def test_deleting(place) -> None:
    storage, base = place
    for operation in (storage.delete, storage.purge):
        storage.put(f"{base}/a", b"1")
        storage.put(f"{base}/ab", b"2")
        operation(f"{base}/a")
        operation(f"{base}/a")
        assert [entry.name for entry in storage.list(base)] == ["ab"]


def test_put_if_absent_says_whether_our_bytes_are_there(place) -> None:
    storage, base = place
    mine = os.urandom(5_500_000)
    assert storage.put_if_absent(f"{base}/x", mine)
    assert storage.put_if_absent(f"{base}/x", mine)
    for other in (mine[:-1], mine + b"1", b"", bytes(len(mine))):
        assert not storage.put_if_absent(f"{base}/x", other)
    assert storage.read(f"{base}/x") == mine


def test_a_file_of_any_size_is_put_if_absent(place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage, base = place
    monkeypatch.setattr(s3_store, "PART_BYTES", 5 << 20)
    for name, size in (("small", 1_000), ("large", 5_500_000)):
        mine, other, shorter = (tmp_path / f"{name}-{each}" for each in ("mine", "other", "shorter"))
        mine.write_bytes(os.urandom(size))
        other.write_bytes(bytes(size))
        shorter.write_bytes(bytes(size - 1))
        assert storage.put_file_if_absent(f"{base}/{name}", mine)
        assert storage.put_file_if_absent(f"{base}/{name}", mine)
        assert not storage.put_file_if_absent(f"{base}/{name}", other)
        assert not storage.put_file_if_absent(f"{base}/{name}", shorter)
        assert storage.read(f"{base}/{name}") == mine.read_bytes()
    assert [entry.name for entry in storage.list(base, include_temporary=True)] == ["large", "small"]


def test_the_probe_passes_and_leaves_nothing(place) -> None:
    storage, base = place
    probe(Location(storage, base))
    assert storage.list(base, include_temporary=True) == []


def test_a_pickled_storage_works_and_threads_share_it(place) -> None:
    storage, base = place
    again = pickle.loads(pickle.dumps(storage))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: again.put(f"{base}/{index:02}", b"%d" % index), range(24)))
        found = list(pool.map(lambda index: storage.read(f"{base}/{index:02}"), range(24)))
    assert found == [b"%d" % index for index in range(24)]


def _contend(
    process: int, environment: dict[str, str], storage: Storage, base: str, barriers: list[Any], won: Any
) -> None:
    """One process: each of its threads, or lanes, runs every `len(barriers)`-th race."""
    os.environ.update(environment)
    lanes, processes = len(barriers), barriers[0].parties

    def run(lane: int) -> None:
        for race in range(lane, len(won) // processes, lanes):
            barriers[lane].wait(60)
            won[race * processes + process] = storage.put_if_absent(f"{base}/{race}", b"by %d" % process)

    with ThreadPoolExecutor(lanes) as pool:
        list(pool.map(run, range(lanes)))


def _race(storage: Storage, base: str, races: int, processes: int, lanes: int) -> None:
    """In every race the processes put other bytes under one name at once; exactly one may win.

    They are no forks of this process, whose threads may hold locks of the allocator or of a client for S3.
    """
    barriers = [PROCESSES.Barrier(processes) for _ in range(lanes)]
    won = PROCESSES.Array("b", races * processes, lock=False)
    work = (dict(os.environ), storage, base, barriers, won)
    children = [PROCESSES.Process(target=_contend, args=(index, *work)) for index in range(processes)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    for race in range(races):
        flags = list(won[race * processes : (race + 1) * processes])
        assert sum(flags) == 1, f"race {race}: {flags}"
        assert storage.read(f"{base}/{race}") == b"by %d" % flags.index(1)


def test_200_local_races_have_one_winner_each(local) -> None:
    storage, base = local
    _race(storage, base, races=200, processes=4, lanes=2)
    assert len(storage.list(base, include_temporary=True)) == 200


@pytest.mark.s3
def test_20_races_on_s3_have_one_winner_each(s3) -> None:
    storage, base = s3
    _race(storage, base, races=20, processes=3, lanes=20)


@pytest.mark.s3
def test_listings_of_several_pages_and_a_fault_in_their_middle(
    s3_server: S3Server, s3, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = s3_store.S3Store.pages
    monkeypatch.setattr(  # pages of the server's own size have 1,000 objects
        s3_store.S3Store,
        "pages",
        lambda self, method, request, markers: pages(self, method, request | {"MaxKeys": 9}, markers),
    )
    storage, base = s3
    names = [f"{index:04}" for index in range(20)]
    for name in names:
        storage.put(f"{base}/{name}", b"")
    assert [entry.name for entry in storage.list(base)] == names
    with faulty_proxy(s3_server.port) as proxy:
        walk = Storage({"s3://": {"endpoint_url": proxy.url}}, QUICK).walk(base)
        found = [next(walk).name]
        proxy.plan = [("GET", answer(503, "SlowDown"))]
        found += [entry.name for entry in walk]
        assert proxy.plan == []
        assert len(proxy.requests) >= 4  # of three pages, one twice
    assert found == names


@pytest.mark.s3
def test_a_lost_answer_is_recognized(s3_server: S3Server, s3_bucket: str) -> None:
    with faulty_proxy(s3_server.port) as proxy:
        storage = Storage({"s3://": {"endpoint_url": proxy.url}}, QUICK)
        proxy.plan = [("PUT", LOSE_ANSWER)]
        assert storage.put_if_absent(f"s3://{s3_bucket}/x", b"mine")
        assert proxy.requests == ["PUT", "PUT", "GET"]
        proxy.plan = [("PUT", LOSE_ANSWER)]
        assert not storage.put_if_absent(f"s3://{s3_bucket}/x", b"other")
        assert storage.read(f"s3://{s3_bucket}/x") == b"mine"


@pytest.mark.s3
def test_short_bodies_throttling_and_conflicts_are_tried_again(s3_server: S3Server, s3_bucket: str) -> None:
    uri = f"s3://{s3_bucket}/x"
    data = os.urandom(300_000)
    with faulty_proxy(s3_server.port) as proxy:
        storage = Storage({"s3://": {"endpoint_url": proxy.url}}, QUICK)
        proxy.plan = [("PUT", answer(409, "ConditionalRequestConflict"))]
        assert storage.put_if_absent(uri, data)
        proxy.plan = [("GET", CUT_BODY), ("GET", answer(503, "SlowDown"))]
        assert storage.read(uri) == data
        assert proxy.plan == []
        proxy.plan = [("GET", CUT_BODY)]
        with storage.open(uri) as stream:
            assert stream.read() == data
        assert proxy.plan == []
        proxy.plan = [("GET", answer(500, "InternalError"))]
        assert [entry.name for entry in storage.walk(f"s3://{s3_bucket}")] == ["x"]
        proxy.plan = [("GET", CUT_BODY)] * 3
        with pytest.raises(StorageFaultError, match="3 attempts"):
            storage.read(uri)


@pytest.mark.s3
def test_no_such_bucket_is_a_fault_for_every_operation(s3_options) -> None:
    storage = Storage(s3_options, QUICK)
    uri = "s3://no-such-bucket-here/x"
    operations: list[Callable[[], object]] = [
        lambda: storage.read(uri),
        lambda: storage.size(uri),
        lambda: storage.exists(uri),
        lambda: storage.put(uri, b""),
        lambda: storage.put_if_absent(uri, b""),
        lambda: storage.list(uri),
        lambda: list(storage.walk(uri)),
        lambda: storage.delete(uri),
        lambda: probe(Location(storage, uri)),
    ]
    for operation in operations:
        with pytest.raises(StorageFaultError, match="no such bucket"):
            operation()
    assert storage.answers(uri)


@pytest.mark.s3
def test_refused_credentials_are_a_fault_at_once(s3_options, s3_bucket: str) -> None:
    # A separate process: credentials are looked up once a connection.
    script = (
        "import time; from segmint.infra.storage.errors import AccessRefusedError\n"
        "waits = []; time.sleep = waits.append\n"
        "from segmint.infra.storage.storage import Storage\n"
        f"storage = Storage({s3_options!r})\n"
        f"try: storage.read('s3://{s3_bucket}/x')\n"
        "except AccessRefusedError as error: print(error)\n"
        f"print(storage.answers('s3://{s3_bucket}/x'), len(waits))\n"
    )
    environment = os.environ | {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "hunter2-secret"}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, timeout=60, check=True
    )
    assert "check the credentials" in done.stdout
    assert done.stdout.splitlines()[-1] == "True 2", "each tries once more, with credentials that are fetched again"
    assert "hunter2" not in done.stdout + done.stderr


@pytest.mark.s3
def test_a_server_that_comes_back_is_waited_for(tmp_path: Path, s3_server: S3Server) -> None:
    server = S3Server(tmp_path)  # the credentials in the environment are the session server's, and the same
    try:
        server.start()
        uri = f"s3://{server.make_bucket()}/x"
        options = {"s3://": {"endpoint_url": server.endpoint_url}}
        Storage(options).put(uri, b"still here")
        server.stop()
        assert not Storage(options).answers(uri)
        with pytest.raises(StorageFaultError, match="3 attempts"):
            Storage(options, QUICK).read(uri)
        restart = threading.Timer(0.5, server.start)
        restart.start()
        patient = RetryPolicy(attempts=100, first_wait_s=0.1, max_wait_s=0.3, deadline_s=60)
        assert Storage(options, patient).read(uri) == b"still here"
        restart.join()
    finally:
        server.stop()


@pytest.mark.s3
def test_purge_removes_older_versions(s3_server: S3Server, s3_bucket: str, s3_options) -> None:
    client = s3_server.client()
    client.put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"})
    storage = Storage(s3_options, QUICK)
    for data in (b"1", b"22"):
        storage.put(f"s3://{s3_bucket}/x", data)
        storage.put(f"s3://{s3_bucket}/xy", data)
    storage.delete(f"s3://{s3_bucket}/x")
    assert len(client.list_object_versions(Bucket=s3_bucket, Prefix="x").get("Versions", [])) == 4
    storage.purge(f"s3://{s3_bucket}/x")
    left = client.list_object_versions(Bucket=s3_bucket)
    assert {entry["Key"] for entry in left.get("Versions", [])} == {"xy"}
    assert left.get("DeleteMarkers", []) == []


@pytest.mark.s3
def test_purge_removes_what_was_put_before_versions_were_kept(s3_server: S3Server, s3_bucket: str, s3_options) -> None:
    client = s3_server.client()
    storage = Storage(s3_options, QUICK)
    storage.put(f"s3://{s3_bucket}/d/x", b"1")
    client.put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"})
    storage.put(f"s3://{s3_bucket}/d/x", b"22")
    assert {e["Size"] for e in client.list_object_versions(Bucket=s3_bucket)["Versions"]} == {1, 2}
    storage.purge(f"s3://{s3_bucket}/d/x")
    left = client.list_object_versions(Bucket=s3_bucket)
    assert (left.get("Versions", []), left.get("DeleteMarkers", [])) == ([], [])


@pytest.mark.s3
def test_walk_ever_also_names_what_was_deleted(s3_server: S3Server, s3_bucket: str, s3_options) -> None:
    client = s3_server.client()
    storage = Storage(s3_options, QUICK)
    base = f"s3://{s3_bucket}/d"
    for name in ("a", "b", "sub/c", ".tmp-x"):
        storage.put(f"{base}/{name}", b"1")
    storage.delete(f"{base}/b")
    assert storage.walk_ever(base) == (".tmp-x", "a", "sub/c")
    client.put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"})
    storage.put(f"{base}/e", b"1")
    for name in ("a", "e", "sub/c"):
        storage.delete(f"{base}/{name}")
    assert storage.walk_ever(base) == (".tmp-x", "a", "e", "sub/c")
    assert storage.walk_ever(base, "a") == ("a",)
    assert storage.walk_ever(base, "sub/") == ("sub/c",)
    storage.purge(f"{base}/e")
    assert storage.walk_ever(base) == (".tmp-x", "a", "sub/c")
    assert storage.walk_ever(f"s3://{s3_bucket}/none") == ()


def test_walk_ever_of_local_files_is_what_is_there(local) -> None:
    storage, base = local
    for name in ("b", "a", "sub/c", ".tmp-x"):
        storage.put(f"{base}/{name}", b"1")
    storage.delete(f"{base}/b")
    assert storage.walk_ever(base) == (".tmp-x", "a", "sub/c")
    assert storage.walk_ever(base, ".tmp-") == (".tmp-x",)
    assert storage.walk_ever(f"{base}/none") == ()


def test_links_are_named_and_not_followed(local, tmp_path: Path) -> None:
    storage, base = local
    storage.put(f"{base}/sub/c", b"1")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "file").write_bytes(b"1")
    targets = {"file": "elsewhere/file", "folder": "elsewhere", "sub/nothing": "absent"}
    for name, target in targets.items():
        Path(base, name).symlink_to(tmp_path / target)
        assert storage.link_target(f"{base}/{name}") == str(tmp_path / target)
    assert storage.walk_ever(base) == ("file", "folder", "sub/c", "sub/nothing")
    assert storage.walk_ever(base, "f") == ("file", "folder")
    assert storage.link_target(f"{base}/sub/c") is storage.link_target(f"{base}/none") is None
    with pytest.raises(UsageError, match=r"is a link to .*: nothing is removed through a link"):
        storage.refuse_link(f"{base}/folder")
    for name in targets:
        storage.purge(f"{base}/{name}")
    assert storage.walk_ever(base) == ("sub/c",)
    assert (tmp_path / "elsewhere" / "file").exists()


def test_an_unreadable_file_is_a_fault_of_a_store_that_answers(local) -> None:
    storage, base = local
    if os.geteuid() == 0:
        # Root may read everything; /proc/self/mem gives an error of the device (EIO) instead.
        unreadable = "/proc/self/mem"
    else:
        storage.put(f"{base}/x", b"1")
        unreadable = f"{base}/x"
        Path(unreadable).chmod(0)
    with pytest.raises(StorageFaultError, match="cannot read"):
        storage.read(unreadable)
    assert storage.answers(unreadable)


@pytest.mark.parametrize("key", ["key", "secret", "token", "aws_secret_access_key", "password", "account_key"])
def test_credentials_as_values_are_refused_and_not_repeated(key: str) -> None:
    with pytest.raises(UsageError, match="is a credential") as caught:
        Storage({"s3://b": {key: "hunter2"}})
    assert "hunter2" not in str(caught.value)


def test_other_wrong_options_are_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown storage option endpoint .* expected .*endpoint_url"):
        Storage({"s3://b": {"endpoint": "http://x"}})
    with pytest.raises(UsageError, match="contains a credential"):
        Storage({"s3://b": {"endpoint_url": "http://u:p@x"}})
    with pytest.raises(UriNotAllowedError):
        Storage({"http://b": {}})


def test_the_longest_prefix_wins_at_whole_names(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = Storage({"s3://": {"region": "a"}, "s3://b": {"region": "b"}, "s3://b/deep": {"region": "c"}})
    regions: list[str] = []

    def connected(scheme: str, options: dict[str, str]) -> SimpleNamespace:
        regions.append(options["region"])
        return SimpleNamespace(version=lambda uri: ObjectVersion(1))

    monkeypatch.setattr("segmint.infra.storage.storage.connect", connected)
    for uri in ("s3://b", "s3://b/x", "s3://bb/x", "s3://b/deep/x", "s3://b/deeper", "S3://b/x"):
        assert storage.size(uri) == 1
    assert regions == ["b", "b", "a", "c", "b", "b"]


def test_uris_off_the_list_are_refused_by_every_door() -> None:
    storage = Storage()
    for uri in ("http://h/x", "memory://x", "simplecache::s3://b/k"):
        with pytest.raises(UriNotAllowedError):
            storage.read(uri)
        with pytest.raises(UriNotAllowedError):
            storage.put_if_absent(uri, b"")


@pytest.mark.s3
def test_a_bucket_named_like_an_address_leads_to_the_endpoint_and_nowhere_else(s3_options) -> None:
    storage = Storage(s3_options, QUICK)
    for uri in ("s3://169.254.169.254/latest/meta-data", "s3://localhost/x", "s3://metadata.google.internal/x"):
        with pytest.raises(StorageFaultError, match=r"no such bucket|InvalidBucketName"):
            storage.read(uri)


@pytest.mark.s3
def test_a_bucket_that_cannot_exist_is_no_fault_of_its_store(s3_options) -> None:
    storage = Storage(s3_options, QUICK)
    for name in ("A_B", "b..c", "b" * 64):
        for operation in (storage.read, storage.size, storage.list):
            with pytest.raises(UriNotAllowedError, match="has no such bucket; S3 forbids its name"):
                operation(f"s3://{name}/x")
        assert storage.answers(f"s3://{name}/x")


@pytest.mark.s3
def test_dots_in_a_key_lead_to_no_other_bucket(s3_options, s3_bucket: str, make_bucket) -> None:
    storage, other = Storage(s3_options, QUICK), make_bucket("other")
    storage.put(f"s3://{other}/secret", b"secret")
    for key in (f"../{other}/secret", f"x/../../{other}/secret", f"%2e%2e/{other}/secret", f"..%2f{other}/secret"):
        try:
            data = storage.read(f"s3://{s3_bucket}/{key}")
        except (NotFoundError, StorageFaultError):
            continue
        raise AssertionError(f"{key} gave {data!r}")


def test_a_scheme_without_its_package_says_so() -> None:
    with pytest.raises(UsageError, match="not installed"):
        Storage().read("gs://bucket/x")


def test_importing_storage_brings_no_client() -> None:
    modules = "segmint.infra.storage.storage, segmint.infra.assets, segmint.infra.log, segmint.infra.progress"
    script = f"import sys, {modules}; print(sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    for name in ("fsspec", "s3fs", "botocore", "aiohttp", "tenacity", "pooch", "structlog", "rich", "numpy"):
        assert f"'{name}'" not in done.stdout
