"""The pictures that a viewer shows: JPEGs from the tars of shards, and their thumbnails, in bounded memory."""

import io
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, NamedTuple, Protocol, TypeVar

from PIL import Image

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.foreign import read_jpeg
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.layout import commit_name, image_name
from segmint.infra.errors import SegmintError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.operators.decoding import JpegDecoder, UndecodableError
from segmint.pipeline.view.tars import TarIndex

THUMBNAIL_SIDE = 480
"""Pixels of a thumbnail's longer side: twice the size in the grid, for high-density screens."""

_THUMBNAIL_BYTES = 64 << 20
LOOK_S = 2.0
"""Seconds for which a look at a shard holds: so long may a viewer show what a takedown or redaction has removed."""

_INDEXES = 512  # shards whose tar headers are kept; some 100 kB each
_QUALITY = 80

V = TypeVar("V")


class NoPictureError(SegmintError):
    """An image has no picture: it is missing, or it cannot be decoded."""


class Place(NamedTuple):
    """An image of a dataset, and its shard."""

    id: int
    ordinal: int
    shard: int


class Pictures(Protocol):
    """The source of a dataset's JPEGs."""

    def check(self, place: Place) -> None:
        """Raise `NoPictureError` if an image's shard is another one than when the viewer was opened."""

    def jpeg(self, place: Place) -> bytes:
        """Return the bytes of an image's JPEG; raises `NoPictureError` if there is none."""


class Recent(Generic[V]):
    """A cache of the most recently used values, by key, up to a total weight. Thread-safe."""

    def __init__(self, limit: int, weigh: Callable[[V], int]) -> None:
        self._limit = limit
        self._weigh = weigh
        self._values: OrderedDict[int, V] = OrderedDict()
        self._weight = 0
        self._lock = threading.Lock()

    @property
    def weight(self) -> int:
        """The total weight of the values."""
        return self._weight

    def get(self, key: int, make: Callable[[], V]) -> V:
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

    def drop(self, key: int) -> None:
        """Forget the value of a key."""
        with self._lock:
            if key in self._values:
                self._weight -= self._weigh(self._values.pop(key))


class ShardPictures:
    """The JPEGs of a segmint dataset, read by ranges from the tars that its commits named at construction."""

    def __init__(self, dataset: Location, look_s: float = LOOK_S) -> None:
        self._dataset = dataset
        self._look_s = look_s
        self._looked: dict[int, float] = {}  # when shards were found to be as they were
        self._log = CommitLog(dataset)
        self._generations = self._log.committed()
        self._indexes: Recent[TarIndex] = Recent(_INDEXES, lambda _: 1)

    def check(self, place: Place) -> None:
        """Raise `NoPictureError` if an image's shard has another generation, or none, since this was constructed.

        One listing of the store for each shard, which holds for `look_s` seconds.
        """
        shard, now = place.shard, time.monotonic()
        if now - self._looked.get(shard, -self._look_s) < self._look_s:
            return
        if not self._log.is_latest(shard, self._generations.get(shard, 0)):
            raise NoPictureError(
                f"shard {shard} has changed since this viewer was started, by a correction or a takedown: "
                "restart the viewer"
            )
        self._looked[shard] = now

    def jpeg(self, place: Place) -> bytes:
        """Return the bytes of an image's JPEG as they are in the tar.

        Raises `NoPictureError` if there is none or its shard has changed, `DamagedDatasetError` if the tar cannot be
        read.
        """
        self.check(place)
        name = image_name(place.id)
        try:
            data = self._indexes.get(place.shard, lambda: self._index(place.shard)).read(name)
        except NotFoundError as error:
            raise NoPictureError(
                f"shard {place.shard} has changed since this viewer was started, or its tar is lost: "
                f"restart the viewer; {error}"
            ) from error
        if data is None:
            raise NoPictureError(
                f"{name} is not in the tar of shard {place.shard}: the dataset may have only annotations"
            )
        return data

    def _index(self, shard: int) -> TarIndex:
        generation = self._generations.get(shard)
        commit = None if generation is None else self._log.read(shard, generation)
        if generation is None or commit is None:
            raise NotFoundError(f"no {commit_name(shard, generation or 1)}")
        return index_tar(self._dataset, commit)


def index_tar(dataset: Location, commit: Commit) -> TarIndex:
    """Return the index of a committed shard's tar, which reads it by ranges; raises as `Commit.file` does."""
    entry = commit.file("shards")
    tar = dataset / entry.path

    def read_range(start: int, stop: int) -> bytes:
        with tar.open_ranges(entry.size) as stream:
            stream.seek(start)
            return stream.read(stop - start)

    return TarIndex(tar.uri, entry.size, read_range)


class ForeignPictures:
    """The JPEGs of data that segmint did not write, loose or in tars."""

    def __init__(self, tables: DatasetTables) -> None:
        self._tables = tables

    def check(self, place: Place) -> None:
        """Nothing is known of changes of such data."""

    def jpeg(self, place: Place) -> bytes:
        """Return the bytes of an image's JPEG as they are; raises `NoPictureError` if there is none."""
        data = read_jpeg(self._tables, place.ordinal)
        if data is None:
            raise NoPictureError(f"there is no JPEG next to the annotations of image {place.id}")
        return data


class Thumbnails:
    """Thumbnails of a dataset's images, made by `decoder`; the last ones are cached, up to 64 MiB."""

    def __init__(self, pictures: Pictures, decoder: JpegDecoder) -> None:
        self._pictures = pictures
        self._decoder = decoder
        self._recent: Recent[bytes] = Recent(_THUMBNAIL_BYTES, len)

    def jpeg(self, place: Place) -> bytes:
        """Return an image's thumbnail as JPEG.

        Raises `NoPictureError` if it has no picture that can be decoded, or its shard has changed.
        """
        try:
            self._pictures.check(place)
        except NoPictureError:
            self._recent.drop(place.ordinal)
            raise
        return self._recent.get(place.ordinal, lambda: self._make(place))

    def _make(self, place: Place) -> bytes:
        try:
            return self._decoder.run(thumbnail, self._pictures.jpeg(place))
        except UndecodableError as error:
            raise NoPictureError(f"this picture cannot be decoded: {error}") from error


def thumbnail(jpeg: bytes, side: int = THUMBNAIL_SIDE) -> bytes:
    """Scale a JPEG down so that no side is over `side` pixels; raises what Pillow raises if it cannot be decoded.

    The decoder scales large pictures as it reads them, so that they cost little memory and time.
    """
    out = io.BytesIO()
    with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as picture:
        picture.thumbnail((side, side))
        picture.convert("RGB").save(out, "JPEG", quality=_QUALITY)
    return out.getvalue()
