"""S3 through a proxy that spoils requests: each fault is overcome, or reported at once, and leaves nothing behind."""

import os
import re
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from segmint.infra.storage import s3
from segmint.infra.storage.errors import AccessRefusedError, NotFoundError, StorageFaultError, UnavailableError
from segmint.infra.storage.retry import RetryPolicy
from segmint.infra.storage.storage import Storage
from tests.support.faulty_proxy import (
    CUT_BODY,
    DRIP_BODY,
    LONG_LENGTH,
    LOSE_ANSWER,
    REFUSE,
    RESET_BODY,
    STALL_BODY,
    STALL_REQUEST,
    FaultyProxy,
    answer,
    faulty_proxy,
)
from tests.support.s3_server import S3Server
from tests.support.storms import Storm, StormRule

pytestmark = pytest.mark.s3

QUICK = RetryPolicy(attempts=4, first_wait_s=0.01, max_wait_s=0.05, deadline_s=30)
DATA = os.urandom(400_000)
OPTIONS = {"connect_timeout": 1, "read_timeout": 1}

BUSY = [answer(503, "SlowDown"), answer(429, "TooManyRequests"), answer(502, "BadGateway")]
ANSWERS = [*BUSY, answer(500, "InternalError"), REFUSE, LOSE_ANSWER]
BODIES = [CUT_BODY, RESET_BODY, LONG_LENGTH]
NOT_YET = StormRule(answer(404, "NoSuchKey"), "HEAD", first=1)  # as if the object came a moment later


def name_of(fault: object) -> str | None:
    """A fault as the name of a test."""
    if not isinstance(fault, bytes):
        return None
    return fault.split(b"\r\n", 1)[0].decode() + fault.partition(b"<Code>")[2].partition(b"<")[0].decode()


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_server.port) as proxy:
        yield proxy


def test_a_redirect_is_not_followed(proxy: FaultyProxy, s3_server: S3Server, s3_bucket: str) -> None:
    """A signed request would go to any address that a server names."""
    storage = Storage({"s3://": {"endpoint_url": proxy.url}}, retry=QUICK)
    uri = f"s3://{s3_bucket}/moved.jpg"
    storage.put(uri, b"here")
    there = f"http://127.0.0.1:{s3_server.port}/{s3_bucket}/moved.jpg"
    head = f"HTTP/1.1 307 Moved\r\nLocation: {there}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    proxy.policy = lambda method, target: head.encode() if method == "GET" and "moved" in target else b""
    with pytest.raises(StorageFaultError, match=r"the store redirects, which is not followed"):
        storage.read(uri)
    proxy.policy = lambda method, target: b""
    assert storage.read(uri) == b"here"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bodies must come at 50 MB a second, for tests to wait no longer than they must."""
    monkeypatch.setattr(s3, "SLOWEST", 50_000_000)


@pytest.fixture
def storage(proxy: FaultyProxy) -> Storage:
    return through(proxy)


def through(proxy: FaultyProxy, outage_s: float = 0.0, **options: float) -> Storage:
    return Storage({"s3://": OPTIONS | options | {"endpoint_url": proxy.url}}, QUICK, outage_s)


@pytest.fixture(scope="module")
def bucket(s3_server: S3Server) -> str:
    return s3_server.make_bucket()


@pytest.fixture
def uri(bucket: str, s3_options: dict[str, dict[str, str]]) -> str:
    """The URI of `DATA`, alone in its folder."""
    uri = f"s3://{bucket}/{uuid.uuid4().hex}/x"
    Storage(s3_options).put(uri, DATA)
    return uri


@pytest.mark.parametrize("fault", [*ANSWERS, *BODIES], ids=name_of)
def test_a_spoiled_read_and_listing_are_made_again(
    fault: bytes, proxy: FaultyProxy, storage: Storage, uri: str
) -> None:
    proxy.plan = [("GET", fault)]
    assert storage.read(uri) == DATA
    proxy.plan += [("GET", fault)]
    with storage.open(uri) as stream:
        assert stream.read() == DATA
    proxy.plan += [("GET", fault)]
    assert [(entry.name, entry.size) for entry in storage.list(uri.removesuffix("/x"))] == [("x", len(DATA))]
    assert proxy.plan == []


def test_an_empty_answer_is_not_an_empty_folder(proxy: FaultyProxy, storage: Storage, uri: str) -> None:
    """A correction would take the files of a shard whose commits are not listed for a dead writer's."""
    folder = uri.removesuffix("/x")
    empty = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    proxy.plan = [("GET", empty)]
    assert [entry.name for entry in storage.list(folder)] == ["x"]
    proxy.plan += [("GET", empty)]
    assert [entry.name for entry in storage.walk(folder)] == ["x"]
    proxy.policy = lambda method, target: empty if method == "GET" else b""
    for look in (storage.list, storage.versioned):
        with pytest.raises(StorageFaultError, match="a page of a listing"):
            look(folder)


