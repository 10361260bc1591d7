"""Reading images from a real S3 server: a problem of the object is a verdict, a problem of the store a fault."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from segmint.catalogs.findings import Reason, RejectedError
from segmint.infra.storage.errors import AccessRefusedError, StorageFaultError, UnavailableError
from segmint.infra.storage.retry import RetryPolicy
from segmint.infra.storage.storage import Storage
from segmint.operators.prepare.read_image import MOST_READS, ImageReader, checked_digest
from tests.support.faulty_proxy import CUT_BODY, RESET_BODY, SHORT_LENGTH, FaultyProxy, answer, faulty_proxy
from tests.support.s3_server import S3Server
from tests.support.tars import member_uris, tar_of
from tests.support.tiny_s3 import Answer, TinyS3, tiny_s3

pytestmark = pytest.mark.s3

FAST = RetryPolicy(attempts=2, first_wait_s=0.01, max_wait_s=0.01, deadline_s=5)
DATA = os.urandom(1000)
SHA256 = checked_digest(DATA, None)
ROW = {"uri": "x.jpg", "sha256": None}


@pytest.fixture
def proxy(s3_server: S3Server) -> Iterator[FaultyProxy]:
    with faulty_proxy(s3_server.port) as proxy:
        yield proxy


@pytest.fixture
def reader(proxy: FaultyProxy, s3_bucket: str) -> ImageReader:
    storage = Storage({"s3://": {"endpoint_url": proxy.url}}, FAST)
    storage.put(f"s3://{s3_bucket}/in/x.jpg", DATA)
    proxy.requests.clear()
    return ImageReader(storage, f"s3://{s3_bucket}/in/catalog.jsonl", max_bytes=1000)


def reason(reader: ImageReader, uri: str = "x.jpg") -> Reason:
    with pytest.raises(RejectedError) as caught:
        reader.read({**ROW, "uri": uri})
    return caught.value.reason


def test_verdicts_are_what_the_store_says_of_the_object(proxy: FaultyProxy, reader: ImageReader) -> None:
    assert reader.read(ROW) == DATA
    assert reason(reader, "none.jpg") is Reason.NOT_FOUND
    assert reason(reader, "/etc/passwd") is Reason.URI_NOT_ALLOWED
    reader.max_bytes = 999
    assert reason(reader) is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "fault", [answer(403, "InvalidObjectState"), answer(400, "KeyTooLongError"), answer(400, "InvalidURI")]
)
def test_an_archived_object_and_an_impossible_name_are_refused(
    fault: bytes, proxy: FaultyProxy, reader: ImageReader
) -> None:
    proxy.policy = lambda method, target: fault * ("x.jpg" in target)
    assert reason(reader) is Reason.UNREADABLE_OBJECT
    assert proxy.requests == ["GET"]


@pytest.mark.parametrize(
    "fault",
    [
        RESET_BODY,
        CUT_BODY,
        answer(500, "InternalError"),
        answer(400, "InvalidRequest"),
        answer(405, "MethodNotAllowed"),
    ],
)
def test_an_object_that_cannot_be_read_is_a_fault_while_its_store_answers(
    fault: bytes, proxy: FaultyProxy, reader: ImageReader
) -> None:
    proxy.policy = lambda method, target: fault * ("x.jpg" in target)
    with pytest.raises(StorageFaultError):
        reader.read(ROW)
    proxy.policy = lambda method, target: b""
    assert reader.read(ROW) == DATA


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (answer(503, "SlowDown"), UnavailableError),
        (answer(429, "TooManyRequests"), UnavailableError),
        (answer(403, "AccessDenied"), AccessRefusedError),
        (answer(400, "ExpiredToken"), AccessRefusedError),
        (answer(404, "NoSuchBucket"), AccessRefusedError),
    ],
)
def test_no_image_is_refused_for_a_fault_of_its_store(
    fault: bytes, kind: type[StorageFaultError], proxy: FaultyProxy, reader: ImageReader
) -> None:
    proxy.policy = lambda method, target: fault * ("x.jpg" in target)  # the store answers other requests
    with pytest.raises(kind):
        reader.read(ROW)
    proxy.policy = lambda method, target: answer(500, "InternalError")  # it does not
    with pytest.raises(StorageFaultError):
        reader.read(ROW)
    proxy.go_down()
    with pytest.raises(UnavailableError):
        reader.read(ROW)


def test_bytes_are_sure_from_a_local_file_or_with_the_catalogs_hash(reader: ImageReader) -> None:
    assert not reader.is_sure_of(DATA, ROW)
    assert reader.is_sure_of(DATA, {**ROW, "sha256": SHA256.upper()})
    assert not reader.is_sure_of(DATA[:-1], {**ROW, "sha256": SHA256})
    assert ImageReader(Storage(), "/some/catalog.csv", 1).is_sure_of(DATA, ROW)


def test_a_wrong_hash_is_a_verdict() -> None:
    assert checked_digest(DATA, SHA256.upper()) == SHA256
    with pytest.raises(RejectedError) as caught:
        checked_digest(DATA[:-1], SHA256)
    assert caught.value.reason is Reason.HASH_MISMATCH


@pytest.fixture(scope="module")
def server() -> Iterator[TinyS3]:
    with tiny_s3() as server:
        yield server


@pytest.fixture
def tiny(server: TinyS3) -> ImageReader:
    server.reset()
    server.objects["in/x.jpg"] = DATA
    return ImageReader(Storage(server.options, FAST), "s3://acme/in/catalog.jsonl", max_bytes=1000)


def test_a_body_without_a_length_is_read_up_to_the_limit(server: TinyS3, tiny: ImageReader) -> None:
    server.policy = lambda request, answer: Answer(200, answer.body, answer.headers, length=None)
    assert tiny.read(ROW) == DATA
    assert tiny.use(ROW, len) == len(DATA)
    server.objects["in/x.jpg"] = b""
    assert tiny.read(ROW) == b""
    server.objects["in/x.jpg"] = DATA + b"1"
    assert reason(tiny) is Reason.TOO_LARGE
    server.objects["in/x.jpg"] = bytes(3 << 20)
    big = ImageReader(Storage(server.options, FAST), "s3://acme/in/catalog.jsonl", max_bytes=3 << 20)
    assert big.read(ROW) == bytes(3 << 20)


BROKEN = {
    "no S3": Answer(200, DATA, {"Last-Modified": "never"}),
    "a captive portal": Answer(302, headers={"Location": "http://portal.example/"}),
    "a proxy's refusal": Answer(400, b"Bad Request"),
    "a teapot": Answer(418, b"short and stout"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_not_the_service_rejects_no_image(name: str, server: TinyS3, tiny: ImageReader) -> None:
    server.policy = lambda request, answer: BROKEN[name] if request.key else answer
    with pytest.raises(StorageFaultError):
        tiny.read(ROW)


@pytest.mark.parametrize("body", [b"", b"<html><body>default backend - 404</body></html>"])
def test_an_endpoint_that_knows_nothing_rejects_no_image(body: bytes, server: TinyS3, tiny: ImageReader) -> None:
    server.policy = lambda request, answer: Answer(404, body)
    with pytest.raises(StorageFaultError):
        tiny.read(ROW)


@pytest.mark.parametrize(
    "error", [KeyError("ETag"), ValueError("x"), AttributeError("y"), MemoryError(), OSError(22, "z")]
)
def test_an_error_of_the_client_rejects_no_image(
    error: Exception, tiny: ImageReader, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> bytes:
        raise error

    monkeypatch.setattr("segmint.infra.storage.s3.S3Store.read", broken)
    with pytest.raises((StorageFaultError, MemoryError)):
        tiny.read(ROW)


def test_a_missing_object_is_refused_whatever_its_404_looks_like(server: TinyS3, tiny: ImageReader) -> None:
    """If the store lists its objects, it is one, and may leave out the code of an error."""
    del server.objects["in/x.jpg"]
    assert reason(tiny) is Reason.NOT_FOUND
    server.policy = lambda request, answer: Answer(404) if request.key else answer
    assert reason(tiny) is Reason.NOT_FOUND


TAR = tar_of({"a.jpg": DATA[:700], f"{'long/' * 60}b.jpg": DATA, "empty.jpg": b""})
FIRST, LONG, EMPTY = member_uris("t.tar", TAR)


def outcome(reader: ImageReader, uri: str) -> bytes | Reason | type[StorageFaultError]:
    try:
        return reader.read({**ROW, "uri": uri})
    except RejectedError as error:
        return error.reason
    except StorageFaultError as error:
        return type(error)


@pytest.mark.parametrize("place", ["s3", "local"])
def test_a_file_in_a_tar_is_read_as_a_whole_object_or_refused(
    place: str, server: TinyS3, proxy: FaultyProxy, s3_bucket: str, tmp_path: Path
) -> None:
    base = str(tmp_path) if place == "local" else f"s3://{s3_bucket}/in"
    storage = Storage({"s3://": {"endpoint_url": proxy.url}}, FAST)
    reader = ImageReader(storage, f"{base}/catalog.jsonl", max_bytes=1000)
    storage.put(f"{base}/t.tar", TAR)
    storage.put(f"{base}/t.tar#512.jpg", b"an object")
    storage.put(f"{base}/a#1+2", b"another object")
    proxy.requests.clear()
    for uri, data in ((FIRST, DATA[:700]), (LONG, DATA), (EMPTY, b""), ("t.tar#512.jpg", b"an object")):
        assert outcome(reader, uri) == data
    assert outcome(reader, "a#1+2") == b"another object"
    assert proxy.requests == ([] if place == "local" else ["GET"] * 5)
    proxy.requests.clear()
    assert outcome(reader, "t.tar#512+1001") is Reason.TOO_LARGE
    assert outcome(reader, "t.tar#511+700") is Reason.URI_NOT_ALLOWED
    assert outcome(reader, "../t.tar#512+700") is Reason.URI_NOT_ALLOWED
    assert proxy.requests == []
    header = len(TAR) // 512 * 512
    for uri in ("t.tar#512+699", "t.tar#1024+700", f"t.tar#{header}+1", "t.tar#5120000+700", "none.tar#512+700"):
        assert outcome(reader, uri) is Reason.NOT_FOUND
    storage.put(f"{base}/t.tar", TAR[:1000])  # shorter than the file in it
    assert outcome(reader, FIRST) is Reason.NOT_FOUND
    assert outcome(reader, LONG) is Reason.NOT_FOUND
    storage.put(f"{base}/t.tar", tar_of({"a.jpg": DATA[1:701]}))  # no header tells these files apart
    assert outcome(reader, FIRST) == DATA[1:701]
    row = {**ROW, "uri": FIRST, "sha256": checked_digest(DATA[:700], None)}
    with pytest.raises(RejectedError) as caught:
        reader.use(row, lambda data: checked_digest(data, row["sha256"]))
    assert caught.value.reason is Reason.HASH_MISMATCH


def test_a_header_is_read_again_before_a_file_is_refused(server: TinyS3, tiny: ImageReader) -> None:
    """A store or cache that once sends other bytes costs no image, and one that never sends the same is a fault."""
    server.objects["in/t.tar"] = TAR
    spoiled = [Answer(206, os.urandom(1212)) for _ in range(MOST_READS)]
    answers = iter(spoiled[:2])
    server.policy = lambda request, answer: next(answers, answer)
    assert outcome(tiny, FIRST) == DATA[:700]
    assert [request.headers["range"] for request in server.requests] == ["bytes=1024-2235"] * 3
    answers = iter(spoiled)
    assert outcome(tiny, FIRST) is StorageFaultError
    server.policy = lambda request, answer: spoiled[0]
    server.requests.clear()
    assert outcome(tiny, FIRST) is Reason.NOT_FOUND
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (answer(503, "SlowDown"), UnavailableError),
        (answer(403, "AccessDenied"), AccessRefusedError),
        (answer(404, "NoSuchBucket"), AccessRefusedError),
        (answer(403, "InvalidObjectState"), Reason.UNREADABLE_OBJECT),
    ],
)
def test_the_store_of_a_tar_is_judged_as_that_of_an_object(
    fault: bytes, found: object, proxy: FaultyProxy, reader: ImageReader
) -> None:
    reader.storage.put(reader.catalog_uri.replace("catalog.jsonl", "t.tar"), TAR)
    proxy.policy = lambda method, target: fault * ("t.tar" in target)
    assert outcome(reader, FIRST) is found
    proxy.policy = lambda method, target: CUT_BODY * ("t.tar" in target)
    assert isinstance(outcome(reader, FIRST), type)
    proxy.policy = lambda method, target: b""
    proxy.plan = [("GET", answer(500, "InternalError"))]
    assert outcome(reader, FIRST) == DATA[:700]
    proxy.plan = [("GET", SHORT_LENGTH)]
    assert outcome(reader, FIRST) == DATA[:700]


def test_an_outage_costs_no_file_in_a_tar(proxy: FaultyProxy, s3_bucket: str) -> None:
    storage = Storage({"s3://": {"endpoint_url": proxy.url}}, FAST, outage_s=30)
    storage.put(f"s3://{s3_bucket}/t.tar", TAR)
    proxy.be_out_for(1)
    assert outcome(ImageReader(storage, f"s3://{s3_bucket}/c.csv", 1000), FIRST) == DATA[:700]


def test_a_store_that_sends_a_whole_tar_is_a_fault(server: TinyS3, tiny: ImageReader) -> None:
    server.objects["in/t.tar"] = TAR
    server.policy = lambda request, answer: Answer(200, TAR, answer.headers)
    assert outcome(tiny, FIRST) is StorageFaultError
    server.policy = lambda request, answer: Answer(404, b"<html>no such page</html>")
    assert outcome(tiny, FIRST) is not Reason.NOT_FOUND


def test_a_local_folder_is_not_found_and_a_file_that_gives_no_bytes_a_fault(tmp_path: Path) -> None:
    local = ImageReader(Storage(retry=FAST), str(tmp_path / "catalog.csv"), max_bytes=1000)
    (tmp_path / "x.jpg").mkdir()
    assert reason(local) is Reason.NOT_FOUND
    if Path("/proc/self/mem").exists():
        with pytest.raises(StorageFaultError):
            local.read({**ROW, "uri": "/proc/self/mem"})
