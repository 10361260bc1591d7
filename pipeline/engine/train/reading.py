"""Reader of drawn images, their splits, the cache of embeddings, and the ranks of a run's workers.

Reader of drawn images, which reads the ranges of the JPEG and the JSON in the shard's tar and decodes the masks.

Split into training and held-out images by a hash of the source. Similar images are on the same side.

A group of similar images is held out only if the hash of *each* image in the group qualifies. This rule protects later
rounds of training. Suppose that an earlier run used the same share, but had fewer images. Its groups had fewer members,
so fewer hashes had to qualify. Every image that is held out now, if that run had it, was therefore held out there, too,
and no weights of the lineage were trained on it or on a similar image. docs/decisions/0022-splits.md gives the reasons.

Cache of a frozen encoder's image embeddings on a local disk, with a maximum size.

An embedding is stored in `<dataset>/<weights>/<JPEG's SHA-256>.npy`. The file is written atomically and ends with a
checksum. Because the key is the JPEG's hash, a run never uses an old embedding after a redaction has changed the image.
When a run opens the cache, it deletes the files of images that the dataset no longer contains, for example after a
takedown.

Any number of processes can share a folder and its maximum size. A full cache doesn't evict anything: training draws all
images about equally often, so evicting the least recently used embedding would remove the embedding that is needed
next.
"""

import hashlib
import io
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor

from segmint.catalogs.dataset.outputs import EMBEDDINGS, CacheSize, recount
from segmint.catalogs.layout import DamagedDatasetError, bytes_sha256
from segmint.infra.arrays import Bools, Floats, Ints, Pixels, Size
from segmint.infra.device import Compute, cpu_bits, device_kind
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import NotFoundError, StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.uris import base_name
from segmint.model.automatic import rle
from segmint.model.sam.common import EMBEDDING_CHANNELS
from segmint.model.sam.geometry import SAM1
from segmint.model.sam.image_encoder_tinyvit import ImageEncoderTinyViT
from segmint.model.sam.load import Sam
from segmint.model.sam.predictor import Predictor
from segmint.model.sam.preprocess import normalize_into, resized_size
from segmint.model.training.encoder_layers import recomputed_blocks
from segmint.model.training.sampling import drop_path, fit_targets
from segmint.model.training.step import TrainingMasks
from segmint.operators.images import JpegDecoder, UndecodableError
from segmint.operators.similar.clusters import find_groups
from segmint.pipeline.engine.train.images import SkippedImages, StepDraw, TrainingImages

T = TypeVar("T")


def _alone(values: Tensor) -> Tensor:
    return values


@dataclass(frozen=True)
class WorkerRank:
    """Worker of a run, with its rank among all `size` workers and its rank on its machine.

    `add` returns the sum of a tensor over all workers and may modify the tensor. `gather` pickles a value and returns
    the values of all workers, by rank. Both block until every worker has called them, so all workers must make the same
    calls in the same order.
    """

    rank: int = 0
    size: int = 1
    add: Callable[[Tensor], Tensor] = _alone
    gather: Callable[[Any], list[Any]] = lambda value: [value]
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """True for the worker that writes shared files."""
        return self.rank == 0

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Return this worker's share of the items."""
        return items[self.rank :: self.size]

    def total(self, value: float) -> float:
        """Return the sum of a number over all workers."""
        return value if self.size == 1 else float(self.add(torch.tensor([value], dtype=torch.float64))[0])

    def add_gradients(self, weights: Sequence[Tensor]) -> None:
        """Sum the gradients over all workers. If no worker has a gradient for a weight, it stays None."""
        if self.size == 1:
            return
        present = self.add(torch.tensor([float(weight.grad is not None) for weight in weights]))
        grads = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        summed = self.add(torch.cat([grad.flatten() for grad in grads]))
        parts = torch.split(summed, [grad.numel() for grad in grads])
        for weight, some, part in zip(weights, present.tolist(), parts, strict=True):
            weight.grad = part.view_as(weight).clone() if some else None


@dataclass(frozen=True)
class TrainingImage:
    """Drawn image in memory, with its masks and either its embedding or its resized pixels (h, w, 3) uint8 RGB.

    `slot` and `image` are as in `StepDraw`. `features` is the cached embedding, (1, 256, 64, 64) float32 on the CPU.
    `boxes` (N, 4) are the masks' bounding boxes x0, y0, x1, y1 in pixels of the resized image; x1 and y1 are exclusive.
    """

    slot: int
    image: int
    pixels: Pixels | None
    masks: TrainingMasks
    annotations: Ints
    boxes: Floats
    features: Tensor | None = None


