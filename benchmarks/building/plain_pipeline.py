"""Pipeline of Ray Data with a build's operators, pools, and limits, whose functions only pass tables on.

    python benchmarks/building/plain_pipeline.py ACTORS ROWS ROWS_PER_BLOCK OBJECT_STORE

It runs on the same local Ray instance and with the same settings of Ray Data as a build, but without a catalog, a
ledger, progress, or shards. The actors of `PlainSegment` sleep and note their images as those of `StubbedSegment` do.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow as pa

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.building.pace import image_s, note  # noqa: E402

CPUS_PER_ACTOR = 0.01
"""Logical CPUs of an actor that sleeps, also in a build of `driver.py`."""

READ_ROWS = 512
RETRIES = 16
ROW_BYTES = 2000
"""Bytes per row, as of a small released JPEG with its masks."""


class PlainPrepare:
    """Stage that adds bytes to each row."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the rows with bytes."""
        return table.append_column("release", pa.array([bytes(ROW_BYTES)] * table.num_rows))


class PlainSegment:
    """Stage that sleeps for each row."""

    def __init__(self) -> None:
        note("start")

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the same rows."""
        for _ in range(table.num_rows):
            time.sleep(image_s())
            note("image")
        return table


def describe(table: pa.Table) -> pa.Table:
    """Return the same rows."""
    return table


def main() -> None:
    """Run the pipeline to its end."""
    import ray.data

    from segmint.infra.ray_internals import limit_waiting_blocks
    from segmint.infra.ray_session import ray_session
    from segmint.pipeline.building.execution.stages import DESCRIBE

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("actors", "rows", "rows_per_block", "object_store"):
        parser.add_argument(name, type=int)
    arguments = parser.parse_args()
    blocks: dict[str, Any] = {"batch_size": None, "batch_format": "pyarrow", "udf_modifying_row_count": False}
    with ray_session("local", object_store_memory=arguments.object_store):
        context = ray.data.DataContext.get_current()
        context.execution_options.preserve_order = True
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        limit_waiting_blocks(context, 2 * arguments.actors)
        rows = ray.data.range(arguments.rows, override_num_blocks=max(1, arguments.rows // READ_ROWS))
        rows = rows.repartition(target_num_rows_per_block=arguments.rows_per_block)
        actors = {**blocks, "max_restarts": RETRIES, "max_task_retries": RETRIES}
        rows = rows.map_batches(PlainPrepare, compute=_pool(1), num_cpus=1, **actors)
        rows = rows.map_batches(PlainSegment, compute=_pool(arguments.actors), num_cpus=CPUS_PER_ACTOR, **actors)
        rows = rows.map_batches(describe, num_cpus=DESCRIBE["num_cpus"], max_retries=RETRIES, **blocks)
        for _ in rows.iter_internal_ref_bundles():
            pass


def _pool(actors: int) -> Any:
    from ray.data import ActorPoolStrategy

    return ActorPoolStrategy(min_size=actors, max_size=actors, max_tasks_in_flight_per_actor=2)


if __name__ == "__main__":
    main()
