"""Source of the images to annotate, which follows new commits of the dataset, and memory for data about the images.

Embeddings, logits for later clicks, and prefilled masks are computed from a committed JPEG and stored with its SHA-256.
A redaction changes the JPEG's hash, so the server drops data with the old hash. After a takedown, the server drops all
data of the image: immediately if an annotator is working on the image, and otherwise within `CHECK_S` seconds.

In-memory LRU cache of values derived from images.
"""

import threading
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.submissions import base_digest
from segmint.catalogs.dataset.tables import DatasetTables, TableFile
from segmint.catalogs.dataset.tombstones import read_tombstones, removed_images
from segmint.catalogs.layout import bytes_sha256, image_name
from segmint.infra.arrays import Size
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.operators.rows import SCHEMAS, Row
from segmint.pipeline.serving.images import ImageAddress, ImagePlaces, NoImageError, index_tar


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


_SHARDS = 8  # maximum number of shards with open tables
_IMAGES = 32  # in memory, each with its JPEG
_MEMORY = "512MB"
_ATTEMPTS = 3

CHECK_S = 10.0
"""Interval in seconds at which all images with data in memory are checked against the store."""


class ImageGoneError(SegmintError):
    """Error for an image that was taken down or is no longer in the dataset."""


@dataclass(frozen=True)
class OpenImage:
    """Committed state of an image, with its row, its masks' rows, and its released JPEG."""

    place: ImageAddress
    generation: int  # of the image's shard
    row: Row
    masks: tuple[Row, ...]
    jpeg: bytes

    @property
    def size(self) -> Size:
        """(height, width) of the JPEG in pixels, the frame of all coordinates."""
        return self.row["height"], self.row["width"]

    @cached_property
    def jpeg_sha256(self) -> str:
        """Hexadecimal SHA-256 of the JPEG."""
        return bytes_sha256(self.jpeg)

    @cached_property
    def base(self) -> str:
        """Digest of this state of the image, which submissions contain as `base`."""
        return base_digest(self.jpeg, self.masks)

    @cached_property
    def counts(self) -> Mapping[int, str]:
        """Run lengths of the masks by annotation id."""
        return {mask["annotation_id"]: mask["segmentation"]["counts"] for mask in self.masks}


class NotReadyError(SegmintError):
    """Error for a request whose result is still being computed. The page should retry."""


class ConflictError(SegmintError):
    """Error for a write that conflicts with the store's content. `details` describes the conflict as JSON values."""

    def __init__(self, text: str, **details: Any) -> None:
        super().__init__(text)
        self.details = details


def check_images(dataset: Location, manifest: DatasetManifest) -> None:
    """Raise `UsageError` if a dataset was written without its images."""
    if (manifest.config.get("release") or {}).get("format") == "annotations":
        raise UsageError(f"{dataset} has only annotations, so there are no images to show")


