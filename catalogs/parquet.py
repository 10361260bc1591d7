"""Columns of a dataset's tables, and Parquet files whose bytes depend only on the rows."""

import io
from collections.abc import Collection, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

Row = dict[str, Any]
"""A row of an Arrow table, as `pa.Table.to_pylist` returns it."""

ROW_GROUP_ROWS = 65_536
"""Number of rows in each row group of a catalog, except the last."""

PARQUET_OPTIONS: dict[str, Any] = {
    "version": "2.6",
    "data_page_version": "1.0",
    "compression": "zstd",
    "compression_level": 3,
    "use_dictionary": True,
    "write_statistics": True,
    "store_schema": True,
}
"""Settings of the writer for every Parquet file in a dataset."""


def table_bytes(table: pa.Table, schema: pa.Schema, row_group_rows: int = ROW_GROUP_ROWS) -> bytes:
    """Serialize a table to a Parquet file with exactly the columns of `schema`, which are selected by name.

    This first combines the table's chunks, so that the bytes don't depend on the batches in which the rows arrived.
    """
    sink = io.BytesIO()
    exact = table.select(schema.names).cast(schema).combine_chunks()
    with pq.ParquetWriter(sink, schema, **PARQUET_OPTIONS) as writer:
        writer.write_table(exact, row_group_size=row_group_rows)
    return sink.getvalue()


class RowGroupWriter(AbstractContextManager["RowGroupWriter"]):
    """Context manager that writes batches of any size to a local Parquet file, in row groups of equal size."""

    def __init__(self, path: Path, schema: pa.Schema, row_group_rows: int = ROW_GROUP_ROWS) -> None:
        self._schema = schema
        self._group = row_group_rows
        self._waiting: list[pa.RecordBatch] = []
        self._count = 0
        self._writer = pq.ParquetWriter(path, schema, **PARQUET_OPTIONS)
        self.rows = 0

    @property
    def waiting_bytes(self) -> int:
        """Size in bytes of the rows in memory. They wait until their row group is full."""
        return sum(batch.nbytes for batch in self._waiting)

    def add(self, batches: Iterable[pa.RecordBatch]) -> None:
        """Add batches with the writer's schema. A row group is written as soon as it is full."""
        for batch in batches:
            self._waiting.append(batch)
            self._count += batch.num_rows
            self.rows += batch.num_rows
            if self._count >= self._group:
                self._flush(whole=True)

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self._flush(whole=False)
        self._writer.close()

    def _flush(self, whole: bool) -> None:
        table = pa.Table.from_batches(self._waiting, schema=self._schema)
        ready = table.num_rows - table.num_rows % self._group if whole else table.num_rows
        for start in range(0, ready, self._group):
            group = table.slice(start, min(self._group, ready - start)).combine_chunks()
            self._writer.write_table(group, row_group_size=self._group)
        rest = table.slice(ready).combine_chunks()
        self._waiting = rest.to_batches()
        self._count = rest.num_rows


def together(
    ones: Iterable[pa.RecordBatch], others: Iterator[pa.RecordBatch]
) -> Iterator[tuple[pa.RecordBatch, pa.RecordBatch]]:
    """Yield the same rows from two streams, in batches of the same length."""
    other: pa.RecordBatch | None = None
    for one in ones:
        while one.num_rows:
            while other is None or not other.num_rows:
                other = next(others)
            rows = min(one.num_rows, other.num_rows)
            yield one.slice(0, rows), other.slice(0, rows)
            one, other = one.slice(rows), other.slice(rows)


PROMPT = pa.struct(
    [
        ("box", pa.list_(pa.float64())),  # [x, y, width, height]
        ("points", pa.list_(pa.list_(pa.float64()))),  # [x, y] each
        ("point_labels", pa.list_(pa.int32())),  # for each point: 1 if it is inside the mask, 0 if outside
        ("label", pa.string()),  # what the prompt shows
        ("score", pa.float64()),  # of the detector that found it
    ]
)
"""Arrow type of a prompt. One that has neither a box nor points is a phrase, its label."""

PROMPTS = pa.struct([("width", pa.float64()), ("height", pa.float64()), ("prompts", pa.list_(PROMPT))])
"""Arrow type of an image's prompts. All coordinates are in a frame of this width and height.

If both are 1, coordinates are shares of the image's sides. Whether a struct is null, its `width` shows.
"""

