"""What a store's answer or silence raises: verdicts on an object, and faults that are not."""

from segmint.infra.errors import SegmintError


class NotFoundError(SegmintError):
    """The store answered: the object does not exist."""


class ObjectTooLargeError(SegmintError):
    """An object is larger than the reader's limit; nothing of it was kept."""

    def __init__(self, message: str, size: int = 0, limit: int = 0) -> None:
        super().__init__(message)
        self.size = size
        self.limit = limit


class StorageFaultError(SegmintError):
    """A fault outside the object: throttling, 5xx, refused credentials, no such bucket, resets."""


class AccessRefusedError(StorageFaultError):
    """The store refuses our credentials or permissions: never a verdict on an object."""


class PassingFaultError(StorageFaultError):
    """A fault that remained through all attempts, but may still pass."""


class UnavailableError(PassingFaultError):
    """The store cannot be reached, or is overloaded: never a verdict on an object."""


class ShortBodyError(OSError):
    """A store sent fewer or more bytes than it announced."""
