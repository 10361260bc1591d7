"""Errors of store operations: verdicts on an object, and faults of the store."""

from segmint.infra.errors import SegmintError


class NotFoundError(SegmintError):
    """Object that doesn't exist, according to the store."""


class ObjectTooLargeError(SegmintError):
    """Object that exceeds the reader's size limit. None of its bytes were kept."""

    def __init__(self, message: str, size: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class StorageFaultError(SegmintError):
    """Fault that isn't about the object: throttling, 5xx, refused credentials, a missing bucket, a connection reset."""


class AccessRefusedError(StorageFaultError):
    """Store that refused our credentials or permissions. This is never a verdict on an object."""


class NoSpaceError(StorageFaultError):
    """Disk or quota that is full. Retries fail too, until someone frees space."""


class PassingFaultError(StorageFaultError):
    """Fault that persisted through all attempts but may still go away."""


class UnavailableError(PassingFaultError):
    """Store that is unreachable or overloaded. This is never a verdict on an object."""


class ShortBodyError(OSError):
    """Body with fewer or more bytes than the store announced."""
