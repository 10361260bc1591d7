"""The columns of a catalog: as a person writes them, and as the dataset stores them."""

from collections.abc import Collection

import pyarrow as pa

SOURCE = pa.schema(
    [
        pa.field("uri", pa.string()),  # where the image is; a relative one is relative to the catalog
        pa.field("license", pa.string()),  # an SPDX identifier or LicenseRef-…; empty means missing
        pa.field("image_id", pa.string()),  # the catalog's name for the image; absent: the uri as written
        pa.field("sha256", pa.string()),  # of the image's bytes, 64 hexadecimal digits
        pa.field("attribution", pa.string()),  # whom to credit, as the license asks
        pa.field("provider", pa.string()),  # who supplied the image
        pa.field("source_url", pa.string()),  # the page the image came from
        pa.field("redistributable", pa.bool_()),  # absent means unknown
        pa.field("valid_until", pa.date32()),  # the last day on which the license is valid
        pa.field("country", pa.string()),  # ISO 3166 alpha-2, upper case
        pa.field("opt_out", pa.bool_()),  # whether the rights holder forbids training; absent means unknown
        pa.field("caption", pa.string()),  # for people who read the catalog: never written to a dataset
        pa.field("refused_reason", pa.string()),  # why the image is refused: one of `CURATE_REASONS`; empty: it is not
        pa.field("refused_detail", pa.string()),  # what was found, in a sentence
    ]
)
"""The columns that a source catalog may have, in any order. Other columns are ignored."""

REQUIRED = ("uri", "license")
"""The columns that a source catalog must have. A row's license may be empty (its image is then refused)."""

AMENDABLE = ("attribution", "provider", "source_url", "country")
"""The columns of an image that may be corrected after it was built."""

NORMALIZED = pa.schema(
    [
        pa.field("ordinal", pa.int64(), nullable=False),  # the row's position in the dataset, from 0
        pa.field("id", pa.int64(), nullable=False),  # ordinal + 1: the image's number in SA-1B's files
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),  # as written; may be relative to the source catalog
        pa.field("license", pa.string()),  # null: missing
        pa.field("attribution", pa.string()),
        pa.field("provider", pa.string()),
        pa.field("source_url", pa.string()),
        pa.field("redistributable", pa.bool_()),  # null: unknown
        pa.field("valid_until", pa.date32()),
        pa.field("country", pa.string()),
        pa.field("sha256", pa.string()),  # lower case
        pa.field("duplicate_of", pa.int64()),  # ordinal of the first row with this image_id; null for that row
    ]
)
"""A row of `catalog/part-N-<digest>.parquet`: one for each row of the source catalog, in its order."""

ADDED = pa.schema([SOURCE.field(name) for name in ("opt_out", "refused_reason", "refused_detail")])
"""Columns that a normalized catalog has only where a row has a value."""

STAGED = pa.schema([*NORMALIZED, *ADDED])
"""A normalized row with all added columns."""


def normalized_schema(columns: Collection[str]) -> pa.Schema:
    """Return `NORMALIZED` with those of `ADDED` that are among `columns`."""
    return pa.schema([*NORMALIZED, *(field for field in ADDED if field.name in columns)])
