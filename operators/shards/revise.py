"""Revises committed shards: the one way in which a correction, or a build, changes what is committed.

A revision is a pure function from a shard's rows to its next rows. Here it is applied to the generation that holds, put
as the next one, and applied again to what another writer has committed meanwhile. After its commit every writer reads
the tombstones, and takes down what they name of the shard: a takedown puts its tombstone before it lists what is
committed, so one of the two sees the other. A writer of rows that were read from the catalog looks in the same way
whether that was amended meanwhile.
"""

from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from threading import Lock
from typing import Any, TypeVar

import pyarrow as pa

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.handle import DatasetHandle
from segmint.catalogs.dataset.manifest import CatalogPart, delete_part_reservations, load_manifest
from segmint.catalogs.dataset.tombstones import BLANK, DETAIL, NO_NAMES, SAME_SOURCE, Removals
from segmint.catalogs.layout import (
    RESERVATIONS,
    DamagedDatasetError,
    parse_part_reservation_name,
    parse_reservation_name,
)
from segmint.catalogs.parquet import ROW_GROUP_ROWS as CATALOG_GROUP_ROWS
from segmint.catalogs.reasons import Reason
from segmint.catalogs.schema import AMENDABLE
from segmint.catalogs.source.rows import read_rows
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.operators.rows import Row
from segmint.operators.shards.committed_rows import read_committed_rows, read_file, read_table
from segmint.operators.shards.put import LostRaceError, remove_replaced, replace_shard

Result = TypeVar("Result")

Change = Callable[[Commit, Sequence[Row]], Sequence[Row]]
"""From a commit and its rows (keys of `DESCRIBED`, by ordinal) to the next rows; the same objects where none changes.

It may be called several times, and must not change its arguments.
"""

ATTEMPTS = 100
"""Races that a revision may lose before it gives up; each of them was won by another writer."""


@dataclass(frozen=True)
class ShardRevision:
    """A shard after a revision."""

    before: Commit  # the generation that it was applied to
    commit: Commit  # the next one; the same if nothing was to be changed
    rows: int  # changed

    @property
    def changed(self) -> bool:
        """Whether there is a new generation."""
        return self.commit is not self.before


def revise_shard(
    dataset: DatasetHandle,
    shard: int,
    change: Change,
    *,
    purge: bool = True,
    images_only: bool = False,
    needed: Callable[[Commit], bool] = lambda _: True,
    after_commit: Callable[[], object] = lambda: None,
) -> ShardRevision | None:
    """Put the next generation of a shard, unless nothing is to be changed; None if the shard is not committed.

    With `images_only` the change gets the rows of the table of images (keys of `IMAGES`): only that is read and put,
    and all other files stay. `needed` may say without all rows that nothing is to be changed. `after_commit` is called
    once a new generation holds. Nothing is removed yet, except what a lost attempt put; with `purge` its older
    versions, too. Raises `DamagedDatasetError` if a file of the generation that holds cannot be read, and
    `LostRaceError` after `ATTEMPTS`.
    """
    lost = 0

    def attempt(commit: Commit) -> ShardRevision:
        if not needed(commit):
            return ShardRevision(commit, commit, 0)
        rows = _read_images(dataset.location, commit) if images_only else read_committed_rows(dataset.location, commit)
        after = change(commit, rows)
        different = sum(one is not other for one, other in zip(rows, after, strict=True))
        if not different:
            return ShardRevision(commit, commit, 0)
        new = replace_shard(dataset, commit, after, images_only=images_only, purge=purge, after_commit=after_commit)
        return ShardRevision(commit, new, different)

    while True:
        try:
            return with_latest_commit(dataset.location, shard, attempt)
        except LostRaceError:
            lost += 1
            if lost == ATTEMPTS:
                raise


def _read_images(dataset: Location, commit: Commit) -> list[Row]:
    rows: list[Row] = read_table(read_file(dataset, commit.file("images")), "images").to_pylist()
    return rows


def with_latest_commit(dataset: Location, shard: int, use: Callable[[Commit], Result]) -> Result | None:
    """Return `use(commit)` of the commit that holds, again if its files were removed as they were read.

    None if the shard is not committed.
    """
    log = CommitLog(dataset)

    def read(generation: int) -> Result:
        commit = log.read(shard, generation)
        if commit is None:
            raise DamagedDatasetError(f"{log.location(shard, generation)} is gone")
        return use(commit)

    return with_generation(dataset, shard, read)


def with_generation(dataset: Location, shard: int, use: Callable[[int], Result]) -> Result | None:
    """Return `use(generation)` of the generation that holds; again if it finds damage and the shard has another one.

    None if the shard is not committed.
    """
    log = CommitLog(dataset)
    while True:
        generations = log.generations_of(shard)
        if not generations:
            return None
        try:
            return use(generations[-1])
        except DamagedDatasetError:
            if log.is_latest(shard, generations[-1]):
                raise


