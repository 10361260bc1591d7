"""On-disk index of a viewer's images with their findings, and the filters and sort orders as values and as SQL."""

import math
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from segmint.catalogs.dataset.selection import number_of
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.findings import Finding
from segmint.infra.errors import UsageError
from segmint.operators.rows import Row
from segmint.pipeline.quality.audit.result import AuditReport, PrivacyResult
from segmint.pipeline.quality.statistics.values import Statistics
from segmint.pipeline.serving.images import HIGHEST_ID, ImagePlaces

CHOICES = ("country", "license", "provider")
"""Columns that can be filtered by one value, or by a missing value (`unknown`)."""

RANGES = ("masks", "coverage", "predicted_iou", "stability", "megapixels", "redacted")
"""Columns to filter by an inclusive minimum and maximum."""

SORTS = ("id", *RANGES)
"""Columns to sort by. Images without a value come last, and images with equal values are in order of their ids."""

_SHOWN = 60  # characters of an invalid value that the response repeats

ANY_FINDING = "any"
"""Value of the filter `finding` that selects all codes."""

Sql = tuple[str, list[Any]]
"""Piece of SQL, with the values of its parameters in order."""

PAGE = 60
"""Number of images per page of the grid."""

_CHOICES_SHOWN = 500

_INDEX = """
SELECT id, ordinal, shard, image_id, country, license, provider, width, height, masks,
       width::DOUBLE * height / 1e6 AS megapixels,
       if(isfinite(statistics.coverage), statistics.coverage, NULL) AS coverage,
       if(isfinite(statistics.mean_predicted_iou), least(1, statistics.mean_predicted_iou), NULL) AS predicted_iou,
       if(isfinite(statistics.mean_stability_score), statistics.mean_stability_score, NULL) AS stability,
       redacted_share AS redacted,
       {labels}
"""
_LABELS = "SELECT id, list(DISTINCT label) AS labels FROM masks WHERE label IS NOT NULL GROUP BY id"

_COLUMNS = ("id", "image_id", "width", "height", "masks")
_REJECTED = ("id", "image_id", "stage", "reason", "detail", "shard")


Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class ImageFinding:
    """Finding about an image, with a code, a sentence, and the mask or box that it refers to, if any.

    `mask` is the `annotation_id` of the mask. `box` is (x, y, width, height) in pixels of the released image.
    """

    image: int
    code: str
    text: str
    mask: int | None = None
    box: Box | None = None


@dataclass(frozen=True)
class AuditFindings:
    """Findings of an audit about images, and the number of its findings about files, shards, or rows."""

    images: tuple[ImageFinding, ...] = ()
    elsewhere: int = 0


def findings_of(audit: AuditReport) -> AuditFindings:
    """Collect an audit's findings, detections, outliers, and near-duplicate masks by image."""
    found = [_finding(finding.image, finding) for finding in audit.findings if finding.image is not None]
    elsewhere = sum(finding.image is None for finding in audit.findings)
    if audit.privacy is not None:
        found.extend(_regions(audit.privacy))
    if audit.statistics is not None:
        found.extend(_masks_and_images(audit.statistics))
    return AuditFindings(tuple(found), elsewhere)


def _finding(image: int, finding: Finding) -> ImageFinding:
    text = f"{finding.where or finding.file}: expected {finding.expected}; found {finding.found}"
    return ImageFinding(image, str(finding.code), text, finding.mask)


def _regions(privacy: PrivacyResult) -> Iterator[ImageFinding]:
    for region in privacy.found:
        text = f"a {region.kind} found by {region.detector} at score {region.score:.2f}"
        yield ImageFinding(region.id, f"{region.kind}_found", text, box=(region.x, region.y, region.w, region.h))


def _masks_and_images(statistics: Statistics) -> Iterator[ImageFinding]:
    for outlier in statistics.outliers:
        yield ImageFinding(outlier.id, "outlier", outlier.reason)
    for pair in statistics.near_duplicates.examples:
        one, other = pair.annotation_ids
        text = f"masks {one} and {other} are near-duplicates: IoU {pair.iou:.3f}"
        yield ImageFinding(pair.id, "near_duplicate", text, mask=one)


