"""Tables of a dataset, open for SQL, and the statistics of all its masks (SAM paper, section 5)."""

import multiprocessing
import os
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import duckdb

from segmint.catalogs.dataset.manifest import is_dataset
from segmint.catalogs.dataset.tables import MEMORY_LIMIT, DatasetTables, TableFile, open_committed, read_query
from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import MANIFEST
from segmint.infra.errors import UsageError
from segmint.infra.progress import track
from segmint.infra.scratch import ScratchFolder
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location
from segmint.operators.foreign.layouts import JPEGS, ForeignShard, find_layout
from segmint.operators.foreign.measure import MeasuredShard, measure_shard
from segmint.operators.rows import AUTOMATIC, SCHEMAS, Row
from segmint.pipeline.quality.statistics.values import (
    Bins,
    Centers,
    Concavity,
    Histogram,
    HugeMasks,
    LabelMasks,
    MaskLevels,
    MaskTableStatistics,
    SizeConcavity,
    TinyMasks,
    as_counts,
    rounded,
)

SHARES = Bins(0, 1, 50)
"""Bins of relative size and concavity, which `segmint.operators.rows.MASK_STATISTICS` defines."""

ASPECTS = Bins(-5, 5, 40, log2=True)
PREDICTED_IOU = Bins(0.5, 1.1, 60)
STABILITY = Bins(0.5, 1, 50)
CENTERS = 32
"""Number of bins per axis in the map of mask centers."""

SMALL, LARGE = 0.06, 0.17
"""Bounds of the relative size of medium masks: COCO's 32 x 32 and 96 x 96 pixels in its images of 640 x 480."""

TINY_PX = 100
"""Area in pixels below which the paper's cleanup removes mask regions (Appendix B)."""

HUGE_SHARE = 0.95
"""Fraction of the image at or above which the paper removes a mask (Appendix B)."""

_ROUNDING = 1e-12
"""Tolerance for the square of a rounded root. It is smaller than one pixel's share of any image."""

SIZES = ("small", "medium", "large")

_NUMBERS = ("relative_size", "concavity", "aspect_ratio", "predicted_iou", "stability_score", "center_x", "center_y")


def mask_statistics(connection: duckdb.DuckDBPyConnection) -> MaskTableStatistics:
    """Compute counts, means, and histograms over the view `masks`."""
    found = {key: value for query in (_means(), _histograms()) for key, value in _row(connection, query).items()}
    masks = found["masks"]
    concavities = as_counts(found["concavities"])
    by_size = [SHARES.counts(concavities, first=index * SHARES.count) for index in range(len(SIZES))]
    centers = as_counts(found["centers"])
    return MaskTableStatistics(
        masks=masks,
        relative_size=_histogram(SHARES, found["relative_sizes"], found["mean_relative_size"], masks),
        concavity=Concavity(
            edges=SHARES.edges,
            counts=tuple(sum(counts) for counts in zip(*by_size, strict=True)),
            mean=rounded(found["mean_concavity"]),
            by_size=tuple(
                SizeConcavity(size, counts, rounded(found[f"mean_concavity_{size}"]))
                for size, counts in zip(SIZES, by_size, strict=True)
            ),
        ),
        aspect_ratio=_histogram(ASPECTS, found["aspect_ratios"], found["mean_aspect_ratio"], masks),
        predicted_iou=_histogram(PREDICTED_IOU, found["predicted_ious"], found["mean_predicted_iou"], masks),
        stability_score=_histogram(STABILITY, found["stability_scores"], found["mean_stability_score"], masks),
        centers=Centers(
            CENTERS,
            tuple(tuple(centers.get(row * CENTERS + column, 0) for column in range(CENTERS)) for row in range(CENTERS)),
        ),
        tiny=TinyMasks(TINY_PX, found["tiny"]),
        huge=HugeMasks(HUGE_SHARE, found["huge"]),
        levels=MaskLevels((found["output_0"], found["output_1"], found["output_2"]), found["contained"]),
    )


