"""Conversion of a source catalog to the dataset's copy, with ordinals, ids, and marked duplicates.

Every step either streams the rows or runs in DuckDB, which spills to disk. Therefore, memory use doesn't grow with the
catalog.
"""

import secrets
import tempfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmint.catalogs.licenses import LONGEST, fit_to_store
from segmint.catalogs.parquet import ADDED, ROW_GROUP_ROWS, STAGED, RowGroupWriter, normalized_schema
from segmint.catalogs.source.conform import InvalidValue, OnProblem, refuse, shown
from segmint.catalogs.source.readers import read_catalog
from segmint.infra.assets import sha256_of
from segmint.infra.errors import UsageError
from segmint.infra.storage.connections import missing_package
from segmint.infra.storage.location import Location
from segmint.infra.uris import (
    ALLOWED_SCHEMES,
    LOCAL,
    SUSPICIOUS,
    UriNotAllowedError,
    fit_to_keep,
    only_path,
    redact,
    relative_to,
    scheme,
)

Ints = np.ndarray[Any, np.dtype[np.int64]]

MARK_ROWS = 65_536
"""Number of rows that are processed together."""

MEMORY = "1GB"
"""Memory limit of DuckDB."""

MOST_WAITING = 512 << 20
"""Maximum size in bytes of the rows in one row group, which is 8 KB per row."""

_PUBLISHED_TEXT: dict[str, Callable[[str], str]] = {
    "uri": fit_to_keep,
    "image_id": fit_to_keep,
    "license": fit_to_store,
    "attribution": redact,
    "provider": redact,
    "source_url": redact,
    "refused_detail": redact,
    "license_asserted": redact,
    "download_url": redact,
}
_OPTIONAL_STORES = f"(?i)^({'|'.join(sorted(ALLOWED_SCHEMES - {LOCAL, 's3'}))})://"

# By default, DuckDB would turn a folder such as `image_id=1` in a file's path into a column.
_ROWS_OF = """
CREATE TEMP MACRO rows_of(paths) AS TABLE
SELECT * FROM read_parquet(paths, union_by_name = true, hive_partitioning = false)
"""

# A hash takes 8 bytes, while an id often takes 50. Therefore, only ids whose hash occurs twice are compared as text.
_DUPLICATES = """
CREATE TEMP TABLE duplicates AS
WITH suspects AS (SELECT hash(image_id) AS h FROM rows_of($staged) GROUP BY h HAVING count(*) > 1),
     candidates AS (SELECT ordinal, image_id FROM rows_of($staged)
                    WHERE hash(image_id) IN (SELECT h FROM suspects)),
     firsts AS (SELECT image_id, min(ordinal) AS first FROM candidates GROUP BY image_id HAVING count(*) > 1)
SELECT ordinal, first FROM candidates JOIN firsts USING (image_id) WHERE ordinal <> first ORDER BY ordinal
"""


# If all rows with the same redacted image_id got it from their URIs, none of these URIs is allowed, so nothing is lost.
_EQUAL_IDS = """
WITH suspects AS (SELECT image_id FROM rows_of($staged) WHERE ordinal IN (SELECT ordinal FROM redacted)),
     named AS (SELECT ordinal, image_id, uri, coalesce(written, '') AS written
               FROM rows_of($staged) LEFT JOIN redacted USING (ordinal)
               WHERE image_id IN (SELECT image_id FROM suspects)),
     equal AS (SELECT image_id FROM named GROUP BY image_id
               HAVING count(DISTINCT written) > 1 AND bool_or(image_id <> uri))
SELECT ordinal + 1 FROM named WHERE image_id IN (SELECT image_id FROM equal) ORDER BY ordinal LIMIT 20
"""

# Nothing about a credential can be learned from the hashes, because the key is random and never stored.
_ADD_REDACTED = "INSERT INTO redacted SELECT ordinal, sha256($key || written) FROM ids WHERE written <> image_id"


@dataclass(frozen=True)
class NormalizedCatalog:
    """Normalized catalog in a local file."""

    path: Path
    rows: int
    sha256: str  # of the file, 64 hexadecimal digits


def normalize(
    catalog: Location,
    destination: Path,
    *,
    ignored: Collection[str] = (),
) -> NormalizedCatalog:
    """Write a catalog to the local Parquet file `destination`, with the columns of `NORMALIZED`.

    The rows stay in the same order, and all of them are written, because verdicts come later. A missing license becomes
    null. A row with a repeated image_id refers to the first row with that image_id. `uri` stays as written. Therefore,
    the same rows produce the same bytes, regardless of the catalog's location and format.

    Columns in `ignored`, which must be in `ADDED`, are treated as missing. Intermediate files, about as large as the
    catalog, are written next to `destination`. Raises `UsageError` if the file can't be read as a catalog.
    """
    destination.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".normalize-") as name:
        folder = Path(name)
        staged, _ = stage_catalog(catalog, folder, ignored=ignored)
        return write_marked(staged, destination, folder)


