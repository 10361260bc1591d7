"""A small real dataset in seconds: the stages that a build runs, with real weights, one after another without Ray."""

from collections.abc import Collection, Sequence
from pathlib import Path

import pyarrow as pa

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.findings import Reason
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.storage import Storage
from segmint.operators.describe import describe_table
from segmint.operators.prepare.prepare import Prepare
from segmint.operators.segment.segment import Segment
from segmint.operators.shards.write import retry_shard, write_shard
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.building.execution.accounting import RejectedRows
from segmint.pipeline.building.execution.row_source import RowSource
from segmint.pipeline.building.execution.stages import lay_out
from segmint.pipeline.config.config import load_config


def read_all(source: RowSource) -> pa.Table:
    """Return all rows of a window, as its read tasks give them."""
    return pa.concat_tables(table for task in source.get_read_tasks(1) for table in task())


def build_dataset(
    config_path: Path,
    only: Sequence[int] | None = None,
    retry: Collection[Reason] = (),
    segment_class: type[Segment] = Segment,
) -> str:
    """Build and commit every missing shard of a configuration's dataset, and its index; returns the dataset's URI.

    `only` are the shards to build, if not all. Rows that were refused for the reasons `retry` are tried again. A
    `segment_class` of `tests.support.two_masks` saves a test that isn't about masks the model's time.
    """
    config = load_config(str(config_path))
    storage = Storage(config.storage)
    dataset = open_or_create(config, storage)
    stages = lay_out(config, dataset, Cluster(local=True, cpus=8, gpus=0, nodes=1, cores=1))
    committed = CommitLog(dataset.location).committed()
    prepare = Prepare(*stages.prepare_arguments)
    try:
        segment = segment_class(stages.segment)
        wanted = dataset.shards() if only is None else only
        for span in dataset.spans([shard for shard in wanted if shard not in committed]):
            rows = describe_table(segment(prepare(dataset.read_runs([(span.start, span.stop)]))))
            result = write_shard(dataset.shard_task(config, span), [(0, rows.num_rows)], rows)
            if result.status != "committed":
                raise AssertionError(result.detail)
        refused = RejectedRows(config, dataset, dataset.shards(), retry)
        for shard in refused.left:
            window = refused.read([shard])
            rows = describe_table(segment(prepare(read_all(window.source))))
            retry_shard(window.tasks[shard], [(0, rows.num_rows)], rows)
    finally:
        prepare.close()
    dataset.write_index()
    return dataset.location.uri