@dataclass(frozen=True)
class ImageView:
    """Part of an image that the encoder receives, and the (height, width) that it fills in the encoder's input."""

    rows: slice
    columns: slice
    input_size: Size


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

    def _pixels(self, image: int, size: Size, view: ImageView) -> Pixels:
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
        shard = self._images.shard_of(image)
        start, stop = (int(place) for place in self._images.places[image, first : first + 2])
        try:
            tar = shard.dataset.location / shard.tar.path
            return tar.storage.read_part(tar.uri, start, stop)
        except NotFoundError as error:
            changed = ", because the dataset changed during training" if shard.dataset.has_changed() else ""
            raise DamagedDatasetError(f"its shard's tar is gone{changed}") from error

    def _mask(self, segmentation: Any, size: Size) -> Bools:
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

    def recall(self, listed: Iterable[Mapping[str, Any]], counts: Mapping[str, int]) -> None:
        """Restore the items that earlier starts of the run skipped, so that each is counted once.

        `counts` contains their counts. If a reason has two counts, the larger one applies.
        """
        known = list(self._skipped.listed)
        for line in listed:
            self._named.add((line["reason"], line["dataset"], line.get("image"), line.get("mask")))
            if dict(line) not in known:
                self._skipped.counts[line["reason"]] += 1
                self._skipped.listed.append(dict(line))
        for reason, number in counts.items():
            self._skipped.counts[reason] = max(self._skipped.counts[reason], number)

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
        dataset = self._images.shard_of(image).dataset
        return {"reason": reason, "dataset": dataset.manifest.name, "image": int(self._images.ids[image]), **where}

    def _name(self, line: Mapping[str, Any]) -> bool:
        """Record the skipped item that a line describes. Return False if it was already recorded."""
        key = line["reason"], line["dataset"], line["image"], line.get("mask")
        if key in self._named:
            return False
        self._named.add(key)
        self._skipped.add_line(line)
        return True


def _box(mask: Bools, input_size: Size) -> list[float]:
    """Return the box of a non-empty mask (H, W), in pixels of the resized image."""
    (top, bottom), (left, right) = (np.flatnonzero(mask.any(axis=axis))[[0, -1]] for axis in (1, 0))
    y, x = (side / length for side, length in zip(input_size, mask.shape, strict=True))
    return [left * x, top * y, (right + 1) * x, (bottom + 1) * y]


def view_of(size: Size, jitter: tuple[float, float, float] | None = None) -> ImageView:
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


def _decode_view(jpeg: bytes, size: Size, view: ImageView) -> Pixels:
    """Decode a JPEG and resize its view to the encoder's input, (h, w, 3) uint8 RGB.

    Returns an empty array if the JPEG isn't of this `size`.
    """
    pixels = np.asarray(simplejpeg.decode_jpeg(jpeg, colorspace="RGB"))
    if pixels.shape[:2] != size:
        return pixels[:0]
    height, width = view.input_size
    cropped = Image.fromarray(pixels[view.rows, view.columns])
    return np.array(cropped.resize((width, height), Image.Resampling.BILINEAR))


_SALT = b"segmint held-out 1\0"
_RANGE = 1 << 64


def held_out(images: TrainingImages, share: float) -> Bools:
    """Decide which of the N images are held out, (N,) bool."""
    sources, same = np.unique(images.source_sha256, axis=0, return_inverse=True)
    alone = np.array([is_held_out(source.tobytes(), share) for source in sources], bool)
    groups = _similar_groups(images)
    trained = np.zeros(len(images) + 1, bool)
    np.logical_or.at(trained, groups, ~alone[same.reshape(-1)])
    held: Bools = ~trained[groups]
    return held


def _similar_groups(images: TrainingImages) -> Ints:
    """Group the N images by similarity. Returns a group number per image, (N,)."""
    sources, first, same = np.unique(images.source_sha256, axis=0, return_index=True, return_inverse=True)
    # Images with the same source belong to one group, and so do images with the same JPEG, because two catalogs may
    # encode one source differently.
    groups = find_groups(images.hashes[first], lambda rows: images.thumbnails[first[rows]], np.arange(len(sources)))
    _, jpegs = np.unique(images.jpeg_sha256, axis=0, return_inverse=True)
    return _joined(groups[same.reshape(-1)], jpegs.reshape(-1))


