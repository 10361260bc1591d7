"""A build's loop over windows, and the blocks of a window's execution."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import fields
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pyarrow as pa
import pytest
import ray.data

from segmint.catalogs.layout import commit_path
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.errors import NoSpaceError, StorageFaultError
from segmint.operators.custom.contract import StageContractError, load_stage
from segmint.operators.custom.stage import CustomStage
from segmint.operators.rows import DESCRIBED, to_table
from segmint.operators.segment.numerics import Numerics, observe_release_numerics
from segmint.pipeline import build
from segmint.pipeline.build import iter_blocks
from segmint.pipeline.building.execution.quarantine import Trials
from tests.support.custom_stages import Mean
from tests.support.described_rows import accepted_row
from tests.support.locations import location_of

FIELDS = [field.name for field in fields(build.OuterLoop) if field.name != "resized"]


def test_another_machine_may_start_a_dataset_without_shards_again(tmp_path: Path) -> None:
    numerics = observe_release_numerics("0" * 64)
    older = Numerics.recorded({**numerics.to_dict(), "torch": "1.0"})
    stages: Any = SimpleNamespace(
        segment=SimpleNamespace(numerics=older, allow_mixed_numerics=False),
        prepare_arguments=[None],
        detectors_share=0,
    )
    dataset: Any = SimpleNamespace(location=location_of(tmp_path))
    told = rf"torch '.*' instead of '1\.0'.*\. The dataset contains no shard .* delete {tmp_path} and start again\.$"
    with pytest.raises(UsageError, match=told):
        build.check_machine(dataset, stages)
    (dataset.location / commit_path(0, 1)).put(b"{}")
    with pytest.raises(UsageError, match=r"torch '.*' instead of '1\.0'.*set allow_mixed_numerics: true\.$"):
        build.check_machine(dataset, stages)
    stages.segment.numerics = numerics
    build.check_machine(dataset, stages)


class LostWindow:
    """Work whose first window can't be read, and that another build then finishes."""

    rows = 20

    def __init__(self) -> None:
        self.left = [0]

    def read(self, window: list[int]) -> Any:
        raise StorageFaultError("the store is out")

    def settle(self, window: list[int], done: Collection[int]) -> int:
        self.left = []
        return 0


class RecordedQuarantine:
    """In place of `Quarantine`: the stages of each round of trials."""

    def __init__(self) -> None:
        self.stages = "of the run's first nodes"
        self.tried_on: list[str] = []

    def run_trials(self, spans: object) -> Trials:
        self.tried_on.append(self.stages)
        return Trials(0, {})


def test_trials_run_on_the_nodes_that_are_there_after_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait for the nodes of the run's start, which may be gone for good."""
    monkeypatch.setattr(build, "lay_out_again", lambda *_: "of the nodes now")
    monkeypatch.setattr(build, "start_detectors", lambda stages, before: f"{stages}, with detectors")
    quarantine = RecordedQuarantine()
    nothing: Any = SimpleNamespace(
        window_shards=1, images_per_shard=1, rows_per_block=1, on_hold={}, spans=lambda shards: [], local=True
    )
    nothing.note_failure = nothing.settled = lambda *_: None
    loop: Any = build.OuterLoop(**dict.fromkeys(FIELDS, nothing) | {"quarantine": quarantine})
    loop.go_through(LostWindow())
    assert quarantine.tried_on == [loop.stages] == ["of the nodes now, with detectors"]


def test_each_window_requests_nodes_for_the_shards_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if all nodes are there, because some may be lost later. A local Ray has no others."""
    nothing: Any = SimpleNamespace(
        window_shards=1, images_per_shard=1, rows_per_block=1, on_hold={}, spans=lambda shards: [], local=False
    )
    nothing.note_failure = nothing.settled = lambda *_: None
    nothing.bundles = lambda rows: [{"CPU": 1.0}] * rows
    asked: list[int] = []
    nothing.ask = lambda bundles: asked.append(len(bundles))
    monkeypatch.setattr(build, "lay_out_again", lambda *_: nothing)
    monkeypatch.setattr(build, "start_detectors", lambda stages, before: stages)
    loop: Any = build.OuterLoop(**dict.fromkeys(FIELDS, nothing) | {"quarantine": RecordedQuarantine()})
    for rows in (20, 10):
        work = LostWindow()
        work.rows = rows
        loop.go_through(work)
    assert asked == [20, 10]
    nothing.local = True
    loop.go_through(LostWindow())
    assert asked == [20, 10]


def test_three_windows_in_a_row_without_progress_end_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stuck(LostWindow):
        def settle(self, window: list[int], done: Collection[int]) -> int:
            return len(window)

    noted: list[Exception] = []
    nothing: Any = SimpleNamespace(
        window_shards=1, images_per_shard=1, rows_per_block=1, on_hold={}, spans=lambda shards: [], local=True
    )
    nothing.retry_wait_s, nothing.wait_out, nothing.settled = 0, lambda left: False, lambda *_: None
    nothing.note_failure = lambda window, error: noted.append(error)
    monkeypatch.setattr(build, "lay_out_again", lambda *_: nothing)
    monkeypatch.setattr(build, "start_detectors", lambda stages, before: stages)
    loop: Any = build.OuterLoop(**dict.fromkeys(FIELDS, nothing) | {"quarantine": RecordedQuarantine()})
    loop.go_through(Stuck())
    assert [str(error) for error in noted] == ["the store is out"] * 3


def test_the_bars_end_with_the_build_and_not_with_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise, the time left would be the window's."""

    class Three(LostWindow):
        write = None

        def __init__(self) -> None:
            self.left = [0, 1, 2]

        @property
        def rows(self) -> int:  # type: ignore[override]
            return 10 * len(self.left)

        def read(self, window: list[int]) -> Any:
            source = SimpleNamespace(num_rows=10, sample_uris=list, runs_of_shard=lambda shard: [(0, 10)])
            return SimpleNamespace(source=source, window=window)

        def settle(self, window: list[int], done: Collection[int]) -> int:
            self.left = self.left[len(window) :]
            return 0

    def run_rows(taken: Any, *_: object) -> list[Any]:
        return [SimpleNamespace(shard=shard, status="committed", counts={}) for shard in taken.window]

    ends: list[int] = []

    @contextmanager
    def watched(progress: object, rows: int, *_: object, finished: int, **__: object) -> Iterator[Any]:
        ends.append(finished + rows)
        yield MagicMock()

    nothing = MagicMock(window_shards=1, images_per_shard=10, rows_per_block=1, local=True, storage={})
    monkeypatch.setattr(build, "run_rows", run_rows)
    monkeypatch.setattr(build, "watched", watched)
    monkeypatch.setattr(build, "lay_out_again", lambda *_: nothing)
    monkeypatch.setattr(build, "start_detectors", lambda stages, before: stages)
    loop: Any = build.OuterLoop(**dict.fromkeys(FIELDS, nothing) | {"finished_rows": 0})
    loop.go_through(Three())
    assert ends == [30, 30, 30]


