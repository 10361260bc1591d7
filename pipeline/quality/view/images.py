"""Images of a viewer: JPEGs from the tars of shards, and their thumbnails, with bounded memory."""

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Generic, Protocol, TypeVar

from PIL import Image

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.foreign import read_jpeg
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.layout import commit_name, image_name
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.operators.decoding import PICTURES, JpegDecoder, UndecodableError
from segmint.pipeline.serving.images import ImageAddress, NoImageError
from segmint.pipeline.serving.tars import TarIndex, index_tar

THUMBNAIL_SIDE = 480
"""Length in pixels of a thumbnail's longer side, which is twice its size in the grid, for high-density screens."""

LOOK_S = 2.0
"""Seconds until a shard is checked again. Until then, a viewer may show images that were taken down or redacted."""

_LOOKS = 16  # threads that check shards
_THUMBNAIL_BYTES = 64 << 20
_INDEXES = 512  # maximum number of shards with cached tar headers, about 100 kB each
_QUALITY = 80

K = TypeVar("K")
V = TypeVar("V")


class ShardChangedError(NoImageError):
    """Error for an image whose shard was replaced after the viewer was opened. Such images are no longer shown."""


class JpegSource(Protocol):
    """Source of a dataset's JPEGs."""

    def check(self, place: ImageAddress, *, anew: bool = False) -> None:
        """Raise `ShardChangedError` if the image's shard has changed since the viewer was opened.

        A recent check of the shard is enough unless `anew` is set.
        """

    def changed(self, shards: Iterable[int]) -> set[int]:
        """Return which of these shards have changed, so that `check` raises for their images."""

    def jpeg(self, place: ImageAddress) -> bytes:
        """Return the bytes of an image's JPEG. Raises `NoImageError` if there is none."""


class WeightedCache(Generic[K, V]):
    """Thread-safe LRU cache with a maximum total weight."""

    def __init__(self, limit: int, weigh: Callable[[V], int]) -> None:
        self._limit = limit
        self._weigh = weigh
        self.values: OrderedDict[K, V] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    @property
    def weight(self) -> int:
        """Total weight of the values."""
        return self._weight

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of a key. If it isn't cached, call `make`, which may happen concurrently in two threads."""
        with self._lock:
            if key in self.values:
                self.values.move_to_end(key)
                return self.values[key]
        value = make()
        with self._lock:
            if key in self.values:
                return self.values[key]
            self.values[key] = value
            self._weight += self._weigh(value)
            while self._weight > self._limit and self.values:
                _, dropped = self.values.popitem(last=False)
                self._weight -= self._weigh(dropped)
        return value

    def drop(self, which: Callable[[K], bool]) -> None:
        """Drop the values of the keys for which `which` is true."""
        with self._lock:
            for key in [key for key in self.values if which(key)]:
                self._weight -= self._weigh(self.values.pop(key))


