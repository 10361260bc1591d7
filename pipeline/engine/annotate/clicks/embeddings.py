"""In-memory image embeddings, which are only computed from released pixels and prefetched for annotators when idle."""

import itertools
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from segmint.infra.errors import SegmintError
from segmint.model.sam.predictor import Embedding
from segmint.operators.decoding import JpegDecoder, UndecodableError
from segmint.operators.images import decode_jpeg
from segmint.pipeline.engine.annotate.clicks.drawing import prepare_drawing
from segmint.pipeline.engine.annotate.clicks.predictor_thread import PredictorThread
from segmint.pipeline.engine.annotate.recent_images import RecentImages
from segmint.pipeline.engine.annotate.source import NotReadyError, OpenImage
from segmint.pipeline.serving.images import NoImageError

KEPT = 64
"""Maximum number of embeddings in memory. Each takes 4 MiB, or 16 MiB with SAM 2's high-resolution features."""

QUIET_S = 0.5
"""Seconds without a click before prefetching starts. Clicks and prefetching both use all cores, so clicks go first."""

PATIENCE_S = 10.0
"""Seconds that a request waits for an embedding. Pages give up on a request after 20 seconds of silence."""

_LONGEST_WAIT_S = 5.0
_NOW, _AHEAD = 0, 1


@dataclass(frozen=True)
class ImageEmbedding:
    """Embedding of an image, with the SHA-256 of the JPEG that it was computed from."""

    image: int
    jpeg_sha256: str
    embedding: Embedding


@dataclass(order=True)
class _EmbeddingJob:
    urgency: int
    number: int
    image: int = field(compare=False)
    result: "Future[ImageEmbedding] | None" = field(compare=False, default=None)


class Embeddings:
    """Thread-safe cache of image embeddings, which one thread computes. Use it as a context manager.

    The `kept` most recently used embeddings stay in memory, in `recent`; nothing is written to disk. While there are no
    requests, the thread prefetches the images that annotators need next. It takes turns: every annotator's first image
    comes before anyone's second. Prefetched images are evicted last. `kept` also limits the number of images that all
    annotators together can have prefetched; beyond that, the oldest prefetch requests are dropped.

    `read` returns an image's committed state. The thread calls `made` with each new embedding and the pixels (H, W, 3)
    uint8 RGB that it was computed from.
    """

    def __init__(
        self,
        predictor: PredictorThread,
        decoder: JpegDecoder,
        read: Callable[[int], OpenImage],
        kept: int = KEPT,
        made: Callable[[OpenImage, NDArray[np.uint8], Embedding], None] | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        self.predictor = predictor
        self._decoder = decoder
        self._read = read
        self._kept = kept
        self._then = made
        self.patience_s = patience_s
        self._lock = threading.Lock()
        self.recent: RecentImages[ImageEmbedding] = RecentImages(kept)
        self.asked: dict[tuple[int, str], Future[ImageEmbedding]] = {}  # by image and its JPEG's SHA-256
        self.jobs: queue.PriorityQueue[_EmbeddingJob] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._wanted: OrderedDict[str, tuple[int, ...]] = OrderedDict()  # by annotator, most recent request last
        self._clicked = 0.0
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="embeddings", daemon=True)

    def __enter__(self) -> "Embeddings":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self.jobs.put(_EmbeddingJob(_NOW, -1, 0))
        self._thread.join()

    def __len__(self) -> int:
        return len(self.recent)

    def get(self, image: OpenImage) -> ImageEmbedding:
        """Return the embedding of an image's current state, computing it if necessary.

        Raises `NoImageError` if the JPEG can't be decoded. If the embedding isn't ready after `patience_s` seconds,
        raises `NotReadyError`. The computation continues in that case, and its result serves all requests for the
        image.
        """
        known = self.recent.get(image.place.id)
        if known is not None and known.jpeg_sha256 == image.jpeg_sha256:
            return known
        key = image.place.id, image.jpeg_sha256
        with self._lock:
            result = self.asked.get(key)
            if result is None:
                result = self.asked[key] = Future()
                result.add_done_callback(lambda done: self._answered(key, done))
                self.jobs.put(_EmbeddingJob(_NOW, next(self._numbers), image.place.id, result))
        if not wait([result], self.patience_s).done:
            raise NotReadyError("the model is still embedding this image; the page retries until it is ready")
        return result.result()

    def _answered(self, key: tuple[int, str], result: "Future[ImageEmbedding]") -> None:
        with self._lock:
            if self.asked.get(key) is result:
                del self.asked[key]

    def prepare(self, annotator: str, images: Iterable[int]) -> None:
        """Prefetch the embeddings of these images, in order. The annotator's next call replaces this list."""
        wanted = tuple(dict.fromkeys(images))[: self._kept]
        with self._lock:
            self._wanted[annotator] = wanted
            self._wanted.move_to_end(annotator)
            while len(self._all_wanted()) > self._kept:
                self._wanted.popitem(last=False)
        for place, image in enumerate(wanted):
            self.jobs.put(_EmbeddingJob(_AHEAD + place, next(self._numbers), image))

    def clicked(self) -> None:
        """Record a click, which delays prefetching."""
        self._clicked = time.monotonic()

    def _work(self) -> None:
        while not self._closed:
            job = self.jobs.get()
            if self._closed or (job.result is None and not self._is_due(job)):
                self._end(job)
                continue
            try:
                made = self._make(job.image)
            except Exception as error:  # noqa: BLE001 - passed on to the waiting thread
                if job.result is not None:
                    job.result.set_exception(error)
                continue
            if job.result is not None:
                job.result.set_result(made)
        while not self.jobs.empty():
            self._end(self.jobs.get())

    def _end(self, job: _EmbeddingJob) -> None:
        if job.result is not None:
            job.result.set_exception(SegmintError("the server is shutting down"))

    def _is_due(self, job: _EmbeddingJob) -> bool:
        """Wait for a pause in clicks. Return False if a request is waiting or the image is no longer needed."""
        begun = time.monotonic()
        while time.monotonic() - self._clicked < QUIET_S and time.monotonic() - begun < _LONGEST_WAIT_S:
            time.sleep(QUIET_S / 10)
            if self._closed:
                return False
            if self.jobs.queue and self.jobs.queue[0].urgency == _NOW:
                self.jobs.put(job)
                return False
        with self._lock:
            return job.image in self._all_wanted() and job.image not in self.recent

    def _all_wanted(self) -> set[int]:
        return {image for images in self._wanted.values() for image in images}

    def _make(self, number: int) -> ImageEmbedding:
        image = self._read(number)
        known = self.recent.get(number)
        if known is not None and known.jpeg_sha256 == image.jpeg_sha256:
            return known
        try:
            pixels = self._decoder.run(decode_jpeg, image.jpeg)
        except UndecodableError as error:
            raise NoImageError(f"can't decode image {number}: {error}") from error
        made = ImageEmbedding(number, image.jpeg_sha256, self.predictor.embed(pixels, image.size))
        self.predictor.run(prepare_drawing, self.predictor, made.embedding)
        with self._lock:
            wanted = self._all_wanted()
        self.recent.put(number, made, wanted)
        if self._then is not None:
            self._then(image, pixels, made.embedding)
        return made
