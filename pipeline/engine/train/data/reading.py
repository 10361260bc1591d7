"""Reader of drawn images, which reads the ranges of the JPEG and the JSON in the shard's tar and decodes the masks."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.storage.errors import NotFoundError
from segmint.model.automatic import rle
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.preprocess import resized_size
from segmint.model.training.step import TrainingMasks
from segmint.model.training.targets import fit_targets
from segmint.operators.decoding import JpegDecoder, UndecodableError
from segmint.pipeline.engine.train.data.draws import StepDraw
from segmint.pipeline.engine.train.data.images import SkippedImages, TrainingImages, read_range
from segmint.pipeline.engine.train.world import WorkerRank


@dataclass(frozen=True)
class TrainingImage:
    """Drawn image in memory, with its masks and either its embedding or its resized pixels (h, w, 3) uint8 RGB.

    `slot` and `image` are as in `StepDraw`. `features` is the cached embedding, (1, 256, 64, 64) float32 on the CPU.
    `boxes` (N, 4) are the masks' bounding boxes x0, y0, x1, y1 in pixels of the resized image; x1 and y1 are exclusive.
    """

    slot: int
    image: int
    pixels: NDArray[np.uint8] | None
    masks: TrainingMasks
    annotations: NDArray[np.int64]
    boxes: NDArray[np.float64]
    features: Tensor | None = None


@dataclass(frozen=True)
class ImageView:
    """Part of an image that the encoder receives, and the (height, width) that it fills in the encoder's input."""

    rows: slice
    columns: slice
    input_size: tuple[int, int]


Kept = Callable[[int], Tensor | None]


def _nothing(image: int) -> None:
    """Return None for every image, because no embedding is cached."""