@pytest.mark.parametrize("fault", ANSWERS, ids=name_of)
def test_a_spoiled_write_look_and_deletion_are_made_again(
    fault: bytes, proxy: FaultyProxy, storage: Storage, uri: str
) -> None:
    proxy.plan = [("PUT", fault), ("HEAD", fault), ("GET", fault)]
    storage.put(uri, DATA[:-1])
    assert storage.size(uri) == len(DATA) - 1
    assert storage.read(uri) == DATA[:-1]
    proxy.plan += [("DELETE", fault), ("PUT", fault)]
    storage.delete(uri)
    assert storage.put_if_absent(uri, DATA)
    assert not storage.put_if_absent(uri, DATA[:-1])
    assert storage.read(uri) == DATA
    assert proxy.plan == []


@pytest.mark.parametrize("nth", [0, 1])
def test_a_version_that_is_gone_does_not_end_a_purge(
    nth: int, proxy: FaultyProxy, storage: Storage, s3_server: S3Server, s3_bucket: str
) -> None:
    """Two corrections may purge an object at once, and some stores answer that what one of them deleted is absent."""
    client = s3_server.client()
    client.put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"})
    for data in (b"1", b"22", b"333"):
        storage.put(f"s3://{s3_bucket}/x", data)
    proxy.plan = [*[("DELETE", b"")] * nth, ("DELETE", answer(404, ["NoSuchKey", "NoSuchVersion"][nth]))]
    storage.purge(f"s3://{s3_bucket}/x")
    assert proxy.plan == []
    left = client.list_object_versions(Bucket=s3_bucket)
    assert len(left.get("Versions", [])) + len(left.get("DeleteMarkers", [])) == nth  # the version of the false answer


@pytest.mark.parametrize("fault", [STALL_BODY, DRIP_BODY], ids=name_of)
def test_a_body_that_does_not_come_to_its_end_is_asked_for_again(
    fault: bytes, proxy: FaultyProxy, storage: Storage, uri: str
) -> None:
    proxy.plan = [("GET", fault)]
    assert storage.read(uri) == DATA
    assert proxy.requests == ["GET", "GET"]


def test_a_write_that_nobody_takes_ends(proxy: FaultyProxy, storage: Storage, uri: str) -> None:
    data = os.urandom(20_000_000)  # more than sockets hold
    proxy.plan = [("PUT", STALL_REQUEST)]
    storage.put(uri, data)
    assert proxy.requests == ["PUT", "PUT"]
    proxy.plan = [("PUT", STALL_REQUEST)]
    once = Storage({"s3://": OPTIONS | {"endpoint_url": proxy.url}}, RetryPolicy(attempts=1))
    with pytest.raises(StorageFaultError, match="no complete response within"):
        once.put(uri, data)


@pytest.mark.parametrize(
    ("fault", "kind", "advice", "tries"),
    [
        (answer(403, "AccessDenied"), AccessRefusedError, "check the credentials", 2),
        (answer(400, "ExpiredToken"), AccessRefusedError, "check the credentials", 2),
        (answer(404, "NoSuchBucket"), AccessRefusedError, "no such bucket", 2),
        (answer(400, "InvalidArgument"), StorageFaultError, "InvalidArgument", 1),
        (answer(404, "NoSuchKey"), NotFoundError, "not there", 1),
    ],
    ids=name_of,
)
def test_what_cannot_succeed_is_reported_at_once(
    fault: bytes, kind: type[Exception], advice: str, tries: int, proxy: FaultyProxy, uri: str
) -> None:
    proxy.policy = lambda method, target: fault
    for storage in (through(proxy), through(proxy, outage_s=60)):
        proxy.requests.clear()
        with pytest.raises(kind, match=advice):
            storage.read(uri)
        assert len(proxy.requests) == tries


def test_a_look_that_is_refused_without_words_says_why(proxy: FaultyProxy, storage: Storage, uri: str) -> None:
    proxy.policy = lambda method, target: b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n" * (method == "HEAD")
    with pytest.raises(StorageFaultError, match="400"):
        storage.exists(uri)
    proxy.policy = lambda method, target: answer(400, "ExpiredToken")
    with pytest.raises(AccessRefusedError, match=r"ExpiredToken.*check the credentials"):
        storage.exists(uri)


