"""The watch over a real execution of Ray Data: its hooks exist, bars move, and a stall ends it."""

import io
import time

import pyarrow as pa
import pytest
import ray.data

from infra.progress import Progress
from infra.ray_session import Cluster
from pipeline.stage_watch import StageWatch, watched

pytestmark = pytest.mark.ray


def describe_rows(table: pa.Table) -> pa.Table:
    time.sleep(0.05)
    return table


def run(rows: int) -> int:
    dataset = ray.data.from_arrow(pa.table({"ordinal": list(range(rows))})).repartition(target_num_rows_per_block=2)
    described = dataset.map_batches(describe_rows, batch_size=None, batch_format="pyarrow", num_cpus=0.5)
    return sum(bundle.num_rows() for bundle in described.iter_internal_ref_bundles())


def test_rows_that_leave_a_stage_are_seen(local_ray: Cluster) -> None:
    told = io.StringIO()
    with Progress(stream=told, interval_s=0, bars=False) as progress, watched(progress, 10, stall_timeout=60):
        assert run(10) == 10
    assert "describe 10/10" in told.getvalue()
    assert StageWatch.progress is None


def test_order_is_kept(local_ray: Cluster) -> None:
    with Progress(stream=io.StringIO(), bars=False) as progress, watched(progress, 40, stall_timeout=60):
        dataset = ray.data.from_arrow(pa.table({"ordinal": list(range(40))})).repartition(target_num_rows_per_block=3)
        blocks = dataset.map_batches(describe_rows, batch_size=None, batch_format="pyarrow", num_cpus=0.5)
        ordinals = [
            ordinal
            for bundle in blocks.iter_internal_ref_bundles()
            for entry in bundle.blocks
            for ordinal in ray.get(entry.ref).column("ordinal").to_pylist()
        ]
    assert ordinals == list(range(40))


def test_an_execution_that_brings_no_commit_is_ended(local_ray: Cluster) -> None:
    with (
        Progress(stream=io.StringIO(), bars=False) as progress,
        watched(progress, 4, stall_timeout=0.01),
        pytest.raises(Exception, match=r"stall_timeout = 0\.01"),
    ):
        run(4)
    assert run(4) == 4, "the next execution starts afresh"
