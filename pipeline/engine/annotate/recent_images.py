"""In-memory LRU cache of values derived from images."""

import threading
from collections import OrderedDict
from collections.abc import Collection
from typing import Generic, Protocol, TypeVar


class JpegValue(Protocol):
    """Value derived from a JPEG."""

    @property
    def jpeg_sha256(self) -> str:
        """Hexadecimal SHA-256 of the JPEG."""


T = TypeVar("T", bound=JpegValue)


class RecentImages(Generic[T]):
    """Cache of one value per image, for the `kept` most recently used images. Thread-safe."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._lock = threading.Lock()
        self._values: OrderedDict[int, T] = OrderedDict()

    def __len__(self) -> int:
        with self._lock:
            return len(self._values)

    def __contains__(self, image: object) -> bool:
        with self._lock:
            return image in self._values

    def get(self, image: int) -> T | None:
        """Return an image's value, and mark it as used."""
        with self._lock:
            found = self._values.get(image)
            if found is not None:
                self._values.move_to_end(image)
            return found

    def put(self, image: int, value: T, wanted: Collection[int] = ()) -> None:
        """Store an image's value. If the cache is full, values of the `wanted` images are evicted last."""
        with self._lock:
            self._values[image] = value
            self._values.move_to_end(image)
            spared = {*wanted, image}
            while len(self._values) > self._kept:
                oldest = next(iter(self._values))
                del self._values[next((each for each in self._values if each not in spared), oldest)]

    def images(self) -> Collection[int]:
        """Return the ids of the images with a value."""
        with self._lock:
            return list(self._values)

    def forget(self, image: int, unless: str | None = None) -> None:
        """Drop an image's value, unless it was derived from the JPEG with the SHA-256 `unless`."""
        with self._lock:
            known = self._values.get(image)
            if known is not None and known.jpeg_sha256 != unless:
                del self._values[image]
