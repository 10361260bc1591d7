import errno

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import (
    AccessRefusedError,
    NoSpaceError,
    NotFoundError,
    PassingFaultError,
    StorageFaultError,
    UnavailableError,
)
from segmint.infra.storage.retry import RetryPolicy, with_retries
from tests.support.store_errors import client_error

QUICK = RetryPolicy(attempts=4, first_wait_s=0.001, max_wait_s=0.002, deadline_s=5)


class FailingCall:
    """Raises the given errors in turn, then returns "done"."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_a_fault_that_passes_is_forgotten() -> None:
    attempt = FailingCall(ConnectionResetError(), client_error("SlowDown", 503), TimeoutError())
    assert with_retries(QUICK, "read", "s3://b/k", attempt) == "done"
    assert attempt.calls == 4


def test_a_fault_that_stays_names_uri_cause_and_attempts() -> None:
    attempt = FailingCall(*[client_error("SlowDown", 503)] * 9)
    with pytest.raises(UnavailableError, match=r"s3://b/k.*SlowDown.*4 attempts"):
        with_retries(QUICK, "read", "s3://b/k", attempt)
    assert attempt.calls == 4


def test_verdicts_and_our_own_errors_are_never_tried_again() -> None:
    for error, expected in (
        (FileNotFoundError(errno.ENOENT, "x"), NotFoundError),
        (UsageError("x"), UsageError),
        (OSError(errno.ENOSPC, "x"), StorageFaultError),
        (ValueError("x"), StorageFaultError),
    ):
        attempt = FailingCall(error)
        with pytest.raises(expected):
            with_retries(QUICK, "read", "/x", attempt)
        assert attempt.calls == 1


@pytest.mark.parametrize("before", [[], [ConnectionResetError()]], ids=["at once", "after a fault"])
def test_a_refusal_is_tried_once_more(before: list[Exception]) -> None:
    attempt = FailingCall(*before, *[client_error("ExpiredToken", 400)] * 9)
    with pytest.raises(StorageFaultError, match="credentials"):
        with_retries(QUICK, "read", "s3://b/k", attempt)
    assert attempt.calls == 2 + len(before)


def test_the_type_of_an_error_says_what_a_fault_is_about() -> None:
    for error, expected in (
        (client_error("SlowDown", 503), UnavailableError),
        (ConnectionResetError(), PassingFaultError),
        (client_error("AccessDenied", 403), AccessRefusedError),
        (OSError(errno.ENOSPC, "x"), NoSpaceError),
        (OSError(errno.EDQUOT, "x"), NoSpaceError),
        (OSError(errno.EROFS, "x"), StorageFaultError),
    ):
        with pytest.raises(StorageFaultError) as caught:
            with_retries(QUICK, "read", "s3://b/k", FailingCall(*[error] * 9))
        assert type(caught.value) is expected


def test_no_attempt_begins_after_the_deadline() -> None:
    attempt = FailingCall(*[ConnectionResetError()] * 99)
    policy = RetryPolicy(attempts=99, first_wait_s=0.05, max_wait_s=0.05, deadline_s=0.2)
    with pytest.raises(StorageFaultError):
        with_retries(policy, "read", "s3://b/k", attempt)
    assert attempt.calls < 8


def test_messages_hold_no_credentials() -> None:
    attempt = FailingCall(ValueError("no https://user:hunter2@host and AKIAIOSFODNN7EXAMPLE"))
    with pytest.raises(StorageFaultError) as caught:
        with_retries(QUICK, "read", "s3://b/k", attempt)
    assert "hunter2" not in str(caught.value)
    assert "AKIA" not in str(caught.value)