SOURCE = pa.schema(
    [
        ("uri", pa.string()),  # URI of the image, absolute or relative to the catalog
        ("license", pa.string()),  # an SPDX identifier or LicenseRef-…; empty means missing
        ("image_id", pa.string()),  # the catalog's name for the image; absent: the uri as written
        ("sha256", pa.string()),  # of the image's bytes, 64 hexadecimal digits
        ("attribution", pa.string()),  # the credit that the license requires
        ("provider", pa.string()),  # who supplied the image
        ("source_url", pa.string()),  # the page that the image came from
        ("redistributable", pa.bool_()),  # absent means unknown
        ("valid_until", pa.date32()),  # the last day on which the license is valid
        ("country", pa.string()),  # ISO 3166 alpha-2, uppercase
        ("opt_out", pa.bool_()),  # true if the rights holder forbids training; absent means unknown
        ("caption", pa.string()),  # for readers of the catalog; never written to a dataset
        ("refused_reason", pa.string()),  # reason for rejecting the image, one of `CURATE_REASONS`; else empty
        ("refused_detail", pa.string()),  # one sentence on what was found
        ("license_asserted", pa.string()),  # who asserted the license, and when; empty: the image states it
        ("download_url", pa.string()),  # the URL that the image was copied from, if `source_url` is another
        ("prompts", PROMPTS),  # boxes and points from which a segmenter makes the image's masks
    ]
)
"""Columns that a source catalog may contain, in any order. Other columns are ignored."""

JSON_TEXT = {b"encoding": b"json"}
"""Metadata of a text column that contains JSON, because no Arrow type fits all of its values."""

REQUIRED = ("uri", "license")
"""Columns that a source catalog must contain. An image with an empty license is rejected."""

AMENDABLE = ("attribution", "provider", "source_url", "country")
"""Columns that can be corrected after an image was built."""

NORMALIZED = pa.schema(
    [
        pa.field("ordinal", pa.int64(), nullable=False),  # the row's position in the dataset, from 0
        pa.field("id", pa.int64(), nullable=False),  # ordinal + 1, the image's number in SA-1B's files
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),  # as written; may be relative to the source catalog
        ("license", pa.string()),  # null: missing
        ("attribution", pa.string()),
        ("provider", pa.string()),
        ("source_url", pa.string()),
        ("redistributable", pa.bool_()),  # null: unknown
        ("valid_until", pa.date32()),
        ("country", pa.string()),
        ("sha256", pa.string()),  # lowercase
        ("duplicate_of", pa.int64()),  # ordinal of the first row with this image_id; null for that row
    ]
)
"""Schema of `catalog/part-N-<digest>.parquet`, which contains the rows of the source catalog in the same order."""

ADDED = pa.schema(
    [
        SOURCE.field(name)
        for name in ("opt_out", "refused_reason", "refused_detail", "license_asserted", "download_url", "prompts")
    ]
)
"""Columns that a normalized catalog only contains if at least one row has a value."""

STAGED = pa.schema([*NORMALIZED, *ADDED])
"""Schema of normalized rows with all added columns."""


def normalized_schema(columns: Collection[str]) -> pa.Schema:
    """Return `NORMALIZED`, plus those columns of `ADDED` that are in `columns`."""
    return pa.schema([*NORMALIZED, *(field for field in ADDED if field.name in columns)])


REGION = pa.struct(
    [
        ("kind", pa.string()),
        ("score", pa.float64()),
        ("x", pa.int32()),
        ("y", pa.int32()),
        ("w", pa.int32()),
        ("h", pa.int32()),
        ("source", pa.string()),
    ]
)
"""Arrow type of a redacted region, which is a `Region`."""

RESIDUAL = pa.struct([*REGION, ("orientation", pa.int32())])
"""Arrow type of a detection that the last look left in the released image, in pixels of that image.

`orientation` is the angle in degrees (0, 90, 180, or 270) by which the image was turned when the detector found it.
"""

LEFT_ALONE = pa.struct([*REGION, ("decided_by", pa.string()), ("decided_on", pa.string())])
"""Arrow type of a detection that a person wanted left alone, in pixels of the upright source; see `left_alone`."""

ADDED_IMAGES = pa.schema(
    [
        # Candidates that a second look didn't confirm, in pixels of the released image
        ("unconfirmed_detections", pa.list_(RESIDUAL)),
        ("left_alone", pa.list_(LEFT_ALONE)),  # detections that a person wanted left alone
        ("redacted_share", pa.float64()),  # share of the released image's pixels in `regions`, 0 to 1
    ]
)
"""Columns about redaction that `images` of format 3 lacks; see `segmint.catalogs.layout.ADDED_COLUMNS`."""

MASKS_MODEL = pa.field("masks_model", pa.string())
"""Last segmenter that `segmint apply` ran on an image, a key of the manifest's `applied`. Format 3 lacks it."""
