"""Mask generation for a stream of images on an accelerator, and a check of the kernels before it starts.

The accelerator always has another crop to work on. Each time the host starts a crop, it advances all earlier crops, of
this image and of previous ones, by one step (`device_crops.py`). A step has to wait until the device finishes the
previous step of its crop. Meanwhile, the crop that was just started keeps the device busy. At the end of an image, its
last crops wait while the device encodes the first crop of the next image.

Comparison of a GPU's kernels with torch's operations before the first image, except those that decode points.

`device_crops.check_kernels` compares the kernels that decode points, because their graphs differ by chunk size. This
module compares the encoder's attention, and the kernels that measure masks, draw masks, and resize images.
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from segmint.infra.arrays import Pixels, Size
from segmint.model.automatic import mask_tiles
from segmint.model.automatic.candidates import CandidateMasks, RawMasks, concatenate
from segmint.model.automatic.crops import Crop, cut, placed_crops
from segmint.model.automatic.device_crops import DeviceCrops, KernelError, expect_close, wrong_kernels
from segmint.model.automatic.mask_tiles import taps_of
from segmint.model.automatic.rle import Funnel
from segmint.model.automatic.settings import MaskSettings
from segmint.model.automatic.tiled_upscaling import MaskOperations, mask_operations, strips_of
from segmint.model.device import CopyStream, first_line
from segmint.model.sam import preprocess
from segmint.model.sam.geometry import Geometry
from segmint.model.sam.image_encoder_vit import RelativeAttention
from segmint.model.sam.load import Sam
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.model.sam.preprocess import resized_size

MAX_BYTES = 4 << 30
"""Default limit in bytes for unfinished images on the device. This fits the masks of five full images with 1,024 points
each."""

ImagePair = tuple[Pixels, Pixels | None]
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
    def frame_size(self) -> Size:
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
    def _part(image: _StreamImage, crop: Crop) -> Pixels:
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


def check_pair(image: Pixels, original: Pixels | None, settings: MaskSettings) -> None:
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


FRAME = (701, 1051)
"""Size of the image and of the masks: no multiple of a tile's sides."""

_MASKS = 4
_OFFSET = 1.0


@torch.inference_mode()
def check_other_kernels(predictor: Predictor) -> None:
    """Compare the kernels of a model with torch's operations on random inputs.

    The attention may differ by rounding. Masks and resized images must be equal. Raises `KernelError` if results
    differ, or if a kernel can't be compiled or launched.
    """
    sam = predictor.sam
    try:
        check_attention(sam)
        check_masks(mask_operations(predictor), sam.geometry, sam.device)
        check_resize(sam.geometry, sam.device)
    except (KernelError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # compilers and drivers fail in many ways
        raise KernelError(
            f"this GPU can't run segmint's kernels ({type(error).__name__}: {first_line(error)}). "
            "Use a different version of torch and Triton."
        ) from error


def check_attention(sam: Sam) -> None:
    """Compare one of the encoder's attention layers for each size of square, which are windows and the whole map."""
    layers: dict[int, RelativeAttention] = {}
    for module in sam.image_encoder.modules():
        if isinstance(module, RelativeAttention):
            layers.setdefault(module.side, module)
    side = sam.geometry.embedding_size
    for layer in layers.values():
        weight = layer.proj.weight
        tokens = _noise(1, side, side, weight.shape[0]).to(weight.device, weight.dtype)
        name = f"attention in squares of {layer.side}"
        expect_close(name, layer(tokens), layer.proj(layer.attend_plainly(tokens)))


def check_masks(operations: MaskOperations, geometry: Geometry, device: torch.device) -> None:
    """Compare the numbers and the pixels of a few random masks."""
    coarse = 8 * _noise(_MASKS, 1, 9, 9)
    low = F.interpolate(coarse, (geometry.low_res_size,) * 2, mode="bicubic")[:, 0].to(device)
    axes = geometry.mask_axes(resized_size(*FRAME, geometry.image_size), FRAME)
    rows, columns = (taps_of(*axis, device) for axis in axes)
    expected = mask_tiles.measure(low, rows, columns, _OFFSET)
    if not torch.equal(operations.measure(low, rows, columns, _OFFSET), expected):
        raise wrong_kernels("counts and boxes of masks differ from those of torch's operations")
    boxes = [(x0, y0, x1, y1) for x0, y0, x1, y1 in expected[:, 3:].tolist()]
    for first, strips in strips_of(boxes):
        last = strips[-1]
        drawn = torch.empty(last.start + last.columns * (last.height + 1), dtype=torch.uint8, device=device)
        same = torch.empty_like(drawn)
        operations.draw(drawn, low[first:], rows, columns, strips)
        mask_tiles.draw(same, low[first:], rows, columns, strips)
        if not torch.equal(drawn, same):
            raise wrong_kernels("pixels of masks differ from those of torch's operations")


def check_resize(geometry: Geometry, device: torch.device) -> None:
    """Compare the pixels of a resized random image."""
    pixels = ((64 * _noise(*FRAME, 3) + 128).clamp(0, 255)).to(device, torch.uint8)
    size = resized_size(*FRAME, geometry.image_size)
    if not torch.equal(preprocess.resize_on_device(pixels, size), preprocess.resize_by_passes(pixels, size)):
        raise wrong_kernels("pixels of a resized image differ from those of torch's operations")


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))
