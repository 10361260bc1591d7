"""Revisions of committed shards, through which every correction passes, and reading of their rows.

Builds also use revisions, for example to retry rejected rows. A revision is a pure function from a shard's rows to its
new rows. `revise_shard` reads the latest generation, applies the function, and commits the result as the next
generation. If another writer commits that generation first, `revise_shard` applies the function again to the generation
that won.

Takedowns can run at the same time as other writers. To make sure that no image escapes, a takedown puts its tombstone
before it lists the commits, and every writer reads the tombstones after its own commit. Either the takedown sees the
new commit, or the writer sees the tombstone. Writers of rows from the catalog use the same protocol with amendments of
the catalog.

Reader that converts a committed shard back to the rows that it was built from, so that corrections can rebuild it.

If a correction leaves the rows unchanged, `segmint.operators.shards.put.build_shard_files` builds exactly the same
bytes from them.
"""

import io
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry
from segmint.catalogs.dataset.manifest import CatalogPart, DatasetHandle, delete_part_reservations, load_manifest
from segmint.catalogs.dataset.tombstones import (
    BLANK,
    DETAIL,
    NO_NAMES,
    SAME_SOURCE,
    Fingerprint,
    Removals,
    put_fingerprints,
)
from segmint.catalogs.findings import Reason
from segmint.catalogs.layout import (
    ADDED_COLUMNS,
    RESERVATIONS,
    DamagedDatasetError,
    bytes_sha256,
    image_name,
    parse_part_reservation_name,
    parse_reservation_name,
)
from segmint.catalogs.lineage import STAGE_PREFIX, TableColumn
from segmint.catalogs.parquet import AMENDABLE
from segmint.catalogs.parquet import ROW_GROUP_ROWS as CATALOG_GROUP_ROWS
from segmint.catalogs.source.files import read_rows
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.operators.rows import ANNOTATION_STAGE, DESCRIBED, DESCRIBED_MASK, MASKS_PER_IMAGE_LIMIT, SCHEMAS, Row
from segmint.operators.shards.put import LostRaceError, OneTable, remove_replaced, replace_shard

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
    digest = bytes_sha256(data)
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


Result = TypeVar("Result")

Change = Callable[[Commit, Sequence[Row]], Sequence[Row]]
"""Function that maps a commit and its rows (keys of `DESCRIBED`, in ordinal order) to the new rows.

It must return the same object for an unchanged row and must not modify its arguments. It may be called several times.
"""

ColumnChange = Callable[[tuple[TableColumn, ...]], tuple[TableColumn, ...]]
"""Function that maps the columns of stages in a shard's tables to those that the next generation contains."""


def kept_columns(columns: tuple[TableColumn, ...]) -> tuple[TableColumn, ...]:
    """Return the columns unchanged."""
    return columns


ATTEMPTS = 100
"""Number of lost races after which a revision gives up."""


@dataclass(frozen=True)
class ShardRevision:
    """Result of revising a shard."""

    before: Commit  # the generation that the revision was applied to
    commit: Commit  # the next generation, or the same commit if nothing changed
    rows: int  # number of changed rows

    @property
    def changed(self) -> bool:
        """True if the revision committed a new generation."""
        return self.commit is not self.before


