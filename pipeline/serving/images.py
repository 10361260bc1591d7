"""Lookup of a dataset's images by id, for servers, from tars and in smaller sizes.

Order of the decoder's outputs, which decides whether pages may call them subpart, part, and whole.

SAM's three outputs are meant for a subpart, a part, and the whole object at a point, but nothing in the model enforces
this order. Pages therefore use these names only next to a measurement: the share of points at which the outputs' areas
increase in order.

Index of the files in a tar, built from the members' headers. Each header is read only once, by range.
"""

import tarfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.layout import MOST_MEMBER_BYTES, DamagedDatasetError
from segmint.infra.errors import SegmintError
from segmint.infra.storage.location import Location

_PLACES = "SELECT id, ordinal, shard, image_id FROM images"
_SHOWN = 100  # maximum length of a text in an error
_BATCH_ROWS = 65_536
_MEMORY = "1GB"
HIGHEST_ID = 2**63 - 1
"""Highest id that a table can contain."""


class UnknownImageError(SegmintError):
    """Raised when no image of the dataset has the requested id."""


class NoImageError(SegmintError):
    """Raised when an image's JPEG is missing or can't be decoded."""


class ImageAddress(NamedTuple):
    """Address of an image in a dataset, with its shard."""

    id: int
    ordinal: int
    shard: int


class ImagePlaces:
    """Index of a dataset's images by id. Thread-safe, because each call uses its own cursor.

    A dataset of a million images consists of thousands of Parquet files, which are too many to open for each lookup.
    The index therefore streams the tables of images once into a DuckDB file in `folder`. The file takes about 40 bytes
    and a name per image. `rows` is the SQL query for the rows to load. Subclasses that search by other criteria select
    more columns.
    """

    def __init__(self, tables: DatasetTables, folder: Path, rows: str = _PLACES) -> None:
        self._database = duckdb.connect(
            str(folder / "index.duckdb"), config={"memory_limit": _MEMORY, "temp_directory": str(folder / "spill")}
        )
        self._database.execute("SET enable_progress_bar = false")
        try:
            self._copy(tables, "images", rows)
        except DamagedDatasetError:
            self.close()
            raise

    def close(self) -> None:
        """Close the database. The owner of the folder deletes the file."""
        self._database.close()

    def place(self, image: int) -> ImageAddress:
        """Return the address of an image. Raises `UnknownImageError` if there is no such image."""
        return ImageAddress(*self._values(("id", "ordinal", "shard"), image))

    def find(self, text: str) -> int:
        """Find an image by its `image_id`, or else by its number, and return its id. Raises `UnknownImageError`."""
        text = text.strip()
        for (found,) in self._rows("SELECT id FROM images WHERE image_id = ? ORDER BY id LIMIT 1", [text]):
            return int(found)
        number = text.removeprefix("sa_")
        if not (number.isascii() and number.isdecimal() and len(number) < _SHOWN):
            raise UnknownImageError(f"this dataset has no image {text[:_SHOWN]!r}")
        return self.place(int(number)).id

    def name(self, image: int) -> str:
        """Return the `image_id` of an image. Raises `UnknownImageError` if there is no such image."""
        return str(self._values(("image_id",), image)[0])

    def _copy(self, tables: DatasetTables, table: str, rows: str) -> None:
        """Stream the rows of a query into a new table of the index. Raises `DamagedDatasetError` if that fails."""
        try:
            with tables.connection.cursor() as cursor:
                self._database.register("incoming", cursor.sql(rows).to_arrow_reader(_BATCH_ROWS))
                self._database.execute(f"CREATE TABLE {table} AS SELECT * FROM incoming")
                self._database.unregister("incoming")
        except duckdb.Error as error:
            raise DamagedDatasetError(
                f"can't read the tables of {table}. If a command replaced a shard, start again: {error}"
            ) from error

    def _values(self, columns: tuple[str, ...], image: int) -> tuple[Any, ...]:
        if image <= HIGHEST_ID:
            for values in self._rows(f"SELECT {', '.join(columns)} FROM images WHERE id = ? LIMIT 1", [image]):
                return values
        raise UnknownImageError(f"this dataset has no image {image}")

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._database.cursor() as cursor:
            return list(cursor.execute(sql, list(values)).fetchall())


