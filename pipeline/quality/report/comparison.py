"""Comparison of a report's dataset with another one, and the sample of images on its page."""

import base64
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
from PIL import Image

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import load_manifest, name_of
from segmint.catalogs.dataset.tables import DatasetTables
from segmint.catalogs.layout import MOST_MEMBER_BYTES, image_name
from segmint.infra.errors import SegmintError
from segmint.infra.storage.location import Location
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.infra.uris import base_name
from segmint.infra.wording import count, number, share
from segmint.model.automatic.rle import MaskRecord, Rle
from segmint.operators.foreign.layouts import read_jpeg
from segmint.operators.images import PICTURES, JpegDecoder, UndecodableError
from segmint.operators.overlay import draw_overlay
from segmint.operators.prepare.ingest import upright_pixels
from segmint.operators.rows import Row
from segmint.pipeline.quality.report.plots import Bar, Bars, HeatMap, StepHistogram, heat_map, shares_of
from segmint.pipeline.quality.statistics.comparison import (
    ComparedDataset,
    DatasetComparison,
    DatasetMeasures,
    compare,
    concavity_by_size,
)
from segmint.pipeline.quality.statistics.masks import open_tables
from segmint.pipeline.quality.statistics.statistics import compute_statistics
from segmint.pipeline.quality.statistics.values import Histogram, Statistics

THIS = "this dataset"


@dataclass(frozen=True)
class ComparisonCharts:
    """Plots that compare two datasets. A plot is None if one dataset lacks the data."""

    masks_per_image: Bars | None
    relative_size: StepHistogram | None
    concavity: StepHistogram | None  # at equal mask sizes
    centers: tuple[HeatMap, ...]


def measure_comparison(tables: DatasetTables, statistics: Statistics, other: Location) -> DatasetComparison:
    """Compare the dataset of `tables` and `statistics` with the dataset at `other`, whose masks are read here.

    Raises `UsageError` if there is no dataset at `other`, and `DamagedDatasetError` if one of its files is unreadable.
    """
    ours = measured(tables, statistics)
    with open_tables(other) as theirs:
        return compare(ours, measured(theirs, compute_statistics(theirs, 0)))


def measured(tables: DatasetTables, statistics: Statistics) -> DatasetMeasures:
    """Collect the measurements of a dataset that a comparison needs."""
    manifest = None
    if tables.kind == "segmint":
        manifest = load_manifest(tables.location)
    uri = tables.location.uri
    # The comparison is published, so it doesn't contain the folder above the dataset.
    return DatasetMeasures(name_of(manifest, uri), base_name(uri), statistics, concavity_by_size(tables.connection))


def other_name(beside: DatasetComparison) -> str:
    """Return the other dataset's name for the page, or words for it if both datasets have the same name."""
    if beside.theirs.name == beside.ours.name:
        return "the other dataset"
    return beside.theirs.name


def comparison_charts(beside: DatasetComparison) -> ComparisonCharts:
    """Create the plots of two datasets. The other dataset is the second bar or line."""
    ours, theirs, name = beside.ours, beside.theirs, other_name(beside)
    at_sizes = ours.concavity_at_same_sizes, theirs.concavity_at_same_sizes
    concavity = None
    if at_sizes[0].shares:
        concavity = StepHistogram(
            "Concavity at the same sizes",
            "1 − area / area of the convex hull",
            "share of masks, weighted",
            beside.concavity_edges,
            at_sizes[0].shares,
            at_sizes[0].mean,
            other=at_sizes[1].shares,
            other_name=name,
        )
    centers = (
        heat_map(ours.centers, f"Mask centers of {THIS}"),
        heat_map(theirs.centers, f"Mask centers of {name}"),
    )
    return ComparisonCharts(
        _masks_per_image(ours, theirs, name),
        _two_lines(ours.relative_size, theirs.relative_size, name),
        concavity,
        tuple(each for each in centers if each is not None),
    )


def comparison_rows(beside: DatasetComparison) -> list[tuple[str, str, str]]:
    """Return the rows of the table: label, value of this dataset, and value of the other dataset."""
    ours, theirs = _column(beside.ours), _column(beside.theirs)
    return [(name, value, theirs[name]) for name, value in ours.items()]


def _column(side: ComparedDataset) -> dict[str, str]:
    """Return a dataset's values by label."""
    column = {
        "Images": count(side.images),
        "Masks": count(side.masks),
        "Masks per image, mean": number(side.masks_per_image.mean),
        "Masks per image, median": number(side.masks_per_image.median),
        "Relative size, mean": number(side.relative_size.mean),
        "Concavity, mean of all masks": number(side.concavity.mean),
    }
    for masks in side.concavity.by_size:
        column[f"Concavity, mean of {masks.size} masks"] = number(masks.mean)
    column["Concavity, mean at the same sizes"] = number(side.concavity_at_same_sizes.mean)
    return column