@dataclass(frozen=True)
class Filters:
    """Selection and order of images. `choices` maps columns to values; None selects images without a value."""

    text: str = ""  # part of an image_id, or an id
    choices: Mapping[str, str | None] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    greatest: Mapping[str, float] = field(default_factory=dict)
    finding: str | None = None
    label: str | None = None  # label that at least one mask of the image has
    sort: str = "id"
    descending: bool = False


def parse_filters(parameters: Mapping[str, str]) -> Filters:
    """Parse filters from the parameters of a URL, ignoring empty ones. Raises `UsageError` for unknown ones."""
    texts: dict[str, str] = {}
    choices: dict[str, str | None] = {}
    least: dict[str, float] = {}
    greatest: dict[str, float] = {}
    descending = False
    for key, value in parameters.items():
        column, _, end = key.rpartition("_")
        if value == "":
            continue
        if key in ("text", "finding", "label"):
            texts[key] = value
        elif key in CHOICES:
            choices[key] = value
        elif key == "unknown":
            choices |= dict.fromkeys(_known(value.split(","), CHOICES))
        elif column in RANGES and end in ("min", "max"):
            (least if end == "min" else greatest)[column] = _number(key, value)
        elif key == "sort":
            (texts[key],) = _known([value], SORTS)
        elif key == "descending":
            descending = value == "1"
        else:
            raise UsageError(f"unknown filter {key[:_SHOWN]!r}")
    return Filters(choices=choices, least=least, greatest=greatest, descending=descending, **texts)


def where(filters: Filters, with_finding: Mapping[str, list[int]]) -> Sql:
    """Return the filters' SQL condition. `with_finding` maps the code of a finding to the ids of images."""
    terms, values = ["true"], []
    if filters.text:
        number = number_of(filters.text.strip())
        terms.append("(contains(lower(image_id), lower(?)) OR id = ?)")
        values += [filters.text.strip(), -1 if number is None else number]
    for column, choice in filters.choices.items():
        terms.append(f"{column} IS NOT DISTINCT FROM ?")
        values.append(choice)
    for operator, limits in ((">=", filters.least), ("<=", filters.greatest)):
        for column, limit in limits.items():
            terms.append(f"{column} {operator} ?")
            values.append(limit)
    if filters.label is not None:
        terms.append("list_contains(labels, ?)")
        values.append(filters.label)
    if filters.finding is not None:
        wanted = with_finding if filters.finding == ANY_FINDING else [filters.finding]
        terms.append("id IN (SELECT unnest(?::BIGINT[]))")
        values.append(sorted({image for code in wanted for image in with_finding.get(code, [])}))
    return " AND ".join(terms), values


def order(filters: Filters, *, backward: bool = False) -> str:
    """Return the filters' SQL order, which is a total order, or its reverse."""
    falling = filters.descending != backward
    if filters.sort == "id":
        return f"id {'DESC' if falling else 'ASC'}"
    direction = "DESC" if falling else "ASC"
    return f"{filters.sort} {direction} NULLS {'FIRST' if backward else 'LAST'}, id {'DESC' if backward else 'ASC'}"


def beyond(filters: Filters, image: int, value: float | None, *, backward: bool = False) -> Sql:
    """Return the SQL condition for the images after or before an image, whose sort column has the given value.

    A page starts after the previous page's last id instead of at an offset, so every page costs the same.
    """
    operator = "<" if filters.descending != backward else ">"
    if filters.sort == "id":
        return f"id {operator} ?", [image]
    column, beside = filters.sort, "<" if backward else ">"
    if value is None:
        return (f"({column} IS NOT NULL OR id < ?)" if backward else f"({column} IS NULL AND id > ?)"), [image]
    unknown = "" if backward else f" OR {column} IS NULL"
    return f"({column} {operator} ? OR ({column} = ? AND id {beside} ?){unknown})", [value, value, image]


def _known(names: list[str], known: tuple[str, ...]) -> list[str]:
    for name in names:
        if name not in known:
            raise UsageError(f"{name[:_SHOWN]!r}: expected one of {', '.join(known)}")
    return names


