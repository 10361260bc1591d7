"""Refusals of S3 say why, although a response to a HEAD has no body; folders are no files; checked for every use."""

from collections.abc import Iterator

import pytest

from segmint.infra.storage.errors import AccessRefusedError, NotFoundError, StorageFaultError
from segmint.infra.storage.retry import RetryPolicy
from segmint.infra.storage.storage import Storage
from tests.support.tiny_s3 import Answer, Request, TinyS3, refusal, tiny_s3

QUICK = RetryPolicy(attempts=3, first_wait_s=0.01, max_wait_s=0.02, deadline_s=10)
URI = "s3://acme/c"


@pytest.fixture(scope="module")
def server() -> Iterator[TinyS3]:
    with tiny_s3() as server:
        yield server


@pytest.fixture
def s3(server: TinyS3) -> TinyS3:
    server.reset()
    server.objects["c"] = b"1"
    return server


def refuse(server: TinyS3, status: int, code: str) -> Storage:
    """A storage of a server that refuses all requests. In a response to a HEAD, there is only the status."""
    server.policy = lambda request, answer: refusal(status, code)
    return Storage(server.options, QUICK)


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (403, "RequestTimeTooSkewed", r"RequestTimeTooSkewed\); this machine's clock is wrong: it says 20\d\d-"),
        (403, "RequestInTheFuture", "this machine's clock is wrong"),
        (400, "RequestTimeTooSkewed", "this machine's clock is wrong"),
        (403, "SignatureDoesNotMatch", r"SignatureDoesNotMatch\); check the credentials"),
        (403, "InvalidAccessKeyId", r"InvalidAccessKeyId\); check the credentials"),
        (400, "ExpiredToken", r"ExpiredToken\); check the credentials"),
        (401, "TokenRefreshRequired", "TokenRefreshRequired"),
    ],
)
def test_the_reason_of_a_refusal_is_told_by_every_use(s3: TinyS3, status: int, code: str, advice: str) -> None:
    storage = refuse(s3, status, code)
    for use in (storage.exists, storage.size, storage.open, storage.read, storage.list):
        with pytest.raises(AccessRefusedError, match=advice):
            use(URI)


def test_a_refusal_of_looks_only_stays_one(s3: TinyS3) -> None:
    """Without a reason, or for an object of any size, the refusal of the HEAD is what is reported."""
    for data in (b"", b"1", bytes(10_000)):
        s3.objects["c"] = data
        s3.policy = lambda request, answer: refusal(403, "AccessDenied") if request.method == "HEAD" else answer
        with pytest.raises(AccessRefusedError, match=r"403.*check the credentials"):
            Storage(s3.options, QUICK).size(URI)
    s3.policy = lambda request, answer: Answer(403)
    with pytest.raises(AccessRefusedError, match=r"403.*check the credentials"):
        Storage(s3.options, QUICK).size(URI)


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_store_that_redirects_every_request_is_named(s3: TinyS3, status: int) -> None:
    storage = refuse(s3, status, "PermanentRedirect")
    for use in (storage.exists, storage.size, storage.open, storage.read, storage.list):
        with pytest.raises(StorageFaultError, match="the store redirects, which is not followed"):
            use(URI)


def test_a_busy_store_is_not_asked_for_reasons(s3: TinyS3) -> None:
    storage = refuse(s3, 503, "SlowDown")
    with pytest.raises(StorageFaultError):
        storage.size(URI)
    assert {request.method for request in s3.requests} == {"HEAD"}


def test_an_object_that_a_head_hides_is_missing(s3: TinyS3) -> None:
    def policy(request: Request, answer: Answer) -> Answer:
        return refusal(403, "AccessDenied") if request.method == "HEAD" else refusal(404, "NoSuchKey")

    s3.policy = policy
    with pytest.raises(NotFoundError):
        Storage(s3.options, QUICK).size(URI)