def comparison_values(beside: DatasetComparison) -> dict[str, object]:
    """Return a comparison's values for the page's template, by their names in the template."""
    return {
        "other_name": other_name(beside),
        "beside_rows": comparison_rows(beside),
        "beside_charts": comparison_charts(beside),
    }


def comparison_line(beside: DatasetComparison) -> str:
    """Summarize the comparison in one line."""
    texts = []
    for name, side in ((THIS, beside.ours), (other_name(beside), beside.theirs)):
        mean, concavity = number(side.masks_per_image.mean), number(side.concavity_at_same_sizes.mean)
        texts.append(f"{name}: {mean} masks per image, concavity at the same sizes {concavity}")
    return "; ".join(texts)


def _masks_per_image(ours: ComparedDataset, theirs: ComparedDataset, name: str) -> Bars | None:
    if not ours.images or not theirs.images:
        return None
    shares = [shares_of([bin.images for bin in side.masks_per_image.bins]) for side in (ours, theirs)]
    rows = []
    for bin, mine, other in zip(ours.masks_per_image.bins, *shares, strict=True):
        label = bin.label.replace("<=", "≤ ").replace(">", "> ")
        rows.append(Bar(label, mine, f"{count(bin.images)} ({share(mine)})", other))
    return Bars("Masks", "Images", tuple(rows), has_paper=True, paper=name)


def _two_lines(ours: Histogram, theirs: Histogram, name: str) -> StepHistogram | None:
    if not sum(ours.counts or ()) or not sum(theirs.counts or ()):
        return None
    return StepHistogram(
        "Relative size",
        "√(mask's area / image's area)",
        "share of masks",
        ours.edges,
        shares_of(ours.counts or ()),
        ours.mean,
        other=shares_of(theirs.counts or ()),
        other_name=name,
    )


LONG_SIDE = 720
"""Maximum length in pixels of the longer side of an image in a report."""

_QUALITY = 82  # JPEG quality
_STRATA = (0, 10, 50, 100, 200)  # masks per image: the paper's bins, plus one for images without masks

_COLUMNS = "ordinal, id, shard, image_id, masks, width, height, license, attribution, provider, country"

Read = bytes | str
"""Bytes of an image, or the reason why there are none."""


@dataclass(frozen=True)
class ReportImage:
    """Image of a report. `jpeg` is the image scaled down, with its masks, or None if it can't be shown."""

    id: int
    image_id: str | None
    masks: int
    width: int
    height: int
    license: str | None
    attribution: str | None
    provider: str | None
    country: str | None
    jpeg: bytes | None
    problem: str = ""  # why `jpeg` is None

    @property
    def data_uri(self) -> str:
        """JPEG as a data URI."""
        return f"data:image/jpeg;base64,{base64.b64encode(self.jpeg or b'').decode('ascii')}"


def choose_images(tables: DatasetTables, wanted: int, without: Iterable[int] = ()) -> list[int]:
    """Choose up to `wanted` images, and return their ids in order of their number of masks.

    Images are grouped into strata by masks per image, and drawn from the strata round-robin. Within a stratum, a hash
    of the id determines the order, so the order of the rows doesn't affect the choice. Ids in `without` and foreign
    images without a JPEG are skipped.
    """
    if not wanted:
        return []
    stratum = " + ".join(f"(masks > {limit})::INT" for limit in _STRATA)
    drawable = "AND ordinal IN (SELECT ordinal FROM jpegs) " if tables.kind != "segmint" else ""
    rows = tables.query(
        f"SELECT {stratum} AS stratum, min_by(id, md5(id::VARCHAR), {wanted}) AS ids FROM images "
        f"WHERE NOT list_contains(?::BIGINT[], id) {drawable}GROUP BY stratum ORDER BY stratum",
        [sorted(without)],
    ).to_pylist()
    chosen = [row["ids"][place] for place in range(wanted) for row in rows if place < len(row["ids"])]
    by_masks = "SELECT id FROM images WHERE list_contains(?::BIGINT[], id) ORDER BY masks, id"
    return list(dict.fromkeys(tables.query(by_masks, [chosen[:wanted]]).column("id").to_pylist()))


