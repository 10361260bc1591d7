"""What the answers of all evaluations have in common."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from segmint.infra.errors import SegmintError
from segmint.infra.version import VERSION
from segmint.infra.wording import counted, listed
from segmint.pipeline.engine.evaluate.measure import Weights
from segmint.pipeline.engine.evaluate.truth import LeftOut, Truth

SHOWN = 10
"""What was left out: lines on a terminal."""

LISTED = 10_000
"""What was left out: entries in JSON."""


class NothingMeasuredError(SegmintError):
    """No image of any truth could be evaluated."""


@dataclass(frozen=True)
class Subject:
    """What was evaluated on what; `masks` None: whole images were."""

    evaluation: str
    truths: tuple[Truth, ...]
    weights: tuple[Weights, ...]
    computed_on: str  # such as "cpu, fp32"
    images: int
    masks: int | None
    left_out: tuple[LeftOut, ...]
    seconds: float  # of all workers, in which they measured

    @property
    def names(self) -> list[str]:
        """A name for each weights; of equal ones each with its hash."""
        labels = [weights.label for weights in self.weights]
        if len(set(labels)) == len(labels):
            return labels
        return [f"{weights.label} ({weights.sha256[:12]})" for weights in self.weights]

    def to_dict(self) -> dict[str, Any]:
        """Return the first keys of an answer as JSON values."""
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
            "left_out": {
                "count": len(self.left_out),
                "first": [each._asdict() for each in self.left_out[:LISTED]],
            },
        }

    def head(self) -> str:
        """Return the first line of an answer."""
        names = listed(truth.name for truth in self.truths)
        masks = "" if self.masks is None else f"{counted(self.masks, 'mask')} of "
        return f"{self.evaluation}: {masks}{counted(self.images, 'image')} of {names}"

    def left_out_lines(self) -> list[str]:
        """Return lines about what was left out."""
        if not self.left_out:
            return []
        more = len(self.left_out) - SHOWN
        return [
            f"left out: {counted(len(self.left_out), 'time')} an image or a mask:",
            *(f"  {each}" for each in self.left_out[:SHOWN]),
            *([f"  and {more:,} more"] if more > 0 else []),
        ]


def check_measured(images: int, left_out: Sequence[LeftOut]) -> None:
    """Raise `NothingMeasuredError` if no image was measured."""
    if not images:
        reasons = "".join(f"\n  {each}" for each in left_out[:SHOWN])
        raise NothingMeasuredError(f"no image could be evaluated:{reasons}")
