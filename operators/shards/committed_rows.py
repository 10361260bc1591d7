"""Reader that converts a committed shard back to the rows that it was built from, so that corrections can rebuild it.

If a correction leaves the rows unchanged, `segmint.operators.shards.files.build_shard_files` builds exactly the same
bytes from them.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmint.catalogs.dataset.commits import Commit, FileEntry
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.layout import ADDED_COLUMNS, DamagedDatasetError, image_name
from segmint.catalogs.stages import STAGE_PREFIX, TableColumn
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.operators.rows import Row
from segmint.operators.schemas import (
    ANNOTATION_STAGE,
    DESCRIBED,
    DESCRIBED_MASK,
    MASKS_PER_IMAGE_LIMIT,
    SCHEMAS,
)

_MASK_IDENTITY = ("ordinal", "id", "image_id", "annotation_id")
"""Columns of `masks` that are computed from a mask's image and number."""


def read_table(data: bytes, kind: str) -> pa.Table:
    """Read a table of a shard from its file's bytes. Raise `DamagedDatasetError` for invalid Parquet or wrong columns.

    The table may contain any columns of custom stages; see `stage_columns`. Columns that an earlier format lacks are
    filled with null.
    """
    try:
        table = pq.ParquetFile(io.BytesIO(data)).read()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise DamagedDatasetError(f"not readable as Parquet: {error}") from error
    schema = _with_any_stages(table, kind)
    if kind == "images" and table.schema.equals(pa.schema(each for each in schema if each.name not in ADDED_COLUMNS)):
        missing = {name: pa.nulls(table.num_rows, schema.field(name).type) for name in ADDED_COLUMNS}
        table = pa.table({**dict(zip(table.column_names, table.columns, strict=True)), **missing}).select(schema.names)
        table = table.cast(schema)
    if not table.schema.equals(schema):
        raise DamagedDatasetError(f"other columns: {', '.join(_differences(table, schema)) or 'in another order'}")
    return table


def _with_any_stages(found: pa.Table, kind: str) -> pa.Schema:
    """Return a table's standard columns, followed by the columns of any custom stages in its file."""
    if kind == "rejects":
        return SCHEMAS[kind]
    return pa.schema([*SCHEMAS[kind], *(field for field in stage_fields(found) if pa.types.is_struct(field.type))])


def _differences(table: pa.Table, schema: pa.Schema) -> list[str]:
    names = table.schema.names
    different = [field.name for field in schema if field.name not in names or table.schema.field(field.name) != field]
    return different + [name for name in names if name not in schema.names]


def read_tables(dataset: Location, commit: Commit, kinds: Iterable[str] = tuple(SCHEMAS)) -> dict[str, pa.Table]:
    """Return tables of a committed shard, with any columns of stages. Raises the errors of `read_table`."""
    return {kind: read_shard_table(dataset, commit, kind) for kind in kinds}


def read_shard_table(dataset: Location, commit: Commit, kind: str) -> pa.Table:
    """Return a table of a committed shard, with any columns of stages. Raises the errors of `read_table`."""
    return read_table(read_file(dataset, commit.file(kind)), kind)


def stage_fields(table: pa.Table) -> list[pa.Field]:
    """Return the Arrow fields of stages' columns in a table."""
    return [field for field in table.schema if field.name.startswith(STAGE_PREFIX)]


def stage_columns(dataset: DatasetHandle, tables: Mapping[str, pa.Table]) -> tuple[TableColumn, ...]:
    """Return the columns of stages in a shard's tables: the build's, and any that were applied.

    The manifest is read again if there are others than the build's, because a column may have been applied since the
    command started. Raises `DamagedDatasetError` if a column of the build is missing, or if another column is unknown.
    """
    found = []
    for kind, table in tables.items():
        found += [TableColumn(kind, field) for field in stage_fields(table)]
    known = [TableColumn(column.table, column.arrow_field) for column in dataset.stages if column.table in tables]
    wrong = [each for each in known if each not in found]
    if len(found) > len(known) - len(wrong):
        for column in dataset.manifest().applied_columns:
            known.append(column.in_table)
    for each in found:
        if each not in known:
            wrong.append(each)
    if wrong:
        raise DamagedDatasetError(f"other columns: {', '.join(each.arrow_field.name for each in wrong)}")
    # Parquet has other names for the items of lists, so return the equal columns with the names in the manifest.
    return tuple(known[known.index(each)] for each in found)


