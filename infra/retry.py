"""What a store's error means, and when to try again: verdicts at once, faults with exponential backoff."""

import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, TypeVar

from infra.errors import SegmintError
from infra.uris import LOCAL, redact, scheme

if TYPE_CHECKING:
    from tenacity import RetryCallState

T = TypeVar("T")


class NotFoundError(SegmintError):
    """The store answered, and the object is not there."""


class ObjectTooLargeError(SegmintError):
    """An object is larger than its reader wants; nothing of it was kept."""

    def __init__(self, message: str, size: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class StorageFaultError(SegmintError):
    """The world failed, not the object: throttling, 5xx, refused credentials, no such bucket, resets."""


class AccessRefusedError(StorageFaultError):
    """The store refuses our credentials or what they may do: never a verdict on an object."""


class ShortBodyError(OSError):
    """A store sent fewer or more bytes than it had announced."""


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a fault is tried again.

    `attempts` counts the first; the wait doubles from `first_wait_s` to at most `max_wait_s` (seconds, with
    jitter); no new attempt begins after `deadline_s` seconds.
    """

    attempts: int = 5
    first_wait_s: float = 0.2
    max_wait_s: float = 10.0
    deadline_s: float = 60


class Meaning(Enum):
    """What an error of a store says."""

    ABSENT = "the object is not there"
    EXISTS = "an object is already there"
    REFUSED = "the store refuses us, or the bucket is not there: waiting rarely helps"
    TRANSIENT = "the store or the way to it is in trouble: worth another try"
    PERMANENT = "the request cannot succeed"


# A refusal is tried once more: temporary credentials do expire in mid-flight and are then fetched anew.
_REFUSED_ATTEMPTS = 2

_ABSENT_CODES = {"NoSuchKey", "404", "NotFound", "NoSuchVersion"}
_EXISTS_CODES = {"PreconditionFailed", "412"}
_REFUSED_CODES = {"NoSuchBucket", "NoSuchUpload", "ExpiredToken", "InvalidToken", "RequestTimeTooSkewed"}
_TRANSIENT_CODES = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
    "XAmzContentSHA256Mismatch",
}
_TRANSIENT_STATUS = {408, 409, 425, 429}

# Class names, so that a process that only touches local files need not import botocore to know its errors.
_TRANSIENT_CLASSES = {
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "FSTimeoutError",
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseParserError",
    "ShortBodyError",
    "TimeoutError",
}
_REFUSED_CLASSES = {
    "CredentialRetrievalError",
    "NoCredentialsError",
    "PartialCredentialsError",
    "PermissionError",
    "ProfileNotFound",
    "TokenRetrievalError",
}
_ABSENT_ERRNO = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG}
_PERMANENT_ERRNO = {
    errno.EDQUOT,
    errno.EFBIG,
    errno.EINVAL,
    errno.EMLINK,
    errno.ENOSPC,
    errno.ENOSYS,
    errno.EOPNOTSUPP,
    errno.EROFS,
}


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__


def service_code(error: BaseException) -> tuple[str, int] | None:
    """Error code and HTTP status of the answer behind an error, through fsspec's translation; else None."""
    for link in _chain(error):
        response = getattr(link, "response", None)
        if isinstance(response, dict) and "Error" in response:
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response["Error"].get("Code", "")), int(status or 0)
    return None


def meaning(error: BaseException) -> Meaning:
    """What an error of a file system, of s3fs or of another fsspec implementation says."""
    answer = service_code(error)
    if answer is not None:
        return _meaning_of_answer(*answer)
    if isinstance(error, FileExistsError):
        return Meaning.EXISTS
    names = {cls.__name__ for link in _chain(error) for cls in type(link).__mro__}
    if names & _REFUSED_CLASSES:
        return Meaning.REFUSED
    if names & _TRANSIENT_CLASSES:
        return Meaning.TRANSIENT
    if isinstance(error, OSError):
        if error.errno in _ABSENT_ERRNO or isinstance(error, FileNotFoundError):
            return Meaning.ABSENT
        return Meaning.PERMANENT if error.errno in _PERMANENT_ERRNO else Meaning.TRANSIENT
    return Meaning.PERMANENT


def _meaning_of_answer(code: str, status: int) -> Meaning:
    if code in _ABSENT_CODES:
        return Meaning.ABSENT
    if code in _EXISTS_CODES or status == 412:
        return Meaning.EXISTS
    if code in _REFUSED_CODES or status in {401, 403}:
        return Meaning.REFUSED
    if code in _TRANSIENT_CODES or status >= 500 or status in _TRANSIENT_STATUS:
        return Meaning.TRANSIENT
    return Meaning.PERMANENT


def describe(error: BaseException) -> str:
    """One line on the cause of a failure, without credentials."""
    answer = service_code(error)
    text = " ".join(str(error).split()) or type(error).__name__
    if answer is not None and answer[0] not in text:
        text = f"{text} ({answer[0]})"
    elif answer is None and not isinstance(error, OSError):
        text = f"{type(error).__name__}: {text}"
    return redact(text)


def with_retries(policy: RetryPolicy, action: str, uri: str, attempt: Callable[[], T]) -> T:
    """What `attempt()` returns, tried again by `policy` while its errors are faults.

    `action` is a verb for messages ("read"). Raises `NotFoundError` at once for an absent object,
    `FileExistsError` where something stands already, our own errors as they come, and `StorageFaultError`
    with the URI and the cause when a fault stays.
    """
    import tenacity

    def again(state: "RetryCallState") -> bool:
        error = state.outcome.exception() if state.outcome else None
        if error is None or not isinstance(error, Exception) or isinstance(error, SegmintError):
            return False
        verdict = meaning(error)
        if verdict is Meaning.REFUSED:
            return state.attempt_number < _REFUSED_ATTEMPTS
        return verdict is Meaning.TRANSIENT

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
        if verdict is Meaning.EXISTS:
            raise FileExistsError(errno.EEXIST, "an object is already there", uri) from error
        if verdict is Meaning.ABSENT and action != "put":  # nothing has to be there for a put
            raise NotFoundError(f"cannot {action} {redact(uri)}: it is not there") from error
        tries = int(retrying.statistics.get("attempt_number", 1))
        kind = AccessRefusedError if verdict is Meaning.REFUSED else StorageFaultError
        raise kind(f"cannot {action} {redact(uri)}: {describe(error)}{_advice(uri, error, verdict, tries)}") from error


def _advice(uri: str, error: BaseException, verdict: Meaning, tries: int) -> str:
    if verdict is Meaning.TRANSIENT:
        return f"; given up after {tries} attempts"
    answer = service_code(error)
    if answer is not None and answer[0] == "NoSuchBucket":
        return "; there is no such bucket: check its name and the endpoint"
    if verdict is Meaning.REFUSED and scheme(uri) == LOCAL:
        return "; check the permissions of the file and its folder"
    if verdict is Meaning.REFUSED:
        return (
            "; check the credentials (environment, profile, role) and what they may do; without the right to "
            "list a bucket, S3 answers so for an absent object too"
        )
    return ""
