"""Reading images from a real S3 server: a problem of the object is a verdict, a problem of the store a fault."""

import os
from collections.abc import Iterator

import pytest

from segmint.catalogs.reasons import Reason, RejectedError
from segmint.infra.storage.errors import AccessRefusedError, StorageFaultError, UnavailableError
from segmint.infra.storage.retry import RetryPolicy
from segmint.infra.storage.storage import Storage
from segmint.operators.prepare.read_image import ImageReader, checked_digest
from tests.support.faulty_proxy import CUT_BODY, RESET_BODY, FaultyProxy, answer, faulty_proxy
from tests.support.s3_server import S3Server

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
    reader._max_bytes = 999
    assert reason(reader) is Reason.TOO_LARGE


@pytest.mark.parametrize(
    "fault", [RESET_BODY, CUT_BODY, answer(500, "InternalError"), answer(403, "InvalidObjectState")]
)
def test_an_object_that_cannot_be_read_is_refused_after_two_rounds(
    fault: bytes, proxy: FaultyProxy, reader: ImageReader
) -> None:
    proxy.policy = lambda method, target: fault * ("x.jpg" in target)
    assert reason(reader) is Reason.UNREADABLE_OBJECT


@pytest.mark.parametrize("fault", [RESET_BODY, CUT_BODY, answer(500, "InternalError")])
def test_a_fault_may_end_between_the_last_attempt_and_the_check_of_the_store(
    fault: bytes, proxy: FaultyProxy, reader: ImageReader
) -> None:
    proxy.plan = [("GET", fault)] * FAST.attempts
    assert reader.read(ROW) == DATA
    assert proxy.plan == []


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
