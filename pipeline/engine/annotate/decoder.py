"""Masks for clicks: embeddings of images, the thread that predicts, and predictions as run lengths.

The server's model, run by one thread that gives priority to clicks, even while an image is being encoded.

torch creates a separate team of threads for each thread that computes. If a process's teams have more threads than
there are cores, libgomp puts waiting threads to sleep immediately. A prompt consists of many small steps, and waking
the threads for each step takes as long as the step itself. With a single team, the threads stay awake between the steps
for as long as `GOMP_SPINCOUNT` allows.

In-memory image embeddings, which are only computed from released pixels and prefetched for annotators when idle.
"""

import itertools
import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, ParamSpec, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.infra.arrays import Pixels, Size
from segmint.infra.errors import SegmintError
from segmint.model.automatic.rle import Rle, decode
from segmint.model.sam.geometry import Geometry
from segmint.model.sam.load import Sam
from segmint.model.sam.predictor import Embedding, Predictor, PromptMasks
from segmint.operators.images import JpegDecoder, UndecodableError, decode_jpeg
from segmint.pipeline.engine.annotate.drawing import ClickPrompt, DrawnMask, MaskPart, draw_mask, prepare_drawing
from segmint.pipeline.engine.annotate.source import NotReadyError, OpenImage, RecentImages
from segmint.pipeline.serving.images import NoImageError

_URGENT, _LATER, _LAST = range(3)

P = ParamSpec("P")
T = TypeVar("T")


@dataclass(order=True)
class _PredictorJob:
    urgency: int
    number: int
    work: Callable[[], Any] = field(compare=False)
    result: "Future[Any]" = field(compare=False, default_factory=Future)


