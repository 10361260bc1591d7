"""Lookup of a dataset's images by id, for servers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import duckdb

from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import SegmintError

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
