"""A dataset of stubbed images without Ray, as a build with the same stubs makes it."""

from pathlib import Path

from benchmarks.building.stubs import StubbedPrepare, StubbedSegment
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.storage import Storage
from segmint.operators.describe import describe_table
from segmint.operators.shards.write import ShardResult, write_shard
from segmint.pipeline.building.dataset import open_or_create
from segmint.pipeline.building.execution.accounting import shard_rows
from segmint.pipeline.building.execution.stages import lay_out
from segmint.pipeline.config.config import load_config
from tests.support.small_dataset import read_all


def write_dataset(config_path: Path, shards: int | None = None) -> list[ShardResult]:
    """Write and commit every shard, or only the first ones, one after another, in this process."""
    config = load_config(str(config_path))
    storage = Storage(config.storage)
    dataset = open_or_create(config, storage)
    stages = lay_out(config, dataset, Cluster(local=True, cpus=8, gpus=0, nodes=1, cores=2))
    prepare, segment = StubbedPrepare(*stages.prepare_arguments), StubbedSegment(stages.segment)
    results = []
    try:
        for shard in dataset.shards()[:shards]:
            taken = shard_rows(config, dataset, [shard])
            described = describe_table(segment(prepare(read_all(taken.source))))
            results.append(write_shard(taken.tasks[shard], [(0, described.num_rows)], described))
    finally:
        prepare.close()
    return results