def read_committed_rows(dataset: Location, commit: Commit, tables: Mapping[str, pa.Table] | None = None) -> list[Row]:
    """Return the accepted and rejected rows of a committed shard in ordinal order, with the columns of `DESCRIBED`.

    `tables` are the shard's tables if they were read before. Images and masks also contain the columns of stages.
    Columns of the catalog that a shard doesn't store are null: `redistributable`, `valid_until`, `sha256`, and
    `duplicate_of`. In a dataset without images, `release` is empty. The whole shard is held in memory. Raises
    `DamagedDatasetError`, which names the file, if a file is missing, differs from the commit, or contradicts the other
    files.
    """
    if tables is None:
        tables = read_tables(dataset, commit)
    rows = {kind: table.to_pylist() for kind, table in tables.items()}
    tar = commit.file("shards")
    try:
        members = dict(tar_members(read_file(dataset, tar)))
        return committed_rows(rows["images"], rows["masks"], rows["rejects"], members)
    except (BadTarError, ValueError) as error:
        raise DamagedDatasetError(f"{dataset / tar.path} doesn't match its tables: {error}") from error


def rows_of(
    dataset: Location, commit: Commit, ordinals: Iterable[int], kinds: Iterable[str] = tuple(SCHEMAS)
) -> list[Row]:
    """Return the rows of these images like `read_committed_rows`, but read only the tables in `kinds`, and no JPEGs.

    Raises `DamagedDatasetError` if a table is missing or damaged.
    """
    wanted = pa.array(sorted(ordinals), pa.int64())
    rows: dict[str, list[Row]] = {kind: [] for kind in SCHEMAS}
    for kind in kinds:
        table = read_shard_table(dataset, commit, kind)
        rows[kind] = table.filter(pc.is_in(table.column("ordinal"), value_set=wanted)).to_pylist()
    return committed_rows(rows["images"], rows["masks"], rows["rejects"], {})


def read_file(dataset: Location, entry: FileEntry) -> bytes:
    """Return the bytes of a file that a commit names. Raise `DamagedDatasetError` if it is missing or differs."""
    file = dataset / entry.path
    try:
        data = file.read(max_bytes=entry.size)
    except NotFoundError as error:
        raise DamagedDatasetError(f"{file}: expected {entry.size} bytes; found no such file") from error
    except ObjectTooLargeError as error:
        raise DamagedDatasetError(f"{file}: expected {entry.size} bytes; found {error.size}") from error
    if len(data) != entry.size:
        raise DamagedDatasetError(f"{file}: expected {entry.size} bytes; found {len(data)}")
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry.sha256:
        raise DamagedDatasetError(f"{file}: expected SHA-256 {entry.sha256}; found {digest}")
    return data


def tar_members(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield the name and bytes of each member of a tar, in order. Raise `BadTarError` unless all are plain files."""
    archive = TarReader(io.BytesIO(data))
    for member in archive:
        if not is_plain_file(member):
            raise BadTarError(f"{member.name} is not a regular file")
        yield member.name, archive.read(member)


def committed_rows(
    images: Sequence[Row], masks: Sequence[Row], rejects: Sequence[Row], members: Mapping[str, bytes]
) -> list[Row]:
    """Return a shard's described rows from the rows of its tables and the members of its tar, keyed by name.

    Raises `ValueError` if the tar contains JPEGs but lacks the JPEG of one of the images.
    """
    with_images = any(name.endswith(".jpg") for name in members)
    no_mask: Row = dict.fromkeys(field.name for field in DESCRIBED_MASK)
    of_image: dict[int, list[Row]] = {}
    for mask in masks:
        own = of_image.setdefault(mask["ordinal"], [])
        index = mask["annotation_id"] - mask["id"] * MASKS_PER_IMAGE_LIMIT
        columns = {name: value for name, value in mask.items() if name not in _MASK_IDENTITY}
        own.append({**no_mask, **columns, "index": None if index == len(own) else index})
    unset: Row = dict.fromkeys(DESCRIBED.names)
    rows = [{**unset, **row} for row in rejects]
    for row in images:
        name = image_name(row["id"])
        if with_images and name not in members:
            raise ValueError(f"it contains no {name}")
        own = of_image.get(row["ordinal"], [])
        stages = {"stage": None, ANNOTATION_STAGE: row.get("stage")}
        rows.append({**unset, **row, **stages, "masks": own, "release": members.get(name, b"")})
    rows.sort(key=lambda row: int(row["ordinal"]))
    return rows
