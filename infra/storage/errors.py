"""Errors of store operations: verdicts on an object, and faults of the store."""

from segmint.infra.errors import SegmintError


class NotFoundError(SegmintError):
    """The store responded that the object does not exist."""


class ObjectTooLargeError(SegmintError):
    """An object exceeds the reader's size limit. None of it was kept."""

    def __init__(self, message: str, size: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class StorageFaultError(SegmintError):
    """A fault outside the object: throttling, 5xx, refused credentials, missing bucket, connection resets."""


class AccessRefusedError(StorageFaultError):
    """The store refused our credentials or permissions. This is never a verdict on an object."""


class PassingFaultError(StorageFaultError):
    """A fault that persisted through all attempts but may still pass."""


class UnavailableError(PassingFaultError):
    """The store is unreachable or overloaded. This is never a verdict on an object."""


class ShortBodyError(OSError):
    """A store sent fewer or more bytes than it announced."""
