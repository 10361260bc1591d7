"""What a store's answer or silence raises: verdicts on an object, and faults that are not."""

from segmint.infra.errors import SegmintError


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


class PassingFaultError(StorageFaultError):
    """A fault that stayed through all attempts, and that may still pass."""


class UnavailableError(PassingFaultError):
    """The store cannot be reached, or has too much to do: never a verdict on an object."""


class ShortBodyError(OSError):
    """A store sent fewer or more bytes than it had announced."""
