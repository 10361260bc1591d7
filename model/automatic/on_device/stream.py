"""Mask generation for a stream of images that always gives the accelerator another crop to work on.

Each time the host starts a crop, it advances all earlier crops, of this image and of previous ones, by one step
(`crops.py`). A step has to wait until the device finishes the previous step of its crop. Meanwhile, the crop that was
just started keeps the device busy. At the end of an image, its last crops wait while the device encodes the first crop
of the next image.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from segmint.model.automatic.candidates import CandidateMasks, RawMasks, concatenate
from segmint.model.automatic.crops import Crop, cut, placed_crops
from segmint.model.automatic.on_device.crops import DeviceCrops
from segmint.model.automatic.records import Funnel
from segmint.model.automatic.settings import MaskSettings
from segmint.model.device import CopyStream
from segmint.model.sam.predictor import Embedding, Predictor

MAX_BYTES = 4 << 30
"""Default limit in bytes for unfinished images on the device. This fits the masks of five full images with 1,024 points
each."""

ImagePair = tuple[NDArray[np.uint8], NDArray[np.uint8] | None]
"""Image, and its larger original or None, as in `MaskGenerator.find`."""

_END = object()

Progress = Callable[[int], object]
"""Callback that receives the number of points in each finished crop. To end the crop's image, it can raise an error."""


@dataclass(eq=False)
class _StreamImage:
    """Image in the stream, with its crops and the masks of its finished crops.

    `pixels` references the host's arrays, which may be pinned, until all copies from them are done. Without crops, it
    doesn't include the original. `bytes` is the size of the pixels on the device. `use` waits until they are copied;
    it's None before copying starts and again once the image is encoded.
    """

    pixels: ImagePair
    crops: list[Crop]
    progress: Progress
    bytes: int
    use: Callable[[], tuple[Tensor, Tensor]] | None = None
    parts: dict[int, CandidateMasks] = field(default_factory=dict)
    funnel: Funnel = field(default_factory=Funnel)
    error: Exception | None = None

    @property
    def is_finished(self) -> bool:
        return self.error is not None or len(self.parts) == len(self.crops)

    @property
    def frame_size(self) -> tuple[int, int]:
        return self.pixels[0].shape[0], self.pixels[0].shape[1]

    def result(self) -> RawMasks | Exception:
        if self.error is not None:
            return self.error
        return RawMasks(concatenate([self.parts[index] for index in sorted(self.parts)]), self.funnel, self.frame_size)


@dataclass(eq=False)
class _StreamCrop:
    """Crop in progress on the device. `index` is its position in the image. When the crop is done, `steps` is None."""

    image: _StreamImage
    index: int
    points: int
    bytes: int
    steps: Generator[None, None, tuple[CandidateMasks, Funnel]] | None

    def step(self) -> None:
        """Run the next step. If the image has failed, drop the crop instead."""
        if self.steps is None or self.image.error is not None:
            self.steps = None
            return
        try:
            next(self.steps)
        except StopIteration as end:
            self.steps = None
            self.image.parts[self.index], counts = end.value
            self.image.funnel += counts
            self._report()
        except Exception as error:  # noqa: BLE001 - it is the result of the image
            self.image.error, self.steps = error, None

    def _report(self) -> None:
        try:
            self.image.progress(self.points)
        except Exception as error:  # noqa: BLE001 - a deadline or the caller's own error
            self.image.error = error


