"""What two processes that train the same run leave of one another's checkpoints."""

from pathlib import Path
from typing import Any

import pytest
import torch

from segmint.catalogs.lineage import TrainingRound
from segmint.infra.device import Compute
from segmint.pipeline.engine.train.record import CHECKPOINTS, TrainingRunRecord, list_checkpoints
from segmint.pipeline.engine.train.session import LoopEnd, LoopHooks, TrainingSession, best_of, is_over, run_steps
from segmint.pipeline.engine.train.settings import DatasetKeys, TrainConfig
from segmint.pipeline.engine.train.trainer import Evaluation, StepResult
from tests.support.locations import location_of


class StubTrainer:
    """As much of a trainer as a checkpoint holds."""

    def __init__(self, value: float) -> None:
        self._value = value

    def state(self) -> dict[str, Any]:
        return {"weights": {"a": torch.tensor([self._value])}, "optimizer": {}}


def test_a_process_that_is_behind_leaves_later_checkpoints_alone(tmp_path: Path) -> None:
    config = TrainConfig(datasets=(DatasetKeys(uri=str(tmp_path / "d")),), output=str(tmp_path / "o"))
    parent = TrainingRound(weights="0" * 64, name="mobile_sam")
    run = TrainingRunRecord(code_version="1", config={}, parent=parent, lineage=(parent,))
    output, compute = location_of(tmp_path / "o"), Compute("cpu", "fp32", 1)
    session = TrainingSession(config, run, (), output, output / "cache", tmp_path, "", print, compute=compute)

    def save(step: int, *one_clicks: float) -> list[int]:
        measured = [
            Evaluation(step=50 * place, images=1, masks=1, one_click=value, oracle=value)
            for place, value in enumerate(one_clicks)
        ]
        session.save(StubTrainer(step), step, measured)  # type: ignore[arg-type]
        return [each.step for each in list_checkpoints(output / CHECKPOINTS)]

    assert save(50, 0.5, 0.6) == [50]
    assert save(150, 0.5, 0.6, 0.55, 0.9) == [50, 150]
    assert save(100, 0.5, 0.6, 0.55) == [50, 100, 150]
    assert save(200, 0.5, 0.6, 0.55, 0.9, 0.1) == [150, 200]


def measured(step: int, one_click: float) -> Evaluation:
    return Evaluation(step=step, images=2, masks=8, one_click=one_click, oracle=0.9)


def config(**held_out: int | None) -> TrainConfig:
    return TrainConfig(
        datasets=[{"uri": "a"}],
        output="out",
        steps=10,
        held_out={"every": 2, **held_out},
        checkpoints={"every": 5},
    )


def happened(settings: TrainConfig, ious: list[float], start: int = 0, before: list[Evaluation] | None = None):
    """Run with these IoUs at one click, in order, and return how it ended, with a line for what was done."""
    done: list[str] = []
    left = iter(ious)

    def step(number: int) -> StepResult:
        done.append(f"step {number}")
        return StepResult(number, 1)

    def evaluate(number: int) -> Evaluation:
        done.append(f"evaluate {number}")
        return measured(number, next(left))

    hooks = LoopHooks(
        step=step,
        show=lambda result: done.append(f"show {result.step}"),
        evaluate=evaluate if ious else None,
        save=lambda number, evaluations: done.append(f"save {number} with {len(evaluations)}"),
    )
    ended = run_steps(settings, start, before if before is not None else [], hooks)
    return ended, [line for line in done if not line.startswith(("step", "show"))]


def test_each_thing_happens_at_its_steps():
    ended, done = happened(config(), [0.5, 0.6, 0.55, 0.7, 0.5, 0.5])
    assert ended == LoopEnd(10, "steps")
    assert done == [
        *("evaluate 0", "evaluate 2", "save 2 with 2", "evaluate 4", "save 5 with 3"),
        *("evaluate 6", "save 6 with 4", "evaluate 8", "evaluate 10", "save 10 with 6"),
    ]


def test_a_run_that_goes_on_does_what_is_left():
    before = [measured(0, 0.5), measured(2, 0.6), measured(4, 0.55)]
    ended, done = happened(config(), [0.7, 0.5, 0.5], start=5, before=before)
    assert ended == LoopEnd(10, "steps")
    assert done[:3] == ["evaluate 6", "save 6 with 4", "evaluate 8"]


def test_training_stops_early_and_stays_stopped():
    ended, done = happened(config(patience=2), [0.5, 0.6, 0.6, 0.55])
    assert ended == LoopEnd(6, "patience")
    assert done[-1] == "save 6 with 4"
    before = [measured(step, iou) for step, iou in ((0, 0.5), (2, 0.6), (4, 0.6), (6, 0.55))]
    assert happened(config(patience=2), [0.9], start=6, before=before) == (LoopEnd(6, "patience"), [])


def test_without_held_out_images_nothing_is_evaluated():
    ended, done = happened(config(patience=1), [])
    assert ended == LoopEnd(10, "steps")
    assert done == ["save 5 with 0", "save 10 with 0"]


@pytest.mark.parametrize(
    ("ious", "best"), [([0.9], None), ([0.9, 0.5], 1), ([0.1, 0.5, 0.5, 0.4], 1), ([0, 0.1, 0.2], 2)]
)
def test_the_best_is_one_after_training_and_the_first_of_equal_ones(ious, best):
    evaluations = [measured(step, iou) for step, iou in enumerate(ious)]
    assert best_of(evaluations) == (None if best is None else evaluations[best])
    assert is_over(evaluations, 2) == (best is not None and len(ious) - 1 - best >= 2)
    assert not is_over(evaluations, None)