def stage_catalog(
    catalog: Location,
    folder: Path,
    on_problem: OnProblem = refuse,
    most_rows: int | None = None,
    *,
    ignored: Collection[str] = (),
) -> tuple[Path, int]:
    """Write the catalog's rows, or the first `most_rows` rows, to a file in `folder` with the columns of `STAGED`.

    Ordinals start at 0. Duplicates are not marked yet. Columns in `ignored` are treated as missing. Returns the path of
    the file and its number of rows. Raises `UsageError` if different image_ids would be the same once their credentials
    are redacted.
    """
    staged, key = folder / "staged.parquet", secrets.token_hex()
    with open_database(folder) as database:
        database.execute("CREATE TEMP TABLE redacted (ordinal BIGINT, written VARCHAR)")
        with RowGroupWriter(staged, STAGED) as writer:
            for batch in read_catalog(catalog, on_problem, ignored):
                if most_rows is not None and writer.rows + batch.num_rows > most_rows:
                    batch = batch.slice(0, most_rows - writer.rows)
                    if not batch.num_rows:
                        break
                _refuse_unreachable(catalog.uri, batch, writer.rows + 1, on_problem)
                numbered = number_rows(batch, writer.rows, ignored)
                written = pc.coalesce(batch.column("image_id"), batch.column("uri"))
                ids = pa.table({name: numbered.column(name) for name in ("ordinal", "image_id")} | {"written": written})
                database.register("ids", ids).execute(_ADD_REDACTED, {"key": key})
                writer.add([numbered])
                if writer.waiting_bytes > MOST_WAITING:
                    raise UsageError(
                        f"{catalog}: {ROW_GROUP_ROWS:,} rows up to row {writer.rows:,} need more memory than "
                        f"{MOST_WAITING:,} bytes: shorten the catalog's texts"
                    )
        rows = database.execute(_EQUAL_IDS, {"staged": only_path(staged)}).fetchall()
    if rows:
        numbers = ", ".join(str(number) for (number,) in rows)
        raise UsageError(
            f"{catalog}, column image_id: rows {numbers} have different values that differ only in what looks like "
            "credentials. A dataset stores [redacted] instead, so it couldn't tell these images apart. Give each of "
            "them an image_id without credentials, such as its file name"
        )
    return staged, writer.rows


def write_marked(staged: Path, destination: Path, folder: Path, *, first_ordinal: int = 0) -> NormalizedCatalog:
    """Mark the duplicates among the rows of a staged file, and write all rows to `destination` atomically.

    Ordinals start at `first_ordinal`. Intermediate files are written to `folder`.
    """
    result = folder / "result.parquet"
    schema = normalized_schema(_with_values(staged))
    with RowGroupWriter(result, schema) as writer:
        for batch in marked_batches(staged, folder):
            writer.add([_shifted(batch, first_ordinal).select(schema.names)])
    result.replace(destination)
    return NormalizedCatalog(destination, writer.rows, sha256_of(destination))


def _with_values(staged: Path) -> list[str]:
    """Return the added columns in which at least one row of a staged file has a value, as its footer shows."""
    metadata = pq.read_metadata(staged)
    groups = [metadata.row_group(index) for index in range(metadata.num_row_groups)]
    # Parquet only has statistics of a struct's leaves. The first leaf of `prompts` is null only if the struct is.
    leaves = [metadata.schema.column(index).path.split(".")[0] for index in range(metadata.num_columns)]
    return [
        name
        for name in ADDED.names
        if any(group.column(leaves.index(name)).statistics.null_count < group.num_rows for group in groups)
    ]


