"""Segment actors that really die with several rows in flight: whose rows are suspects, and what becomes of the rest."""

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import pytest
import ray

from segmint.infra.ray_session import Cluster
from segmint.infra.row_ledger import BlockEntry, RowLedger, StartReply
from segmint.operators.rows import PREPARED, Row, to_table
from tests.support.fragile_segment import THREADS, FragileSegment

pytestmark = pytest.mark.ray

STAGES = ("decode", "compute", "finish")


def run(ledger: RowLedger, fates: list[str], per_block: int = 6) -> list[Row]:
    """The rows of an actor that Ray restarts and gives its blocks again, two at a time."""
    rows: list[Row] = [{"ordinal": ordinal, "image_id": fate} for ordinal, fate in enumerate(fates)]
    blocks = [to_table(rows[start : start + per_block], PREPARED) for start in range(0, len(rows), per_block)]
    actor_class: Any = ray.remote(num_cpus=0, max_restarts=16, max_task_retries=16, max_concurrency=2)(FragileSegment)
    actor = actor_class.remote(ledger)
    try:
        tables: list[pa.Table] = ray.get([actor.__call__.remote(block) for block in blocks], timeout=300)
    finally:
        ray.kill(actor)
    out = pa.concat_tables(tables).to_pylist()
    assert [row["ordinal"] for row in out] == list(range(len(fates)))
    return out


def among_others(fates: list[str]) -> tuple[list[str], list[int]]:
    """Fates among rows to which nothing happens, and the places of those that have one."""
    mixed = ["well"] * (3 + 3 * len(fates))
    places = [2 + 3 * index for index in range(len(fates))]
    for place, fate in zip(places, fates, strict=True):
        mixed[place] = fate
    return mixed, places


@pytest.mark.parametrize(
    "fates",
    [
        ["decode lacks memory", "compute is killed", "finish hangs"],
        pytest.param([f"{stage} hangs" for stage in STAGES], marks=pytest.mark.long),
        pytest.param([*(f"{stage} lacks memory" for stage in STAGES[:2]), "finish is killed"], marks=pytest.mark.long),
    ],
    ids=["one each", "deadline", "memory"],
)
def test_a_row_that_ends_its_worker_in_any_stage_is_a_suspect_and_no_other_is(
    local_ray: Cluster, fates: list[str]
) -> None:
    ledger = RowLedger()
    mixed, places = among_others(fates)
    out = run(ledger, mixed)
    assert sorted(ledger.suspects()) == places
    assert ledger.spent()["compute"] > 0
    for row in out:
        if row["ordinal"] in places:
            assert row["fault"].startswith("segment: BarredRowError: the worker that was processing this image died")
            assert row["masks"] is None
        else:
            assert (row["fault"], row["reason"], row["masks"]) == (None, None, [])


def test_a_gpu_that_fails_in_any_stage_bars_the_row_there_and_makes_no_suspect(local_ray: Cluster) -> None:
    ledger = RowLedger()
    mixed, places = among_others([f"{stage} breaks the GPU" for stage in STAGES])
    out = run(ledger, mixed)
    assert ledger.suspects() == ledger.alone() == []
    for row in out:
        if row["ordinal"] in places:
            assert row["fault"].startswith("segment: BarredRowError: the GPU failed, and its worker was ended: CUDA")
        else:
            assert (row["fault"], row["masks"]) == (None, [])


@pytest.mark.long
def test_the_time_that_a_row_waits_is_not_counted(local_ray: Cluster) -> None:
    """The third image waits for the device, and the last one to be alone, for longer than a stage may take."""
    ledger = RowLedger(alone=[3])
    out = run(ledger, ["compute takes long"] * 4)
    assert (ledger.suspects(), ledger.alone()) == ([], [3])
    assert [row["fault"] for row in out] == [None] * 4


def test_signals_that_stop_processes_and_errors_of_any_stage_end_no_worker(local_ray: Cluster) -> None:
    """An error is a fault of its row."""
    ledger = RowLedger()
    stopped, failing = ([f"{stage} {fate}" for stage in STAGES] for fate in ("is told to stop", "fails"))
    mixed, places = among_others([*stopped, *failing])
    out = run(ledger, mixed)
    assert ledger.suspects() == ledger.alone() == []
    faults = {row["ordinal"]: row["fault"] for row in out if row["fault"] is not None}
    assert list(faults) == places[len(STAGES) :]
    assert list(faults.values()) == [f"segment: ValueError: {stage} cannot do this image" for stage in STAGES]
    assert [(row["reason"], row["masks"]) for row in out if row["fault"] is None] == [(None, [])] * (len(mixed) - 3)


@pytest.mark.long
def test_one_deadly_row_among_a_thousand_isolates_only_the_rows_in_flight_with_it(local_ray: Cluster) -> None:
    ledger = RowLedger()
    fates = ["well"] * 1000
    fates[500] = "compute is killed"
    out = run(ledger, fates, per_block=100)
    assert ledger.suspects() == [500]
    assert 1 < len(ledger.alone()) <= THREADS.items
    assert [row["ordinal"] for row in out if row["masks"] is None] == [500]


class _Entry(BlockEntry):
    """In place of a block's entry, without an actor: it notes the calls, and the most rows in flight."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.begun: set[int] = set()
        self.most = 0

    def begin_together(self, ordinals: Sequence[int]) -> list[StartReply]:
        self.calls.append(list(ordinals))
        self.begun.update(ordinals)
        self.most = max(self.most, len(self.begun))
        return [StartReply(starts=True)] * len(ordinals)

    def leave(self, ordinal: int) -> None:
        self.begun.remove(ordinal)  # raises if it started before the reply


def test_rows_that_start_together_take_one_call_to_the_ledger() -> None:
    entry: Any = _Entry()
    rows: list[Row] = [{"ordinal": o, "image_id": "well", "reason": None, "fault": None} for o in range(100)]
    started = FragileSegment(None).submit(rows, entry)
    assert [future.result()["ordinal"] for future in started if future is not None] == list(range(100))
    assert entry.calls == [[first, first + 1] for first in range(0, 100, 2)]
    assert entry.most <= THREADS.items


def test_rows_in_progress_are_over_when_the_stream_of_the_device_fails() -> None:
    """Their deadlines would otherwise kill the worker later, and rows that must run alone would wait forever."""

    def fails(images: Iterator[Any]) -> Iterator[Any]:
        next(images)
        raise ValueError("a bug")

    entry: Any = _Entry()
    rows: list[Row] = [{"ordinal": o, "image_id": "well", "reason": None, "fault": None} for o in range(8)]
    segment = FragileSegment(None)
    segment.stream_through(fails)
    for future in segment.submit(rows, entry):
        assert future is not None
        with pytest.raises(ValueError, match="a bug"):
            future.result()
    assert entry.begun == set()
    assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
