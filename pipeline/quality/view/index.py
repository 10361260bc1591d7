"""A viewer's index of a dataset's images, on disk: a row per image with what is searched, sorted and shown."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.tables import DatasetTables
from segmint.pipeline.quality.view.findings import ImageFinding
from segmint.pipeline.quality.view.queries import CHOICES, RANGES, Filters, beyond, order, where
from segmint.pipeline.serving.images import ImagePlaces

PAGE = 60
"""Images per page of the grid."""

_CHOICES_SHOWN = 500

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


class ImageIndex(ImagePlaces):
    """Searches, sorts and pages the images of a dataset, with the findings about them. Thread-safe."""

    def __init__(self, tables: DatasetTables, findings: Sequence[ImageFinding], folder: Path) -> None:
        super().__init__(tables, folder, _INDEX)
        self._by_image: dict[int, list[ImageFinding]] = {}
        self._by_code: dict[str, list[int]] = {}
        for finding in findings:
            self._by_image.setdefault(finding.image, []).append(finding)
            self._by_code.setdefault(finding.code, []).append(finding.image)

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

    def shards(self, images: Iterable[int]) -> dict[int, int]:
        """Return the shards of images by id; images that there are not have none."""
        return dict(self._rows("SELECT id, shard FROM images WHERE id IN (SELECT unnest(?::BIGINT[]))", [list(images)]))

    def findings(self, image: int) -> list[ImageFinding]:
        """Return the findings about an image."""
        return self._by_image.get(image, [])

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
