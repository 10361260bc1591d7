"""Rows of a committed shard with what the catalog says of their images now: it may have been amended since."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest
from segmint.catalogs.source.amendments import AMENDABLE
from segmint.catalogs.source.rows import read_rows
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.operators.rows import Row


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

    def change(commit: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        sources = catalog_rows(dataset, *commit.ordinals)
        return [as_cataloged(row, sources.get(row["ordinal"])) for row in rows]

    return change


def catalog_rows(dataset: Location, start: int, stop: int) -> dict[int, Row]:
    """Return the rows of the catalog that holds with ordinals in [start, stop), by ordinal.

    Read again if another command replaces a part meanwhile.
    """
    while True:
        manifest = load_manifest(dataset)
        size = manifest.images_per_shard
        own = [
            part.path
            for part in manifest.catalog
            if part.first_shard * size < stop and start < part.first_shard * size + part.rows
        ]
        try:
            tables = [read_rows(dataset / path, start, stop) for path in own]
        except NotFoundError:
            if load_manifest(dataset).catalog == manifest.catalog:
                raise
            continue
        return {row["ordinal"]: row for table in tables for row in table.to_pylist()}


def part_of(manifest: DatasetManifest, shard: int) -> str | None:
    """Return the path of the part of the catalog that a shard's rows are in; None if the dataset has no such shard."""
    for part in manifest.catalog:
        if part.first_shard <= shard < part.first_shard - (-part.rows // manifest.images_per_shard):
            return part.path
    return None
