"""Tracking of all in-memory data derived from images' pixels, so that none of it outlives its image.

Embeddings, logits for later clicks, and prefilled masks are derived from a committed JPEG and carry its SHA-256. After
a redaction, data with another hash is dropped. After a takedown, all data of the image is dropped: at once if an
annotator works on it, and within `CHECK_S` seconds for all other images.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from segmint.infra.errors import SegmintError
from segmint.infra.log import get_logger
from segmint.pipeline.engine.annotate.source import ImageGoneError, ImageSource, OpenImage

CHECK_S = 10.0
"""Seconds between checks of the store for all images with data in memory."""


class PixelHolder(Protocol):
    """Component that keeps data derived from images in memory. Thread-safe."""

    def images(self) -> Collection[int]:
        """Return the ids of the images with data in memory."""

    def forget(self, image: int, unless: str | None = None) -> None:
        """Drop an image's data except what was derived from the JPEG with the SHA-256 `unless`."""


class ImageMemory:
    """All pixel holders of a server. A context manager that checks the store in a thread; thread-safe.

    `gone` is called with each image that was taken down.
    """

    def __init__(
        self, source: ImageSource, holders: Sequence[PixelHolder], gone: Callable[[int], None], seconds: float = CHECK_S
    ) -> None:
        self._source = source
        self._holders = (source, *holders)
        self._gone = gone
        self._seconds = seconds
        self._generations: dict[int, int] = {}  # by shard, at the last check
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kept", daemon=True)

    def __enter__(self) -> "ImageMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def images(self) -> set[int]:
        """Return the ids of the images with data in memory."""
        return {image for holder in self._holders for image in holder.images()}

    def see(self, found: OpenImage) -> None:
        """Drop an image's data that was derived from a JPEG other than the current one."""
        for holder in self._holders:
            holder.forget(found.place.id, unless=found.jpeg_sha256)

    def forget(self, image: int) -> None:
        """Drop all data of an image."""
        for holder in self._holders:
            holder.forget(image)

    def look(self) -> None:
        """Check all images against the store, listing the tombstones once and the commits once per shard.

        Images are read again if their shard has a new commit. Raises the store's errors.
        """
        images = self.images()
        for image in self._source.taken(images):
            self.forget(image)
            self._gone(image)
        shards: defaultdict[int, list[int]] = defaultdict(list)
        for image in self.images() & images:
            shards[self._source.shard_of(image)].append(image)
        for shard, of_shard in shards.items():
            generation = self._source.generation(shard)
            if self._generations.get(shard) == generation:
                continue
            for image in of_shard:
                self._read(image)
            self._generations[shard] = generation

    def _read(self, image: int) -> None:
        try:
            self.see(self._source.read(image))
        except ImageGoneError:
            self.forget(image)
            self._gone(image)

    def _watch(self) -> None:
        while not self._ended.wait(self._seconds):
            try:
                self.look()
            except (SegmintError, OSError) as error:
                get_logger("annotate").warning("store_not_read", error=str(error))