def apply_tombstones(dataset: DatasetHandle, shard: int) -> ShardRevision | None:
    """Take down what tombstones name of a committed shard, and remove what was there before; None without tombstones.

    Only tables are read if there is nothing to do. Repeating it after a crash completes it.
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
    """Give the images of a committed shard what the catalog says of them now, and remove what was there before.

    An amendment puts its part of the catalog before it lists what is committed, so one of the two sees the other. What
    is put here is applied in the same way, so of several amendments the last one holds in the end. None if the manifest
    has no newer generation than `since`. Repeating it after a crash completes it.
    """
    now = dataset.manifest_generation()
    if now <= since:
        return None
    revised = revise_shard(
        dataset,
        shard,
        cataloged(dataset.location),
        images_only=True,
        after_commit=lambda: apply_catalog(dataset, shard, now),
    )
    if revised is not None and revised.changed:
        remove_replaced(dataset.location, [shard])
    return revised


def apply_later_changes(dataset: DatasetHandle, shard: int, *, since: int | None = None) -> bool:
    """Do `apply_tombstones` and `apply_catalog` for a shard whose commit or files were just put.

    `since` is the manifest's generation when the rows were read from the catalog, or before; by default the handle's
    `catalog_generation`. Return whether this changed the shard.
    """
    applied = apply_tombstones(dataset, shard)
    amended = apply_catalog(dataset, shard, dataset.catalog_generation if since is None else since)
    return any(revised is not None and revised.changed for revised in (applied, amended))


def finish_dead_writers(dataset: DatasetHandle, shards: Container[int]) -> list[int]:
    """Do what writers of these shards did not that died after their commits; return the shards that this changed.

    Such a writer has left its reservation. The tombstones and the catalog are applied, then the reservation is deleted.
    Reservations of parts of the catalog whose writers have lost, or died after the manifest, are deleted too.
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
        # The writer may have read its rows before any generation of the manifest but the first.
        if apply_later_changes(dataset, shard, since=1):
            changed.append(shard)
        for name in names:
            (folder / name).delete()
    return changed


def names_removed(dataset: Location, commit: Commit, taken: Removals) -> bool:
    """Return whether a shard has an image that tombstones name, or data of a row whose ordinal they name."""
    own = taken.of_ordinals(*commit.ordinals)
    if own:
        rejects = read_table(read_file(dataset, commit.file("rejects")), "rejects").to_pylist()
        if not own <= {row["ordinal"] for row in rejects if is_removed(row) and not row["image_id"]}:
            return True
    if taken.names == NO_NAMES:
        return False
    images = read_table(read_file(dataset, commit.file("images")), "images")
    return any(
        taken.names.names_source(row["uri"], row["source_sha256"])
        for row in images.select(["uri", "source_sha256"]).to_pylist()
    )


STAGE = "catalog"
"""The stage that refuses a row that was taken down: a later build finds it blank in the catalog."""


def take_down(row: Row) -> Row:
    """Return the refused row that replaces a row, the same that a build makes of the catalog's blank row."""
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
    """Return a row without what tombstones name: blank if they name its ordinal, refused if they name its source.

    A row of the same source under another ordinal keeps its names, as the catalog does, until the next takedown. The
    same object is returned if there is nothing to take.
    """
    if row["ordinal"] in taken.images:
        return row if is_removed(row) and row["image_id"] == BLANK else take_down(row)
    if row["reason"] is not None or not taken.names.names_source(row["uri"], row["source_sha256"]):
        return row
    kept = {name: row[name] for name in ("ordinal", "id", "image_id", "uri")}
    verdict = {"stage": STAGE, "reason": str(Reason.TAKEN_DOWN), "detail": SAME_SOURCE}
    return {**dict.fromkeys(row), **kept, **verdict}


def is_removed(row: Row) -> bool:
    """Return whether a row was taken down: only a refusal is left of it."""
    return bool(row["reason"] == Reason.TAKEN_DOWN)


_KEPT_GROUPS = 3


def as_cataloged(row: Row, source: Mapping[str, Any] | None) -> Row:
    """Return a row of an accepted image with the amendable values of `source`, the catalog's row of its ordinal.

    The same object is returned if it has these values, if it was refused, and if the catalog's row is of no image any
    more: a takedown has blanked that, and will take the image out.
    """
    if row.get("reason") is not None or source is None or source["image_id"] != row["image_id"]:
        return row
    values = {name: source[name] for name in AMENDABLE}
    return row if all(row[name] == value for name, value in values.items()) else {**row, **values}


def cataloged(dataset: Location) -> Callable[[Commit, Sequence[Row]], Sequence[Row]]:
    """Return the change of a revision that does `as_cataloged` to all rows of a shard, by the catalog that holds."""
    catalog = CatalogRows(dataset)

    def change(commit: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        sources = catalog.read(*commit.ordinals)
        return [as_cataloged(row, sources.get(row["ordinal"])) for row in rows]

    return change


class CatalogRows:
    """Reads rows of the catalog that holds. May be used by several threads, and is pickled without what it has read.

    A row group is read whole, and shards come in order, so the last few are kept. They stay true: a part that changes
    gets another path.
    """

    def __init__(self, dataset: Location) -> None:
        self._dataset = dataset
        self._kept: dict[tuple[str, int], pa.Table] = {}
        self._lock = Lock()

    def read(self, start: int, stop: int) -> dict[int, Row]:
        """Return the rows with ordinals in [start, stop), by ordinal; again if a part is replaced meanwhile."""
        while True:
            manifest = load_manifest(self._dataset)
            try:
                tables = [
                    table
                    for part in manifest.catalog
                    for table in self._of_part(part, part.first_shard * manifest.images_per_shard, start, stop)
                ]
            except NotFoundError:
                if load_manifest(self._dataset).catalog == manifest.catalog:
                    raise
                continue
            return {row["ordinal"]: row for table in tables for row in table.to_pylist()}

    def _of_part(self, part: CatalogPart, first: int, start: int, stop: int) -> Iterator[pa.Table]:
        """Yield those of the rows that are in a part whose ordinals begin at `first`."""
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
