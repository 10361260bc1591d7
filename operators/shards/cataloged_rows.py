"""Rows of a committed shard with what the catalog says of their images now: it may have been amended since."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import CatalogPart, load_manifest
from segmint.catalogs.parquet import ROW_GROUP_ROWS
from segmint.catalogs.schema import AMENDABLE
from segmint.catalogs.source.rows import read_rows
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.operators.rows import Row

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
        for group in range(low // ROW_GROUP_ROWS, -(-high // ROW_GROUP_ROWS)) if low < high else ():
            begin = group * ROW_GROUP_ROWS
            table = self._group(part.path, group, first + begin)
            yield table.slice(max(low - begin, 0), min(high - begin, ROW_GROUP_ROWS) - max(low - begin, 0))

    def _group(self, path: str, group: int, start: int) -> pa.Table:
        with self._lock:
            found = self._kept.pop((path, group), None)
            if found is None:
                found = read_rows(self._dataset / path, start, start + ROW_GROUP_ROWS)
            self._kept[path, group] = found
            while len(self._kept) > _KEPT_GROUPS:
                del self._kept[next(iter(self._kept))]
            return found

    def __reduce__(self) -> tuple[type["CatalogRows"], tuple[Location]]:
        return CatalogRows, (self._dataset,)
