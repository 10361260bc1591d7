"""Errors of store operations: verdicts on an object, and faults of the store."""

from segmint.infra.errors import SegmintError


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
