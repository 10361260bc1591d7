"""Classification of store errors: object absent, access refused, temporary fault, or permanent failure."""

import errno
from collections.abc import Iterator
from enum import Enum

from segmint.infra.uris import redact


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