def draw_pictures(tables: DatasetTables, commits: Sequence[Commit], ids: Sequence[int]) -> list[ReportImage]:
    """Draw these images in order, from committed released pixels. Missing ids are skipped.

    Foreign JPEGs are decoded and drawn in a child process, because they might crash it.
    """
    if not ids:
        return []
    found = tables.query(
        f"SELECT {_COLUMNS} FROM images WHERE list_contains(?::BIGINT[], id) ORDER BY ordinal DESC", [list(ids)]
    )
    rows = {row["id"]: row for row in found.to_pylist()}  # foreign data can repeat an id; the first image wins
    masks = _masks_of(tables, rows.values())
    read = _foreign(tables, rows) if tables.kind != "segmint" else _own(tables, commits, rows)
    with JpegDecoder(own=tables.kind == "segmint", processes=1) as decoder:
        drawn = {id: _picture(rows[id], masks.get(rows[id]["ordinal"], []), jpeg, decoder) for id, jpeg in read}
    return [drawn[id] for id in ids if id in drawn]


def draw_small(jpeg: bytes, masks: Sequence[MaskRecord]) -> bytes:
    """Scale an image down to sides of at most `LONG_SIDE` pixels, draw its masks, and encode it as a JPEG.

    Raises `OSError` or `ValueError` if the data isn't an image, if the image is too large, or if a mask has another
    size.
    """
    with Image.open(io.BytesIO(jpeg), formats=PICTURES) as image:
        pixels = np.asarray(image.convert("RGB"))
        if masks and masks[0].segmentation.size != pixels.shape[:2]:  # they may describe it upright
            pixels = upright_pixels(image)
    for mask in masks:
        if mask.segmentation.size != pixels.shape[:2]:
            raise ValueError(f"a mask is {mask.segmentation.size} in size, but the image is {pixels.shape[:2]}")
    drawn = draw_overlay(pixels, masks)
    scale = min(1.0, LONG_SIDE / max(drawn.shape[:2]))
    size = max(1, round(drawn.shape[1] * scale)), max(1, round(drawn.shape[0] * scale))
    small = np.asarray(cv2.resize(drawn, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).save(buffer, format="JPEG", quality=_QUALITY)
    return buffer.getvalue()


def _masks_of(tables: DatasetTables, rows: Iterable[Row]) -> dict[int, list[MaskRecord]]:
    """Return the masks of images by ordinal."""
    found: dict[int, list[MaskRecord]] = {}
    table = tables.query(
        "SELECT ordinal, segmentation, area FROM masks "
        "WHERE list_contains(?::BIGINT[], shard) AND list_contains(?::BIGINT[], ordinal)",
        [sorted({row["shard"] for row in rows}), sorted(row["ordinal"] for row in rows)],
    )
    for row in table.to_pylist():
        height, width = row["segmentation"]["size"]
        rle = Rle((height, width), row["segmentation"]["counts"])
        found.setdefault(row["ordinal"], []).append(MaskRecord(rle, row["area"]))
    return found


def _own(tables: DatasetTables, commits: Sequence[Commit], rows: Mapping[int, Row]) -> Iterator[tuple[int, Read]]:
    held = {commit.shard: commit for commit in commits}
    by_shard: dict[int, list[int]] = {}
    for id, row in sorted(rows.items()):
        by_shard.setdefault(row["shard"], []).append(id)
    for shard, members in by_shard.items():
        yield from _from_tar(tables.location / held[shard].file("shards").path, members)


def _from_tar(tar: Location, ids: Iterable[int]) -> Iterator[tuple[int, Read]]:
    """Yield the JPEGs of images from their shard's tar. Stop reading after the last one."""
    wanted = {image_name(id): id for id in ids}
    problem = "not in its shard's tar"
    try:
        with tar.open() as stream:
            archive = TarReader(stream)
            for member in archive:
                if member.name in wanted and is_plain_file(member) and member.size <= MOST_MEMBER_BYTES:
                    yield wanted.pop(member.name), archive.read(member)
                if not wanted:
                    return
    except (BadTarError, SegmintError) as error:
        problem = f"can't read its shard's tar: {error}"
    for id in wanted.values():
        yield id, problem


def _foreign(tables: DatasetTables, rows: Mapping[int, Row]) -> Iterator[tuple[int, Read]]:
    for id, row in rows.items():
        jpeg = read_jpeg(tables, row["ordinal"])
        yield id, "no JPEG" if jpeg is None else jpeg


def _picture(row: Row, masks: Sequence[MaskRecord], jpeg: Read, decoder: JpegDecoder) -> ReportImage:
    picture = ReportImage(
        id=row["id"],
        image_id=row["image_id"],
        masks=row["masks"] or 0,
        width=row["width"] or 0,
        height=row["height"] or 0,
        license=row["license"],
        attribution=row["attribution"],
        provider=row["provider"],
        country=row["country"],
        jpeg=None,
    )
    if isinstance(jpeg, str):
        return replace(picture, problem=jpeg)
    try:
        return replace(picture, jpeg=decoder.run(partial(draw_small, masks=masks), jpeg))
    except (UndecodableError, SegmintError) as error:
        return replace(picture, problem=f"it can't be decoded or drawn: {error}")