def _number(key: str, text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UsageError(f"{key}: expected a number, not {text[:_SHOWN]!r}")
    return number


class ImageIndex(ImagePlaces):
    """Index that searches, sorts, and pages a dataset's images with their findings. Thread-safe."""

    def __init__(self, tables: DatasetTables, findings: Sequence[ImageFinding], folder: Path) -> None:
        known = tables.kind == "segmint"
        labels = (
            f"labels FROM images LEFT JOIN ({_LABELS}) USING (id)" if known else "[]::VARCHAR[] AS labels FROM images"
        )
        super().__init__(tables, folder, _INDEX.format(labels=labels))
        self._tables = tables
        self._lock = threading.Lock()
        self._has_rejects = False
        self._by_image: dict[int, list[ImageFinding]] = {}
        self._by_code: dict[str, list[int]] = {}
        for finding in findings:
            self._by_image.setdefault(finding.image, []).append(finding)
            self._by_code.setdefault(finding.code, []).append(finding.image)

    def summary(self) -> Row:
        """Return the dataset's totals, the values of each filter with image counts, and the limits of ranges."""
        ends = ", ".join(f"min({column}), max({column})" for column in RANGES)
        (total, masks, *limits), *_ = self._rows(f"SELECT count(*), coalesce(sum(masks), 0), {ends} FROM images")
        return {
            "images": total,
            "masks": int(masks),
            "choices": {column: self._choices(column) for column in CHOICES},
            "ranges": {column: limits[2 * place : 2 * place + 2] for place, column in enumerate(RANGES)},
            "labels": self._choices("label", "(SELECT unnest(labels) AS label FROM images)"),
            "findings": [{"code": code, "images": len(set(images))} for code, images in sorted(self._by_code.items())],
        }

    def count(self, filters: Filters) -> int:
        """Return the number of images that match the filters."""
        condition, values = where(filters, self._by_code)
        ((count,),) = self._rows(f"SELECT count(*) FROM images WHERE {condition}", values)
        return int(count)

    def page(self, filters: Filters, after: int | None = None, limit: int = PAGE) -> list[Row]:
        """Return the first images that match the filters, in order. With `after`, start after that image.

        Raises `UnknownImageError` if the image `after` doesn't exist.
        """
        columns = ", ".join(_COLUMNS)
        rows = self._ordered(columns, filters, after, limit)
        images = [dict(zip(_COLUMNS, row, strict=True)) for row in rows]
        return [{**image, "findings": len(self.findings(image["id"]))} for image in images]

    def neighbors(self, filters: Filters, image: int) -> tuple[int | None, int | None]:
        """Return the ids before and after `image` under the filters. Raises `UnknownImageError` if it doesn't exist."""
        before = self._ordered("id", filters, image, 1, backward=True)
        after = self._ordered("id", filters, image, 1)
        return (before[0][0] if before else None), (after[0][0] if after else None)

    def shards(self, images: Iterable[int]) -> dict[int, int]:
        """Return the shards of images by image id. Unknown ids are left out."""
        return dict(self._rows("SELECT id, shard FROM images WHERE id IN (SELECT unnest(?::BIGINT[]))", [list(images)]))

    def reasons(self) -> list[Row]:
        """Return the reasons of rejected rows with their numbers of rows, most frequent first."""
        self._load_rejects()
        found = self._rows("SELECT reason, count(*) AS number FROM rejects GROUP BY 1 ORDER BY number DESC, reason")
        return [{"reason": reason, "rows": number} for reason, number in found]

    def rejects(self, reason: str | None, after: int, limit: int = PAGE) -> list[Row]:
        """Return the first rejected rows with an id above `after`, for one reason or for all."""
        self._load_rejects()
        condition, values = ("", []) if reason is None else (" AND reason = ?", [reason])
        sql = f"SELECT {', '.join(_REJECTED)} FROM rejects WHERE id > ?{condition} ORDER BY id LIMIT {limit:d}"
        return [dict(zip(_REJECTED, row, strict=True)) for row in self._rows(sql, [min(after, HIGHEST_ID), *values])]

    def _load_rejects(self) -> None:
        """Copy the rejected rows into the index. This waits until someone asks for them, because few people do."""
        with self._lock:
            if not self._has_rejects:
                self._copy(self._tables, "rejects", f"SELECT {', '.join(_REJECTED)} FROM rejects")
                self._has_rejects = True

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

    def _choices(self, column: str, source: str = "images") -> list[Row]:
        """Return the values of a column with their numbers of images, most frequent first."""
        found = self._rows(
            f"SELECT {column}, count(*) AS number FROM {source} GROUP BY {column} "
            f"ORDER BY number DESC, {column} NULLS LAST LIMIT {_CHOICES_SHOWN}"
        )
        return [{"value": value, "images": images} for value, images in found]
