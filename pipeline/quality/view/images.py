"""The pictures that a viewer shows: JPEGs from the tars of shards, and their thumbnails, in bounded memory."""

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
from segmint.operators.decoding import JpegDecoder, UndecodableError
from segmint.pipeline.serving.images import ImageAddress, NoImageError
from segmint.pipeline.serving.tars import TarIndex, index_tar

THUMBNAIL_SIDE = 480
"""Pixels of a thumbnail's longer side: twice the size in the grid, for high-density screens."""

LOOK_S = 2.0
"""Seconds for which a look at a shard holds: so long may a viewer show what a takedown or redaction has removed."""

_LOOKS = 16  # at shards, side by side
_THUMBNAIL_BYTES = 64 << 20
_INDEXES = 512  # shards whose tar headers are kept; some 100 kB each
_QUALITY = 80

K = TypeVar("K")
V = TypeVar("V")


class ShardChangedError(NoImageError):
    """The image's shard was replaced since the viewer was opened: nothing of it is shown."""


class JpegSource(Protocol):
    """The source of a dataset's JPEGs."""

    def check(self, place: ImageAddress, *, anew: bool = False) -> None:
        """Raise `ShardChangedError` if an image's shard is another one than when the viewer was opened.

        `anew`: look at the store, however short ago the last look was.
        """

    def changed(self, shards: Iterable[int]) -> set[int]:
        """Return those of the shards for whose images `check` raises."""

    def jpeg(self, place: ImageAddress) -> bytes:
        """Return the bytes of an image's JPEG; raises `NoImageError` if there is none."""


class WeightedCache(Generic[K, V]):
    """A cache of the most recently used values, by key, up to a total weight. Thread-safe."""

    def __init__(self, limit: int, weigh: Callable[[V], int]) -> None:
        self._limit = limit
        self._weigh = weigh
        self._values: OrderedDict[K, V] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    @property
    def weight(self) -> int:
        """The total weight of the values."""
        return self._weight

    def get(self, key: K, make: Callable[[], V]) -> V:
        """Return the value of a key, made if it is not cached; two threads may make it at the same time."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key in self._values:
                return self._values[key]
            self._values[key] = value
            self._weight += self._weigh(value)
            while self._weight > self._limit and self._values:
                _, dropped = self._values.popitem(last=False)
                self._weight -= self._weigh(dropped)
        return value

    def drop(self, which: Callable[[K], bool]) -> None:
        """Forget the values of the keys for which `which` is true."""
        with self._lock:
            for key in [key for key in self._values if which(key)]:
                self._weight -= self._weigh(self._values.pop(key))


class ShardImages:
    """The JPEGs of a segmint dataset, read by ranges from the tars that its commits named when it was opened.

    `generations` are those of its shards then; default: those that are committed now.
    """

    def __init__(self, dataset: Location, generations: Mapping[int, int] | None = None, look_s: float = LOOK_S) -> None:
        self._dataset = dataset
        self._look_s = look_s
        self._looked: dict[int, float] = {}  # when shards were found to be as they were
        self._changed: set[int] = set()  # shards, for good
        self._log = CommitLog(dataset)
        self._generations = self._log.committed() if generations is None else generations
        self._indexes: WeightedCache[int, TarIndex] = WeightedCache(_INDEXES, lambda _: 1)

    def check(self, place: ImageAddress, *, anew: bool = False) -> None:
        """Raise `ShardChangedError` if an image's shard has another generation, or none, since this was opened.

        One listing of the store for each shard, which holds for `look_s` seconds, or until a look `anew`.
        """
        if self._has_changed(place.shard, anew):
            self._indexes.drop(lambda shard: shard == place.shard)
            raise ShardChangedError(
                f"shard {place.shard} has changed since this viewer was started, by a correction or a takedown: "
                "restart the viewer"
            )

    def changed(self, shards: Iterable[int]) -> set[int]:
        """Return those of the shards for whose images `check` raises; looks at several at the same time."""
        wanted = sorted(set(shards))
        answers = map_ahead(self._has_changed, wanted, _LOOKS, _LOOKS, "looks")
        return {shard for shard, changed in zip(wanted, answers, strict=True) if changed}

    def _has_changed(self, shard: int, anew: bool = False) -> bool:
        now = time.monotonic()
        if shard in self._changed:
            return True
        if not anew and now - self._looked.get(shard, -self._look_s) < self._look_s:
            return False
        if self._log.is_latest(shard, self._generations.get(shard, 0)):
            self._looked[shard] = now
            return False
        self._changed.add(shard)
        return True

    def jpeg(self, place: ImageAddress) -> bytes:
        """Return the bytes of an image's JPEG as they are in the tar.

        Raises `NoImageError` if there is none or its shard has changed, `DamagedDatasetError` if the tar cannot be
        read.
        """
        self.check(place)
        name = image_name(place.id)
        try:
            data = self._indexes.get(place.shard, lambda: self._index(place.shard)).read(name)
        except NotFoundError as error:
            raise NoImageError(
                f"shard {place.shard} has changed since this viewer was started, or its tar is lost: "
                f"restart the viewer; {error}"
            ) from error
        if data is None:
            raise NoImageError(
                f"{name} is not in the tar of shard {place.shard}: the dataset may have only annotations"
            )
        return data

    def _index(self, shard: int) -> TarIndex:
        generation = self._generations.get(shard)
        commit = None if generation is None else self._log.read(shard, generation)
        if generation is None or commit is None:
            raise NotFoundError(f"no {commit_name(shard, generation or 1)}")
        return index_tar(self._dataset, commit)


class ForeignImages:
    """The JPEGs of data that segmint did not write, loose or in tars."""

    def __init__(self, tables: DatasetTables) -> None:
        self._tables = tables

    def check(self, place: ImageAddress, *, anew: bool = False) -> None:
        """Nothing is known of changes of such data."""

    def changed(self, shards: Iterable[int]) -> set[int]:
        """Nothing is known of changes of such data."""
        return set()

    def jpeg(self, place: ImageAddress) -> bytes:
        """Return the bytes of an image's JPEG as they are; raises `NoImageError` if there is none."""
        data = read_jpeg(self._tables, place.ordinal)
        if data is None:
            raise NoImageError(f"there is no JPEG next to the annotations of image {place.id}")
        return data


