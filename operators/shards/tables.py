"""Reads the Parquet tables of a committed shard."""

import io

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.layout import DamagedDatasetError
from segmint.operators.schemas import SCHEMAS


def read_table(data: bytes, kind: str) -> pa.Table:
    """Read a table of a shard from its file's bytes; raises `DamagedDatasetError` for another file or other columns."""
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise DamagedDatasetError(f"no Parquet that can be read: {error}") from error
    if not table.schema.equals(SCHEMAS[kind]):
        raise DamagedDatasetError(
            f"other columns: {', '.join(_differences(table, SCHEMAS[kind])) or 'in another order'}"
        )
    return table


def _differences(table: pa.Table, schema: pa.Schema) -> list[str]:
    different = [f.name for f in schema if f.name not in table.schema.names or table.schema.field(f.name) != f]
    return [*different, *(name for name in table.schema.names if name not in schema.names)]
