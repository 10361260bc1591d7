"""A viewer's index of a dataset's images, on disk: a row per image with what is searched, sorted and shown."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import duckdb

from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import SegmintError
from segmint.pipeline.quality.view.findings import ImageFinding
from segmint.pipeline.quality.view.images import Place
from segmint.pipeline.quality.view.queries import CHOICES, RANGES, Filters, beyond, order, where

PAGE = 60
"""Images per page of the grid."""

_CHOICES_SHOWN = 500
_BATCH_ROWS = 65_536
_MEMORY = "1GB"
_HIGHEST_ID = 2**63 - 1

_INDEX = """
SELECT id, ordinal, shard, image_id, country, license, provider, width, height, masks,
       width::DOUBLE * height / 1e6 AS megapixels,
       if(isfinite(statistics.coverage), statistics.coverage, NULL) AS coverage,
       if(isfinite(statistics.mean_predicted_iou), statistics.mean_predicted_iou, NULL) AS predicted_iou,
       if(isfinite(statistics.mean_stability_score), statistics.mean_stability_score, NULL) AS stability
FROM images
"""

_SHOWN = ("id", "image_id", "width", "height", "masks")

Row = dict[str, Any]


class UnknownImageError(SegmintError):
    """No image of the dataset has this id."""


class ImageIndex:
    """Searches, sorts and pages the images of a dataset. Thread-safe: each call has its own cursor.

    The tables of images are read once, as a stream, into a DuckDB file in `folder`, some 40 bytes per image: a dataset
    of a million images has thousands of Parquet files, too many to open for each search.
    """

    def __init__(self, tables: DatasetTables, findings: Sequence[ImageFinding], folder: Path) -> None:
        self._database = duckdb.connect(
            str(folder / "index.duckdb"), config={"memory_limit": _MEMORY, "temp_directory": str(folder / "spill")}
        )
        self._database.execute("SET enable_progress_bar = false")
        self._fill(tables)
        self._by_image: dict[int, list[ImageFinding]] = {}
        self._by_code: dict[str, list[int]] = {}
        for finding in findings:
            self._by_image.setdefault(finding.image, []).append(finding)
            self._by_code.setdefault(finding.code, []).append(finding.image)

    def close(self) -> None:
        """Close the database; the owner of the folder deletes the file."""
        self._database.close()

    def summary(self) -> Row:
        """Return the dataset's totals, the values to filter by with numbers of images, and the limits of ranges."""
        ends = ", ".join(f"min({column}), max({column})" for column in RANGES)
        (total, masks, *limits), *_ = self._rows(f"SELECT count(*), coalesce(sum(masks), 0), {ends} FROM images")
        return {
            "images": total,
            "masks": int(masks),
            "choices": {column: self._choices(column) for column in CHOICES},
            "ranges": {column: limits[2 * place : 2 * place + 2] for place, column in enumerate(RANGES)},
            "findings": [{"code": code, "images": len(set(images))} for code, images in sorted(self._by_code.items())],
        }

    def count(self, filters: Filters) -> int:
        """Return how many images match the filters."""
        condition, values = where(filters, self._by_code)
        ((count,),) = self._rows(f"SELECT count(*) FROM images WHERE {condition}", values)
        return int(count)

    def page(self, filters: Filters, after: int | None = None, limit: int = PAGE) -> list[Row]:
        """Return the first images that match the filters, in order, or the first ones after the image `after`.

        Raises `UnknownImageError` if there is no image `after`.
        """
        columns = ", ".join(_SHOWN)
        rows = self._ordered(columns, filters, after, limit)
        images = [dict(zip(_SHOWN, row, strict=True)) for row in rows]
        return [{**image, "findings": len(self.findings(image["id"]))} for image in images]

    def neighbors(self, filters: Filters, image: int) -> tuple[int | None, int | None]:
        """Return the ids of the images before and after one in the filters' order.

        Raises `UnknownImageError` if there is no such image.
        """
        before = self._ordered("id", filters, image, 1, backward=True)
        after = self._ordered("id", filters, image, 1)
        return (before[0][0] if before else None), (after[0][0] if after else None)

    def place(self, image: int) -> Place:
        """Return the place of an image; raises `UnknownImageError` if there is no such image."""
        return Place(*self._values(("id", "ordinal", "shard"), image))

    def shards(self, images: Iterable[int]) -> dict[int, int]:
        """Return the shards of images by id; images that there are not have none."""
        return dict(self._rows("SELECT id, shard FROM images WHERE id IN (SELECT unnest(?::BIGINT[]))", [list(images)]))

    def findings(self, image: int) -> list[ImageFinding]:
        """Return the findings about an image."""
        return self._by_image.get(image, [])

    def _fill(self, tables: DatasetTables) -> None:
        try:
            with tables.connection.cursor() as cursor:
                self._database.register("incoming", cursor.sql(_INDEX).to_arrow_reader(_BATCH_ROWS))
                self._database.execute("CREATE TABLE images AS SELECT * FROM incoming")
                self._database.unregister("incoming")
        except duckdb.Error as error:
            self.close()
            raise DamagedDatasetError(f"the tables of images cannot be read: {error}") from error

    def _ordered(
        self, columns: str, filters: Filters, image: int | None, limit: int, *, backward: bool = False
    ) -> list[tuple[Any, ...]]:
        condition, values = where(filters, self._by_code)
        if image is not None:
            further, more = beyond(filters, image, self._values((filters.sort,), image)[0], backward=backward)
            condition, values = f"{condition} AND {further}", [*values, *more]
        sort = order(filters, backward=backward)
        return self._rows(f"SELECT {columns} FROM images WHERE {condition} ORDER BY {sort} LIMIT {limit:d}", values)

    def _choices(self, column: str) -> list[Row]:
        found = self._rows(
            f"SELECT {column}, count(*) AS number FROM images GROUP BY {column} "
            f"ORDER BY number DESC, {column} NULLS LAST LIMIT {_CHOICES_SHOWN}"
        )
        return [{"value": value, "images": images} for value, images in found]

    def _values(self, columns: tuple[str, ...], image: int) -> tuple[Any, ...]:
        if image <= _HIGHEST_ID:
            for values in self._rows(f"SELECT {', '.join(columns)} FROM images WHERE id = ? LIMIT 1", [image]):
                return values
        raise UnknownImageError(f"there is no image {image} in this dataset")

    def _rows(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._database.cursor() as cursor:
            return list(cursor.execute(sql, list(values)).fetchall())
