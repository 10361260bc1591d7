"""Reads the Parquet tables of a committed shard, of any version, with the columns of the newest."""

import io
from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.layout import DamagedDatasetError
from segmint.operators.schemas import SCHEMAS, SCHEMAS_OF


class VersionedTable(NamedTuple):
    """A table with the columns of the newest version; those that its file lacks are null."""

    table: pa.Table
    schema_version: int  # of the file; of `rejects`, which is the same in all versions, the oldest


def read_table(data: bytes, kind: str) -> pa.Table:
    """Read a table of a shard from its file's bytes; raises `DamagedDatasetError` for another file or other columns."""
    return read_versioned(data, kind).table


def read_versioned(data: bytes, kind: str) -> VersionedTable:
    """Read a table and its version; raises as `read_table` does."""
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise DamagedDatasetError(f"no Parquet that can be read: {error}") from error
    for version, schemas in SCHEMAS_OF.items():
        if table.schema.equals(schemas[kind]):
            return VersionedTable(_newest(table, SCHEMAS[kind]), version)
    schema = min((schemas[kind] for schemas in SCHEMAS_OF.values()), key=lambda one: len(_differences(table, one)))
    raise DamagedDatasetError(f"other columns: {', '.join(_differences(table, schema)) or 'in another order'}")


def shard_version(versions: Mapping[str, int]) -> int:
    """Return the version of a shard from those of its tables; raises `DamagedDatasetError` if these differ."""
    images, masks = versions["images"], versions["masks"]
    if images != masks:
        raise DamagedDatasetError(
            f"its images are of format {images} and its masks of format {masks}: expected one format in a shard"
        )
    return images


def _differences(table: pa.Table, schema: pa.Schema) -> list[str]:
    different = [f.name for f in schema if f.name not in table.schema.names or table.schema.field(f.name) != f]
    return [*different, *(name for name in table.schema.names if name not in schema.names)]


def _newest(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Add the columns, and the fields of structs, that a table of an older version lacks."""
    if table.schema.equals(schema):
        return table
    known = set(table.column_names)
    columns = [
        table.column(field.name).cast(field.type) if field.name in known else pa.nulls(table.num_rows, field.type)
        for field in schema
    ]
    return pa.table(columns, schema=schema)
