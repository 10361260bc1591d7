"""Inspection of a catalog's images with Ray Data. It proceeds in parts of rows, and skips finished parts."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import ray.data
import ray.exceptions

from segmint.catalogs.source.rows import NormalizedRows
from segmint.infra.errors import UnfinishedError, last_line
from segmint.infra.log import get_logger
from segmint.infra.progress import Progress
from segmint.infra.ray_session import RETRIES, Cluster, ray_session
from segmint.infra.stopping import check_stopping
from segmint.infra.storage.location import Location
from segmint.operators.curate.features import PART_ROWS, CurateTask, InspectImages, part_name
from segmint.pipeline.building.execution.stage_watch import StalledError, watched
from segmint.pipeline.config.config import ResourcesConfig

WINDOW_PARTS = 512
"""Number of parts in one Ray Data execution. The driver keeps the rows of all of them in memory."""

MOST_STALLED_ROUNDS = 3
"""Consecutive rounds without a new part after which a run ends unfinished."""

STAGES = {"InspectImages": "look"}
"""Name that the progress bar shows, by a part of the operator's name in Ray Data."""


@dataclass
class InspectionRun:
    """Parts and bytes that a run read, and its failures."""

    parts: int = 0
    bytes: int = 0
    seconds: float = 0.0
    faults: dict[int, str] = field(default_factory=dict)  # by the first ordinal of the part
    suspects: set[int] = field(default_factory=set)  # parts valid only for this run; the next run retries them
    died: set[int] = field(default_factory=set)  # parts not written because the child process died on an image

    def missing(self, folder: Location, rows: int) -> list[int]:
        """Return the first ordinals of the parts that are missing from the folder."""
        there = {entry.name for entry in folder.list()} | {part_name(first) for first in self.suspects}
        return [first for first in range(0, rows, PART_ROWS) if part_name(first) not in there]


def inspect_images(
    task: CurateTask, catalog: Location, rows: int, resources: ResourcesConfig, retry_wait_s: float
) -> InspectionRun:
    """Inspect the images in the missing parts of the normalized catalog; return what was read.

    `catalog` is a local file. Failures are retried, including images on which a child process died. If it dies again,
    the image gets no features. Raises `UnfinishedError` if a store or Ray fails and parts are missing in the end.
    """
    looked = InspectionRun()
    missing = looked.missing(task.folder, rows)
    if not missing:
        return looked
    started, stalled = time.monotonic(), 0
    get_logger("curate").info("looking at images", rows=rows, parts=len(missing))
    with (
        ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster,
        NormalizedRows(catalog) as source,
        Progress() as progress,
    ):
        while missing and stalled < MOST_STALLED_ROUNDS:
            looked.faults.clear()
            before = len(missing)
            for start in range(0, before, WINDOW_PARTS):
                window = missing[start : start + WINDOW_PARTS]
                try:
                    _inspect_window(task, source, window, cluster, progress, looked)
                except (ray.exceptions.RayError, StalledError) as error:
                    check_stopping()  # the error may be the result of an interrupt
                    looked.faults[window[0]] = f"Ray failed: {last_line(error)}"
            task = replace(task, again=frozenset(looked.died))
            missing = looked.missing(task.folder, rows)
            stalled = 0 if len(missing) < before else stalled + 1
            if missing and stalled < MOST_STALLED_ROUNDS:
                time.sleep(retry_wait_s * 2**stalled)
    looked.seconds = time.monotonic() - started
    if missing:
        why = [looked.faults[first] for first in missing if first in looked.faults][:5]
        why = why or [f"workers wrote them, but they are not in {task.folder}: all nodes must share this folder"]
        raise UnfinishedError(
            f"{len(missing)} parts of {PART_ROWS} rows could not be inspected. Nothing is lost; run the same command "
            "again to resume:" + "".join(f"\n  {each}" for each in why)
        )
    return looked


def _inspect_window(
    task: CurateTask,
    source: NormalizedRows,
    window: Sequence[int],
    cluster: Cluster,
    progress: Progress,
    looked: InspectionRun,
) -> None:
    tables = list(_tables(source, window))
    workers = min(len(tables), cluster.most_workers)
    results = ray.data.from_arrow(tables).map_batches(
        InspectImages,
        fn_constructor_args=(task,),
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=workers, initial_size=workers),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        max_restarts=RETRIES,
        max_task_retries=RETRIES,
    )
    with watched(progress, len(tables), math.inf, stages=STAGES):
        for done in results.iter_batches(batch_size=None, batch_format="pyarrow"):
            for each in done.to_pylist():
                if each["fault"] is not None:
                    looked.faults[each["first"]] = each["fault"]
                    if each["suspect"]:
                        looked.died.add(each["first"])
                    continue
                looked.parts += 1
                looked.bytes += each["bytes"]
                if each["suspect"]:
                    looked.suspects.add(each["first"])


def _tables(source: NormalizedRows, window: Sequence[int]) -> Iterator[object]:
    """Yield the rows of each part. The missing parts of a large catalog may be far apart, so only their rows are kept.

    Each row group is read once.
    """
    rows = source.take(np.concatenate([np.arange(first, first + PART_ROWS) for first in window]))
    for place in range(len(window)):
        yield rows.slice(place * PART_ROWS, PART_ROWS).combine_chunks()