@dataclass(frozen=True)
class OutputOrder:
    """Measurement at grid points: their number, and at how many points the areas of masks 0, 1, and 2 increase."""

    points: int
    rising: int


MEASURED: Mapping[str, OutputOrder] = {
    # MobileSAM
    "6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f": OutputOrder(points=864, rising=789),
}
"""Results of `benchmarks/masks/output_order.py`, by the SHA-256 of the weights."""


_BLOCK = 512
_WINDOW = 64 << 10  # usually covers an image's JSON and the next header, so an image takes one request
_SKIPPED = frozenset({tarfile.DIRTYPE, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME})

ReadRange = Callable[[int, int], bytes]
"""Function that returns the bytes [start, stop) of a file."""


class TarIndex:
    """Index of the files' positions in a tar. Headers are read only when they are needed. Thread-safe.

    If several files have the same name, the first one counts. A member that isn't a plain file, or that extends beyond
    the end of the tar, is treated as damage.
    """

    def __init__(self, where: str, size: int, read_range: ReadRange) -> None:
        self._where = where
        self._size = size
        self._read_range = read_range
        self._places: dict[str, tuple[int, int]] = {}  # start and stop of the file's data
        self._next = 0
        self._lock = threading.Lock()

    def find(self, name: str) -> tuple[int, int] | None:
        """Return the start and stop of a file's bytes in the tar, or None if there is no such file.

        Raises `DamagedDatasetError` if a header before the file is damaged.
        """
        with self._lock:
            while name not in self._places and self._next < self._size:
                self._walk()
            return self._places.get(name)

    def read(self, name: str) -> bytes | None:
        """Return a file's bytes, or None if it doesn't exist. Raises `DamagedDatasetError` if it is over 256 MiB."""
        place = self.find(name)
        if place is None:
            return None
        start, stop = place
        if stop - start > MOST_MEMBER_BYTES:
            raise DamagedDatasetError(f"{self._where}: {name} has {stop - start:,} bytes; expected an image")
        return self._read(start, stop)

    def _walk(self) -> None:
        """Read one window and index its headers. The tar ends at the first empty block."""
        start = self._next
        window = self._read(start, min(start + _WINDOW, self._size))
        while self._next + _BLOCK <= start + len(window):
            block = window[self._next - start : self._next - start + _BLOCK]
            if not any(block):
                self._next = self._size
                return
            try:
                member = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError as error:
                raise DamagedDatasetError(f"{self._where} can't be read as a tar: {error}") from error
            self._take(member)
        if self._next + _BLOCK > self._size:
            self._next = self._size

    def _read(self, start: int, stop: int) -> bytes:
        data = self._read_range(start, stop) if stop > start else b""
        if len(data) != stop - start:
            raise DamagedDatasetError(f"{self._where} ends at byte {start + len(data)} of {self._size}")
        return data

    def _take(self, member: tarfile.TarInfo) -> None:
        data = self._next + _BLOCK
        if member.size < 0 or data + member.size > self._size:
            raise DamagedDatasetError(f"{self._where}: {member.name} extends past the end of the tar")
        if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
            self._places.setdefault(member.name, (data, data + member.size))
        elif member.type not in _SKIPPED:
            raise DamagedDatasetError(f"{self._where}: {member.name} is not a plain file")
        self._next = data + -(-member.size // _BLOCK) * _BLOCK


def index_tar(dataset: Location, commit: Commit) -> TarIndex:
    """Return the index of a committed shard's tar, which is read by range. Raises the same errors as `Commit.file`."""
    entry = commit.file("shards")
    tar = dataset / entry.path
    return TarIndex(tar.uri, entry.size, partial(tar.storage.read_part, tar.uri))
