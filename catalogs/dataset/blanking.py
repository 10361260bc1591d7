"""Blanks the rows of images that were taken down in a part of the normalized catalog."""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmint.catalogs.dataset.tombstones import BLANK
from segmint.catalogs.parquet import RowGroupWriter
from segmint.catalogs.schema import normalized_schema
from segmint.infra.assets.cache import sha256_of

_ROWS = 65_536
_KEPT = ("ordinal", "id")


@dataclass(frozen=True)
class BlankedPart:
    """A blanked part on the local disk."""

    path: Path
    sha256: str  # of the file, 64 hexadecimal digits
    licenses: Counter[str | None]  # of the rows that were blanked now, as they were before


def blank_part(part: Path, ordinals: Collection[int], destination: Path) -> BlankedPart:
    """Write the local part `part` to `destination`; rows of these ordinals keep only ordinal and id.

    Rows keep their places, and the bytes depend on the rows alone: blanking the same rows gives the same file.
    """
    wanted = pa.array(sorted(ordinals), pa.int64())
    licenses: Counter[str | None] = Counter()
    schema = normalized_schema(pq.read_schema(part).names)
    with pq.ParquetFile(part) as file, RowGroupWriter(destination, schema) as writer:
        for batch in file.iter_batches(batch_size=_ROWS):
            taken = pc.is_in(batch.column("ordinal"), value_set=wanted)
            named = pc.and_(taken, pc.not_equal(batch.column("image_id"), BLANK))
            licenses.update(batch.column("license").filter(named).to_pylist())
            writer.add([blank_rows(batch, taken)])
    return BlankedPart(destination, sha256_of(destination), licenses)


def blank_rows(batch: pa.RecordBatch, taken: pa.BooleanArray) -> pa.RecordBatch:
    """Return a batch of a normalized catalog in which the rows that `taken` marks are blank."""
    arrays = []
    schema = normalized_schema(batch.schema.names)
    for field in schema:
        column = batch.column(field.name)
        if field.name not in _KEPT:
            blank = pa.scalar(BLANK if not field.nullable else None, field.type)
            column = pc.if_else(taken, blank, column)
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