def is_held_out(source_sha256: bytes, share: float) -> bool:
    """Return whether an image would be held out on its own. `source_sha256` is its source's SHA-256, 32 bytes."""
    value = int.from_bytes(hashlib.sha256(_SALT + source_sha256).digest()[:8], "big")
    return value < share * _RANGE


def digest_of_sources(images: TrainingImages, chosen: Bools) -> tuple[int, str]:
    """Count the distinct sources of the `chosen` images, (N,) bool, and hash their sorted list with SHA-256."""
    sources = np.unique(images.source_sha256[chosen], axis=0)
    return len(sources), bytes_sha256(sources.tobytes())


def _joined(groups: Ints, others: Ints) -> Ints:
    """Merge two groupings: images that share a group in either one share a group in the result."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    count = int(groups.max(initial=-1)) + 1
    size = count + int(others.max(initial=-1)) + 1
    links = coo_array((np.ones(len(groups), bool), (groups, count + others)), shape=(size, size))
    labels: Ints = connected_components(links, directed=False)[1].astype(np.int64)
    return labels[groups]


SHAPE = (1, EMBEDDING_CHANNELS, SAM1.embedding_size, SAM1.embedding_size)
_CHECKSUM = 32  # bytes of the SHA-256 at the file's end
BYTES = 128 + 4 * math.prod(SHAPE) + _CHECKSUM
"""Size in bytes of an embedding's file."""

_NPY = ".npy"


class EmbeddingCache:
    """Embeddings of one encoder and precision, in a local folder with a maximum size in bytes."""

    def __init__(self, folder: Location, weights: str, most_bytes: float) -> None:
        """Open the cache. `weights` combines the hash of the encoder's weights with the device and the precision."""
        self._root = folder
        self._folder = folder / EMBEDDINGS
        self._room = CacheSize(folder)
        self._weights = weights
        self._most = most_bytes
        self._full = False
        recount(folder)

    def get(self, dataset: str, jpeg: bytes) -> Tensor | None:
        """Return a JPEG's embedding (1, 256, 64, 64) float32, or None if there is no usable one.

        `dataset` is the dataset's key, and `jpeg` the JPEG's SHA-256.
        """
        file = self._file(dataset, jpeg)
        try:
            data = file.read(max_bytes=2 * BYTES)
            if hashlib.sha256(data[:-_CHECKSUM]).digest() != data[-_CHECKSUM:]:
                raise ValueError("its checksum differs")
            array = np.load(io.BytesIO(data), allow_pickle=False)
            if array.shape != SHAPE or array.dtype != np.float32:
                raise ValueError("its shape differs")
        except NotFoundError:
            return None
        except (ValueError, EOFError, OSError):
            self._forget(file)
            return None
        return torch.from_numpy(array)

    def put(self, dataset: str, jpeg: bytes, features: Tensor) -> None:
        """Store an embedding if there is room. If the disk is full, log it once and stop caching."""
        file = self._file(dataset, jpeg)
        if self._full or file.exists():
            return
        buffer = io.BytesIO()
        np.save(buffer, features.detach().to("cpu", torch.float32).numpy(), allow_pickle=False)
        data = buffer.getvalue() + hashlib.sha256(buffer.getvalue()).digest()
        try:
            with self._room.locked() as used:
                before = used.get()
                if before + len(data) > self._most or file.exists():
                    return
                used.set(before + len(data))
                try:
                    file.put(data)
                except StorageFaultError:
                    used.set(before)
                    raise
        except (StorageFaultError, OSError) as error:
            self._full = True
            get_logger("train").warning("cache_full", error=str(error), note="training continues without caching more")

    def purge(self, dataset: str, jpegs: Collection[bytes]) -> int:
        """Delete a dataset's embeddings unless their JPEG is in `jpegs`, and return the number of deleted files.

        Temporary files that a killed run left behind are deleted as well.
        """
        kept = {f"{jpeg.hex()}{_NPY}" for jpeg in jpegs}
        own = self._folder / dataset
        names = [entry.name for entry in own.walk(include_temporary=True)]
        stale = [name for name in names if base_name(name) not in kept]
        for name in stale:
            self._forget(own / name)
        return len(stale)

    def make_room(self, images: int) -> None:
        """Delete other weights' embeddings until `images` embeddings of these weights fit, up to the size limit.

        If the limit is now lower than the size of these weights' embeddings, some of these are deleted as well.
        """
        sizes = recount(self._root)
        used = sum(sizes.values())
        own = sum(size for path, size in sizes.items() if self._is_own(path))
        wanted = min(self._most, max(own, images * BYTES))
        for path in sorted(sizes, key=lambda path: (self._is_own(path), path)):
            others_and_room = used - own + wanted if not self._is_own(path) else used
            if others_and_room <= self._most:
                return
            self._forget(self._folder / path)
            used -= sizes[path]

    def _is_own(self, path: str) -> bool:
        return path.split("/")[1:2] == [self._weights]

    def _forget(self, file: Location) -> None:
        """Delete a file and subtract its size from the cache's total."""
        with self._room.locked() as used:
            try:
                size = file.size()
            except NotFoundError:
                return
            file.delete()
            used.set(used.get() - size)

    def _file(self, dataset: str, jpeg: bytes) -> Location:
        return self._folder / f"{dataset}/{self._weights}/{jpeg.hex()}{_NPY}"