class _UnusableMaskError(Exception):
    """Raised for a mask that can't be used for training, with the reason and the details to list."""

    def __init__(self, reason: str, **where: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where


@dataclass(frozen=True)
class DrawnImage:
    """Result of reading a drawn image: the image, or None if there is nothing to train on, and the skipped items."""

    read: TrainingImage | None
    lines: Sequence[Mapping[str, Any]]


class TrainingImageReader:
    """Reader of a run's images. It skips unusable masks and images, and adds them to `skipped`."""

    def __init__(self, images: TrainingImages, resolution: int, most_area: float, skipped: SkippedImages) -> None:
        """Store the settings and start a JPEG decoder.

        The losses compare masks at `resolution`. `most_area` is the share of an image above which a mask is skipped.
        """
        self._images = images
        self._resolution = resolution
        self._most_area = most_area
        self._skipped = skipped
        self._named: set[tuple[Any, ...]] = set()  # items that were already skipped, so that each is counted once
        self._fresh: list[dict[str, Any]] = []  # skipped since the last exchange
        self._decoder = JpegDecoder(own=True)

    def close(self) -> None:
        """Shut down the JPEG decoder."""
        self._decoder.close()

    def read(self, draw: StepDraw, kept: Kept = _nothing) -> TrainingImage | None:
        """Read a drawn image with its usable masks. Return None if there is nothing to train on.

        `kept` returns the cached embedding of an image, given its row, or None. If there is an embedding, the pixels
        aren't read. Raises `StorageFaultError` if the store fails; the image isn't skipped in this case.
        """
        return self.take(self.prepare(draw, kept))

    def prepare(self, draw: StepDraw, kept: Kept = _nothing) -> DrawnImage:
        """Read a drawn image, but leave it to `take` to record the skipped items. Callable from any thread."""
        height, width = (int(side) for side in self._images.sizes[draw.image])
        view = view_of((height, width), draw.jitter)
        input_size = view.input_size
        features = kept(draw.image)
        pixels = None
        try:
            if features is None:
                pixels = self._pixels(draw.image, (height, width), view)
            segmentations = self._segmentations(draw.image)
        except DamagedDatasetError as error:
            return DrawnImage(None, [self._line("damaged images", draw.image, detail=str(error))])
        targets, numbers, annotations, boxes, lines = [], [], [], [], []
        for annotation, number in zip(draw.masks.tolist(), draw.numbers, strict=True):
            try:
                full = self._mask(segmentations.get(annotation), (height, width))
            except _UnusableMaskError as error:
                lines.append(self._line(error.reason, draw.image, mask=annotation, **error.where))
                continue
            mask = full[view.rows, view.columns]
            if not mask.any():  # outside the crop
                continue
            targets.append(fit_targets(torch.from_numpy(mask)[None], input_size, self._resolution))
            numbers.append(number)
            annotations.append(annotation)
            boxes.append(_box(mask, input_size))
        if not targets:
            return DrawnImage(None, lines)
        masks = TrainingMasks(torch.cat(targets), input_size, numbers)
        read = TrainingImage(
            draw.slot, draw.image, pixels, masks, np.array(annotations, np.int64), np.array(boxes), features
        )
        return DrawnImage(read, lines)

    def take(self, prepared: DrawnImage) -> TrainingImage | None:
        """Return a prepared image and record its skipped items."""
        for line in prepared.lines:
            if self._name(line):
                self._fresh.append(dict(line))
        return prepared.read

    def pixels_of(self, read: TrainingImage) -> NDArray[np.uint8] | None:
        """Return an image's pixels, and read them if necessary. If that fails, skip the image and return None."""
        if read.pixels is not None:
            return read.pixels
        height, width = (int(side) for side in self._images.sizes[read.image])
        try:
            return self._pixels(read.image, (height, width), view_of((height, width)))
        except DamagedDatasetError as error:
            self.take(DrawnImage(None, [self._line("damaged images", read.image, detail=str(error))]))
            return None

    def _pixels(self, image: int, size: tuple[int, int], view: ImageView) -> NDArray[np.uint8]:
        jpeg = self._range(image, 0)
        if hashlib.sha256(jpeg).digest() != self._images.jpeg_sha256[image].tobytes():
            raise DamagedDatasetError("its JPEG changed after the run started")
        try:
            pixels = self._decoder.run(partial(_decode_view, size=size, view=view), jpeg)
        except UndecodableError as error:
            raise DamagedDatasetError(f"its JPEG can't be decoded: {error}") from error
        if pixels.shape[:2] != view.input_size:
            raise DamagedDatasetError("its JPEG's size differs from the tables")
        return pixels

    def _segmentations(self, image: int) -> dict[int, Any]:
        """Read an image's JSON and return its segmentations by annotation id."""
        try:
            document = json.loads(self._range(image, 2))
            return {int(value["id"]): value["segmentation"] for value in document["annotations"]}
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise DamagedDatasetError(f"its JSON can't be read: {type(error).__name__}: {str(error)[:200]}") from error

    def _range(self, image: int, first: int) -> bytes:
        shard = self._images.shards[int(self._images.shard[image])]
        start, stop = (int(place) for place in self._images.places[image, first : first + 2])
        try:
            return read_range(shard.dataset.location / shard.tar.path, start, stop)
        except NotFoundError as error:
            changed = ", because the dataset changed during training" if shard.dataset.has_changed() else ""
            raise DamagedDatasetError(f"its shard's tar is gone{changed}") from error

    def _mask(self, segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
        """Decode a segmentation to a mask (H, W) bool. Raises `_UnusableMaskError`."""
        try:
            if list(segmentation["size"]) != list(size):
                raise ValueError(f"its size is {segmentation['size']}, not the image's {list(size)}")
            mask = rle.decode(rle.Rle(size, segmentation["counts"]))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _UnusableMaskError("masks that cannot be decoded", detail=str(error)[:200]) from error
        area = int(mask.sum())
        if not area:
            raise _UnusableMaskError("empty masks")
        if area > self._most_area * mask.size:
            raise _UnusableMaskError("masks over max_mask_area_ratio")
        return mask

    def recall(self, listed: Iterable[Mapping[str, Any]]) -> None:
        """Restore the items that earlier starts of the run skipped, so that each is counted once."""
        known = list(self._skipped.listed)
        for line in listed:
            self._named.add((line["reason"], line["dataset"], line.get("image"), line.get("mask")))
            if dict(line) not in known:
                self._skipped.counts[line["reason"]] += 1
                self._skipped.listed.append(dict(line))

    def exchange(self, world: WorkerRank) -> None:
        """Record the items that other workers have skipped since the last exchange. Every worker must call this."""
        if world.size == 1:
            return
        for lines in world.gather(self._fresh):
            for line in lines:
                self._name(line)
        self._fresh = []

    def _line(self, reason: str, image: int, **where: int | str) -> dict[str, Any]:
        """Format a skipped item as a line of the list."""
        dataset = self._images.shards[int(self._images.shard[image])].dataset
        return {"reason": reason, "dataset": dataset.manifest.name, "image": int(self._images.ids[image]), **where}

    def _name(self, line: Mapping[str, Any]) -> bool:
        """Record the skipped item that a line describes. Return False if it was already recorded."""
        key = line["reason"], line["dataset"], line["image"], line.get("mask")
        if key in self._named:
            return False
        self._named.add(key)
        self._skipped.add_line(line)
        return True


def _box(mask: NDArray[np.bool_], input_size: tuple[int, int]) -> list[float]:
    """Return the box of a non-empty mask (H, W), in pixels of the resized image."""
    (top, bottom), (left, right) = (np.flatnonzero(mask.any(axis=axis))[[0, -1]] for axis in (1, 0))
    y, x = (side / length for side, length in zip(input_size, mask.shape, strict=True))
    return [left * x, top * y, (right + 1) * x, (bottom + 1) * y]


def view_of(size: tuple[int, int], jitter: tuple[float, float, float] | None = None) -> ImageView:
    """Return the part of an image of `size` (height, width) for the encoder. Without `jitter`, this is the whole image.

    Large-scale jitter (Ghiasi et al. 2021, arXiv 2012.07177) makes the longer side `jitter[0]` times as long as the
    encoder's input, and crops the image if it doesn't fit. `jitter[1:]` is the position of the crop, as in `StepDraw`.
    """
    if jitter is None:
        return ImageView(slice(None), slice(None), resized_size(*size, SAM1.image_size))
    scale = jitter[0] * SAM1.image_size / max(size)
    slices, sides = [], []
    for pixels, place in zip(size, jitter[1:], strict=True):
        kept = min(pixels, max(1, round(SAM1.image_size / scale)))
        start = round(place * (pixels - kept))
        slices.append(slice(start, start + kept))
        sides.append(min(SAM1.image_size, max(1, round(kept * scale))))
    return ImageView(slices[0], slices[1], (sides[0], sides[1]))


def _decode_view(jpeg: bytes, size: tuple[int, int], view: ImageView) -> NDArray[np.uint8]:
    """Decode a JPEG and resize its view to the encoder's input, (h, w, 3) uint8 RGB.

    Returns an empty array if the JPEG isn't of this `size`.
    """
    pixels = np.asarray(simplejpeg.decode_jpeg(jpeg, colorspace="RGB"))
    if pixels.shape[:2] != size:
        return pixels[:0]
    height, width = view.input_size
    cropped = Image.fromarray(pixels[view.rows, view.columns])
    return np.array(cropped.resize((width, height), Image.Resampling.BILINEAR))
