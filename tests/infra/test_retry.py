import errno

import pytest

from infra.errors import UsageError
from infra.retry import Meaning, NotFoundError, RetryPolicy, StorageFaultError, meaning, with_retries

QUICK = RetryPolicy(attempts=4, first_wait_s=0.001, max_wait_s=0.002, deadline_s=5)


class Failing:
    """Raises the given errors in turn, then returns "done"."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def client_error(code: str, status: int) -> Exception:
    from botocore.exceptions import ClientError

    return ClientError(
        {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject"
    )


@pytest.mark.parametrize(
    ("code", "status", "expected"),
    [
        ("NoSuchKey", 404, Meaning.ABSENT),
        ("NoSuchBucket", 404, Meaning.REFUSED),
        ("AccessDenied", 403, Meaning.REFUSED),
        ("ExpiredToken", 400, Meaning.REFUSED),
        ("PreconditionFailed", 412, Meaning.EXISTS),
        ("ConditionalRequestConflict", 409, Meaning.TRANSIENT),
        ("SlowDown", 503, Meaning.TRANSIENT),
        ("RequestTimeout", 400, Meaning.TRANSIENT),
        ("Whatever", 502, Meaning.TRANSIENT),
        ("TooManyRequests", 429, Meaning.TRANSIENT),
        ("InvalidArgument", 400, Meaning.PERMANENT),
    ],
)
def test_meaning_of_answers_also_through_s3fs(code: str, status: int, expected: Meaning) -> None:
    from s3fs.errors import translate_boto_error

    error = client_error(code, status)
    assert meaning(error) is expected
    assert meaning(translate_boto_error(error)) is expected


def test_meaning_of_other_errors() -> None:
    from aiohttp import ClientPayloadError
    from botocore.exceptions import EndpointConnectionError, NoCredentialsError, ReadTimeoutError

    assert meaning(FileNotFoundError(errno.ENOENT, "x")) is Meaning.ABSENT
    assert meaning(FileNotFoundError("x")) is Meaning.ABSENT
    assert meaning(NotADirectoryError(errno.ENOTDIR, "x")) is Meaning.ABSENT
    assert meaning(PermissionError(errno.EACCES, "x")) is Meaning.REFUSED
    assert meaning(NoCredentialsError()) is Meaning.REFUSED
    assert meaning(OSError(errno.ENOSPC, "x")) is Meaning.PERMANENT
    assert meaning(OSError(errno.EIO, "x")) is Meaning.TRANSIENT
    assert meaning(ValueError("x")) is Meaning.PERMANENT
    for error in (
        ConnectionResetError(errno.ECONNRESET, "x"),
        TimeoutError(),
        ClientPayloadError("short"),
        EndpointConnectionError(endpoint_url="http://x"),
        ReadTimeoutError(endpoint_url="http://x"),
    ):
        assert meaning(error) is Meaning.TRANSIENT


def test_a_fault_that_passes_is_forgotten() -> None:
    attempt = Failing(ConnectionResetError(), client_error("SlowDown", 503), TimeoutError())
    assert with_retries(QUICK, "read", "s3://b/k", attempt) == "done"
    assert attempt.calls == 4


def test_a_fault_that_stays_names_uri_cause_and_attempts() -> None:
    attempt = Failing(*[client_error("SlowDown", 503)] * 9)
    with pytest.raises(StorageFaultError, match=r"s3://b/k.*SlowDown.*4 attempts"):
        with_retries(QUICK, "read", "s3://b/k", attempt)
    assert attempt.calls == 4


def test_verdicts_and_our_own_errors_are_never_tried_again() -> None:
    for error, expected in (
        (FileNotFoundError(errno.ENOENT, "x"), NotFoundError),
        (UsageError("x"), UsageError),
        (OSError(errno.ENOSPC, "x"), StorageFaultError),
        (ValueError("x"), StorageFaultError),
    ):
        attempt = Failing(error)
        with pytest.raises(expected):
            with_retries(QUICK, "read", "/x", attempt)
        assert attempt.calls == 1


def test_a_refusal_is_tried_once_more() -> None:
    attempt = Failing(*[client_error("ExpiredToken", 400)] * 9)
    with pytest.raises(StorageFaultError, match="credentials"):
        with_retries(QUICK, "read", "s3://b/k", attempt)
    assert attempt.calls == 2


def test_no_attempt_begins_after_the_deadline() -> None:
    attempt = Failing(*[ConnectionResetError()] * 99)
    policy = RetryPolicy(attempts=99, first_wait_s=0.05, max_wait_s=0.05, deadline_s=0.2)
    with pytest.raises(StorageFaultError):
        with_retries(policy, "read", "s3://b/k", attempt)
    assert attempt.calls < 8


def test_messages_hold_no_credentials() -> None:
    attempt = Failing(ValueError("no https://user:hunter2@host and AKIAIOSFODNN7EXAMPLE"))
    with pytest.raises(StorageFaultError) as caught:
        with_retries(QUICK, "read", "s3://b/k", attempt)
    assert "hunter2" not in str(caught.value)
    assert "AKIA" not in str(caught.value)