def revise_shard(
    dataset: DatasetHandle,
    shard: int,
    change: Change,
    *,
    purge: bool = True,
    only: OneTable | None = None,
    columns: ColumnChange = kept_columns,
    needed: Callable[[Commit], bool] = lambda _: True,
    after_commit: Callable[[], object] = lambda: None,
) -> ShardRevision | None:
    """Apply a change to a shard and commit the result as the next generation. Return None if the shard isn't committed.

    The shard keeps its columns of stages, even if it lacks applied ones, unless `columns` returns others. If `change`
    returns every row unchanged, nothing is written. With `only`, this function reads and replaces a single table, and
    `change` receives that table's rows (keys of `IMAGES` or `MASKS`). The shard keeps all other files, so `change` must
    not modify columns that they also store. If `needed` returns False for a commit, the rows aren't read at all.

    Before the commit, this function puts the fingerprints of all JPEGs that change or disappear. After the commit, it
    calls `after_commit`. It leaves the replaced files in place. If it loses a race, it deletes the files of that
    attempt and, with `purge`, their older versions. Raises `DamagedDatasetError` if a file of the latest generation
    can't be read, and `LostRaceError` after `ATTEMPTS` lost races.
    """
    lost = 0

    def attempt(commit: Commit) -> ShardRevision:
        if not needed(commit):
            return ShardRevision(commit, commit, 0)
        if only is None:
            tables = read_tables(dataset.location, commit)
            rows = read_committed_rows(dataset.location, commit, tables)
        else:
            tables = read_tables(dataset.location, commit, [only])
            rows = tables[only].to_pylist()
        found = stage_columns(dataset, tables)
        own = columns(found)
        after = change(commit, rows)
        different = sum(one is not other for one, other in zip(rows, after, strict=True))
        if not different and own == found:
            return ShardRevision(commit, commit, 0)
        if only != "masks":
            put_fingerprints(dataset.location, shard, _former(rows, after))
        written = replace(dataset, stages=own)
        new = replace_shard(written, commit, after, only=only, purge=purge, after_commit=after_commit)
        return ShardRevision(commit, new, different)

    while True:
        try:
            return with_latest_commit(dataset.location, shard, attempt)
        except LostRaceError:
            lost += 1
            if lost == ATTEMPTS:
                raise


def _former(rows: Sequence[Row], after: Sequence[Row]) -> dict[int, Fingerprint]:
    """Return the fingerprints of images with a changed or removed JPEG, keyed by number."""
    return {
        row["id"]: fingerprint_of(row, gone=new["release_sha256"] is None)
        for row, new in zip(rows, after, strict=True)
        if row["release_sha256"] not in (None, new["release_sha256"])
    }


def fingerprint_of(row: Row, *, gone: bool) -> Fingerprint:
    """Return a released image's fingerprint. It identifies the JPEG and, if the image is `gone`, also its pixels."""
    jpeg = Fingerprint(released=(row["release_sha256"],))
    hashes = np.array(row["hashes"] or [], ">u8").tobytes().hex()
    return jpeg.model_copy(update={"pixels": row["pixels_sha256"], "hashes": hashes}) if gone else jpeg


def with_latest_commit(dataset: Location, shard: int, use: Callable[[Commit], Result]) -> Result | None:
    """Return `use(commit)` for the latest commit of a shard, or None if the shard isn't committed.

    Another process may remove a generation's files while `use` reads them. So if `use` raises `DamagedDatasetError` and
    there is a newer generation by then, this function retries with that one.
    """
    log = CommitLog(dataset)
    while generations := log.generations_of(shard):
        try:
            commit = log.read(shard, generations[-1])
            if commit is None:
                raise DamagedDatasetError(f"{log.location(shard, generations[-1])} is missing")
            return use(commit)
        except DamagedDatasetError:
            if log.is_latest(shard, generations[-1]):
                raise
    return None


def apply_tombstones(dataset: DatasetHandle, shard: int) -> ShardRevision | None:
    """Apply the tombstones to a committed shard and remove the replaced files. Return None if there are no tombstones.

    If no tombstone applies, this reads only the tables. If the process crashes, call this function again to finish the
    work.
    """
    taken = dataset.taken()
    if taken is None:
        return None
    revised = revise_shard(
        dataset,
        shard,
        lambda _, rows: [without_removed(row, taken) for row in rows],
        needed=lambda commit: names_removed(dataset.location, commit, taken),
    )
    if revised is not None and (revised.changed or taken.of_ordinals(*revised.commit.ordinals)):
        remove_replaced(dataset.location, [shard])
    return revised


