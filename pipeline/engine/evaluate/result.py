"""Parts that the results of all evaluations share."""

from collections.abc import Sequence
from dataclasses import dataclass
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

    @property
    def names(self) -> list[str]:
        """Name of each set of weights. If names are equal, their hashes follow them."""
        labels = [weights.label for weights in self.weights]
        if len(set(labels)) == len(labels):
            return labels
        return [f"{weights.label} ({weights.sha256[:12]})" for weights in self.weights]

    def to_dict(self) -> dict[str, Any]:
        """Convert the first keys of a result to JSON-serializable values."""
        return {
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

    def head(self) -> str:
        """Return the first line of a result."""
        names = listed(truth.name for truth in self.truths)
        predicted = [each.label for each in self.weights if isinstance(each, Predictions)]
        which = f"; {listed(predicted)}: predictions from a file" if predicted else ""
        return f"{self.evaluation}: {self.size} of {names}{which}"

    @property
    def size(self) -> str:
        """Number of masks and images, such as `41 masks of 4 images`."""
        masks = "" if self.masks is None else f"{counted(self.masks, 'mask')} of "
        return f"{masks}{counted(self.images, 'image')}"

    def closing_lines(self) -> list[str]:
        """Return the last lines of a result, which list the skipped items and the written page."""
        return [*not_checked_lines(self.skipped), *([f"written: open {self.page}"] if self.page else [])]


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
    return text if interval is None else f"{text} ({100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f})"


def table_line(name: str, cells: Sequence[str], width: int = 24, first: int = 36) -> str:
    """Format a table row for a terminal, with `first` characters for its name and `width` characters for each cell."""
    return f"{name:<{first}}" + "".join(f" {cell:>{width - 1}}" for cell in cells)


def p_value(p: float | None) -> str:
    """Format a p-value as text: `p = 0.012`, `p < 0.001`, or `p unknown`."""
    if p is None:
        return "p unknown"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def verdict(difference: float | None, interval: Interval | None, p: float | None, images: int) -> str:
    """Return the verdict on the second model, based on the corrected p, or the reason why there is none."""
    if difference is None or p is None:
        return "not tested"
    if images < LEAST_IMAGES:
        return "too few images for an interval"
    if interval is None or interval[0] <= 0 <= interval[1] or p >= LEVEL:
        return NO_DIFFERENCE
    return BETTER if difference > 0 else WORSE
