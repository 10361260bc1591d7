"""Parts that the results of all evaluations share."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from segmint.infra.errors import SegmintError
from segmint.infra.version import VERSION
from segmint.infra.wording import counted, listed, not_checked_lines
from segmint.operators.intervals import LEAST_IMAGES, Interval
from segmint.pipeline.engine.evaluate.measure import EvaluatedWeights, Predictions
from segmint.pipeline.engine.evaluate.truth import SkippedTruth, Truth

SHOWN = 10
"""Maximum number of skipped items to list on a terminal."""

LISTED = 10_000
"""Maximum number of skipped items to list in JSON."""

BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no difference shown"
"""Verdicts on the second of two models, compared with the first."""

LEVEL = 0.05
"""Significance level. A difference whose corrected p reaches it has no verdict."""


@dataclass(frozen=True)
class FailIfWorse:
    """Outcome of `--fail-if-worse`: a measure's difference (second minus first) and its 95% interval, if it has one."""

    measure: str
    difference: float | None
    interval: Interval | None

    @property
    def worse(self) -> bool:
        """True if the second weights are worse, because the whole interval is below 0."""
        return self.interval is not None and self.interval[1] < 0

    def to_dict(self) -> dict[str, Any]:
        """Convert the outcome to JSON-serializable values. `worse` is None without an interval."""
        if self.interval is None:
            return {**asdict(self), "worse": None}
        return {**asdict(self), "worse": self.worse}

    def __str__(self) -> str:
        """Return the outcome as text."""
        option = f"--fail-if-worse {self.measure}"
        if self.interval is None:
            return (
                f"{option}: the difference has no 95% interval, because fewer than {LEAST_IMAGES} images were "
                "evaluated, or too few images affect it"
            )
        word = "the second weights aren't shown to be worse"
        if self.worse:
            word = "the second weights are worse"
        return f"{option}: {word}, {percent(self.difference, self.interval, '+')}"


class NothingMeasuredError(SegmintError):
    """Raised when no image could be evaluated."""


@dataclass(frozen=True)
class EvaluationSubject:
    """Weights, truths, and extent of an evaluation. `masks` is None if it evaluated whole images."""

    evaluation: str
    truths: tuple[Truth, ...]
    weights: tuple[EvaluatedWeights, ...]
    computed_on: str  # for example "cpu, fp32"
    images: int
    masks: int | None
    skipped: tuple[SkippedTruth, ...]
    seconds: float  # time to measure, summed over all workers
    page: str = ""  # path of the written page
    fail_if_worse: FailIfWorse | None = None

    def with_change(self, measure: str, difference: float | None, interval: Interval | None) -> "EvaluationSubject":
        """Return a copy with the outcome of `--fail-if-worse` for a measure."""
        return replace(self, fail_if_worse=FailIfWorse(measure, difference, interval))

    @property
    def worse(self) -> list[FailIfWorse]:
        """Outcome of `--fail-if-worse` if the second weights are worse. Otherwise, the list is empty."""
        if self.fail_if_worse is None or not self.fail_if_worse.worse:
            return []
        return [self.fail_if_worse]

    @property
    def not_checked(self) -> list[SkippedTruth | FailIfWorse]:
        """Skipped items, and the outcome of `--fail-if-worse` if it's unknown for lack of an interval."""
        if self.fail_if_worse is None or self.fail_if_worse.interval is not None:
            return [*self.skipped]
        return [self.fail_if_worse, *self.skipped]

    @property
    def names(self) -> list[str]:
        """Name of each set of weights. If names are equal, their hashes follow them."""
        labels = [weights.label for weights in self.weights]
        if len(set(labels)) == len(labels):
            return labels
        return [f"{weights.label} ({weights.sha256[:12]})" for weights in self.weights]

    def to_dict(self) -> dict[str, Any]:
        """Convert the first keys of a result to JSON-serializable values."""
        answer = {
            "evaluation": self.evaluation,
            "segmint": VERSION,
            "truth": [
                {"name": truth.name, "kind": truth.kind, "images": truth.images, **truth.facts} for truth in self.truths
            ],
            "weights": [weights.to_dict() for weights in self.weights],
            "computed_on": self.computed_on,
            "images": self.images,
            "masks": self.masks,
            "skipped": {
                "count": len(self.skipped),
                "first": [each._asdict() for each in self.skipped[:LISTED]],
            },
        }
        if self.fail_if_worse is not None:
            answer["fail_if_worse"] = self.fail_if_worse.to_dict()
        return answer

    def head(self) -> str:
        """Return the first line of a result."""
        head = f"{self.evaluation}: {self.size} of {listed(truth.name for truth in self.truths)}"
        predicted = [each.label for each in self.weights if isinstance(each, Predictions)]
        if predicted:
            head += f"; {listed(predicted)}: predictions from a file"
        return head

    @property
    def size(self) -> str:
        """Number of masks and images, such as `41 masks of 4 images`."""
        images = counted(self.images, "image")
        if self.masks is None:
            return images
        return f"{counted(self.masks, 'mask')} of {images}"

    def closing_lines(self) -> list[str]:
        """Return the last lines: the outcome of `--fail-if-worse`, the skipped items, and the written page."""
        lines = not_checked_lines(self.not_checked)
        if self.fail_if_worse is not None and self.fail_if_worse.interval is not None:
            lines.insert(0, str(self.fail_if_worse))
        if self.page:
            lines.append(f"written: open {self.page}")
        return lines


def check_measured(images: int, skipped: Sequence[SkippedTruth]) -> None:
    """Raise `NothingMeasuredError` if no image was measured."""
    if not images:
        reasons = "".join(f"\n  {each}" for each in skipped[:SHOWN])
        raise NothingMeasuredError(f"no image could be evaluated:{reasons}")


def percent(value: float | None, interval: Interval | None = None, sign: str = "") -> str:
    """Format a score in percent with its interval, such as `81.3 (79.0 to 83.4)`, or a dash if there is no score."""
    if value is None:
        return "-"
    text = f"{100 * value:{sign}.1f}"
    if interval is not None:
        text += f" ({100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f})"
    return text


def table_line(name: str, cells: Sequence[str], width: int = 24, first: int = 36) -> str:
    """Format a table row for a terminal, with `first` characters for its name and `width` characters for each cell."""
    return f"{name:<{first}}" + "".join(f" {cell:>{width - 1}}" for cell in cells)


def p_value(p: float | None) -> str:
    """Format a p-value as text: `p = 0.012`, `p < 0.001`, or `p unknown`."""
    if p is None:
        return "p unknown"
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}"


def verdict(difference: float | None, interval: Interval | None, p: float | None, images: int) -> str:
    """Return the verdict on the second model, based on the corrected p, or the reason why there is none."""
    if difference is None or p is None:
        return "not tested"
    if images < LEAST_IMAGES:
        return "too few images for an interval"
    if interval is None or interval[0] <= 0 <= interval[1] or p >= LEVEL:
        return NO_DIFFERENCE
    return BETTER if difference > 0 else WORSE
