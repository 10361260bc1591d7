"""What the errors of stores say, as botocore raises them and as s3fs translates them."""

import errno

import pytest

from segmint.infra.storage.errors import ErrorKind, describe, meaning
from tests.support.store_errors import client_error


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("NoSuchKey", 404, ErrorKind.ABSENT),
        ("NoSuchBucket", 404, ErrorKind.REFUSED),
        ("AccessDenied", 403, ErrorKind.REFUSED),
        ("ExpiredToken", 400, ErrorKind.REFUSED),
        ("PreconditionFailed", 412, ErrorKind.EXISTS),
        ("ConditionalRequestConflict", 409, ErrorKind.TRANSIENT),
        ("InternalError", 500, ErrorKind.TRANSIENT),
        ("SlowDown", 503, ErrorKind.UNAVAILABLE),
        ("RequestTimeout", 400, ErrorKind.TRANSIENT),
        ("Whatever", 502, ErrorKind.UNAVAILABLE),
        ("TooManyRequests", 429, ErrorKind.UNAVAILABLE),
        ("InvalidArgument", 400, ErrorKind.PERMANENT),
        ("InvalidObjectState", 403, ErrorKind.UNREADABLE),
        ("KeyTooLongError", 400, ErrorKind.UNREADABLE),
        ("InvalidURI", 400, ErrorKind.UNREADABLE),
        ("KMS.DisabledException", 400, ErrorKind.REFUSED),
    ],
)
def test_meaning_of_answers_also_through_s3fs(code: str, status: int, expected: ErrorKind) -> None:
    from s3fs.errors import translate_boto_error

    error = client_error(code, status)
    assert meaning(error) is expected
    assert meaning(translate_boto_error(error)) is expected


def test_meaning_of_other_errors() -> None:
    from aiohttp import ClientPayloadError
    from botocore.exceptions import (
        EndpointConnectionError,
        FlexibleChecksumError,
        NoCredentialsError,
        ReadTimeoutError,
        SSLError,
    )

    assert meaning(FileNotFoundError(errno.ENOENT, "x")) is ErrorKind.ABSENT
    assert meaning(FileNotFoundError("x")) is ErrorKind.ABSENT
    assert meaning(NotADirectoryError(errno.ENOTDIR, "x")) is ErrorKind.ABSENT
    assert meaning(PermissionError(errno.EACCES, "x")) is ErrorKind.REFUSED
    assert meaning(NoCredentialsError()) is ErrorKind.REFUSED
    assert meaning(OSError(errno.ENOSPC, "x")) is ErrorKind.PERMANENT
    assert meaning(OSError(errno.EIO, "x")) is ErrorKind.TRANSIENT
    assert meaning(ValueError("x")) is ErrorKind.PERMANENT
    for error in (
        ConnectionResetError(errno.ECONNRESET, "x"),
        TimeoutError(),
        ClientPayloadError("short"),
        ReadTimeoutError(endpoint_url="http://x"),
        FlexibleChecksumError(error_msg="x"),
    ):
        assert meaning(error) is ErrorKind.TRANSIENT
    for error in (ConnectionRefusedError(errno.ECONNREFUSED, "x"), EndpointConnectionError(endpoint_url="http://x")):
        assert meaning(error) is ErrorKind.UNAVAILABLE
    untrusted = SSLError(endpoint_url="https://x", error="[SSL: CERTIFICATE_VERIFY_FAILED] self-signed certificate")
    assert meaning(untrusted) is ErrorKind.PERMANENT
    assert meaning(SSLError(endpoint_url="https://x", error="EOF occurred")) is ErrorKind.TRANSIENT


class AzureError(Exception):
    """An answer of Azure as its library raises it: with a code, if there is one, and XML behind the message."""

    def __init__(self, code: str | None, status: int) -> None:
        super().__init__(f"It failed.\nRequestId:1\nTime:2\nErrorCode:{code}\nContent: <?xml?>")
        self.error_code, self.status_code = code, status


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("BlobNotFound", 404, ErrorKind.ABSENT),
        (None, 404, ErrorKind.ABSENT),
        ("ContainerNotFound", 404, ErrorKind.REFUSED),
        ("AuthenticationFailed", 403, ErrorKind.REFUSED),
        ("BlobAlreadyExists", 409, ErrorKind.EXISTS),
        ("ConditionNotMet", 412, ErrorKind.EXISTS),
        ("BlobArchived", 409, ErrorKind.UNREADABLE),
        ("InvalidResourceName", 400, ErrorKind.UNREADABLE),
        ("InvalidQueryParameterValue", 400, ErrorKind.PERMANENT),
        ("InternalError", 500, ErrorKind.TRANSIENT),
        ("ServerBusy", 503, ErrorKind.UNAVAILABLE),
        (None, 502, ErrorKind.UNAVAILABLE),
    ],
)
def test_meaning_of_azures_answers(code: str | None, status: int, expected: ErrorKind) -> None:
    assert meaning(AzureError(code, status)) is expected
    assert describe(AzureError(code, status)) == f"It failed. ({code or status})"


def test_a_cause_without_text_is_described_by_the_one_behind_it() -> None:
    error = TimeoutError()
    error.__cause__ = TimeoutError("no complete response within 65 seconds")
    assert describe(error) == "no complete response within 65 seconds"
    assert describe(TimeoutError()) == "TimeoutError"
    assert describe(client_error("SlowDown", 503)).count("SlowDown") == 1