class Thumbnails:
    """Thumbnails of a dataset's images, made by `decoder`; the last ones are cached, up to 64 MiB."""

    def __init__(self, pictures: JpegSource, decoder: JpegDecoder) -> None:
        self._pictures = pictures
        self._decoder = decoder
        self._recent: WeightedCache[ImageAddress, bytes] = WeightedCache(_THUMBNAIL_BYTES, len)

    def jpeg(self, place: ImageAddress) -> bytes:
        """Return an image's thumbnail as JPEG.

        Raises `NoImageError` if it has no picture that can be decoded, or its shard has changed: then all thumbnails
        of the shard are forgotten.
        """
        try:
            self._pictures.check(place)
            made = self._recent.get(place, lambda: self._make(place))
            self._pictures.check(place)  # it may have been kept after another thread has forgotten those of its shard
        except ShardChangedError:
            self._recent.drop(lambda other: other.shard == place.shard)
            raise
        return made

    def _make(self, place: ImageAddress) -> bytes:
        try:
            return self._decoder.run(thumbnail, self._pictures.jpeg(place))
        except UndecodableError as error:
            raise NoImageError(f"this picture cannot be decoded: {error}") from error


def thumbnail(jpeg: bytes, side: int = THUMBNAIL_SIDE) -> bytes:
    """Scale a JPEG down so that no side is over `side` pixels; raises what Pillow raises if it cannot be decoded.

    The decoder scales large pictures as it reads them, so that they cost little memory and time.
    """
    out = io.BytesIO()
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        picture.thumbnail((side, side))
        picture.convert("RGB").save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