class ImageSource:
    """Reader of images from the latest commits of their shards. Thread-safe.

    `places` lists the images with their shards, and `folder` is for scratch files. The most recent images stay in
    memory, in `recent`, until their shard has a newer commit.
    """

    def __init__(self, dataset: Location, places: ImagePlaces, folder: Path) -> None:
        self._dataset = dataset
        self.places = places
        self._folder = folder
        self._log = CommitLog(dataset)
        self._lock = threading.Lock()
        self._tables: OrderedDict[tuple[int, int], DatasetTables] = OrderedDict()
        self.recent: RecentImages[OpenImage] = RecentImages(_IMAGES)

    def read(self, image: int) -> OpenImage:
        """Return an image's current state.

        Raises `UnknownImageError` if the dataset had no such image at the start, `ImageGoneError` if the image is gone,
        and `NoImageError` if it has no JPEG.
        """
        place = self.places.place(image)
        if place.ordinal in removed_images(read_tombstones(self._dataset)):
            self.recent.forget(image)
            raise ImageGoneError(f"image {image} was taken down")
        for attempt in range(_ATTEMPTS):
            generation = self.generation(place.shard)
            known = self.recent.get(image)
            if known is not None and known.generation == generation:
                return known
            try:
                found = self._read(place, generation)
            except NotFoundError:  # the shard was replaced in the meantime
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            self.recent.put(image, found)
            return found
        raise AssertionError("unreachable")

    def find(self, text: str) -> int:
        """Return the id of an image, given its `image_id` or number. Raises the errors of `read`."""
        return self.read(self.places.find(text)).place.id

    def generation(self, shard: int) -> int:
        """List the store and return the generation of a shard's latest commit, or 0 if the shard has no commit."""
        return max(self._log.generations_of(shard), default=0)

    def taken(self, images: Iterable[int]) -> list[int]:
        """List the store once and return which of these images were taken down."""
        taken = removed_images(read_tombstones(self._dataset))
        return [image for image in images if self.places.place(image).ordinal in taken]

    def close(self) -> None:
        """Close all tables."""
        with self._lock, ExitStack() as stack:
            for tables in self._tables.values():
                stack.callback(tables.close)
            self._tables.clear()

    def _read(self, place: ImageAddress, generation: int) -> OpenImage:
        commit = self._log.read(place.shard, generation)
        if commit is None:
            raise NotFoundError(f"shard {place.shard} has no commit of generation {generation}")
        where = f"ordinal = {place.ordinal:d}"
        with self._lock:
            tables = self._tables.get((place.shard, generation))
            if tables is None:
                files = {}
                for kind in SCHEMAS:
                    entry = commit.file(kind)
                    files[kind] = [TableFile(str(self._dataset / entry.path), entry.size)]
                for older in [key for key in self._tables if key[0] == place.shard]:
                    self._tables.pop(older).close()
                scratch = ScratchFolder(dir=self._folder)
                tables = DatasetTables(self._dataset, files, SCHEMAS, scratch, _MEMORY)
                self._tables[place.shard, generation] = tables
                while len(self._tables) > _SHARDS:
                    self._tables.popitem(last=False)[1].close()
            rows = tables.query(f"SELECT * FROM images WHERE {where}").to_pylist()
            masks = tables.query(f"SELECT * FROM masks WHERE {where} ORDER BY annotation_id").to_pylist()
        if not rows:
            self.recent.forget(place.id)
            raise ImageGoneError(f"image {place.id} is no longer in the dataset")
        jpeg = index_tar(self._dataset, commit).read(image_name(place.id))
        if jpeg is None:
            raise NoImageError(f"{image_name(place.id)} is not in its tar; the dataset may have only annotations")
        return OpenImage(place, generation, rows[0], tuple(masks), jpeg)


class PixelHolder(Protocol):
    """Component that caches data derived from images. Thread-safe."""

    def images(self) -> Collection[int]:
        """Return the ids of the images with data in memory."""

    def forget(self, image: int, unless: str | None = None) -> None:
        """Drop an image's data, except data that was derived from the JPEG with the SHA-256 `unless`."""


class ImageMemory:
    """Memory of all pixel holders of a server. Thread-safe. As a context manager, it checks the store in a thread.

    `gone` is called with each image that was taken down.
    """

    def __init__(
        self, source: ImageSource, holders: Sequence[PixelHolder], gone: Callable[[int], None], seconds: float = CHECK_S
    ) -> None:
        self._source = source
        self._holders = (source.recent, *holders)
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
        """Check all images in memory against the store.

        This lists the tombstones once, and the commits once per shard. If a shard has a new commit, its images are read
        again. Raises the store's errors.
        """
        images = self.images()
        for image in self._source.taken(images):
            self.forget(image)
            self._gone(image)
        shards: defaultdict[int, list[int]] = defaultdict(list)
        for image in self.images() & images:
            shards[self._source.places.place(image).shard].append(image)
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
