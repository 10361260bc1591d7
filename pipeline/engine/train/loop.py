"""Main loop of a training run: steps, evaluations, overlays, and checkpoints, until the last step or an early stop."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from segmint.catalogs.lineage import HeldOutScores
from segmint.pipeline.engine.train.evaluation import Evaluation
from segmint.pipeline.engine.train.settings import TrainConfig
from segmint.pipeline.engine.train.trainer import StepResult

Stop = Literal["steps", "patience"]


@dataclass(frozen=True)
class LoopHooks:
    """Actions of a run at its steps. `evaluate` is None if no image is held out."""

    step: Callable[[int], StepResult]
    show: Callable[[StepResult], None]
    evaluate: Callable[[int], Evaluation] | None
    draw: Callable[[int], None]
    save: Callable[[int, Sequence[Evaluation]], None]


@dataclass(frozen=True)
class LoopEnd:
    """Last step of the loop, and the reason it stopped."""

    step: int
    stopped: Stop


def run_steps(config: TrainConfig, start: int, evaluations: list[Evaluation], hooks: LoopHooks) -> LoopEnd:
    """Take the steps after `start`, which is 0 in a new run; append to the evaluations of earlier steps.

    Saves a checkpoint every `checkpoints.every` steps, at each best evaluation so far, and at the end.
    """
    patience = config.held_out.patience
    if start == 0:
        if hooks.evaluate is not None and not evaluations:
            evaluations.append(hooks.evaluate(0))
        if config.overlays.every:
            hooks.draw(0)
    step = start
    while step < config.steps and not is_over(evaluations, patience):
        step += 1
        hooks.show(hooks.step(step))
        last = step == config.steps
        improved = False
        if hooks.evaluate is not None and (last or step % config.held_out.every == 0):
            evaluations.append(hooks.evaluate(step))
            improved = best_of(evaluations) is evaluations[-1]
        if config.overlays.every and (last or step % config.overlays.every == 0):
            hooks.draw(step)
        due = step % config.checkpoints.every == 0
        if last or improved or due or is_over(evaluations, patience):
            hooks.save(step, evaluations)
    return LoopEnd(step, "steps" if step >= config.steps else "patience")


def best_of(evaluations: Sequence[Evaluation]) -> Evaluation | None:
    """Return the trained weights' evaluation with the best mean IoU at one click, the first in a tie, or None."""
    return max((each for each in evaluations if each.step > 0), key=lambda each: each.one_click, default=None)


def ranked(evaluations: Sequence[Evaluation]) -> list[Evaluation]:
    """Sort the evaluations of trained weights by mean IoU at one click, best first."""
    return sorted((each for each in evaluations if each.step > 0), key=lambda each: -each.one_click)


def is_over(evaluations: Sequence[Evaluation], patience: int | None) -> bool:
    """Return whether at least `patience` evaluations after the best one brought no improvement."""
    best = best_of(evaluations)
    if patience is None or best is None:
        return False
    return sum(each.step > best.step for each in evaluations) >= patience


def held_out_of(images: int, evaluations: Sequence[Evaluation], best: Evaluation | None) -> HeldOutScores | None:
    """Return the scores on `images` held-out images, before the training and with the chosen weights."""
    if best is None or not best.masks:
        return None
    before = evaluations[0]
    return HeldOutScores(
        images=images,
        measured=best.images,
        masks=best.masks,
        before=before.one_click,
        after=best.one_click,
        oracle_before=before.oracle,
        oracle_after=best.oracle,
    )