class PredictorThread(Predictor, AbstractContextManager["PredictorThread"]):
    """`Predictor` that does all its work in one thread, including `load`. Thread-safe. Use it as a context manager.

    `embed` takes the longest, so it gives way to other work. It starts when no other work is waiting. Before each layer
    of the encoder, the thread runs at most one waiting job.
    """

    def __init__(self, load: Callable[[], Sam]) -> None:
        self.jobs: queue.PriorityQueue[_PredictorJob] = queue.PriorityQueue()
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._work, name="predictor", daemon=True)
        self._thread.start()
        try:
            self._do(_URGENT, lambda: Predictor.__init__(self, load()))
            self.before_each_layer(self._let_one_pass)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        self.jobs.put(_PredictorJob(_LAST, next(self._numbers), lambda: None))
        self._thread.join()

    def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `work` in the thread and return its result."""
        answer: T = self._do(_URGENT, lambda: work(*args, **kwargs))
        return answer

    def embed(self, image: Pixels | Tensor, frame_size: Size | None = None) -> Embedding:
        """Embed an image as `Predictor.embed` does."""
        embedding: Embedding = self._do(_LATER, lambda: Predictor.embed(self, image, frame_size))
        return embedding

    def predict(self, *args: Any, **kwargs: Any) -> PromptMasks:
        """Predict masks as `Predictor.predict` does."""
        return self.run(Predictor.predict, self, *args, **kwargs)

    def upscale(self, logits: Tensor, embedding: Embedding) -> Tensor:
        """Upscale logits as `Predictor.upscale` does."""
        return self.run(Predictor.upscale, self, logits, embedding)

    def _do(self, urgency: int, work: Callable[[], Any]) -> Any:
        if threading.current_thread() is self._thread:
            return work()
        job = _PredictorJob(urgency, next(self._numbers), work)
        self.jobs.put(job)
        return job.result.result()

    def _work(self) -> None:
        while True:
            job = self.jobs.get()
            _answer(job)
            if job.urgency == _LAST:
                return

    def _let_one_pass(self) -> None:
        """Run at most one urgent job, so that the encoding of an image finishes no matter how many clicks arrive."""
        if threading.current_thread() is self._thread and self.jobs.queue and self.jobs.queue[0].urgency == _URGENT:
            _answer(self.jobs.get())


def _answer(job: _PredictorJob) -> None:
    try:
        job.result.set_result(job.work())
    except BaseException as error:  # noqa: BLE001 - passed on to the waiting thread
        job.result.set_exception(error)


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
        made: Callable[[OpenImage, Pixels, Embedding], None] | None = None,
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
        known = self._known(image)
        if known is not None:
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

    def _known(self, image: OpenImage) -> ImageEmbedding | None:
        """Return the embedding of an image's current state if it's in memory."""
        known = self.recent.get(image.place.id)
        if known is None or known.jpeg_sha256 != image.jpeg_sha256:
            return None
        return known

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
        known = self._known(image)
        if known is not None:
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


HANDLES = 128
"""Maximum number of predictions whose logits stay in memory, up to 768 KiB each."""

_SHARE = 1e-3  # torch.logit first clamps a cell's coverage to this distance from 0 and 1
_DRAWERS = 2  # threads that draw masks, mostly in NumPy


@dataclass(frozen=True)
class PromptMask:
    """Mask that the model predicted for a prompt, with the predicted IoU."""

    drawn: DrawnMask
    iou: float

    def to_dict(self) -> dict[str, Any]:
        return {**vars(self.drawn), "bbox": list(self.drawn.bbox), "iou": self.iou}


@dataclass(frozen=True)
class Prediction:
    """Prediction for a prompt: one mask, or three sorted by area. `chosen` is the index of the best match."""

    masks: tuple[PromptMask, ...]
    chosen: int
    handle: str
    handle_lost: bool = False

    def to_dict(self) -> dict[str, Any]:
        masks = [mask.to_dict() for mask in self.masks]
        return {"masks": masks, "chosen": self.chosen, "handle": self.handle, "handle_lost": self.handle_lost}


@dataclass(frozen=True)
class _PreviousLogits:
    """Logits (256, 256) of each mask in an earlier prediction. `chosen` is the index of the mask that was chosen."""

    image: int
    jpeg_sha256: str
    annotator: str
    logits: tuple[Tensor, ...]
    chosen: int


class Decoder(AbstractContextManager["Decoder"]):
    """Thread-safe context manager that turns prompts into masks.

    A single prompt (one point or one box) is ambiguous, so it produces three masks. A correction produces
    one mask, because the model also receives the earlier prediction's logits. For several prompts without an earlier
    prediction, the model predicts three masks, and the decoder returns only the mask with the highest predicted IoU
    (see decision 25).
    """

    def __init__(self, predictor: PredictorThread) -> None:
        self._predictor = predictor
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, _PreviousLogits] = OrderedDict()
        self._drawers = ThreadPoolExecutor(_DRAWERS, thread_name_prefix="drawing")

    def __exit__(self, *_: object) -> None:
        self._drawers.shutdown()

    def predict(self, annotator: str, embedded: ImageEmbedding, prompt: ClickPrompt) -> Prediction:
        """Predict the masks for a prompt.

        The prompt's handle is ignored if it is unknown or if its logits belong to other pixels or another annotator.
        The prediction's `handle_lost` is then set.
        """
        embedding = embedded.embedding
        before = self._logits_of(prompt.after, embedded, annotator)
        is_lost = prompt.after is not None and before is None
        logits, ious = self._predictor.run(self._ask, embedding, prompt, before)
        draw = map if len(logits) == 1 else self._drawers.map
        drawn = draw(lambda each: draw_mask(self._predictor, embedding, each), logits)
        answered = [PromptMask(mask, iou) for mask, iou in zip(drawn, ious, strict=True)]
        order = sorted(range(len(answered)), key=lambda index: (answered[index].drawn.area, index))
        answered = [answered[index] for index in order]
        chosen = choose(answered, prompt.part)
        kept = tuple(logits[index] for index in order)
        handle = self._keep(_PreviousLogits(embedded.image, embedded.jpeg_sha256, annotator, kept, chosen))
        return Prediction(tuple(answered), chosen, handle, is_lost)

    def images(self) -> Collection[int]:
        """Return the ids of the images with logits in memory."""
        with self._lock:
            return {kept.image for kept in self._kept.values()}

    def forget(self, image: int, unless: str | None = None) -> None:
        """Drop an image's logits, unless they belong to the JPEG with the SHA-256 `unless`."""
        with self._lock:
            old = [name for name, kept in self._kept.items() if kept.image == image and kept.jpeg_sha256 != unless]
            for handle in old:
                del self._kept[handle]

    def _ask(
        self, embedding: Embedding, prompt: ClickPrompt, before: Tensor | None
    ) -> tuple[list[Tensor], list[float]]:
        """Predict the logits (256, 256) and the IoU of each mask. `before` contains the logits to correct, if any."""
        if before is None and prompt.mask is not None:
            before = mask_logits(Rle(embedding.frame_size, prompt.mask), embedding, self._predictor.sam.geometry)
        prepare_drawing(self._predictor, embedding)  # again, because the cache holds only some image sizes
        masks = self._predictor.predict(embedding, **arguments(prompt, before), multimask=before is None)
        logits, ious = list(masks.low_res_logits[0]), masks.predicted_iou[0]
        if before is None and prompt.is_several:
            best = int(ious.argmax())
            logits, ious = [logits[best].clone()], ious[best : best + 1]
        return logits, ious.tolist()

    def _logits_of(self, handle: str | None, of: ImageEmbedding, annotator: str) -> Tensor | None:
        """Return a handle's logits (1, 1, 256, 256), or None if another annotator or another JPEG produced them.

        `HANDLE` refers to the chosen mask of a prediction, and `HANDLE.N` to mask number N.
        """
        name, _, number = (handle or "").partition(".")
        with self._lock:
            kept = self._kept.get(name)
            if kept is None or (kept.image, kept.jpeg_sha256, kept.annotator) != (of.image, of.jpeg_sha256, annotator):
                return None
            self._kept.move_to_end(name)
        index = kept.chosen if not number else int(number) if number in ("0", "1", "2") else len(kept.logits)
        return kept.logits[index][None, None] if index < len(kept.logits) else None

    def _keep(self, kept: _PreviousLogits) -> str:
        handle = secrets.token_urlsafe(16)
        with self._lock:
            self._kept[handle] = kept
            while len(self._kept) > HANDLES:
                self._kept.popitem(last=False)
        return handle


