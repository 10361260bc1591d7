"""Shard writers as real Ray tasks: a bounded number at once, every result once, errors not swallowed."""

from pathlib import Path

import pytest
import ray

from segmint.infra.ray_session import Cluster
from segmint.operators.shards.write import ShardTask
from segmint.pipeline.building.execution import stage_watch
from segmint.pipeline.building.execution.stage_watch import BlockSlice, ShardWriters
from tests.support.described_rows import accepted_row, described
from tests.support.locations import handle_of

pytestmark = pytest.mark.ray


def shard_task(folder: Path, shard: int, rows: int) -> ShardTask:
    return ShardTask(shard, shard * rows, (shard + 1) * rows, handle_of(folder), "0123456789ab", 0.5)


def test_every_shard_s_result_comes_once_from_references_alone(local_ray: Cluster, tmp_path: Path) -> None:
    # Two blocks of three rows for three shards of two: the middle shard is cut out of both.
    blocks = [ray.put(described([accepted_row(i) for i in rows])) for rows in ((0, 1, 2), (3, 4, 5))]
    cuts = [
        [BlockSlice(blocks[0], 0, 2)],
        [BlockSlice(blocks[0], 2, 3), BlockSlice(blocks[1], 0, 1)],
        [BlockSlice(blocks[1], 1, 3)],
    ]
    writers = ShardWriters(limit=1, check=lambda: None)
    results = []
    for shard, pieces in enumerate(cuts):
        results.extend(writers.submit(shard_task(tmp_path, shard, 2), pieces))
        assert len(writers.in_flight) <= 1
    results.extend(writers.drain())
    assert sorted(result.shard for result in results) == [0, 1, 2]
    assert {result.status for result in results} == {"committed"}
    assert len(list((tmp_path / "commits").iterdir())) == 3


def test_a_writer_s_error_reaches_the_driver(local_ray: Cluster, tmp_path: Path) -> None:
    block = ray.put(described([accepted_row(5)]))
    writers = ShardWriters(limit=2, check=lambda: None)
    list(writers.submit(shard_task(tmp_path, 0, 1), [BlockSlice(block, 0, 1)]))
    with pytest.raises(ray.exceptions.RayTaskError, match="expected the ordinals 0 to 0"):
        list(writers.drain())


@ray.remote(num_cpus=1000)
def never() -> None:
    """A block that no node can make."""


def test_a_writer_whose_blocks_never_come_is_given_up(
    local_ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_watch, "LOOK_S", 0.1)
    looks = iter(["patience", "patience", "none"])

    def check() -> None:
        if next(looks) == "none":
            raise TimeoutError("nothing moves")

    writers = ShardWriters(limit=1, check=check)
    list(writers.submit(shard_task(tmp_path, 0, 1), [BlockSlice(never.remote(), 0, 1)]))
    (writer,) = writers.in_flight
    with pytest.raises(TimeoutError, match="nothing moves"):
        list(writers.drain())
    writers.close()
    with pytest.raises(ray.exceptions.TaskCancelledError):
        ray.get(writer, timeout=30)


def test_a_writer_that_can_end_is_let_to_end(local_ray: Cluster, tmp_path: Path) -> None:
    writers = ShardWriters(limit=1, check=lambda: None)
    list(writers.submit(shard_task(tmp_path, 0, 1), [BlockSlice(ray.put(described([accepted_row(0)])), 0, 1)]))
    writers.close()
    assert [path.name for path in (tmp_path / "commits").iterdir()] == ["000000.g1.json"]
