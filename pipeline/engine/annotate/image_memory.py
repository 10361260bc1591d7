"""What a server keeps in memory of images' pixels, and that none of it outlives them.

Embeddings, logits for later clicks and prefilled masks are made of a JPEG as it was committed. Each has the JPEG's
SHA-256. After a redaction what has another one is forgotten, and after a takedown all of an image is: at once where
somebody works on it, and for all other images within `CHECK_S` seconds.
"""

import threading
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from typing import Protocol

from segmint.infra.errors import SegmintError
from segmint.infra.log import get_logger
from segmint.pipeline.engine.annotate.source import ImageGoneError, ImageSource, OpenImage

CHECK_S = 10.0
"""Seconds between looks at the store for all images of which something is kept."""


class PixelHolder(Protocol):
    """Keeps in memory what was made of images. Thread-safe."""

    def images(self) -> Collection[int]:
        """Return the ids of the images of which something is kept."""

    def forget(self, image: int, unless: str | None = None) -> None:
        """Forget all of an image but what was made of the JPEG with the SHA-256 `unless`."""


class ImageMemory:
    """All keepers of a server. A context manager, in which a thread looks at the store; thread-safe.

    `gone` is called with each image that is found to be taken down.
    """

    def __init__(
        self, source: ImageSource, holders: Sequence[PixelHolder], gone: Callable[[int], None], seconds: float = CHECK_S
    ) -> None:
        self._source = source
        self._holders = (source, *holders)
        self._gone = gone
        self._seconds = seconds
        self._generations: dict[int, int] = {}  # of shards, at the last look
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="kept", daemon=True)

    def __enter__(self) -> "ImageMemory":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def images(self) -> set[int]:
        """Return the ids of the images of which something is kept."""
        return {image for holder in self._holders for image in holder.images()}

    def see(self, found: OpenImage) -> None:
        """Forget what was made of another JPEG of an image than its present one."""
        for holder in self._holders:
            holder.forget(found.place.id, unless=found.jpeg_sha256)

    def forget(self, image: int) -> None:
        """Forget all of an image."""
        for holder in self._holders:
            holder.forget(image)

    def look(self) -> None:
        """Look at the store for all images: one listing of tombstones, and one of commits for each shard.

        Images are read again where their shard has a new commit. Raises as the store does.
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