def marked_batches(staged: Path, folder: Path) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a staged file in order, and fill in `duplicate_of`. DuckDB spills into `folder`."""
    with open_database(folder) as database, pq.ParquetFile(staged) as file:
        database.execute(_DUPLICATES, {"staged": only_path(staged)})
        start = 0
        for batch in file.iter_batches(batch_size=MARK_ROWS):
            stop = start + batch.num_rows
            ordinals, firsts = pairs_between(database, "duplicates", start, stop)
            duplicate_of = np.zeros(batch.num_rows, np.int64)
            absent = np.ones(batch.num_rows, bool)
            duplicate_of[ordinals - start] = firsts
            absent[ordinals - start] = False
            yield with_column(batch, "duplicate_of", pa.array(duplicate_of, mask=absent))
            start = stop


def pairs_between(database: duckdb.DuckDBPyConnection, table: str, start: int, stop: int) -> list[Ints]:
    """Return the columns of a table, for its rows whose `ordinal` is at least `start` and below `stop`.

    If the table is sorted by `ordinal`, DuckDB only reads the part with these rows.
    """
    query = f"SELECT * FROM {table} WHERE ordinal >= $start AND ordinal < $stop"
    return list(database.execute(query, {"start": start, "stop": stop}).fetchnumpy().values())


def number_rows(batch: pa.RecordBatch, first: int, ignored: Collection[str] = ()) -> pa.RecordBatch:
    """Convert a batch of `SOURCE` to `STAGED`. Ordinals start at `first`, and duplicates are not marked.

    Columns in `ignored` become null. The dataset publishes these columns, so credentials in URLs are redacted. All
    images stay readable, because a catalog must not contain a `uri` with credentials. If `license` contains the full
    text of a license instead of an identifier, the text is shortened.
    """
    rows = batch.num_rows
    batch = _fit_to_publish(batch)
    ordinals = np.arange(first, first + rows, dtype=np.int64)
    columns = {
        "ordinal": pa.array(ordinals),
        "id": pa.array(ordinals + 1),
        "image_id": pc.coalesce(batch.column("image_id"), batch.column("uri")),
        "duplicate_of": pa.nulls(rows, pa.int64()),
    }
    columns |= {name: pa.nulls(rows, STAGED.field(name).type) for name in ignored}
    arrays = [columns[field.name] if field.name in columns else batch.column(field.name) for field in STAGED]
    return pa.RecordBatch.from_arrays(arrays, schema=STAGED)


def _fit_to_publish(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Redact credentials in the text columns of a batch, and shorten full license texts."""
    for name, clean in _PUBLISHED_TEXT.items():
        if name not in batch.schema.names:
            continue  # an added column
        column = batch.column(name)
        # Few texts are suspicious, so only a few pass through Python.
        suspicious = pc.match_substring_regex(column, SUSPICIOUS)
        if name == "license":
            suspicious = pc.or_(suspicious, pc.greater(pc.utf8_length(column), LONGEST))
        suspects = pc.indices_nonzero(suspicious.fill_null(False))
        if len(suspects):
            cleaned = pa.array([clean(text) for text in column.take(suspects).to_pylist()], pa.string())
            mask = pc.is_in(pa.array(np.arange(len(column))), suspects.cast(pa.int64()))
            place = batch.schema.get_field_index(name)
            batch = batch.set_column(place, batch.schema.field(place), pc.replace_with_mask(column, mask, cleaned))
    return batch


def _refuse_unreachable(catalog: str, batch: pa.RecordBatch, first_row: int, on_problem: OnProblem) -> None:
    """Report each row whose store needs a package that isn't installed, because a build couldn't read its image."""
    uris = batch.column("uri")
    for index in pc.indices_nonzero(pc.match_substring_regex(uris, _OPTIONAL_STORES)).to_pylist():
        uri = uris[index].as_py()
        try:
            missing = missing_package(scheme(relative_to(catalog, uri)))
        except UriNotAllowedError:
            continue  # its row gets a verdict
        if missing is not None:
            expected = f"an image that can be read here. {missing}"
            on_problem(InvalidValue(catalog, first_row + index, "uri", shown(uri), expected))


def _shifted(batch: pa.RecordBatch, by: int) -> pa.RecordBatch:
    if by == 0:
        return batch
    for name in ("ordinal", "id", "duplicate_of"):
        batch = with_column(batch, name, pc.add(batch.column(name), by))
    return batch


def with_column(batch: pa.RecordBatch, name: str, values: pa.Array | Ints) -> pa.RecordBatch:
    """Return a batch of `NORMALIZED` or `STAGED` in which one column has these values."""
    arrays = [pa.array(values) if n == name else batch.column(n) for n in batch.schema.names]
    return pa.RecordBatch.from_arrays(arrays, schema=normalized_schema(batch.schema.names))


def open_database(folder: Path) -> duckdb.DuckDBPyConnection:
    """Open a DuckDB database that spills into `folder`. Use it as a context manager.

    `rows_of(paths)` are the rows of one or several Parquet files. Pass each path through `only_path`.
    """
    database = duckdb.connect(
        config={
            "temp_directory": str(folder / "spill"),
            "memory_limit": MEMORY,
            "preserve_insertion_order": "false",
        }
    )
    database.execute(_ROWS_OF)
    database.execute("SET enable_progress_bar = false")  # after two seconds, DuckDB would print it to standard output
    return database