def apply_catalog(dataset: DatasetHandle, shard: int, since: int) -> ShardRevision | None:
    """Update the images of a committed shard to the catalog's current values, and remove the replaced files.

    An amendment puts its part of the catalog before it lists the commits, and this function reads the catalog after the
    shard's commit. So at least one of them sees the other's change. After its own commit, this function checks for
    further amendments, so the last one always wins. Returns None if the manifest's latest generation is `since` or
    older. If the process crashes, call this function again to finish the work.
    """
    now = dataset.manifest_generation()
    if now <= since:
        return None
    revised = revise_shard(
        dataset,
        shard,
        cataloged(dataset.location),
        only="images",
        after_commit=lambda: apply_catalog(dataset, shard, now),
    )
    if revised is not None and revised.changed:
        remove_replaced(dataset.location, [shard])
    return revised


def apply_later_changes(dataset: DatasetHandle, shard: int, *, since: int | None = None) -> bool:
    """Apply takedowns and catalog changes that a shard's writer may have missed. Return whether the shard changed.

    Call this right after the shard's commit, or after its files were written. `since` defaults to the handle's
    `catalog_generation`. It must not be later than the manifest generation whose catalog the writer read.
    """
    applied = apply_tombstones(dataset, shard)
    amended = apply_catalog(dataset, shard, dataset.catalog_generation if since is None else since)
    return any(revised is not None and revised.changed for revised in (applied, amended))


def finish_dead_writers(dataset: DatasetHandle, shards: Container[int]) -> list[int]:
    """Finish the work of writers that died after committing these shards. Return the shards that changed.

    A writer that died leaves its reservation behind. For each such reservation, this function applies the tombstones
    and the catalog to the shard, then deletes the reservation. It also deletes reservations of catalog parts whose
    writer lost the race for the manifest, or died after writing the manifest.
    """
    committed = dataset.commits.committed()
    left: dict[int, list[str]] = {}
    folder = dataset.location / RESERVATIONS
    reservations = folder.list()
    if any(parse_part_reservation_name(entry.name) is not None for entry in reservations):
        delete_part_reservations(dataset.location, dataset.latest().generation)
    for entry in reservations:
        parsed = parse_reservation_name(entry.name)
        if parsed is not None and parsed[0] in shards and parsed[1] <= committed.get(parsed[0], 0):
            left.setdefault(parsed[0], []).append(entry.name)
    changed = []
    for shard, names in sorted(left.items()):
        # The writer may have read its rows at any generation of the manifest, including the first.
        if apply_later_changes(dataset, shard, since=1):
            changed.append(shard)
        for name in names:
            (folder / name).delete()
    return changed


def names_removed(dataset: Location, commit: Commit, taken: Removals) -> bool:
    """Return whether the tombstones name an image in a shard, or an ordinal whose row still contains data."""
    own = taken.of_ordinals(*commit.ordinals)
    if own:
        rejects = read_shard_table(dataset, commit, "rejects").to_pylist()
        if not own <= {row["ordinal"] for row in rejects if is_removed(row) and not row["image_id"]}:
            return True
    if taken.names == NO_NAMES:
        return False
    images = read_shard_table(dataset, commit, "images")
    columns = ["uri", "source_sha256", "pixels_sha256", "release_sha256"]
    return any(map(taken.names.names_picture, images.select(columns).to_pylist()))


STAGE = "catalog"
"""Stage recorded for a taken-down row. Later builds reject it in this stage, because its catalog row is blank."""


def take_down(row: Row) -> Row:
    """Return the rejected row that replaces a row. A build creates the same row from a blank row of the catalog."""
    empty: Row = dict.fromkeys(row)
    return {
        **empty,
        "ordinal": row["ordinal"],
        "id": row["id"],
        "image_id": BLANK,
        "uri": BLANK,
        "stage": STAGE,
        "reason": str(Reason.TAKEN_DOWN),
        "detail": DETAIL,
    }