def masks_by_source(connection: duckdb.DuckDBPyConnection) -> dict[str, int]:
    """Count the masks in the view `masks` by source. Automatic masks come first, then the other sources by name."""
    query = f"SELECT coalesce(source, '{AUTOMATIC}') AS source, count(*) AS masks FROM masks GROUP BY ALL"
    rows = read_query(connection, query).to_pylist()
    found = {row["source"]: row["masks"] for row in rows}
    return dict(sorted(found.items(), key=lambda item: (item[0] != AUTOMATIC, item[0])))


def masks_by_label(connection: duckdb.DuckDBPyConnection) -> tuple[LabelMasks, ...]:
    """Count the masks in the view `masks` by label, most frequent first. Return nothing if there are no labels."""
    query = "SELECT label, count(*) AS masks FROM masks GROUP BY label ORDER BY masks DESC, label NULLS FIRST"
    rows = read_query(connection, query).to_pylist()
    return tuple(LabelMasks(**row) for row in rows) if any(row["label"] is not None for row in rows) else ()


def _row(connection: duckdb.DuckDBPyConnection, query: str) -> dict[str, Any]:
    """Run a query that returns one row, and return the row."""
    row: Row = read_query(connection, query).to_pylist()[0]
    return row


def _histogram(bins: Bins, found: Any, mean: float | None, masks: int) -> Histogram:
    counts = as_counts(found)
    return Histogram(bins.edges, bins.counts(counts) if counts or not masks else None, rounded(mean))


def _means() -> str:
    """Return the query for counts and means."""
    by_size = ", ".join(
        f"avg(concavity) FILTER (WHERE size = {index}) AS mean_concavity_{size}" for index, size in enumerate(SIZES)
    )
    outputs = ", ".join(f"count(*) FILTER (WHERE output = {output}) AS output_{output}" for output in range(3))
    return f"""
        SELECT
            count(*) AS masks,
            count(*) FILTER (WHERE area < {TINY_PX}) AS tiny,
            count(*) FILTER (WHERE relative_size * relative_size >= {HUGE_SHARE - _ROUNDING}) AS huge,
            {outputs},
            count(container) AS contained,
            avg(relative_size) AS mean_relative_size,
            avg(concavity) AS mean_concavity,
            {by_size},
            exp(avg(ln(aspect_ratio)) FILTER (WHERE aspect_ratio > 0)) AS mean_aspect_ratio,
            avg(predicted_iou) AS mean_predicted_iou,
            avg(stability_score) AS mean_stability_score
        FROM ({_rows()})
    """


def _histograms() -> str:
    """Return the query for histograms, separate from `_means` because DuckDB 2.0 would hold whole columns for both."""
    place = Bins(0, 1, CENTERS)
    return f"""
        SELECT
            histogram({SHARES.index("relative_size")}) AS relative_sizes,
            histogram(size * {SHARES.count} + {SHARES.index("concavity")}) AS concavities,
            histogram({ASPECTS.index("aspect_ratio")}) FILTER (WHERE aspect_ratio > 0) AS aspect_ratios,
            histogram({PREDICTED_IOU.index("predicted_iou")}) AS predicted_ious,
            histogram({STABILITY.index("stability_score")}) AS stability_scores,
            histogram({place.index("center_y")} * {CENTERS} + {place.index("center_x")}) AS centers
        FROM ({_rows()})
    """


def _rows() -> str:
    """Return the query for masks, with their index in `SIZES`. Non-finite numbers become null."""
    numbers = ", ".join(f"CASE WHEN isfinite({name}) THEN {name} END AS {name}" for name in _NUMBERS)
    return f"""
        SELECT *, CASE WHEN relative_size < {SMALL} THEN 0 WHEN relative_size < {LARGE} THEN 1 ELSE 2 END AS size
        FROM (SELECT area, output, container, {numbers} FROM masks)
    """


ALONE_S = 10.0
"""Seconds until this process starts workers to measure foreign data, so that small folders don't wait for workers."""

