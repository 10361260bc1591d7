"""The watch over a real execution of Ray Data: its hooks exist, bars move, and a stall ends it."""

import io
import time

import pyarrow as pa
import pytest
import ray.data
from ray.util import list_named_actors

from segmint.infra.progress import Progress
from segmint.infra.ray_session import Cluster
from segmint.pipeline.build import iter_blocks
from segmint.pipeline.building.execution import stage_watch
from segmint.pipeline.building.execution.stage_watch import StageWatch, StalledError, watched
from tests.support.row_stubs import describe_rows

pytestmark = pytest.mark.ray


def run(rows: int) -> int:
    dataset = ray.data.from_arrow(pa.table({"ordinal": list(range(rows))})).repartition(target_num_rows_per_block=2)
    described = dataset.map_batches(describe_rows, batch_size=None, batch_format="pyarrow", num_cpus=0.5)
    return sum(rows for _, rows in iter_blocks(described))


def test_rows_that_leave_a_stage_are_seen(local_ray: Cluster) -> None:
    told = io.StringIO()
    with Progress(stream=told, interval_s=0, bars=False) as progress, watched(progress, 10, stall_timeout=60):
        assert run(10) == 10
    assert "describe 10/10" in told.getvalue()
    assert StageWatch.progress is None
    actors = {each["name"] for each in list_named_actors(all_namespaces=True)}
    assert {"AutoscalingCoordinator", "AutoscalingRequester"} & actors, "the name depends on Ray's version"
    assert "datasets_stats_actor" not in actors  # the dashboard's, which a local Ray doesn't have


def test_bars_sum_over_windows_whatever_came_of_them(local_ray: Cluster) -> None:
    told = io.StringIO()
    with Progress(stream=told, interval_s=0, bars=False) as progress:
        for rows in (6, 4):
            with watched(progress, rows, stall_timeout=60):
                assert run(rows) == rows
            told.write("next\n")
        with watched(progress, 8, stall_timeout=60):
            pass  # no row of it came
        with watched(progress, 2, stall_timeout=60):
            assert run(2) == 2
    first, second, third = told.getvalue().split("next\n")
    assert "describe 6/6 (100.0%" in first
    assert "describe 10/10 (100.0%" in second
    assert "describe 12/12 (100.0%" in third


def test_rows_that_pass_the_stages_again_count_once(local_ray: Cluster) -> None:
    told = io.StringIO()
    with Progress(stream=told, interval_s=0, bars=False) as progress:
        with watched(progress, 6, stall_timeout=60) as watch:
            watch.run_again(4)  # of another shard
            assert run(10) == 10
        assert "describe 6/6 (100.0%" in told.getvalue()
        with watched(progress, 4, stall_timeout=60, finished=2):  # a worker died, so that its rows need another window
            assert progress.done("describe") == 6
            assert run(4) == 4
        assert progress.done("describe") == 6
    assert "describe 6/6 (100.0%" in told.getvalue()


def test_order_is_kept(local_ray: Cluster) -> None:
    with Progress(stream=io.StringIO(), bars=False) as progress, watched(progress, 40, stall_timeout=60):
        dataset = ray.data.from_arrow(pa.table({"ordinal": list(range(40))})).repartition(target_num_rows_per_block=3)
        blocks = dataset.map_batches(describe_rows, batch_size=None, batch_format="pyarrow", num_cpus=0.5)
        ordinals = [ordinal for ref, _ in iter_blocks(blocks) for ordinal in ray.get(ref).column("ordinal").to_pylist()]
    assert ordinals == list(range(40))


def test_an_execution_that_brings_no_commit_is_ended(local_ray: Cluster) -> None:
    with (
        Progress(stream=io.StringIO(), bars=False) as progress,
        watched(progress, 4, stall_timeout=0),
        pytest.raises(Exception, match="stall_timeout = 0"),
    ):
        run(4)
    assert run(4) == 4, "the next execution starts afresh"


def test_an_execution_that_a_lost_node_holds_up_is_ended_long_before(
    local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_watch, "NODES_EVERY_S", -1.0)
    monkeypatch.setattr(stage_watch, "LOST_NODE_WAIT_S", -1.0)
    with Progress(stream=io.StringIO(), bars=False) as progress, watched(progress, 4, stall_timeout=60):
        StageWatch.nodes |= {"a node that was there when the window began"}
        with pytest.raises(Exception, match="a node was lost"):
            run(4)
    with Progress(stream=io.StringIO(), bars=False) as progress, watched(progress, 4, stall_timeout=60):
        assert run(4) == 4, "the nodes of the next window are those that are left"


def test_waiting_for_shards_is_told_and_ends_with_a_stall(local_ray: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr("segmint.infra.progress.LONGEST_SILENCE_S", 1.0)
    with Progress(stream=told, bars=False) as progress, watched(progress, 4, stall_timeout=1) as watch:
        watch.check()
        assert told.getvalue() == ""
        time.sleep(1.1)
        with pytest.raises(StalledError):
            watch.check()
        assert told.getvalue().startswith("waiting for prepare 0/4 (")
        watch.moved()
        watch.check()


def test_there_is_no_stall_while_a_store_does_not_answer(local_ray: Cluster) -> None:
    looks: list[bool] = []

    def outage() -> bool:
        looks.append(len(looks) < 3)
        return looks[-1]

    with Progress(stream=io.StringIO(), bars=False) as progress, watched(progress, 4, 0, outage=outage) as watch:
        for _ in range(3):
            watch.check()
        with pytest.raises(StalledError, match="stall_timeout = 0"):
            watch.check()
    assert looks == [True, True, True, False]
    with Progress(stream=io.StringIO(), bars=False) as progress, watched(progress, 4, 0, outage=lambda: True):
        assert run(4) == 4


def test_a_window_is_ended_once_if_the_nodes_have_doubled_or_halved(
    local_ray: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_watch, "NODES_EVERY_S", -1.0)
    for nodes, ends in (("abcdef", 0), ("abc", 0), ("ab", 1), ("abcdefg", 0), ("abcdefgh", 1)):
        calls: list[None] = []
        with (
            Progress(stream=io.StringIO(), bars=False) as progress,
            watched(progress, 4, 600, resized=lambda calls=calls: calls.append(None)) as watch,
        ):
            monkeypatch.setattr(stage_watch, "alive_nodes", lambda nodes=nodes: frozenset(nodes))
            watch.nodes = frozenset("abcd")
            watch.check()
            watch.check()
        assert len(calls) == ends, nodes
        monkeypatch.undo()
        monkeypatch.setattr(stage_watch, "NODES_EVERY_S", -1.0)
