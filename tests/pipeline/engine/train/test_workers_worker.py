"""What the end of a worker means to a run: an error for people ends it, a death is counted."""

import pytest
import ray

from segmint.infra.errors import UnfinishedError, UsageError
from segmint.pipeline.engine.train.record import put_checkpoint
from segmint.pipeline.engine.train.trainer import TrainingError
from segmint.pipeline.engine.train.workers import DeathPolicy
from tests.support.locations import location_of

pytestmark = pytest.mark.ray


class RecordedLines:
    """In place of the actor's handle: keeps what is put."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.put = self

    def remote(self, line: str) -> None:
        self.lines.append(line)


def died() -> Exception:
    return ray.exceptions.RayActorError()


def test_an_error_for_people_ends_the_run_whatever_the_others_raise(tmp_path):
    deaths = DeathPolicy(location_of(tmp_path), "run", RecordedLines())
    with pytest.raises(TrainingError, match="the loss is no number"):
        deaths.after_exception(None, {0: died(), 1: TrainingError("the loss is no number")})
    with pytest.raises(UsageError, match="a wrong key"):
        deaths.after_exception(None, {0: UsageError("a wrong key")})


def test_workers_that_die_without_a_new_checkpoint_are_started_three_times(tmp_path):
    said = RecordedLines()
    deaths = DeathPolicy(location_of(tmp_path), "0123456789ab", said)

    def put(step: int) -> None:
        put_checkpoint(
            location_of(tmp_path) / "checkpoints",
            {},
            run="0123456789ab",
            step=step,
            evaluations=(),
            skipped={},
            listed=(),
            numerics=(),
        )

    for step in (1, 2, 3):
        deaths.after_exception(None, {0: RuntimeError("Connection closed by peer"), 1: died()})
        put(step)
    assert len(said.lines) == 3
    assert all(line.startswith("worker 1 of the training ended: ") for line in said.lines)
    deaths.after_exception(None, {1: died()})
    deaths.after_exception(None, {1: died()})
    with pytest.raises(UnfinishedError, match=r"Workers ended 3 times since the checkpoint of step 3, so no more are"):
        deaths.after_exception(None, {1: died()})