class ShardImages:
    """Source of a segmint dataset's JPEGs, which are read by range from the shards' tars.

    The viewer keeps reading the tars that were committed when it was opened. `generations` are the shards' generations
    at that time, by default the latest commits' generations.
    """

    def __init__(self, dataset: Location, generations: Mapping[int, int] | None = None, look_s: float = LOOK_S) -> None:
        self._dataset = dataset
        self.look_s = look_s
        self._looked: dict[int, float] = {}  # time of the last check that found a shard unchanged
        self._changed: set[int] = set()  # shards that have changed; they stay in this set
        self._log = CommitLog(dataset)
        self._generations = self._log.committed() if generations is None else generations
        self._indexes: WeightedCache[int, TarIndex] = WeightedCache(_INDEXES, lambda _: 1)

    def check(self, place: ImageAddress, *, anew: bool = False) -> None:
        """Raise `ShardChangedError` if the generation of the image's shard has changed or is gone.

        The first check of a shard lists the store. Its result is valid for `look_s` seconds, unless `anew` is set.
        """
        if self._has_changed(place.shard, anew):
            self._indexes.drop(lambda shard: shard == place.shard)
            raise ShardChangedError(
                f"shard {place.shard} has changed since this viewer was started, by a correction or takedown. "
                "Restart the viewer"
            )

    def changed(self, shards: Iterable[int]) -> set[int]:
        """Return which of these shards have changed, checking several at a time."""
        wanted = sorted(set(shards))
        answers = map_ahead(self._has_changed, wanted, _LOOKS, _LOOKS, "looks")
        return {shard for shard, changed in zip(wanted, answers, strict=True) if changed}

    def _has_changed(self, shard: int, anew: bool = False) -> bool:
        now = time.monotonic()
        if shard in self._changed:
            return True
        if not anew and now - self._looked.get(shard, -self.look_s) < self.look_s:
            return False
        if self._log.is_latest(shard, self._generations.get(shard, 0)):
            self._looked[shard] = now
            return False
        self._changed.add(shard)
        return True

    def jpeg(self, place: ImageAddress) -> bytes:
        """Return an image's JPEG exactly as it is in the tar.

        Raises `NoImageError` if there is no JPEG or the shard has changed, and `DamagedDatasetError` if the tar is
        unreadable.
        """
        self.check(place)
        name = image_name(place.id)
        try:
            data = self._indexes.get(place.shard, lambda: self._index(place.shard)).read(name)
        except NotFoundError as error:
            raise NoImageError(
                f"shard {place.shard} has changed since this viewer was started, or its tar is missing. "
                f"Restart the viewer: {error}"
            ) from error
        if data is None:
            raise NoImageError(
                f"{name} is not in the tar of shard {place.shard}; the dataset may have only annotations"
            )
        return data

    def _index(self, shard: int) -> TarIndex:
        generation = self._generations.get(shard)
        commit = None if generation is None else self._log.read(shard, generation)
        if generation is None or commit is None:
            raise NotFoundError(f"no {commit_name(shard, generation or 1)}")
        return index_tar(self._dataset, commit)


class ForeignImages:
    """Source of the JPEGs of foreign data, as loose files or in tars."""

    def __init__(self, tables: DatasetTables) -> None:
        self._tables = tables

    def check(self, place: ImageAddress, *, anew: bool = False) -> None:
        """Do nothing, because changes of foreign data aren't tracked."""

    def changed(self, shards: Iterable[int]) -> set[int]:
        """Return nothing, because changes of foreign data aren't tracked."""
        return set()

    def jpeg(self, place: ImageAddress) -> bytes:
        """Return the bytes of an image's JPEG unchanged. Raises `NoImageError` if there is none."""
        data = read_jpeg(self._tables, place.ordinal)
        if data is None:
            raise NoImageError(f"no JPEG next to the annotations of image {place.id}")
        return data


class Thumbnails:
    """Cache of a dataset's thumbnails, which `decoder` creates. The most recently used 64 MiB stay in memory."""

    def __init__(self, pictures: JpegSource, decoder: JpegDecoder) -> None:
        self._pictures = pictures
        self._decoder = decoder
        self.recent: WeightedCache[ImageAddress, bytes] = WeightedCache(_THUMBNAIL_BYTES, len)

    def jpeg(self, place: ImageAddress) -> bytes:
        """Return an image's thumbnail as JPEG.

        Raises `NoImageError` if the image is missing, cannot be decoded, or its shard has changed. In the last case,
        the cache drops all of the shard's thumbnails.
        """
        try:
            self._pictures.check(place)
            made = self.recent.get(place, lambda: self._make(place))
            self._pictures.check(place)  # another thread may have cleared the shard before it was cached
        except ShardChangedError:
            self.recent.drop(lambda other: other.shard == place.shard)
            raise
        return made

    def _make(self, place: ImageAddress) -> bytes:
        try:
            return self._decoder.run(thumbnail, self._pictures.jpeg(place))
        except UndecodableError as error:
            raise NoImageError(f"can't decode this image: {error}") from error


def thumbnail(jpeg: bytes, side: int = THUMBNAIL_SIDE) -> bytes:
    """Scale a JPEG down so that no side exceeds `side` pixels. Raises Pillow's exceptions if it cannot be decoded.

    The decoder scales large images while reading, which saves memory and time.
    """
    out = io.BytesIO()
    with Image.open(io.BytesIO(jpeg), formats=PICTURES) as picture:
        picture.thumbnail((side, side))
        picture.convert("RGB").save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