class FrozenEncoder:
    """Frozen image encoder that fills the cache. It embeds one image at a time, with the precision of inference."""

    def __init__(self, sam: Sam, images: TrainingImages, cache: EmbeddingCache | None, compute: Compute) -> None:
        if compute.precision == "bf16" and not isinstance(sam.image_encoder, ImageEncoderTinyViT):
            sam.image_encoder.bfloat16()  # as in builds; see `load_model`
        self._predictor = Predictor(sam)
        self._images = images
        self._cache = cache

    def kept(self, image: int) -> Tensor | None:
        """Return an image's cached embedding (1, 256, 64, 64) float32, or None if its pixels must be read."""
        return None if self._cache is None else self._cache.get(*self._key(image))

    def embed(self, read: TrainingImage) -> Tensor:
        """Return an image's embedding (1, 256, 64, 64) float32 on the model's device."""
        kept = read.features if read.features is not None else self.kept(read.image)
        if kept is not None:
            return kept.to(self._predictor.sam.device)
        if read.pixels is None:
            raise ValueError(f"image {read.image} was read with neither its pixels nor its embedding")
        features = self._predictor.embed(read.pixels).features.float()
        if self._cache is not None:
            self._cache.put(*self._key(read.image), features)
        return features.clone()  # tensors from inference mode can't be used in training, so clone it

    def _key(self, image: int) -> tuple[str, bytes]:
        shard = self._images.shard_of(image)
        return shard.dataset.key, self._images.jpeg_sha256[image].tobytes()


def encoder_hash(sam: Sam) -> str:
    """Hash the image encoder's weights to identify its embeddings. Returns the first twelve hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sam.image_encoder.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().to("cpu", torch.float32).contiguous().numpy()).cast("B"))
    return digest.hexdigest()[:12]


def cache_key(encoder: str, compute: Compute) -> str:
    """Return the cache key of an encoder's embeddings: its hash, and the numerics of this machine and torch."""
    bits = cpu_bits(compute.threads) if compute.kind == "cpu" else device_kind(compute)
    threads = f"-{compute.threads}" if compute.kind == "cpu" else ""
    numerics = bytes_sha256(f"{torch.__version__} {bits}".encode())[:6]
    return f"{encoder}-{compute.kind}-{compute.precision}{threads}-{numerics}"


def encoder_input(sam: Sam, reads: Sequence[TrainingImage]) -> Tensor:
    """Build the image encoder's input (B, 3, 1024, 1024) float32 from images that were read with their pixels."""
    side = sam.image_size
    batch = torch.zeros(len(reads), 3, side, side, device=sam.device)
    for place, read in zip(batch, reads, strict=True):
        if read.pixels is None:
            raise ValueError(f"image {read.image} was read without its pixels")
        normalize_into(place, torch.from_numpy(read.pixels).to(sam.device))
    return batch


@contextmanager
def encoder_in_training(
    sam: Sam, reads: Sequence[TrainingImage], chance: float, seed: int, step: int, recompute: bool
) -> Iterator[Tensor]:
    """Embed images with an encoder in training, with drop path of probability `chance`; yields (B, 256, 64, 64).

    The context must stay open until the backward pass is done.
    """
    with ExitStack() as contexts:
        contexts.enter_context(drop_path(sam.image_encoder, chance, seed, step, [read.slot for read in reads]))
        if recompute:
            contexts.enter_context(recomputed_blocks(sam.image_encoder))
        yield sam.image_encoder(encoder_input(sam, reads))
