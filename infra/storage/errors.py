"""Errors of store operations: their kinds, verdicts on objects, and outages."""

import errno
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import TypeVar

from segmint.infra.errors import SegmintError
from segmint.infra.log import get_logger
from segmint.infra.uris import redact


class NotFoundError(SegmintError):
    """Raised when the store reports that an object doesn't exist."""


class ObjectTooLargeError(SegmintError):
    """Raised when an object exceeds the reader's size limit. None of its bytes are kept."""

    def __init__(self, message: str, size: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class StorageFaultError(SegmintError):
    """Raised for a fault of the store, not the object, such as throttling, a 5xx response, or a missing bucket."""


class AccessRefusedError(StorageFaultError):
    """Raised when a store refuses our credentials or permissions. This is never a verdict on an object."""


class NoSpaceError(StorageFaultError):
    """Raised when a disk or quota is full. Retries also fail until someone frees space."""


class PassingFaultError(StorageFaultError):
    """Raised when a fault persists through all attempts but may still go away."""


class ObjectChangedError(StorageFaultError):
    """Raised when an object is replaced or edited while several requests read it."""


class UnreadableObjectError(StorageFaultError):
    """Raised when the store responds that it can't return this object, for example because it's archived."""


class UnavailableError(PassingFaultError):
    """Raised when a store is unreachable or overloaded. This is never a verdict on an object."""


class ShortBodyError(OSError):
    """Raised when a body contains fewer or more bytes than the store announced."""


class ErrorKind(Enum):
    """Meaning of an error from a store."""

    ABSENT = "the object is not there"
    EXISTS = "an object is already there, or it has another version"
    REFUSED = "the store refuses us, or the bucket is not there: waiting rarely helps"
    UNAVAILABLE = "the store cannot be reached, or is overloaded: not about the object"
    TRANSIENT = "a fault of the store, the network or the object: worth another try"
    UNREADABLE = "the store cannot return this object: it is archived, or no object can have its name"
    PERMANENT = "the request cannot succeed"


PASSING = frozenset({ErrorKind.UNAVAILABLE, ErrorKind.TRANSIENT})
"""Kinds of errors after which another attempt makes sense."""

# Error codes of S3 and Azure.
_ABSENT_CODES = {"BlobNotFound", "NoSuchKey", "404", "NotFound", "NoSuchVersion", "ResourceNotFound"}
_EXISTS_CODES = {"BlobAlreadyExists", "PreconditionFailed", "412"}
_REFUSED_CODES = {
    "AuthorizationHeaderMalformed",
    "ContainerNotFound",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidAccessKeyId",
    "InvalidToken",
    "NoSuchBucket",
    "NoSuchUpload",
    "RequestExpired",
    "RequestInTheFuture",
    "RequestTimeTooSkewed",
    "TokenRefreshRequired",
}
CLOCK_CODES = {"RequestInTheFuture", "RequestTimeTooSkewed"}
"""Codes with which a store refuses a request because this machine's clock is wrong."""
# Besides the codes for missing objects, only these are about the object itself, so only they may reject an image. For
# an archived object, the status is that of a refusal, but only the object's owner can restore it.
_UNREADABLE_CODES = {
    "BlobArchived",
    "BlobBeingRehydrated",
    "InvalidObjectState",
    "InvalidResourceName",
    "InvalidURI",
    "KeyTooLongError",
    "XMinioInvalidObjectName",
}
_PERMANENT_CODES = {"BlobImmutableDueToPolicy"}
_UNAVAILABLE_CODES = {
    "RequestLimitExceeded",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequestsException",
}
_TRANSIENT_CODES = {
    "BadDigest",
    "ConditionalRequestConflict",
    "IncompleteBody",
    "InternalError",
    "OperationAborted",
    "RequestTimeout",
    "XAmzContentSHA256Mismatch",
}
_EXISTS_STATUS = {412, 416}  # in a conditional read, also that the object became shorter
_UNAVAILABLE_STATUS = {429, 502, 503, 504}
_TRANSIENT_STATUS = {408, 409, 425}

# Classes are compared by name, so that a process with only local files doesn't have to import botocore.
_UNAVAILABLE_CLASSES = {
    "ConnectTimeoutError",
    "ConnectionRefusedError",
    "EndpointConnectionError",
    "ServiceRequestError",
}
_TRANSIENT_CLASSES = {
    "ChecksumError",
    "ClientConnectionError",
    "ClientPayloadError",
    "ConnectionError",
    "FSTimeoutError",
    "FlexibleChecksumError",
    "HTTPClientError",
    "IncompleteReadError",
    "ResponseParserError",
    "ServiceResponseError",
    "ShortBodyError",
    "TimeoutError",
}
_REFUSED_CLASSES = {
    "ClientAuthenticationError",
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


def service_code(error: BaseException) -> tuple[str, int]:
    """Return the service's error code and HTTP status, even if fsspec translated the error.

    If the error doesn't come from a service, the code is empty.
    """
    for link in _chain(error):
        status = getattr(link, "status_code", None)  # Azure's status; if a response is cut off, the status is still 200
        if isinstance(status, int) and status >= 300:
            code = getattr(link, "error_code", None) or str(status)
            return str(getattr(code, "value", code)), status
        response = getattr(link, "response", None)
        if isinstance(response, dict) and "Error" in response:
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response["Error"].get("Code") or status or "unknown"), int(status or 0)
    return "", 0


def meaning(error: BaseException) -> ErrorKind:
    """Classify an error from a local file system, s3fs, or another fsspec implementation."""
    code, status = service_code(error)
    if code:
        return _kind_of_response(code, status)
    if isinstance(error, FileExistsError):
        return ErrorKind.EXISTS
    names = {cls.__name__ for link in _chain(error) for cls in type(link).__mro__}
    if names & _REFUSED_CLASSES:
        return ErrorKind.REFUSED
    if "SSLError" in names and "CERTIFICATE_VERIFY_FAILED" in str(error):
        return ErrorKind.PERMANENT
    if names & _UNAVAILABLE_CLASSES:
        return ErrorKind.UNAVAILABLE
    if names & _TRANSIENT_CLASSES:
        return ErrorKind.TRANSIENT
    if isinstance(error, OSError):
        if error.errno in _ABSENT_ERRNO or isinstance(error, FileNotFoundError):
            return ErrorKind.ABSENT
        return ErrorKind.PERMANENT if error.errno in _PERMANENT_ERRNO else ErrorKind.TRANSIENT
    return ErrorKind.PERMANENT


def _kind_of_response(code: str, status: int) -> ErrorKind:
    if code in _ABSENT_CODES:
        return ErrorKind.ABSENT
    if code in _EXISTS_CODES or status in _EXISTS_STATUS:
        return ErrorKind.EXISTS
    if code in _UNREADABLE_CODES:
        return ErrorKind.UNREADABLE
    if code in _PERMANENT_CODES:
        return ErrorKind.PERMANENT
    if code in _REFUSED_CODES or code.startswith("KMS.") or status in {401, 403}:
        return ErrorKind.REFUSED
    if code in _UNAVAILABLE_CODES or status in _UNAVAILABLE_STATUS:
        return ErrorKind.UNAVAILABLE
    if code in _TRANSIENT_CODES or status >= 500 or status in _TRANSIENT_STATUS:
        return ErrorKind.TRANSIENT
    return ErrorKind.PERMANENT


def describe(error: BaseException) -> str:
    """Describe the cause of a failure in one line, without credentials."""
    code, _ = service_code(error)
    told = next((str(link) for link in _chain(error) if str(link)), type(error).__name__)
    text = " ".join(told.partition("\nRequestId:")[0].split())  # after this, Azure repeats the error as XML
    if code not in text:
        text = f"{text} ({code})"
    elif not code and not isinstance(error, OSError):
        text = f"{type(error).__name__}: {text}"
    return redact(text)


T = TypeVar("T")

TELL_EVERY_S = 60.0
"""Seconds between log messages about a store that is down."""

ROUNDS = 2
"""Maximum number of rounds that may fail while the store responds. More than one is allowed because an outage may end
between a failed attempt and the check."""

BUSY_ROUNDS = 20
"""Maximum number of rounds that may fail while the store reports that it's overloaded. They take several minutes."""


@dataclass
class _StoreGate:
    """State of one store in this process. While one thread checks the store, the others wait."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    given_up: bool = False  # an earlier wait timed out, and the store hasn't responded since


# A lock that is held during a fork stays locked in the child, so each process needs its own gates.
_gates: dict[tuple[int, str], _StoreGate] = {}


def wait_out(attempt: Callable[[], T], store: str, answers: Callable[[], bool], outage_s: float) -> T:
    """Call `attempt` until it succeeds, and wait up to `outage_s` seconds while the store is down.

    `attempt` makes its own retries and raises `PassingFaultError` when they are exhausted. `answers` checks the store
    with a minimal request. `store` is the store's name in log messages. The fault is raised if it persists although the
    store responds, if the wait times out, or if an earlier wait already gave up on this store.
    """
    gate = _gates.setdefault((os.getpid(), store), _StoreGate())
    rounds, end = 0, 0.0
    while True:
        try:
            result = attempt()
        except PassingFaultError as fault:
            end = end or time.monotonic() + outage_s
            if not answers():
                if not _wait(gate, store, answers, end, str(fault)):
                    raise
                rounds = 0
                continue
            gate.given_up = False
            rounds += 1
            if rounds >= (BUSY_ROUNDS if isinstance(fault, UnavailableError) else ROUNDS) or time.monotonic() > end:
                raise
            time.sleep(min(next(pauses(rounds)), max(0.0, end - time.monotonic())))
        else:
            gate.given_up = False
            return result


def pauses(doubled: int = 0) -> Iterator[float]:
    """Yield the seconds to wait before each check: from half a second, doubling up to ten seconds, with jitter."""
    while True:
        yield min(10.0, 0.5 * 2**doubled) * random.uniform(0.8, 1.2)
        doubled = min(doubled + 1, 5)


def _wait(gate: _StoreGate, store: str, answers: Callable[[], bool], end: float, why: str) -> bool:
    """Wait until the store responds. Return False if it hasn't by `end`, a time of `time.monotonic`."""
    if not gate.lock.acquire(timeout=max(0.0, end - time.monotonic())):
        return False
    try:
        if gate.given_up:
            return False
        log = get_logger("storage")
        told = 0.0
        looks = pauses()
        while not answers():
            left = end - time.monotonic()
            if left <= 0:
                gate.given_up = True
                return False
            if not told or time.monotonic() - told >= TELL_EVERY_S:
                log.warning("waiting for a store that does not answer", store=store, up_to_s=round(left), why=why)
                told = time.monotonic()
            time.sleep(min(next(looks), left))
        if told:
            log.info("the store answers again", store=store)
        return True
    finally:
        gate.lock.release()
