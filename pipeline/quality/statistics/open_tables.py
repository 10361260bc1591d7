"""Access to the tables of any dataset, written by segmint or SA-1B-style."""

import multiprocessing
import os
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import closing
from pathlib import Path

from segmint.catalogs.dataset.foreign import JPEGS, find_shards
from segmint.catalogs.dataset.manifest import is_dataset
from segmint.catalogs.dataset.tables import MEMORY_LIMIT, DatasetTables, Foreign, TableFile, open_committed
from segmint.catalogs.findings import Code, Finding, FindingCollector, FindingLocation
from segmint.catalogs.layout import MANIFEST
from segmint.infra.errors import UsageError
from segmint.infra.progress import track
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.operators.foreign.masks import BOXES, BoxConvention
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
) -> DatasetTables:
    """Open the tables of a dataset as the views `images`, `masks`, and `rejects`.

    For a segmint dataset, the committed Parquet files are read in place, except for the shards in `leave_out`. Foreign
    data is first measured into Parquet files below `scratch`, which are deleted when the tables are closed;
    `foreign.findings` lists its problems. Raises `UsageError` if there is no data of either kind.
    """
    if is_dataset(data):
        return open_committed(data, SCHEMAS, memory_limit, scratch, leave_out)
    folder = ScratchFolder(dir=scratch)
    try:
        return _open_foreign(data, memory_limit, folder, alone_s)
    except BaseException:
        folder.cleanup()
        raise


def _open_foreign(data: Location, memory_limit: str, folder: ScratchFolder, alone_s: float) -> DatasetTables:
    files: dict[str, list[TableFile]] = {kind: [] for kind in (*SCHEMAS, "jpegs")}
    findings = FindingCollector()
    boxes: dict[BoxConvention, FindingCollector] = {name: FindingCollector() for name in BOXES}
    images = 0
    with closing(_measured(data, Path(folder.name), alone_s)) as shards:
        for measured in track(shards, "shards"):
            images += measured.images
            findings.extend(measured.findings)
            for convention, found in measured.boxes.items():
                boxes[convention].extend(found)
            for kind, file in measured.files.items():
                files[kind].append(file)
    if not images:
        raise UsageError(
            f"{data} is not a dataset: it contains neither {MANIFEST} nor SA-1B-style JPEG and JSON pairs, "
            "loose or in tars. Check the path"
        )
    # The convention that fits most boxes of all data, because a single mask can fit either convention by chance.
    most = max(boxes, key=lambda name: boxes[name].total)
    for convention, found in boxes.items():
        if convention != most:
            findings.extend(found)
    schemas = {**SCHEMAS, "jpegs": JPEGS}
    tables = DatasetTables(data, files, schemas, folder, memory_limit, Foreign(findings))
    findings.extend(_duplicates(tables))
    return tables


def _measured(data: Location, folder: Path, alone_s: float) -> Generator[MeasuredShard, None, None]:
    """Yield the measured shards in order. This process measures the first ones; later, one process per core helps."""
    started = time.monotonic()
    shards = find_shards(data)
    for shard in shards:
        yield measure_shard(data, shard, folder)
        if time.monotonic() - started >= alone_s:
            break
    workers = os.cpu_count() or 1
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting: deque[Future[MeasuredShard]] = deque()
        for shard in shards:
            waiting.append(pool.submit(measure_shard, data, shard, folder))
            if len(waiting) > workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _duplicates(tables: DatasetTables) -> Iterator[Finding]:
    """Yield a finding for each image id or annotation id that occurs more than once in the dataset."""
    for view, column in (("images", "id"), ("masks", "annotation_id")):
        rows = tables.query(
            f"SELECT {column} AS number, count(*) AS times, min(image_id) AS first, max(image_id) AS last, "
            f"min_by(id, image_id) AS id, min_by(shard, image_id) AS shard FROM {view} "
            f"GROUP BY {column} HAVING times > 1 ORDER BY {column} LIMIT {_DUPLICATES}"
        )
        for row in rows.to_pylist():
            found = f"{row['times']}, of {row['first']} and {row['last']}"
            where = f"{'image' if view == 'images' else 'mask'} {row['number']}"
            place = FindingLocation(row["first"], row["shard"], row["id"])
            mask = row["number"] if view == "masks" else None
            yield place.finding(Code.ROW_IDENTITY, "a unique number", found, where, mask=mask)