class ImageStream:
    """Single pass over a stream of images. The module's docstring explains the order of the work."""

    def __init__(
        self,
        predictor: Predictor,
        settings: MaskSettings,
        crops_per_batch: int,
        crops: DeviceCrops,
        copies: CopyStream,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Set up a stream with the objects of one thread.

        Without crops, `crops_per_batch` images are encoded together. `max_bytes` limits the device memory for the
        pixels and masks of unfinished images, unless a single crop and its image need more. Embeddings and the
        encoder's working memory aren't included.
        """
        self._predictor = predictor
        self._settings = settings
        self._batch = crops_per_batch
        self._images_per_batch = 1 if settings.crop_n_layers else crops_per_batch
        self._crops = crops
        self._copies = copies
        self._max_bytes = max_bytes
        self._begun: deque[_StreamImage] = deque()  # in order, until their results have been yielded
        self._ahead: deque[_StreamImage] = deque()  # images in `_begun` that aren't encoded yet
        self._flying: deque[_StreamCrop] = deque()  # crops that have started but aren't finished

    def find(
        self, images: Iterable[ImagePair | None], progress: Callable[[], Progress]
    ) -> Iterator[RawMasks | Exception]:
        """Yield the masks of each image, in order, or its exception. If an image fails, the others continue.

        None in `images` means that no image is ready yet, so the stream continues with earlier images. When an image
        begins, the stream calls `progress` to get the callback for that image.
        """
        for encoded in self.encoded_crops(iter(images), progress):
            earlier = list(self._flying)
            if encoded is not None:
                self._start(*encoded)
            self._step(earlier)
            yield from self._finished()
        while self._begun:
            self._step(list(self._flying))
            yield from self._finished()

    def _start(self, image: _StreamImage, index: int, embedding: Embedding) -> None:
        crop = image.crops[index]
        needed = self._crops.find_bytes(crop)
        self._make_room(needed)
        points = self._settings.count_of_layer(crop.layer)
        started = _StreamCrop(image, index, points, needed, self._crops.find(crop, embedding, image.frame_size))
        started.step()
        self._flying.append(started)

    def _step(self, crops: list[_StreamCrop]) -> None:
        """Run one step of each of these crops, in order."""
        for crop in crops:
            crop.step()
        self._flying = deque(crop for crop in self._flying if crop.steps is not None)

    def _finished(self) -> Iterator[RawMasks | Exception]:
        while self._begun and self._begun[0].is_finished:
            yield self._begun.popleft().result()

    def _has_room(self, needed: int) -> bool:
        pixels = sum(image.bytes for image in self._begun if image.use is not None)
        return pixels + sum(crop.bytes for crop in self._flying) + needed <= self._max_bytes

    def _make_room(self, needed: int) -> None:
        """Advance the crops in progress until `needed` more bytes fit, or until no crop is in progress."""
        while self._flying and not self._has_room(needed):
            self._step(list(self._flying))

    def encoded_crops(
        self, source: Iterator[ImagePair | None], progress: Callable[[], Progress]
    ) -> Iterator[tuple[_StreamImage, int, Embedding] | None]:
        """Yield each crop's image, index, and embedding once its encoding has started, or None if no image is ready.

        While the device encodes the last crops of a batch of images, the next images are copied.
        """
        more = True
        while True:
            more = more and self.pull(source, progress)
            batch = [self._ahead.popleft() for _ in range(min(self._images_per_batch, len(self._ahead)))]
            if not batch and not more:
                return
            if not batch:
                yield None
            for image in batch:
                if image.use is None:
                    self._make_room(image.bytes)
                    self._copy(image)
            crops = [(image, index) for image in batch for index in range(len(image.crops))]
            for start in range(0, len(crops), self._batch):
                encoded = self._encode(crops[start : start + self._batch])
                if start + self._batch >= len(crops):
                    for image in batch:
                        image.use = None
                    more = more and self.pull(source, progress)
                while encoded:
                    yield encoded.pop(0)

    def pull(self, source: Iterator[ImagePair | None], progress: Callable[[], Progress]) -> bool:
        """Take images that are ready, up to a batch, and start copying them. Return False at the end of the stream."""
        settings = self._settings
        while len(self._ahead) < self._images_per_batch:
            pair = next(source, _END)
            if pair is None or pair is _END:
                return pair is None
            pixels, original = cast(ImagePair, pair)
            needed: ImagePair = (pixels, original)
            if settings.crop_n_layers == 0:
                needed = (pixels, None)  # because only crops are cut from an original
            image = _StreamImage(needed, [], progress(), sum(one.nbytes for one in needed if one is not None))
            self._begun.append(image)
            try:
                check_pair(pixels, original, settings)
            except ValueError as error:
                image.error = error
                continue
            image.crops = placed_crops(image.frame_size, settings)
            self._crops.prepare(image.crops, [self._part(image, crop).shape[:2] for crop in image.crops])
            if self._has_room(image.bytes):
                self._copy(image)
            self._ahead.append(image)
        return True

    @staticmethod
    def _part(image: _StreamImage, crop: Crop) -> NDArray[np.uint8]:
        """Return the crop's pixels on the host."""
        whole, original = image.pixels
        return cut(crop, image.frame_size, whole if original is None or crop.layer == 0 else original)

    def _copy(self, image: _StreamImage) -> None:
        """Start copying an image to the device."""
        pixels, original = image.pixels
        try:
            whole = self._copies.start(self._predictor.checked(pixels))
            finer = whole if original is None else self._copies.start(self._predictor.checked(original))
        except Exception as error:  # noqa: BLE001 - it is the result of the image
            image.error = error
        else:
            image.use = lambda: (whole(), finer())

    def _encode(self, part: list[tuple[_StreamImage, int]]) -> list[tuple[_StreamImage, int, Embedding]]:
        """Encode crops together. If that fails for several images, encode each crop separately, with equal bits."""
        part = [(image, index) for image, index in part if image.error is None]
        if not part:
            return []
        try:
            pixels, sizes = [], []
            for image, index in part:
                assert image.use is not None
                whole, finer = image.use()
                crop = image.crops[index]
                pixels.append(cut(crop, image.frame_size, whole if crop.layer == 0 else finer))
                sizes.append(crop.size)
            embeddings = self._predictor.embed_many(pixels, sizes, self._batch)
            return [(image, index, one) for (image, index), one in zip(part, embeddings, strict=True)]
        except Exception as error:  # noqa: BLE001 - it is the result of the image
            if len({id(image) for image, _ in part}) > 1:
                return [found for one in part for found in self._encode([one])]
            part[0][0].error = error
            return []


def check_pair(image: NDArray[np.uint8], original: NDArray[np.uint8] | None, settings: MaskSettings) -> None:
    """Raise ValueError if `MaskGenerator.find` doesn't accept these arrays."""
    for name, pixels in (("image", image), ("original", original)):
        if pixels is not None and (
            pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape
        ):
            raise ValueError(f"{name} is {pixels.dtype} {pixels.shape}: expected uint8 (height, width, 3), RGB")
    if original is not None and settings.profile != "sa1b":
        raise ValueError(f"the {settings.profile} profile takes no original, because it cuts its crops from the image")


def deadline(seconds: float | None) -> Progress:
    """Return a callback that raises TimeoutError once `seconds` have passed since this call."""
    end = None if seconds is None else time.monotonic() + seconds

    def check(_: int) -> None:
        if end is not None and time.monotonic() > end:
            raise TimeoutError(f"the image took over {seconds:g} seconds on the device")

    return check
