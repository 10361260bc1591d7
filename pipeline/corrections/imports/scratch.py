"""The tables of a stage on the local disk: the images of a file, and their masks, in the file's order."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.parquet import PARQUET_OPTIONS
from segmint.operators.schemas import IMAGES, MASK_ORIGIN

SAID = ("source", "annotator", "seconds", "prompts", "origin", "model")
"""What is carried of a mask of another dataset, besides its label."""

OF_IMAGE = ("answer", "annotator", "stage", "seconds")
"""And of its image."""

_BATCH = 2_000
"""Masks that are held in memory until they are written."""

_SIZE = [("height", pa.int32()), ("width", pa.int32())]
_ORIGIN = {field.name: field for field in MASK_ORIGIN}
MASKS_READ = pa.schema(
    [
        ("answer", pa.int64()),  # the image's number in the file
        ("number", pa.int64()),  # the mask's
        *_SIZE,
        ("counts", pa.string()),
        ("id", pa.int64()),
        ("label", pa.string()),
        pa.field("said", pa.struct([_ORIGIN[name] for name in SAID])),
    ]
)
ANSWERS_READ = pa.schema(
    [
        ("answer", pa.int64()),
        ("ordinal", pa.int64()),  # null where the name is looked for
        ("keys", pa.list_(pa.string())),  # names, any of which may be that of the image
        ("name", pa.string()),
        *_SIZE,
        ("unreadable", pa.int32()),
        ("saved", pa.float64()),  # seconds since 1970, null where the file does not say so
        pa.field("of_image", pa.struct([IMAGES.field(name) for name in OF_IMAGE])),
    ]
)


class Writer:
    """Writes rows to a local Parquet file, some thousand at a time."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._writer = pq.ParquetWriter(path, schema, **PARQUET_OPTIONS)
        self._schema = schema
        self._rows: list[dict[str, Any]] = []
        self._open = True

    def add(self, row: dict[str, Any]) -> None:
        """Add a row."""
        self._rows.append(row)
        if len(self._rows) == _BATCH:
            self._flush()

    def close(self) -> None:
        """Write what is left; a second time does nothing."""
        if self._open:
            self._flush()
            self._writer.close()
            self._open = False

    def _flush(self) -> None:
        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows.clear()
