"""Corrections of large datasets with Ray Data: one task per shard, as many at once as there are cores."""

import math
import pickle
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

import pyarrow as pa
import ray.data
import ray.exceptions

from segmint.infra.errors import UnfinishedError, last_line
from segmint.infra.progress import Progress
from segmint.infra.ray_session import ray_session
from segmint.pipeline.building.execution.stage_watch import StalledError, watched
from segmint.pipeline.config.config import ResourcesConfig

Result = TypeVar("Result")

WINDOW_SHARDS = 2_000
"""Number of shards per Ray Data execution."""

STAGES = {"correct_block": "correct"}
"""Name of the stage in the progress bar, keyed by a part of its operator's name in Ray Data."""


def correct_block(block: pa.Table, correct_one: Callable[[int], object]) -> pa.Table:
    """Correct the shards of a block and return the pickled results."""
    done = [correct_one(shard) for shard in block.column("shard").to_pylist()]
    return pa.table({"result": pa.array([pickle.dumps(each) for each in done], pa.large_binary())})


def correct_by_ray(
    correct_one: Callable[[int], Result], shards: Sequence[int], resources: ResourcesConfig
) -> Iterator[Result]:
    """Yield `correct_one(shard)` for each shard, in order, on a cluster or a temporary local Ray.

    Ray runs the function in other processes and on other machines. Raises `UnfinishedError` if a shard can't be
    corrected or Ray fails; repeating the correction completes the work.
    """
    with ray_session(resources.address, object_store_memory=resources.object_store_memory) as cluster:
        for start in range(0, len(shards), WINDOW_SHARDS):
            window = shards[start : start + WINDOW_SHARDS]
            blocks = [pa.table({"shard": pa.array([shard], pa.int64())}) for shard in window]
            results = ray.data.from_arrow(blocks).map_batches(
                partial(correct_block, correct_one=correct_one),
                batch_size=None,
                batch_format="pyarrow",
                udf_modifying_row_count=False,
                num_cpus=1,
                concurrency=cluster.most_workers,
            )
            try:
                with Progress() as progress, watched(progress, len(window), math.inf, stages=STAGES):
                    for table in results.iter_batches(batch_size=None, batch_format="pyarrow"):
                        yield from map(pickle.loads, table.column("result").to_pylist())
            except (ray.exceptions.RayError, StalledError) as error:
                raise UnfinishedError(
                    f"the correction isn't finished: {last_line(error)}. Finished work is kept. Repeat the command."
                ) from error
