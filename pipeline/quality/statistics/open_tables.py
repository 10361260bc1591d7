"""Access to the tables of any dataset, written by segmint or in the layout of SA-1B, COCO, or YOLO."""

import multiprocessing
import os
import time
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

from segmint.catalogs.dataset.foreign import JPEGS, ForeignShard
from segmint.catalogs.dataset.manifest import is_dataset
from segmint.catalogs.dataset.tables import MEMORY_LIMIT, DatasetTables, TableFile, open_committed
from segmint.catalogs.findings import Code, Finding, FindingLocation
from segmint.catalogs.layout import MANIFEST
from segmint.infra.errors import UsageError
from segmint.infra.progress import track
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.operators.foreign.layouts import find_layout
from segmint.operators.foreign.measure import MeasuredShard, measure_shard
from segmint.operators.schemas import SCHEMAS

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
