"""Reads drawn images: their JPEG and their JSON, each by one range of the shard's tar, and their masks as targets."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.storage.errors import NotFoundError
from segmint.model.automatic import rle
from segmint.model.sam.preprocess import resize, resized_size
from segmint.model.sam.prompt_encoder import IMAGE_SIZE
from segmint.model.training.step import TrainingMasks
from segmint.model.training.targets import fit_targets
from segmint.operators.decoding import JpegDecoder, UndecodableError
from segmint.pipeline.engine.train.data.draws import StepDraw
from segmint.pipeline.engine.train.data.images import SkippedImages, TrainingImages, read_range
from segmint.pipeline.engine.train.world import WorkerRank


@dataclass(frozen=True)
class TrainingImage:
    """A drawn image: its slot and row, its masks, and its embedding, else its resized pixels (h, w, 3) uint8 RGB.

    `features` is the embedding (1, 256, 64, 64) float32 that was kept, on the CPU. `boxes` (N, 4) are the masks' as
    x0, y0, x1, y1 in pixels of the resized image, the last ones outside.
    """

    slot: int
    image: int
    pixels: NDArray[np.uint8] | None
    masks: TrainingMasks
    annotations: NDArray[np.int64]
    boxes: NDArray[np.float64]
    features: Tensor | None = None


Kept = Callable[[int], Tensor | None]


def _nothing(image: int) -> None:
    """No embedding is kept."""


class _UnusableMaskError(Exception):
    """A mask that cannot be trained on: the reason, and what is listed with it."""

    def __init__(self, reason: str, **where: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.where = where


@dataclass(frozen=True)
class DrawnImage:
    """A drawn image as it was read, None if there is nothing to train on, and lines for what must be left out."""

    read: TrainingImage | None
    lines: Sequence[Mapping[str, Any]]


class TrainingImageReader:
    """Reads the images of a run; masks and images that cannot be used are left out, and added to `skipped`."""

    def __init__(self, images: TrainingImages, resolution: int, most_area: float, skipped: SkippedImages) -> None:
        """`resolution` is the losses'; masks over the share `most_area` of their image are left out."""
        self._images = images
        self._resolution = resolution
        self._most_area = most_area
        self._skipped = skipped
        self._named: set[tuple[Any, ...]] = set()  # what is drawn again is left out once
        self._fresh: list[dict[str, Any]] = []  # left out since the last exchange
        self._decoder = JpegDecoder(own=True)

    def close(self) -> None:
        """End what decodes images."""
        self._decoder.close()

    def read(self, draw: StepDraw, kept: Kept = _nothing) -> TrainingImage | None:
        """Read a drawn image with the masks that can be used; None if there is nothing to train on.

        `kept` returns the embedding of a row, if there is one: then its pixels are not read. Raises `StorageFaultError`
        if the store fails: that is not the image's fault.
        """
        return self.take(self.prepare(draw, kept))

    def prepare(self, draw: StepDraw, kept: Kept = _nothing) -> DrawnImage:
        """Read a drawn image, for `take` to leave out later what it must: any thread may call it."""
        height, width = (int(side) for side in self._images.sizes[draw.image])
        input_size = resized_size(height, width, IMAGE_SIZE)
        features = kept(draw.image)
        try:
            pixels = self._pixels(draw.image, (height, width)) if features is None else None
            segmentations = self._segmentations(draw.image)
        except DamagedDatasetError as error:
            return DrawnImage(None, [self._line("damaged images", draw.image, detail=str(error))])
        targets, numbers, annotations, boxes, lines = [], [], [], [], []
        for annotation, number in zip(draw.masks.tolist(), draw.numbers, strict=True):
            try:
                mask = self._mask(segmentations.get(annotation), (height, width))
            except _UnusableMaskError as error:
                lines.append(self._line(error.reason, draw.image, mask=annotation, **error.where))
                continue
            targets.append(fit_targets(torch.from_numpy(mask)[None], input_size, self._resolution))
            numbers.append(number)
            annotations.append(annotation)
            boxes.append(_box(mask, input_size))
        if not targets:
            return DrawnImage(None, lines)
        masks = TrainingMasks(torch.cat(targets), input_size, numbers)
        return DrawnImage(
            TrainingImage(
                draw.slot, draw.image, pixels, masks, np.array(annotations, np.int64), np.array(boxes), features
            ),
            lines,
        )

    def take(self, prepared: DrawnImage) -> TrainingImage | None:
        """Return an image that was prepared, and leave out what cannot be used."""
        for line in prepared.lines:
            if self._name(line):
                self._fresh.append(dict(line))
        return prepared.read

    def pixels_of(self, read: TrainingImage) -> NDArray[np.uint8] | None:
        """The pixels of an image, also of one read with its embedding; None, and it is left out, if that fails."""
        if read.pixels is not None:
            return read.pixels
        height, width = (int(side) for side in self._images.sizes[read.image])
        try:
            return self._pixels(read.image, (height, width))
        except DamagedDatasetError as error:
            self.take(DrawnImage(None, [self._line("damaged images", read.image, detail=str(error))]))
            return None

    def _pixels(self, image: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        jpeg = self._range(image, 0)
        if hashlib.sha256(jpeg).digest() != self._images.jpeg_sha256[image].tobytes():
            raise DamagedDatasetError("its JPEG is not the one that was there at the start")
        try:
            pixels = self._decoder.run(_decode_resized, jpeg)
        except UndecodableError as error:
            raise DamagedDatasetError(f"its JPEG cannot be decoded: {error}") from error
        if pixels.shape[:2] != resized_size(*size, IMAGE_SIZE):
            raise DamagedDatasetError("its JPEG has another size than the tables say")
        return pixels

    def _segmentations(self, image: int) -> dict[int, Any]:
        """The segmentations in an image's JSON, by annotation id."""
        try:
            document = json.loads(self._range(image, 2))
            return {int(value["id"]): value["segmentation"] for value in document["annotations"]}
        except (ValueError, RecursionError, KeyError, TypeError) as error:
            raise DamagedDatasetError(f"its JSON cannot be read: {type(error).__name__}: {str(error)[:200]}") from error

    def _range(self, image: int, first: int) -> bytes:
        shard = self._images.shards[int(self._images.shard[image])]
        start, stop = (int(place) for place in self._images.places[image, first : first + 2])
        try:
            return read_range(shard.dataset.location / shard.tar.path, start, stop)
        except NotFoundError as error:
            changed = ", as the dataset was changed while it trained" if shard.dataset.has_changed() else ""
            raise DamagedDatasetError(f"the tar of its shard is gone{changed}") from error

    def _mask(self, segmentation: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
        """The mask in an image's JSON, (H, W) bool; raises `_UnusableMaskError`."""
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
        """Take over what an earlier start of the run has left out, so that it counts once."""
        known = list(self._skipped.listed)
        for line in listed:
            self._named.add((line["reason"], line["dataset"], line.get("image"), line.get("mask")))
            if dict(line) not in known:
                self._skipped.counts[line["reason"]] += 1
                self._skipped.listed.append(dict(line))

    def exchange(self, world: WorkerRank) -> None:
        """Take over what the other workers have left out since the last exchange; every worker calls it."""
        if world.size == 1:
            return
        for lines in world.gather(self._fresh):
            for line in lines:
                self._name(line)
        self._fresh = []

    def _line(self, reason: str, image: int, **where: int | str) -> dict[str, Any]:
        """What is left out, and why."""
        dataset = self._images.shards[int(self._images.shard[image])].dataset
        return {"reason": reason, "dataset": dataset.manifest.name, "image": int(self._images.ids[image]), **where}

    def _name(self, line: Mapping[str, Any]) -> bool:
        """Leave out what a line names; return whether it was not left out before."""
        key = line["reason"], line["dataset"], line["image"], line.get("mask")
        if key in self._named:
            return False
        self._named.add(key)
        self._skipped.add_line(line)
        return True


def _box(mask: NDArray[np.bool_], input_size: tuple[int, int]) -> list[float]:
    """The box of a mask (H, W) that is not empty, in pixels of the resized image."""
    (top, bottom), (left, right) = (np.flatnonzero(mask.any(axis=axis))[[0, -1]] for axis in (1, 0))
    y, x = (side / length for side, length in zip(input_size, mask.shape, strict=True))
    return [left * x, top * y, (right + 1) * x, (bottom + 1) * y]


def _decode_resized(jpeg: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG and resize it to the image encoder's input, (h, w, 3) uint8 RGB."""
    return resize(np.asarray(simplejpeg.decode_jpeg(jpeg, colorspace="RGB")), IMAGE_SIZE)
