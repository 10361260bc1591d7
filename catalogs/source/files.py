"""Files of a source catalog, and the rows in them.

A catalog is a single file, or all Parquet files below a folder, in order of name. A catalog whose URI ends with `/` is
a folder, as Spark and other tools write it. Names that start with `_` or `.` are hidden, as in Spark. A folder such as
`license=CC0-1.0/` gives the files below it a column.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import accumulate, pairwise
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.layout import IMAGE_ENDINGS, fingerprint
from segmint.catalogs.parquet import normalized_schema
from segmint.infra.arrays import Ints
from segmint.infra.errors import UsageError
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import ObjectInfo, changed_error
from segmint.infra.uris import absolute, base_name, is_catalog_folder, parent

FORMATS = {
    "Parquet": (".parquet",),
    "JSON Lines": (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz"),
    "CSV": (".csv", ".csv.gz"),
}
"""Formats of a catalog, and the file extensions of each format."""

_THREADS = 16
_BESIDE = (*IMAGE_ENDINGS, ".tar")
_WRITTEN_NOW = "_temporary"  # Spark and Hadoop remove this folder when a job ends
_TABLES = {"_delta_log": "Delta Lake", ".hoodie": "Hudi"}  # folder that only such a table has
_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True)
class CatalogFile:
    """File of a catalog, with the columns that its folders give it. The name is relative to the catalog's folder."""

    location: Location
    name: str
    columns: Mapping[str, str | None]


def catalog_format(uri: str) -> str:
    """Return a catalog's format, which is a key of `FORMATS`. Raises `UsageError` if its extension is unknown."""
    if is_catalog_folder(uri):
        return "Parquet"
    for name, endings in FORMATS.items():
        if uri.lower().endswith(endings):
            return name
    known = ", ".join(ending for endings in FORMATS.values() for ending in endings)
    raise UsageError(f"{uri}: a catalog's name must end in one of {known}, or in / if it is a folder of Parquet files")


def require_catalog(catalog: Location) -> None:
    """Raise `UsageError` if a catalog doesn't exist, or if a folder isn't a catalog."""
    if is_catalog_folder(catalog.uri):
        _listed(catalog)
    elif not catalog.exists():
        raise UsageError(
            f"the catalog {str(catalog)!r} does not exist: expected Parquet, JSON Lines, or CSV. If it is a folder of "
            "Parquet files, end its name with /"
        )


def catalog_files(catalog: Location) -> list[CatalogFile]:
    """Return the files of a catalog in the order in which they are read. A single file isn't looked up.

    Raises `UsageError` if a folder contains no Parquet file, or anything whose rows would be missing.
    """
    if not is_catalog_folder(catalog.uri):
        return [CatalogFile(catalog, "", {})]
    return [CatalogFile(catalog / entry.name, entry.name, _columns(catalog, entry.name)) for entry in _listed(catalog)]


def catalog_sha256(catalog: Location) -> str:
    """Return the SHA-256 of a catalog in hexadecimal.

    For a folder, it is the SHA-256 of a text with a line `<SHA-256>  <name>` for each file, in order of name.
    """
    if not is_catalog_folder(catalog.uri):
        return catalog.sha256()
    total = hashlib.sha256()
    files = catalog_files(catalog)
    digests = map_ahead(lambda file: file.location.sha256(), files, _THREADS, 2 * _THREADS, "catalog")
    for file, digest in zip(files, digests, strict=True):
        total.update(f"{digest}  {file.name}\n".encode(errors="surrogateescape"))
    return total.hexdigest()


def source_version(catalog: Location) -> str:
    """Return a hash of the names, sizes, and times of modification of a catalog's files. It doesn't read the files."""
    if is_catalog_folder(catalog.uri):
        entries = _listed(catalog)
    else:
        path = absolute(catalog.uri)
        siblings = Location(catalog.storage, parent(path)).list(beginning=base_name(path))
        entries = [entry for entry in siblings if entry.name == base_name(path)]
    return fingerprint([[entry.name, entry.size, entry.modified.isoformat()] for entry in entries])


@contextmanager
def unchanged(catalog: Location) -> Iterator[None]:
    """Raise `ObjectChangedError` after the block if a file of the catalog was added, removed, or changed."""
    if not is_catalog_folder(catalog.uri):
        with catalog.unchanged():
            yield
        return
    before = _listed(catalog)
    yield
    if _listed(catalog) != before:
        raise changed_error(catalog.uri)


def _listed(catalog: Location) -> list[ObjectInfo]:
    """Return the entries of a folder's Parquet files, sorted by name."""

    def refuse(name: str, why: str) -> None:
        if not _is_hidden(name):
            raise UsageError(f"{catalog}: {name!r} can't be read: {why}. Remove it from the catalog's folder")

    found, names = [], set()
    for entry in catalog.walk(include_temporary=True, on_skip=refuse):
        names.add(entry.name)
        _refuse_tables(catalog, entry.name)
        name = entry.name.lower()
        if name.endswith(".parquet") and not _is_hidden(entry.name):
            found.append(entry)
        elif not name.removesuffix(".json").removesuffix(".license").endswith(_BESIDE):
            refuse(entry.name, "a catalog in several files consists of files whose names end in .parquet")
    for name in sorted(catalog.storage.links(catalog.uri) - names):
        refuse(name, "it is a link to a folder or to nothing, or not a file")
    if not found:
        raise UsageError(f"the catalog {catalog} does not exist, or contains no Parquet files (names in .parquet)")
    return sorted(found)


