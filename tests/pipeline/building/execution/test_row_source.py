"""Rows reach Ray Data through read tasks: in order, in blocks, with few of them waiting, and one row on demand."""

import io
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.data import DataContext

from segmint.infra import ray_internals
from segmint.infra.progress import Progress
from segmint.infra.ray_internals import WaitingBlocks
from segmint.infra.ray_session import Cluster
from segmint.infra.row_ledger import RowLedger
from segmint.infra.storage.storage import Storage
from segmint.operators.shards.write import ShardResult
from segmint.pipeline import build
from segmint.pipeline.building.dataset import BuildDataset, open_or_create
from segmint.pipeline.building.execution import row_source
from segmint.pipeline.building.execution.accounting import WindowRows
from segmint.pipeline.building.execution.row_source import RowSource, ShardRows, runs_of
from segmint.pipeline.building.execution.stage_watch import StreamLengthError, watched
from segmint.pipeline.building.execution.stages import Stages, lay_out
from segmint.pipeline.config.config import load_config
from tests.support.builds import NO_DETECTORS, write_catalog, write_config
from tests.support.row_stubs import ROWS, Gated, Ordinals, Uneven, unchanged, write

PER_SHARD = 5


def source(rows: int = ROWS) -> RowSource:
    shards = [ShardRows(first // PER_SHARD, ((first, first + PER_SHARD),)) for first in range(0, rows, PER_SHARD)]
    return RowSource(Ordinals(), shards)  # type: ignore[arg-type]


def test_workers_get_the_policies_of_an_execution_without_the_code_that_opens_datasets() -> None:
    """They come with Ray Data's context; DuckDB and all else that reads a catalog would take each worker a second."""
    assert WaitingBlocks.__module__ == ray_internals.__name__
    assert not hasattr(row_source, "BuildDataset")


def test_rows_near_another_are_found_across_the_parts_of_a_catalog(tmp_path: Path) -> None:
    """Each part starts a shard, so there are ordinals without a row."""
    names = [f"{number}.jpg" for number in range(7)]
    catalog, changes = tmp_path / "catalog.jsonl", {"images_per_shard": 5, "deidentify": NO_DETECTORS}
    config = load_config(str(write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset", **changes)))
    for count in (3, 7):
        write_catalog(catalog, [{"uri": name, "license": "CC0-1.0"} for name in names[:count]])
        dataset = open_or_create(config, Storage(), grow=True)
    near = RowSource(dataset, []).uris_near
    assert near(7, 100) == dict(zip((0, 1, 2, 5, 6, 7, 8), names, strict=True))
    assert near(8, 2) == {6: "4.jpg", 7: "5.jpg", 8: "6.jpg"}


@pytest.fixture
def stages(small_dataset: Path, dataset: Path, local_ray: Cluster, monkeypatch: pytest.MonkeyPatch) -> Stages:
    """Two actors per pool, blocks of two rows, and reads of six."""
    config = load_config(str(small_dataset.parent / "build.yaml"), [f"output={dataset}"])
    laid = lay_out(config, open_or_create(config, Storage()), local_ray)
    for name, stub in (("Prepare", Uneven), ("Segment", Uneven), ("describe_table", unchanged)):
        monkeypatch.setattr(build, name, stub)
    monkeypatch.setattr(row_source, "READ_ROWS", 7)
    pools = {name: replace(getattr(laid, name), smallest=2, largest=2) for name in ("prepare_pool", "segment_pool")}
    return replace(laid, rows_per_block=2, **pools)


def run_window(stages: Stages) -> Iterator[ShardResult]:
    tasks = {shard: shard for shard in range(ROWS // PER_SHARD)}
    with Progress(stream=io.StringIO(), bars=False) as progress, watched(progress, ROWS, stall_timeout=600):
        yield from build.run_rows(WindowRows(source(), tasks), stages, write)


@pytest.mark.ray
def test_order_survives_reads_and_actors_that_end_out_of_order(stages: Stages, monkeypatch: pytest.MonkeyPatch) -> None:
    waiting: list[int] = []
    decide = WaitingBlocks.can_add_input

    def noted(self: WaitingBlocks, op: Any) -> bool:
        if "Prepare" in op.name or "Uneven" in op.name:
            waiting.append(self._topology[op].total_enqueued_input_blocks())
        return decide(self, op)

    monkeypatch.setattr(row_source, "FEWEST_WAITING", 3)
    monkeypatch.setattr(WaitingBlocks, "can_add_input", noted)
    results = sorted(run_window(stages), key=lambda result: result.shard)
    assert [list(result.faulted) for result in results] == [
        list(range(first, first + PER_SHARD)) for first in range(0, ROWS, PER_SHARD)
    ]
    # On a busy machine, Ray Data starts an operator in spite of the policy if no other one runs. Without the policy,
    # all rows wait at once.
    assert 0 < max(waiting) <= ROWS * 2 // 3


class OpenWindow:
    """In place of `Quarantine`: it only has the window's ledger, to which `before` did something before the start."""

    def __init__(self, before: Callable[[RowLedger], None], ended: bool = False) -> None:
        self._before = before
        self.ended = ended

    def open_window(self, rows: RowSource, retry_rows: int | None) -> tuple[RowSource, RowLedger]:
        ledger = RowLedger()
        self._before(ledger)
        return rows.opened(None, ledger, retry_rows), ledger


def run_slotted_window(stages: Stages, window: Any) -> list[int]:
    """Run a window with one actor per pool and a slot after each shard. Check its rows, and return its shards."""
    tasks = {shard: shard for shard in range(ROWS // PER_SHARD)}
    pools = {name: replace(getattr(stages, name), smallest=1, largest=1) for name in ("prepare_pool", "segment_pool")}
    stages = replace(stages, **pools)
    with Progress(stream=io.StringIO(), bars=False) as progress, watched(progress, ROWS, stall_timeout=600):
        results = list(build.run_rows(WindowRows(source(), tasks), stages, write, window, PER_SHARD))
    for result in results:
        assert list(result.faulted) == list(range(PER_SHARD * result.shard, PER_SHARD * (result.shard + 1)))
    return sorted(result.shard for result in results)


@pytest.mark.ray
def test_a_shard_on_hold_runs_again_in_the_same_window(stages: Stages) -> None:
    window = OpenWindow(lambda ledger: ledger.retry_after(0, 3, [(3 * PER_SHARD, 4 * PER_SHARD)]))
    assert run_slotted_window(stages, window) == sorted([*range(ROWS // PER_SHARD), 3])


@pytest.mark.long
@pytest.mark.ray
def test_reads_continue_while_rows_wait_for_a_whole_block(
    stages: Stages, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each shard leaves half a block, and no slot has rows. Nothing is segmented before the next shards are read."""
    waiting: list[int] = []
    decide = WaitingBlocks.can_add_input

    def noted(self: WaitingBlocks, op: Any) -> bool:
        if "Gated" in op.name:
            waiting.append(self._topology[op].total_enqueued_input_blocks())
            if waiting[-1] > PER_SHARD:
                (tmp_path / "gate").touch()
        return decide(self, op)

    monkeypatch.setattr(WaitingBlocks, "can_add_input", noted)
    monkeypatch.setattr(build, "Segment", Gated)
    gated = replace(stages, segment=tmp_path / "gate")  # type: ignore[arg-type]
    run_slotted_window(gated, OpenWindow(lambda ledger: None))
    assert max(waiting) > PER_SHARD


def stop_after_reads(ledger: RowLedger) -> None:
    assert ledger.may_read(8)  # reads alternate between shards and slots
    ledger.stop_reading()


@pytest.mark.ray
def test_a_window_that_ends_early_finishes_what_it_has_begun(stages: Stages) -> None:
    assert run_slotted_window(stages, OpenWindow(stop_after_reads, ended=True)) == [0, 1, 2, 3, 4]


@pytest.mark.long
@pytest.mark.ray
def test_a_window_that_lacks_rows_without_having_ended_is_an_error(stages: Stages) -> None:
    with pytest.raises(StreamLengthError):
        run_slotted_window(stages, OpenWindow(stop_after_reads))


@pytest.mark.ray
def test_ray_data_copies_the_order_of_its_context_when_the_source_is_created(local_ray: Cluster) -> None:
    """So `run_rows` creates it, inside `watched`."""
    DataContext.get_current().execution_options.preserve_order = False
    early = source().to_dataset(2, 1)
    with Progress(stream=io.StringIO(), bars=False) as progress, watched(progress, ROWS, stall_timeout=600):
        assert not early.context.execution_options.preserve_order
        assert source().to_dataset(2, 1).context.execution_options.preserve_order


@pytest.mark.ray
@pytest.mark.parametrize(("in_flight", "most"), [(2, 8), (2000, 2000)])
def test_as_many_blocks_wait_for_an_operator_as_a_pool_of_any_size_has_in_flight(
    local_ray: Cluster, in_flight: int, most: int
) -> None:
    with Progress(stream=io.StringIO(), bars=False) as progress, watched(progress, ROWS, stall_timeout=600):
        context = source().to_dataset(2, in_flight).context
    topology = SimpleNamespace(waiting=0)
    follower = SimpleNamespace(total_enqueued_input_blocks=lambda: topology.waiting)
    operator = SimpleNamespace(name="MapBatches(Prepare)", output_dependencies=["Segment"])
    policy = WaitingBlocks(context, {"Segment": follower}, resource_manager=None)
    for topology.waiting in (0, most - 1):
        assert policy.can_add_input(operator)
    topology.waiting = most
    assert not policy.can_add_input(operator)


def test_the_tasks_read_all_rows_in_order_a_few_thousand_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_source, "READ_ROWS", 7)
    shards = [ShardRows(4, ((40, 50),)), ShardRows(5, ((50, 53), (57, 58))), ShardRows(1, ((10, 12),))]
    rows = RowSource(Ordinals(), shards)  # type: ignore[arg-type]
    tasks = rows.get_read_tasks(1)
    blocks = [[o for block in task() for o in block.column("ordinal").to_pylist()] for task in tasks]
    assert [len(block) for block in blocks] == [task.metadata.num_rows for task in tasks] == [7, 7, 2]
    assert [o for block in blocks for o in block] == [*range(40, 53), 57, 10, 11]
    assert [(span.shard, span.rows) for span in rows.stream()] == [(4, 10), (5, 4), (1, 2)]
    assert [o for o in range(60) if o in rows] == [10, 11, *range(40, 53), 57]
    assert runs_of([3, 4, 5, 9, 11, 12]) == ((3, 6), (9, 10), (11, 13))


def test_a_table_of_rows_has_a_verdict_for_those_that_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_source, "READ_ROWS", 4)
    known = {2: {"stage": "segment", "reason": "killed_worker", "detail": "it does", "fault": None}}
    tables = [table for task in RowSource(Ordinals(), source(10).shards, known).get_read_tasks(1) for table in task()]
    found = [(row["ordinal"], row["reason"]) for table in tables for row in table.to_pylist()]
    assert found == [(ordinal, "killed_worker" if ordinal == 2 else None) for ordinal in range(10)]


def test_rows_are_read_in_any_order_and_one_at_a_time(small_dataset: Path, dataset: Path) -> None:
    config = load_config(str(small_dataset.parent / "build.yaml"), [f"output={dataset}"])
    opened: BuildDataset = open_or_create(config, Storage())
    rows = RowSource(opened, [ShardRows(2, ((6, 8),)), ShardRows(0, ((0, 1), (2, 3)))])
    (task,) = rows.get_read_tasks(1)
    assert [row["ordinal"] for table in task() for row in table.to_pylist()] == [6, 7, 0, 2]
    assert rows.read_rows([1, 4])["ordinal"].to_pylist() == [1, 4]
    uris = opened.read_runs([(0, 3), (6, 8)])["uri"].to_pylist()
    assert rows.sample_uris(9, Storage()) == [uris[3], uris[0]]
    assert rows.sample_uris(1, Storage()) == [uris[3]]
    assert opened.read_runs([]).schema == opened.read_runs([(0, 3)]).schema