def test_a_fault_says_whether_it_is_about_the_store(proxy: FaultyProxy, storage: Storage, uri: str) -> None:
    for fault in BUSY:
        proxy.policy = lambda method, target, fault=fault: fault
        with pytest.raises(UnavailableError):
            storage.read(uri)
        assert not storage.answers(uri)
    proxy.policy = lambda method, target: answer(500, "InternalError") * ("/x" in target)
    with pytest.raises(StorageFaultError) as caught:
        storage.read(uri)
    assert not isinstance(caught.value, UnavailableError)
    assert storage.answers(uri)
    proxy.policy = lambda method, target: answer(403, "AccessDenied")
    assert storage.answers(uri)
    proxy.go_down()
    with pytest.raises(UnavailableError):
        storage.read(uri)
    assert not storage.answers(uri)


@pytest.mark.parametrize("use", ["read", "put", "list"])
def test_an_outage_is_waited_for(use: str, proxy: FaultyProxy, uri: str) -> None:
    storage = through(proxy, outage_s=60)
    uses: dict[str, Callable[[], object]] = {
        "read": lambda: storage.read(uri),
        "put": lambda: storage.put_if_absent(uri, DATA),
        "list": lambda: [entry.name for entry in storage.walk(uri.removesuffix("/x"))],
    }
    assert storage.size(uri) == len(DATA)  # the store has come back since another test gave it up
    proxy.be_out_for(1)
    assert uses[use]() == {"read": DATA, "put": True, "list": ["x"]}[use]
    proxy.go_down()
    with pytest.raises(UnavailableError):
        through(proxy, outage_s=0.2).read(uri)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)
    monkeypatch.setattr(s3, "PART_POLICY", QUICK)


@pytest.fixture
def big(tmp_path: Path) -> Path:
    path = tmp_path / "big"
    path.write_bytes(os.urandom(12_000_000))
    return path


def uploads(s3_server: S3Server, uri: str) -> list[object]:
    bucket = uri.split("/")[2]
    return list(s3_server.client().list_multipart_uploads(Bucket=bucket).get("Uploads", []))


@pytest.mark.usefixtures("small_parts")
def test_parts_of_a_large_file_are_put_again_one_by_one(
    proxy: FaultyProxy, uri: str, big: Path, s3_server: S3Server
) -> None:
    storage = through(proxy, read_timeout=60)  # a part that is slow on a busy machine would be put again too
    storm = Storm(
        StormRule(answer(500, "InternalError"), "PUT", r"partNumber=2\b", first=2),
        StormRule(LOSE_ANSWER, "PUT", r"partNumber=3\b", first=1),
        StormRule(LOSE_ANSWER, "POST", "uploadId=", first=1),
    )
    proxy.policy = storm
    storage.put_file(uri, big)
    assert sorted(storm.hits.values()) == [1, 1, 2]
    assert storage.read(uri) == big.read_bytes()
    assert sum(count for name, count in storm.asked.items() if "partNumber=1" in name) == 1
    assert uploads(s3_server, uri) == []


@pytest.mark.usefixtures("small_parts")
def test_a_large_file_is_not_put_over_one_that_comes_meanwhile(
    proxy: FaultyProxy, storage: Storage, uri: str, big: Path, s3_server: S3Server
) -> None:
    proxy.policy = Storm(NOT_YET)
    assert not storage.put_file_if_absent(uri, big)
    assert storage.read(uri) == DATA
    assert uploads(s3_server, uri) == []
    storage.delete(uri)
    assert storage.put_file_if_absent(uri, big)
    proxy.policy = Storm(NOT_YET)
    assert storage.put_file_if_absent(uri, big)


@pytest.mark.usefixtures("small_parts")
def test_a_large_file_is_not_taken_for_another_of_its_size(
    proxy: FaultyProxy, storage: Storage, uri: str, big: Path
) -> None:
    storage.put(uri, bytes(big.stat().st_size))
    proxy.policy = Storm(NOT_YET, StormRule(answer(404, "NoSuchUpload"), "POST", "uploadId="))
    assert not storage.put_file_if_absent(uri, big)


@pytest.mark.usefixtures("small_parts")
def test_a_large_file_that_cannot_be_put_leaves_nothing(
    proxy: FaultyProxy, storage: Storage, uri: str, big: Path, s3_server: S3Server
) -> None:
    proxy.policy = lambda method, target: answer(500, "InternalError") * bool(re.search(r"partNumber=2\b", target))
    with pytest.raises(StorageFaultError, match="InternalError"):
        storage.put_file(uri, big)
    assert uploads(s3_server, uri) == []
    assert storage.read(uri) == DATA