@pytest.mark.ray
@pytest.mark.parametrize(
    ("function", "told"),
    [
        pytest.param(
            "drop",
            "the stage faulty returned 1 rows for 2: it must return each row, in order, or a Reject in its place",
            marks=pytest.mark.long,
        ),
        ("unknown", "the stage faulty can't start in a worker: KeyError: 'unknown'"),
    ],
)
def test_a_stage_that_breaks_its_rules_ends_the_run(local_ray: Cluster, function: str, told: str) -> None:
    spec = load_stage("tests.support.custom_stages.Faulty", {"function": function})
    rows = ray.data.from_arrow(to_table([accepted_row(0), accepted_row(1)], DESCRIBED)).map_batches(
        CustomStage,
        fn_constructor_args=(spec,),
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0.5,
        batch_size=None,
        batch_format="pyarrow",
        max_restarts=2,
        max_task_retries=2,
    )

    class Window(LostWindow):
        def read(self, window: list[int]) -> Any:
            list(iter_blocks(rows))

    nothing: Any = SimpleNamespace(window_shards=1, images_per_shard=1, rows_per_block=1, local=True)
    loop: Any = build.OuterLoop(**dict.fromkeys(FIELDS, nothing))
    with pytest.raises(StageContractError) as caught:
        loop.go_through(Window())
    assert str(caught.value) == told


@pytest.mark.ray
def test_a_full_disk_ends_the_run_after_one_window(local_ray: Cluster, tmp_path: Path) -> None:
    """Each retry would segment the window's images again."""

    def put() -> None:
        raise NoSpaceError("cannot put /full/shards/sa_000000.tar: [Errno 28] No space left on device")

    class Window(LostWindow):
        def read(self, window: list[int]) -> Any:
            ray.get(ray.remote(put).remote())

    nothing: Any = SimpleNamespace(window_shards=1, images_per_shard=1, rows_per_block=1, local=True, output="/full")
    nothing.location, nothing.manifest = location_of(tmp_path), SimpleNamespace(shards=3)
    nothing.note_failure = lambda *_: None
    loop: Any = build.OuterLoop(**dict.fromkeys(FIELDS, nothing))
    with pytest.raises(UnfinishedError, match=r"no space left on /full: 0 of 3 shards committed\. Nothing is lost"):
        loop.go_through(Window())


@pytest.mark.ray
def test_blocks_come_in_order_with_their_numbers_of_rows(local_ray: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray.data.DataContext.get_current().execution_options, "preserve_order", True)
    rows = ray.data.from_arrow(pa.table({"ordinal": list(range(11))})).repartition(target_num_rows_per_block=3)
    blocks = rows.map_batches(lambda table: table, batch_size=None, batch_format="pyarrow", num_cpus=0.5)
    counts, ordinals = [], []
    for reference, count in iter_blocks(blocks):
        counts.append(count)
        ordinals.append(ray.get(reference).column("ordinal").to_pylist())
    assert counts == [len(part) for part in ordinals]
    assert [each for part in ordinals for each in part] == list(range(11))
    assert len(counts) > 1


@pytest.mark.parametrize("stage", [Mean(), partial(Mean, most=3.0)])
def test_an_instance_or_a_partial_is_refused_as_a_stage(stage: Any) -> None:
    config: Any = SimpleNamespace(stages=())
    with pytest.raises(UsageError, match=r"expected a class or function, got (Mean|partial): pass its arguments"):
        build.build(config, stages=[stage])


def test_a_single_reason_may_be_given_as_a_text() -> None:
    with pytest.raises(UsageError, match="--retry-rejected 'Blurry': expected one of"):
        build.run_build(SimpleNamespace(stages=["a"]), retry_rejected="Blurry")  # type: ignore[arg-type]
