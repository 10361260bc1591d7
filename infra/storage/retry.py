"""Retries of store operations: verdicts are raised immediately, and faults are retried with exponential backoff."""

import errno
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from segmint.infra.errors import SegmintError
from segmint.infra.storage.errors import (
    CLOCK_CODES,
    PASSING,
    AccessRefusedError,
    ErrorKind,
    NoSpaceError,
    NotFoundError,
    PassingFaultError,
    StorageFaultError,
    UnavailableError,
    UnreadableObjectError,
    describe,
    meaning,
    service_code,
)
from segmint.infra.uris import LOCAL, UriNotAllowedError, has_unusual_bucket, redact, scheme

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")


@dataclass(frozen=True)
class RetryPolicy:
    """Limits on the retries of a fault.

    `attempts` includes the first attempt. The wait starts at `first_wait_s` seconds and doubles each time, up to
    `max_wait_s` seconds, with jitter. After `deadline_s` seconds, which is enough time for several read timeouts of a
    store, no further wait starts.
    """

    attempts: int = 5
    first_wait_s: float = 0.2
    max_wait_s: float = 10.0
    deadline_s: float = 180


# Retry a refusal once, because temporary credentials may expire in flight and are then refreshed.
REFUSED_ATTEMPTS = 2


def with_retries(policy: RetryPolicy, action: str, uri: str, attempt: Callable[[], T]) -> T:
    """Call `attempt`, retry faults according to `policy`, and return the result.

    `action` is a verb for messages, such as "read". Raises `NotFoundError` if the object doesn't exist,
    `FileExistsError` if it already exists, and `StorageFaultError` with the URI and the cause if a fault persists. Only
    faults are retried. Our own errors are raised unchanged.
    """
    import tenacity

    refusals = 0

    def again(state: "RetryCallState") -> bool:
        nonlocal refusals
        error = state.outcome.exception() if state.outcome else None
        if error is None or not isinstance(error, Exception) or isinstance(error, SegmintError):
            return False
        verdict = meaning(error)
        if verdict is ErrorKind.REFUSED:
            refusals += 1
            return refusals < REFUSED_ATTEMPTS
        return verdict in PASSING

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(policy.attempts) | tenacity.stop_after_delay(policy.deadline_s),
        wait=tenacity.wait_exponential_jitter(
            initial=policy.first_wait_s, max=policy.max_wait_s, jitter=policy.first_wait_s
        ),
        retry=again,
        reraise=True,
    )
    try:
        return retrying(attempt)
    except SegmintError:
        raise
    except Exception as error:
        verdict = meaning(error)
        if verdict is ErrorKind.EXISTS:
            raise FileExistsError(errno.EEXIST, "an object is already there", uri) from error
        if verdict is ErrorKind.ABSENT and action != "put":  # a put doesn't need an existing object
            if isinstance(error, IsADirectoryError):
                raise NotFoundError(f"cannot {action} {redact(uri)}: it is a folder, but expected a file") from error
            raise NotFoundError(f"cannot {action} {redact(uri)}: it is not there") from error
        code, _ = service_code(error)
        if code == "InvalidBucketName" or (code == "NoSuchBucket" and has_unusual_bucket(uri)):
            raise UriNotAllowedError(f"the store of {redact(uri)!r} has no such bucket; S3 forbids its name") from error
        tries = int(retrying.statistics.get("attempt_number", 1))
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)
        kind = NoSpaceError if full else _KINDS.get(verdict, StorageFaultError)
        raise kind(f"cannot {action} {redact(uri)}: {describe(error)}{_advice(uri, error, verdict, tries)}") from error


_KINDS: dict[ErrorKind, type[StorageFaultError]] = {
    ErrorKind.REFUSED: AccessRefusedError,
    ErrorKind.UNAVAILABLE: UnavailableError,
    ErrorKind.TRANSIENT: PassingFaultError,
    ErrorKind.UNREADABLE: UnreadableObjectError,
}


def _advice(uri: str, error: BaseException, verdict: ErrorKind, tries: int) -> str:
    if verdict in PASSING:
        return f"; given up after {tries} attempts"
    code, status = service_code(error)
    if code in {"NoSuchBucket", "ContainerNotFound"}:
        return "; there is no such bucket: check its name and the endpoint"
    if code in CLOCK_CODES:
        return f"; this machine's clock is wrong: it says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC. Set it"
    if 300 <= status < 400 or isinstance(error, RecursionError):  # botocore follows in vain
        return "; the store redirects, which is not followed: check the endpoint and the region"
    if verdict is ErrorKind.REFUSED and scheme(uri) == LOCAL:
        return "; check the permissions of the file and its folder"
    if verdict is ErrorKind.REFUSED:
        return (
            "; check the credentials (environment, profile, role) and their permissions; without permission to "
            "list a bucket, S3 responds this way for a missing object too"
        )
    return ""