def _refuse_tables(catalog: Location, name: str) -> None:
    """Raise `UsageError` if a name shows that the folder is a table with versions, or that a job still writes it."""
    folders = name.split("/")[:-1]
    if _WRITTEN_NOW in folders:
        raise UsageError(
            f"{catalog} contains {_WRITTEN_NOW}/, so a job is still writing it, or has failed: wait for the job, or "
            "write the catalog again"
        )
    kinds = [_TABLES[folder] for folder in folders if folder in _TABLES]
    if name.endswith(".metadata.json"):
        kinds.append("Iceberg")
    if kinds:
        raise UsageError(
            f"{catalog} is a table of {kinds[0]}, whose folder also contains files of earlier versions and deleted "
            "rows: write the current rows to another folder as Parquet files"
        )


def _is_hidden(name: str) -> bool:
    """Return whether Spark would ignore a file, because a name in its path starts with `_` or `.`.

    A folder such as `_day=3` isn't hidden. Amazon EMR marks folders by empty objects named `…_$folder$`.
    """
    if name.endswith("_$folder$"):
        return True
    return any(part.startswith(".") or (part.startswith("_") and "=" not in part) for part in name.split("/"))


def _columns(catalog: Location, name: str) -> dict[str, str | None]:
    """Return the columns that the folders in a file's name give it, as Hive and Spark encode them.

    Raises `UsageError` if a value isn't UTF-8, or if two folders name the same column.
    """
    columns: dict[str, str | None] = {}
    for folder in name.split("/")[:-1]:
        key, equals, value = folder.partition("=")
        if not key or not equals:
            continue
        try:
            column, text = unquote(key, errors="strict"), unquote(value, errors="strict")
        except UnicodeDecodeError as error:
            raise UsageError(f"{catalog}: the folder {folder!r} of {name!r} is not UTF-8") from error
        if column in columns:
            raise UsageError(f"{catalog}: two folders of {name!r} give it the column {column!r}")
        columns[column] = None if value == _NO_VALUE else text
    return columns


class NormalizedRows(AbstractContextManager["NormalizedRows"]):
    """Context manager for an open normalized catalog. It reads the footer once, and row groups when they are needed."""

    def __init__(self, file: Location) -> None:
        self._location = file
        self._stream = file.open()
        try:
            self._starts = self._open()
        except BaseException:
            self._stream.close()
            raise

    def _open(self) -> list[int]:
        """Open the file. Returns the ordinal of the first row in each row group, and the ordinal after the last row."""
        with self._damage():
            self._file = pq.ParquetFile(self._stream)
            self._schema = normalized_schema(self._file.schema_arrow.names)
            if not self._file.schema_arrow.equals(self._schema):
                raise UsageError(f"{self._location} is not a normalized catalog: its columns are different")
            metadata = self._file.metadata
            counts = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
            first = self._file.read_row_group(0, columns=["ordinal"]).column(0)[0].as_py() if counts else 0
        return list(accumulate(counts, initial=first))

    @property
    def ordinals(self) -> tuple[int, int]:
        """The first ordinal, and the ordinal after the last row."""
        return self._starts[0], self._starts[-1]

    @property
    def names(self) -> list[str]:
        """Names of the catalog's columns."""
        names: list[str] = self._schema.names
        return names

    def read(self, start: int, stop: int) -> pa.Table:
        """Return the rows with ordinals in [start, stop), in order.

        Ordinals that the catalog doesn't contain are skipped.
        """
        low, high = max(start, self._starts[0]), min(stop, self._starts[-1])
        return self.take(np.arange(low, high))

    def take(self, ordinals: Sequence[int] | Ints, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the rows with these ascending ordinals. Ordinals that the catalog doesn't contain are skipped.

        If `columns` is given, only these columns are read.
        """
        names = self._schema.names if columns is None else list(columns)
        pieces = [self._schema.empty_table().select(names)]
        wanted = np.asarray(ordinals, np.int64)
        borders = np.searchsorted(wanted, self._starts)
        for group, (low, high) in enumerate(pairwise(borders.tolist())):
            if low < high:
                with self._damage():
                    rows = self._file.read_row_group(group, columns=names)
                    pieces.append(rows.take(wanted[low:high] - self._starts[group]))
        return pa.concat_tables(pieces)

    def batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Yield all rows in order, with only these columns, in batches of up to `rows` rows."""
        batches = self._file.iter_batches(batch_size=rows, columns=list(columns))
        while True:
            with self._damage():
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def close(self) -> None:
        self._file.close()
        self._stream.close()

    @contextmanager
    def _damage(self) -> Iterator[None]:
        """Convert errors that Arrow raises for a damaged file to `UsageError`."""
        try:
            yield
        except (pa.ArrowException, OSError, IndexError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # raised by the stream; Arrow's errors, such as for a corrupt footer, have no errno
            why = " ".join(str(error).split())
            raise UsageError(f"{self._location} is not a normalized catalog: {why}") from error

    def __exit__(self, *_: object) -> None:
        self.close()


def read_rows(file: Location, start: int, stop: int) -> pa.Table:
    """Return the rows of a normalized catalog with ordinals in [start, stop), in order, with all of its columns.

    Row groups without any of these rows are skipped. To read repeatedly, open a `NormalizedRows` instead.
    """
    with NormalizedRows(file) as rows:
        return rows.read(start, stop)


def take_rows(file: Location, ordinals: Sequence[int] | Ints, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a normalized catalog with these ordinals, like `NormalizedRows.take`."""
    with NormalizedRows(file) as rows:
        return rows.take(ordinals, columns)


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """Concatenate tables of normalized rows. If some tables lack a column, it is null in their rows."""
    return pa.concat_tables(tables, promote_options="default")
