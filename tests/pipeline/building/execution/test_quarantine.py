"""Suspects alone: one that is segmented is cleared, and the next window's rows have what is known."""

from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from segmint.catalogs.findings import Reason, RejectedError
from segmint.infra.ray_session import Cluster
from segmint.infra.row_ledger import BarredRowError, BlockEntry, InFlight
from segmint.infra.storage.storage import Storage
from segmint.operators.custom.contract import load_stage
from segmint.operators.custom.stage import CustomStage, stage_rows
from segmint.operators.rows import PREPARED, VERDICT, faulted, rejected, to_table
from segmint.operators.shards.write import ShardResult
from segmint.pipeline.building.dataset import BuildDataset, open_or_create
from segmint.pipeline.building.execution.quarantine import (
    PROBE_S,
    ControlFailedError,
    Quarantine,
    Trials,
    UndecidedError,
    apply_alone,
)
from segmint.pipeline.building.execution.row_source import RowSource, ShardRows
from segmint.pipeline.building.execution.stages import lay_out
from segmint.pipeline.config.config import load_config
from tests.support.builds import write_catalog, write_config, write_photographs
from tests.support.described_rows import accepted_row
from tests.support.row_stubs import Alone
from tests.support.small_dataset import read_all

pytestmark = pytest.mark.ray


def open_quarantine(folder: Path, cluster: Cluster, *others: str) -> tuple[Quarantine, BuildDataset]:
    """The quarantine of a dataset of four photographs in two shards, and of `others` in more of them."""
    names = [*write_photographs(folder, 4), *others]
    catalog = write_catalog(folder / "catalog.jsonl", [{"uri": name, "license": "CC0-1.0"} for name in names])
    config = load_config(
        str(
            write_config(
                folder / "build.yaml",
                catalog,
                folder / "dataset",
                images_per_shard=2,
                masks={"points_per_side": 1, "crop_n_layers": 0},
                deidentify={"faces": {"detector": "none"}, "plates": {"detector": "none"}},
            )
        )
    )
    dataset = open_or_create(config, Storage())
    return Quarantine(lay_out(config, dataset, cluster), start_timeout_s=120), dataset


def rows_of(dataset: BuildDataset, *shards: int) -> RowSource:
    return RowSource(dataset, [ShardRows(span.shard, ((span.start, span.stop),)) for span in dataset.spans(shards)])


def test_a_suspect_that_is_segmented_alone_is_cleared(local_ray: Cluster, tmp_path: Path) -> None:
    quarantine, dataset = open_quarantine(tmp_path, local_ray)
    rows, ledger = quarantine.open_window(rows_of(dataset, 0, 1))
    assert "reason" not in read_all(rows).column_names
    BlockEntry(ledger.actor, InFlight()).begin(2)  # a stay that never ends, as in a worker that dies
    with ledger.entry() as entry, pytest.raises(BarredRowError):
        entry.begin(2)
    assert ledger.suspects() == [2]
    assert quarantine.try_suspects(dataset.spans([0, 1])) == Trials(verdicts=0, on_hold={})
    assert read_all(quarantine.open_window(rows)[0]).equals(read_all(rows))


def test_rows_that_a_worker_died_with_together_run_alone_in_the_next_window(local_ray: Cluster, tmp_path: Path) -> None:
    quarantine, dataset = open_quarantine(tmp_path, local_ray)
    _, ledger = quarantine.open_window(rows_of(dataset, 0, 1))
    dying = BlockEntry(ledger.actor, InFlight())
    dying.begin(1)
    dying.begin(2)
    with ledger.entry() as entry:
        entry.begin(2)
        entry.leave(2)
    assert quarantine.try_suspects(dataset.spans([0, 1])) == Trials(verdicts=0, on_hold={})
    _, shard_0 = quarantine.open_window(rows_of(dataset, 0))
    assert shard_0.alone() == [1]
    quarantine.try_suspects(dataset.spans([0]))
    _, both = quarantine.open_window(rows_of(dataset, 0, 1))
    assert both.alone() == [1, 2]


def test_the_rows_of_the_next_window_have_what_is_known(local_ray: Cluster, tmp_path: Path) -> None:
    quarantine, dataset = open_quarantine(tmp_path, local_ray)
    quarantine.known = {
        1: rejected({}, "segment", RejectedError(Reason.KILLED_WORKER, "it ends its worker")),
        2: faulted({}, "segment", ControlFailedError("no worker lives")),
    }
    rows, _ = quarantine.open_window(rows_of(dataset, 0, 1))
    found = [(row["ordinal"], row["stage"], row["reason"], row["fault"]) for row in read_all(rows).to_pylist()]
    assert found == [
        (0, None, None, None),
        (1, "segment", "killed_worker", None),
        (2, None, None, "segment: ControlFailedError: no worker lives"),
        (3, None, None, None),
    ]