def arguments(prompt: ClickPrompt, before: Tensor | None) -> dict[str, Any]:
    """Convert a prompt to the arguments of `Predictor.predict`. `before` contains earlier logits, (1, 1, 256, 256)."""
    given: dict[str, Any] = {}
    if prompt.points:
        given["points"] = np.array([[(x, y) for x, y, _ in prompt.points]], np.float64)
        given["labels"] = np.array([[label for _, _, label in prompt.points]], np.int64)
    if prompt.box is not None:
        x, y, width, height = prompt.box
        given["boxes"] = np.array([[x, y, x + width, y + height]], np.float64)
    if before is not None:
        given["masks"] = before
    return given


def choose(masks: Sequence[PromptMask], part: MaskPart) -> int:
    """Return the index of the mask that `part` selects.

    `masks` contains either a single mask or three, sorted by area: subpart, part, and whole. AUTO selects the nonempty
    mask with the highest predicted IoU.
    """
    if part is MaskPart.AUTO or len(masks) == 1:
        solid = [index for index, mask in enumerate(masks) if mask.drawn.area] or [0]
        return max(solid, key=lambda index: masks[index].iou)
    return {MaskPart.SUBPART: 0, MaskPart.PART: 1, MaskPart.WHOLE: 2}[part]


def mask_logits(rle: Rle, embedding: Embedding, geometry: Geometry) -> Tensor:
    """Convert a mask to a mask prompt for the model: logits (1, 1, 256, 256).

    The logit of a cell is computed from the share of the cell that the mask covers.
    """
    height, width = embedding.input_size
    mask = torch.from_numpy(decode(rle)).float()[None, None]
    share = F.interpolate(mask, (height, width), mode="bilinear", align_corners=False, antialias=True)
    square = mask.new_zeros(1, 1, geometry.image_size, geometry.image_size)
    square[..., :height, :width] = share
    return torch.logit(F.adaptive_avg_pool2d(square, geometry.low_res_size), eps=_SHARE)