_DUPLICATES = 10_000
"""Maximum number of findings about repeated ids."""


def open_tables(
    data: Location,
    memory_limit: str = MEMORY_LIMIT,
    scratch: Path | None = None,
    leave_out: frozenset[int] = frozenset(),
    alone_s: float = ALONE_S,
    more: Sequence[Location] = (),
    images: Location | None = None,
) -> DatasetTables:
    """Open the tables of a dataset as the views `images`, `masks`, and `rejects`.

    For a segmint dataset, the committed Parquet files are read in place, except for the shards in `leave_out`. Foreign
    data is first measured into Parquet files below `scratch`, which are deleted when the tables are closed;
    `foreign.findings` lists its problems. For `more` COCO files and the folder `images`, see `find_layout`. Raises
    `UsageError` if there is no data of any kind.
    """
    if not more and images is None and is_dataset(data):
        return open_committed(data, SCHEMAS, memory_limit, scratch, leave_out)
    folder = ScratchFolder(dir=scratch)
    try:
        return _open_foreign([data, *more], images, memory_limit, folder, alone_s)
    except BaseException:
        folder.cleanup()
        raise


def _open_foreign(
    data: Sequence[Location], images: Location | None, memory_limit: str, folder: ScratchFolder, alone_s: float
) -> DatasetTables:
    schemas = {**SCHEMAS, "jpegs": JPEGS}
    files: dict[str, list[TableFile]] = {kind: [] for kind in schemas}
    foreign, found = find_layout(data, images)
    count = 0
    with closing(_measured(data[0], found, Path(folder.name), alone_s)) as shards:
        for measured in track(shards, "shards"):
            count += measured.images
            foreign.boxes += measured.boxes
            foreign.unlisted += measured.unlisted
            foreign.findings.extend(measured.findings)
            for kind, file in measured.files.items():
                files[kind].append(file)
    if not count:
        names = ", ".join(map(str, data))
        raise UsageError(
            f"{names} is not a dataset: it contains neither {MANIFEST}, nor images in the layout of COCO (a JSON "
            "file), YOLO (data.yaml), or SA-1B (JPEG and JSON pairs, loose or in tars). Check the path"
        )
    tables = DatasetTables(data[0], files, schemas, folder, memory_limit, foreign)
    if foreign.kind == "sa1b":  # the ids of others only need to be unique in a file
        foreign.findings.extend(_duplicates(tables))
    return tables


def _measured(
    data: Location, shards: Iterator[ForeignShard], folder: Path, alone_s: float
) -> Generator[MeasuredShard, None, None]:
    """Yield the measured shards in order. This process measures the first ones; later, one process per core helps."""
    started = time.monotonic()
    for shard in shards:
        yield measure_shard(data, shard, folder)
        if time.monotonic() - started >= alone_s:
            break
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:

        def measure(shard: ForeignShard) -> MeasuredShard:
            return pool.submit(measure_shard, data, shard, folder).result()

        yield from map_ahead(measure, shards, workers, workers + 1, "measure")


def _duplicates(tables: DatasetTables) -> Iterator[Finding]:
    """Yield a finding for each image id or annotation id that occurs more than once in the dataset."""
    for view, column, noun in (("images", "id", "image"), ("masks", "annotation_id", "mask")):
        rows = tables.query(
            f"SELECT {column} AS number, count(*) AS times, min(image_id) AS first, max(image_id) AS last, "
            f"min_by(id, image_id) AS id, min_by(shard, image_id) AS shard FROM {view} "
            f"GROUP BY {column} HAVING times > 1 ORDER BY {column} LIMIT {_DUPLICATES}"
        )
        for row in rows.to_pylist():
            found = f"{row['times']}, of {row['first']} and {row['last']}"
            place = FindingLocation(row["first"], row["shard"], row["id"])
            mask = row["number"] if noun == "mask" else None
            yield place.finding(Code.ROW_IDENTITY, "a unique number", found, f"{noun} {row['number']}", mask=mask)