def without_removed(row: Row, taken: Removals) -> Row:
    """Return a row with the tombstones applied.

    If a tombstone names the row's ordinal, the result is blank. If a tombstone only names its picture, the result is
    rejected but keeps the row's image_id and URI until the next takedown, as in the catalog. If no tombstone applies,
    the same object is returned.
    """
    if row["ordinal"] in taken.images:
        return row if is_removed(row) and row["image_id"] == BLANK else take_down(row)
    if row["reason"] is not None or not taken.names.names_picture(row):
        return row
    kept = {name: row[name] for name in ("ordinal", "id", "image_id", "uri")}
    verdict = {"stage": STAGE, "reason": str(Reason.TAKEN_DOWN), "detail": SAME_SOURCE}
    return {**dict.fromkeys(row), **kept, **verdict}


def is_removed(row: Row) -> bool:
    """Return whether a row was taken down. Such a row contains only a verdict."""
    return bool(row["reason"] == Reason.TAKEN_DOWN)


_KEPT_GROUPS = 3


def as_cataloged(row: Row, source: Mapping[str, Any] | None) -> Row:
    """Return an accepted row with the current values of its amendable columns from `source`, its row in the catalog.

    Returns the same object if the values are already equal or the row was rejected. It also does so if a takedown has
    blanked the catalog's row, because that takedown is about to remove the image.
    """
    if row.get("reason") is not None or source is None or source["image_id"] != row["image_id"]:
        return row
    values = {name: source[name] for name in AMENDABLE}
    return row if all(row[name] == value for name, value in values.items()) else {**row, **values}


def cataloged(dataset: Location) -> Callable[[Commit, Sequence[Row]], Sequence[Row]]:
    """Return a change for `revise_shard` that applies `as_cataloged` to all rows, using the latest catalog."""
    catalog = CatalogRows(dataset)

    def change(commit: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        sources = catalog.read(*commit.ordinals)
        return [as_cataloged(row, sources.get(row["ordinal"])) for row in rows]

    return change


class CatalogRows:
    """Reader of rows of the latest catalog. It is thread-safe and is pickled without its cache.

    Each read loads whole row groups. Shards are usually read in order, so the reader caches the last few row groups.
    The cache never becomes stale, because a new version of a catalog part has a new path.
    """

    def __init__(self, dataset: Location) -> None:
        self._dataset = dataset
        self._kept: dict[tuple[str, int], pa.Table] = {}
        self._lock = Lock()

    def read(self, start: int, stop: int) -> dict[int, Row]:
        """Return the rows with ordinals in [start, stop), keyed by ordinal. Retry if a part is replaced."""
        while True:
            manifest = load_manifest(self._dataset)
            try:
                tables = list[pa.Table]()
                for part in manifest.catalog:
                    tables += self._of_part(part, part.first_shard * manifest.images_per_shard, start, stop)
            except NotFoundError:
                if load_manifest(self._dataset).catalog == manifest.catalog:
                    raise
                continue
            return {row["ordinal"]: row for table in tables for row in table.to_pylist()}

    def _of_part(self, part: CatalogPart, first: int, start: int, stop: int) -> Iterator[pa.Table]:
        """Yield the rows of a part with ordinals in [start, stop). The part's first ordinal is `first`."""
        low, high = max(start - first, 0), min(stop - first, part.rows)
        for group in range(low // CATALOG_GROUP_ROWS, -(-high // CATALOG_GROUP_ROWS)) if low < high else ():
            begin = group * CATALOG_GROUP_ROWS
            table = self._group(part.path, group, first + begin)
            yield table.slice(max(low - begin, 0), min(high - begin, CATALOG_GROUP_ROWS) - max(low - begin, 0))

    def _group(self, path: str, group: int, start: int) -> pa.Table:
        with self._lock:
            found = self._kept.pop((path, group), None)
            if found is None:
                found = read_rows(self._dataset / path, start, start + CATALOG_GROUP_ROWS)
            self._kept[path, group] = found
            while len(self._kept) > _KEPT_GROUPS:
                del self._kept[next(iter(self._kept))]
            return found

    def __reduce__(self) -> tuple[type["CatalogRows"], tuple[Location]]:
        return CatalogRows, (self._dataset,)