def test_a_shard_that_stays_on_hold_runs_three_times_in_a_window(
    local_ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise, the shards on hold would take more and more of a window of an hour."""
    monkeypatch.setattr("segmint.pipeline.building.execution.quarantine.RETRY_WAIT_S", 0)
    quarantine, dataset = open_quarantine(tmp_path, local_ray)
    for _ in range(2):
        _, ledger = quarantine.open_window(rows_of(dataset, 0, 1))
        runs, again = [], []
        for number in range(6):
            again.append(quarantine.note(ShardResult(0, "on_hold", {}, "a fault")))
            runs += ledger.retry_slot(number)
        assert runs == [(0, ((0, 2),))] * 2
        assert again == [2, 2, 0, 0, 0, 0], "rows that run again"
        assert list(ledger.retry_slot(6)) == []


def test_a_worker_that_cannot_be_reached_is_not_taken_for_dead(
    local_ray: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quarantine, _ = open_quarantine(tmp_path, local_ray)
    monkeypatch.setattr("segmint.pipeline.building.execution.quarantine.SegmentAlone", Alone)
    trial_s = 3 * quarantine.stages.segment_timeout_s + PROBE_S
    wait = ray.get

    def broken(reference: Any, *, timeout: float) -> Any:
        if timeout == trial_s:
            with suppress(ray.exceptions.RayError):
                wait(reference, timeout=timeout)
            raise ray.exceptions.ActorUnavailableError("the connection broke", None)
        return wait(reference, timeout=timeout)

    for deadly in (False, True):
        quarantine.stages = replace(quarantine.stages, segment=deadly)  # type: ignore[arg-type]
        with monkeypatch.context() as patch:
            patch.setattr(ray, "get", broken)
            if deadly:
                found = quarantine.segment_singly(1, None)
                assert found is not None
                assert found.reason == Reason.KILLED_WORKER
            else:
                with pytest.raises(UndecidedError):
                    quarantine.segment_singly(1, None)


def test_trials_end_if_no_worker_prepares_a_row_in_time(local_ray: Cluster, tmp_path: Path) -> None:
    """Each of the others would wait as long, and none of them would have had its trial."""
    laid_out, dataset = open_quarantine(tmp_path, local_ray)
    quarantine = Quarantine(laid_out.stages, start_timeout_s=0)
    spans = dataset.spans([0, 1])
    for _ in range(3):
        quarantine.open_window(rows_of(dataset, 0, 1))
        quarantine.note(ShardResult(0, "on_hold", {}, "2 of 2 rows couldn't be judged", (0, 1)))
    assert quarantine.run_trials(spans).verdicts == 0
    assert list(quarantine.alone) == [0]
    quarantine.known = {ordinal: faulted({}, "segment", ControlFailedError("its worker died")) for ordinal in range(4)}
    tried = quarantine.try_suspects(spans)
    assert list(tried.on_hold) == [0]
    assert "no worker finished it within 0 seconds" in tried.on_hold[0]
    assert list(quarantine.known) == [1, 2, 3, 0], "the next trials begin with another row"


def test_a_suspect_is_tried_with_the_window_that_its_row_is_in(local_ray: Cluster, tmp_path: Path) -> None:
    quarantine, dataset = open_quarantine(tmp_path, local_ray)
    quarantine.known = {2: faulted({}, "segment", ControlFailedError("no worker lives"))}
    quarantine.open_window(rows_of(dataset, 0))
    assert quarantine.try_suspects(dataset.spans([0])) == Trials(verdicts=0, on_hold={})
    assert list(quarantine.known) == [2]


NOWHERE = "gs://nowhere:1/user.jpg?token=hunter2"  # no name of a store, so that the fault of its row stays


def test_a_row_whose_fault_stays_is_tried_alone_and_named(
    local_ray: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if only the workers' machines lacked gcsfs.
    monkeypatch.setattr("segmint.catalogs.source.normalize.missing_package", lambda protocol: None)
    monkeypatch.setattr("segmint.pipeline.building.execution.quarantine.SegmentAlone", Alone)
    none = {"reason": None, "fault": None}
    monkeypatch.setattr(Quarantine, "through", lambda _, prepared: (prepared, prepared, none))
    quarantine, dataset = open_quarantine(tmp_path, local_ray, NOWHERE, "absent.jpg")
    quarantine.stages = replace(quarantine.stages, segment=False)  # type: ignore[arg-type]
    spans = dataset.spans([0, 2])
    trials = []
    for _ in range(4):
        quarantine.open_window(rows_of(dataset, 0, 2))
        quarantine.note(ShardResult(0, "on_hold", {}, "1 of 2 rows couldn't be judged", (1,)))
        quarantine.note(ShardResult(2, "on_hold", {}, "2 of 2 rows couldn't be judged", (4, 5)))
        trials.append(quarantine.run_trials(spans))
    assert trials[:2] == [Trials(0, {}), Trials(0, {})]
    # One photograph comes through, the absent file gets its verdict, and the fault is named, in the next window too.
    assert [tried.verdicts for tried in trials[2:]] == [2, 0]
    assert quarantine.known[5]["reason"] == "not_found"
    assert list(quarantine.known) == [5]
    for tried in trials[2:]:
        assert "row 1 (image_id" in tried.on_hold[0]
        assert "passed its trial" in tried.on_hold[0]
        said = tried.on_hold[2]
        for part in ("row 4 (image_id", "gs://nowhere:1/user.jpg?token=[redacted]", "had a fault in 3 attempts"):
            assert part in said
        for part in ("and in a trial: prepare: UsageError: gs:// needs a package", "Fix the cause"):
            assert part in said
    printed = capsys.readouterr().err
    assert "tried alone" in printed
    assert "row 4 (image_id" in printed
    assert "hunter2" not in printed + str(trials)


def test_a_control_image_reaches_a_stage_although_an_earlier_one_rejects_it() -> None:
    """Otherwise, the worker of a trial would do nothing with it, and its machine would count as sound."""
    mean = partial(CustomStage, load_stage("tests.support.custom_stages.Mean", {"most": 0.0}))
    row, control, verdict = apply_alone([mean], to_table([accepted_row(3)], PREPARED))
    assert (verdict["stage"], verdict["reason"]) == ("stage_mean", "too_bright")
    assert (list(stage_rows(row)), [each["uri"] for each in stage_rows(control).values()]) == ([], ["control.jpg"])


REFUSED = "prepare: AccessRefusedError: cannot read s3://photos/1.jpg:\nForbidden (403)"
OUTAGE = dict.fromkeys(range(10), REFUSED)
BROKEN = dict.fromkeys(range(10), "segment: RuntimeError: no kernel")
ELSEWHERE = ("s3://photos/1.jpg", "s3://others/2.jpg", "s3://photos/1.jpg", "s3://photos/own/3.jpg", "apart/4.jpg")


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> tuple[Quarantine, BuildDataset]:
    cluster = Cluster(local=True, cpus=8, gpus=0, nodes=1, cores=2)
    return open_quarantine(tmp_path_factory.mktemp("stores"), cluster, *ELSEWHERE, "s3://photos/5.jpg")


def give_up(
    opened: tuple[Quarantine, BuildDataset],
    monkeypatch: pytest.MonkeyPatch,
    faults: dict[int, str],
    faulted: tuple[int, ...] = (1,),
    max_faults: int = 1,
    shards: tuple[int, ...] = (0, 1),
) -> tuple[Quarantine, Trials, list[list[int]]]:
    """Try rows of shard 0 after their third attempt; `faults` has the fault that a row has in a trial.

    Returns the quarantine, the result, and the rows that were prepared together, in order.
    """
    quarantine, dataset = Quarantine(opened[0].stages, 120, max_faults), opened[1]
    prepared: list[list[int]] = []
    none: dict[str, Any] = dict.fromkeys(VERDICT.names)

    def prepare(_: Quarantine, ordinals: list[int]) -> tuple[int, list[dict[str, Any]]]:
        prepared.append(ordinals)
        found = [faults.get(ordinal, "") for ordinal in ordinals]
        if "no machine" in found:
            raise ControlFailedError("no worker prepared it in time")
        return ordinals[0], [{**none, "fault": each if each.startswith("prepare: ") else None} for each in found]

    monkeypatch.setattr(Quarantine, "prepare_singly", prepare)
    monkeypatch.setattr(Quarantine, "segment_singly", lambda *_: None)
    monkeypatch.setattr(Quarantine, "through", lambda _, row: (row, row, {**none, "fault": faults.get(row)}))
    quarantine.rows = rows_of(dataset, *shards)
    for _ in range(3):
        quarantine.note(ShardResult(0, "on_hold", {}, "rows couldn't be judged", faulted))
    return quarantine, quarantine.run_trials(dataset.spans(shards)), prepared


def test_a_row_whose_fault_stays_is_rejected_after_another_object_of_its_store_was_read(
    opened: tuple[Quarantine, BuildDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    quarantine, tried, prepared = give_up(opened, monkeypatch, {1: REFUSED, 2: REFUSED})
    assert tried == Trials(1, {})
    assert prepared == [[1], [0, 2, 3]]
    assert quarantine.known[1] == {
        "stage": "prepare",
        "reason": "persistent_fault",
        "detail": "AccessRefusedError: cannot read s3://photos/1.jpg: Forbidden (403)",
        "fault": None,
    }
    quarantine, tried, prepared = give_up(opened, monkeypatch, {0: REFUSED, 1: REFUSED}, (0, 1), max_faults=2)
    assert (tried.verdicts, sorted(quarantine.known)) == (2, [0, 1])
    assert prepared == [[0], [1], [2, 3]], "one look at the store after both trials"


def test_at_most_eight_rows_are_tried_alone_in_a_window(
    opened: tuple[Quarantine, BuildDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, prepared = give_up(opened, monkeypatch, OUTAGE, tuple(OUTAGE), shards=(0, 1, 2, 3, 4))
    assert prepared == [[row] for row in range(8)]


def test_a_fault_of_a_later_stage_needs_a_row_that_passes_all_stages(
    opened: tuple[Quarantine, BuildDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    quarantine, tried, prepared = give_up(opened, monkeypatch, {1: "describe: ValueError: no masks", 0: REFUSED})
    assert tried == Trials(1, {})
    assert prepared == [[1], [0, *range(2, 9)], [2]]
    assert (quarantine.known[1]["stage"], quarantine.known[1]["detail"]) == ("describe", "ValueError: no masks")


def test_a_rejected_row_does_not_publish_the_folder_of_the_catalog(
    opened: tuple[Quarantine, BuildDataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, _, catalog, *_ = opened[0].stages.prepare_arguments
    file = Path(catalog).parent / "photo_001.jpg"
    fault = f"prepare: AccessRefusedError: cannot read {file}: [Errno 13] Permission denied: '{file}'"
    quarantine, _, _ = give_up(opened, monkeypatch, {1: fault})
    said = "AccessRefusedError: cannot read photo_001.jpg: [Errno 13] Permission denied: 'photo_001.jpg'"
    assert quarantine.known[1]["detail"] == said


@pytest.mark.parametrize(
    ("faults", "faulted", "max_faults", "doubtful"),
    [
        pytest.param(OUTAGE, (1,), 5, True, id="an outage, or expired credentials"),
        pytest.param(BROKEN, (1,), 5, True, id="a stage that fails for all rows"),
        pytest.param({1: REFUSED}, (1,), 0, False, id="none allowed"),
        pytest.param({0: REFUSED, 1: REFUSED}, (0, 1), 1, False, id="more than allowed"),
        pytest.param({1: "no machine"}, (1,), 1, False, id="no machine for the trial"),
    ],
)
def test_outages_and_too_many_faults_reject_nothing(
    faults: dict[int, str],
    faulted: tuple[int, ...],
    max_faults: int,
    doubtful: bool,
    opened: tuple[Quarantine, BuildDataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    quarantine, tried, _ = give_up(opened, monkeypatch, faults, faulted, max_faults)
    assert (tried.verdicts, list(tried.on_hold), quarantine.known) == (0, [0], {})
    assert ("max_faults doesn't apply, because no other" in tried.on_hold[0]) == doubtful


def test_objects_of_other_stores_folders_and_credentials_show_nothing(
    opened: tuple[Quarantine, BuildDataset],
) -> None:
    first, dataset = opened
    options: dict[str, dict[str, Any]] = {"s3://photos": {}, "s3://photos/own": {"profile": "own"}}
    stages = replace(first.stages, segment=replace(first.stages.segment, storage_options=options))
    quarantine = Quarantine(stages, 120)
    quarantine.rows = rows_of(dataset, 0)
    quarantine.faulted = {4: None}
    assert quarantine.others(4, "prepare") == ([9], ("s3://photos", "s3://photos"))
    assert quarantine.others(7, "prepare") == ([7], ("s3://photos", "s3://photos", "s3://photos/own"))
    assert quarantine.others(2, "prepare")[0] == [0, 1, 2, 3]
    assert quarantine.others(4, "segment")[0] == [0, 1, 2, 3, 5, 7, 8, 9]
