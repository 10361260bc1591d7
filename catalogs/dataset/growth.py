"""Comparison of a source catalog with a dataset's pinned catalog: new, removed, and changed rows.

All steps either stream the rows or run in DuckDB.
"""

import tempfile
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.dataset.tombstones import BLANK, RemovedImage, RemovedNames
from segmint.catalogs.parquet import AMENDABLE, STAGED, RowGroupWriter
from segmint.catalogs.source.amendments import given, one_row
from segmint.catalogs.source.normalize import (
    MARK_ROWS,
    NormalizedCatalog,
    open_database,
    pairs_between,
    stage_catalog,
    with_column,
    write_marked,
)
from segmint.infra.storage.location import Location
from segmint.infra.uris import only_path

_UNPINNED = ("ordinal", "id", "image_id", "duplicate_of", "refused_detail", "license_asserted", "download_url")

PINNED = tuple(name for name in STAGED.names if name not in _UNPINNED)
"""Columns that a dataset pins for each image, besides its id. Their values must not change for a known image."""

# Rows are compared by their id and a hash of their other columns, because a hash takes 8 bytes instead of hundreds. In
# amendable columns, a text that contains only spaces counts as no value, because an amendment doesn't copy it.
_COMPARED = {name: given(name) if name in AMENDABLE else name for name in PINNED}
_CONTENT = f"hash({', '.join(_COMPARED.values())})"

_ALL = ", ".join(STAGED.names)

_MISSING = f"""
WITH now AS (SELECT image_id, {_CONTENT} AS content FROM rows_of($staged)),
     pinned AS (SELECT ordinal, image_id, {_CONTENT} AS content FROM rows_of($known)
                WHERE image_id <> '{BLANK}'),
     missing AS MATERIALIZED (SELECT ordinal, image_id FROM pinned ANTI JOIN now USING (image_id, content)),
     gone AS MATERIALIZED (SELECT ordinal, image_id FROM missing ANTI JOIN now USING (image_id))
"""

_COUNT = f"""
{_MISSING}
SELECT (SELECT count(*) FROM missing), (SELECT count(*) FROM gone), (SELECT arg_min(image_id, ordinal) FROM gone)
"""

_CHANGED = f"""
{_MISSING},
     before AS (SELECT {_ALL} FROM rows_of($known)
                WHERE ordinal IN (SELECT ordinal FROM missing)),
     firsts AS (SELECT min(ordinal) AS ordinal FROM rows_of($staged)
                WHERE image_id IN (SELECT image_id FROM missing) GROUP BY image_id),
     after AS (SELECT * FROM rows_of($staged) WHERE ordinal IN (SELECT ordinal FROM firsts))
SELECT count(*), arg_min(before.image_id, before.ordinal),
       arg_min(coalesce(before.{{column}}::VARCHAR, ''), before.ordinal),
       arg_min(coalesce(after.{{column}}::VARCHAR, ''), before.ordinal),
       count(*) FILTER (WHERE {{amendable}} AND {{now}} IS NULL)
FROM before JOIN after USING (image_id) WHERE {{was}} IS DISTINCT FROM {{now}}
"""

_KNOWN = """
CREATE TEMP TABLE known AS
SELECT ordinal FROM rows_of($staged)
WHERE image_id IN (SELECT image_id FROM rows_of($known))
ORDER BY ordinal
"""


@dataclass(frozen=True)
class ColumnChange:
    """Change of a column in known rows: the number of changed rows, and the first of them. Absent values are empty."""

    rows: int
    image_id: str
    before: str
    now: str
    without: int = 0  # rows among these without a value now, in a column of `AMENDABLE`


@dataclass(frozen=True)
class CatalogGrowth:
    """Differences between a source catalog and a dataset's pinned catalog."""

    new: NormalizedCatalog  # rows whose image_id is not pinned; may be empty
    gone: int  # pinned rows whose image_id is no longer in the source
    first_gone: str | None  # image_id of the first of them
    changed: Mapping[str, ColumnChange]  # by column of `PINNED`

    @property
    def keeps_all(self) -> bool:
        """True if the source still contains every pinned row unchanged."""
        return not self.gone and not self.changed


def compare_catalog(
    catalog: Location,
    destination: Path,
    *,
    parts: Sequence[Location],
    first_ordinal: int,
    taken: Iterable[RemovedImage] = (),
    ignored: Collection[str] = (),
) -> CatalogGrowth:
    """Compare a catalog with the pinned `parts` of a dataset's catalog, and write its new rows to `destination`.

    A row is new if its image_id isn't pinned; the order of rows doesn't matter. A pinned row is unchanged if the source
    contains a row with the same image_id and the same values in the `PINNED` columns. New rows keep the order of the
    source, and their ordinals start at `first_ordinal`. If new rows are duplicates of each other, they are marked.

    `taken` lists taken-down images. A row that names such an image by image_id, uri (in any form), or sha256 counts as
    known. The source may omit these images. `ignored` has the same meaning as in `stage_catalog`. Intermediate files,
    about as large as both catalogs, are written next to `destination`. Raises `UsageError` if the catalog can't be
    read.
    """
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=".growth-") as name:
        folder = Path(name)
        staged, _ = stage_catalog(catalog, folder, ignored=ignored)
        known = [folder / f"known-{number}.parquet" for number in range(len(parts))]
        for part, path in zip(parts, known, strict=True):
            part.get_file(path)
        columns = folder / "columns.parquet"  # a part only contains the added columns in which a row has a value
        pq.write_table(STAGED.empty_table(), columns)
        parameters = {"staged": only_path(staged), "known": [only_path(path) for path in (columns, *known)]}
        with open_database(folder) as database:
            missing, gone, first_gone = one_row(database, _COUNT, parameters)
            changed = _changes(database, parameters) if missing > gone else {}
            fresh = _without_known(database, parameters, staged, folder, RemovedNames.of(taken, catalog.uri))
        new = write_marked(fresh, destination, folder, first_ordinal=first_ordinal)
    return CatalogGrowth(new, gone, first_gone, changed)


def _changes(database: duckdb.DuckDBPyConnection, parameters: dict[str, Any]) -> dict[str, ColumnChange]:
    found = {}
    for column in PINNED:
        amendable = column in AMENDABLE
        was, now = (given(f"{table}.{column}") if amendable else f"{table}.{column}" for table in ("before", "after"))
        query = _CHANGED.format(column=column, was=was, now=now, amendable=amendable)
        found[column] = ColumnChange(*one_row(database, query, parameters))
    return {column: change for column, change in found.items() if change.rows}


def _without_known(
    database: duckdb.DuckDBPyConnection, parameters: dict[str, Any], staged: Path, folder: Path, taken: RemovedNames
) -> Path:
    """Write the staged rows that are neither known nor taken down, and renumber them from 0.

    Returns the path of the file.
    """
    result = folder / "fresh.parquet"
    with pq.ParquetFile(staged) as file, RowGroupWriter(result, STAGED) as writer:
        database.execute(_KNOWN, parameters)
        start = 0
        for batch in file.iter_batches(batch_size=MARK_ROWS):
            stop = start + batch.num_rows
            keep = ~taken.marks(batch).to_numpy(zero_copy_only=False)
            (known,) = pairs_between(database, "known", start, stop)
            keep[known - start] = False
            kept = batch.filter(pa.array(keep))
            ordinals = np.arange(writer.rows, writer.rows + kept.num_rows, dtype=np.int64)
            writer.add([with_column(with_column(kept, "ordinal", ordinals), "id", ordinals + 1)])
            start = stop
    return result
