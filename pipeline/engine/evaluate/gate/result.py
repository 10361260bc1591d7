"""Judgment of a gate, as text, as JSON, and as the values of a page."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from segmint.infra.wording import counted, not_checked_lines
from segmint.pipeline.engine.evaluate.gate.lineage import Lineage
from segmint.pipeline.engine.evaluate.gate.verdict import (
    DECIDES,
    GUARDED,
    NAMES,
    GateVerdict,
    GuardComparison,
    MeanComparison,
    percent_points,
)
from segmint.pipeline.engine.evaluate.points.result import PointsResult
from segmint.pipeline.engine.evaluate.result import LISTED, EvaluationSubject, percent
from segmint.pipeline.engine.evaluate.truth import SkippedTruth

TO_DO = (
    "what to do: annotate or correct masks of held-out images (`segmint annotate` and `segmint merge`, or `segmint "
    "import`), or pass a dataset or file that the weights weren't trained on"
)


@dataclass(frozen=True)
class JudgedImages:
    """Images of a dataset or file that a gate judged.

    `trained` counts the images that the gate skipped, because they are equal or similar to training images.
    """

    name: str
    trained: int
    why: str
    skipped: tuple[str, ...] = ()  # unreadable images and shards

    def line(self) -> str:
        """Format the entry as a human-readable line."""
        skipped = f"; {counted(self.trained, 'image')} excluded because they were trained on" if self.trained else ""
        return f"{self.name}: {self.why}{skipped}"


@dataclass(frozen=True)
class GateJudgment:
    """Verdict on whether the second weights may replace the first, with the results that it is based on.

    `assisted_by` counts assisted masks by model: "first", "second", or "others". `corrected_separately` counts
    corrected masks that are reported with the assisted masks, because the corrected predictions favor the second
    weights. `favoring_first` counts independent masks that were corrected from predictions of the first weights or of
    their ancestors. `guard_skipped` lists the items of the guard sets that weren't measured.
    """

    verdict: GateVerdict
    reasons: tuple[str, ...]
    lineages: tuple[Lineage, Lineage]
    truths: tuple[JudgedImages, ...]
    independent: tuple[MeanComparison, ...] = ()
    assisted: tuple[MeanComparison, ...] = ()
    assisted_by: Mapping[str, int] = field(default_factory=dict)
    guards: tuple[GuardComparison, ...] = ()
    guard_images: tuple[JudgedImages, ...] = ()
    corrected_separately: int = 0
    favoring_first: int = 0
    guard_skipped: tuple[SkippedTruth, ...] = ()

    @property
    def passes(self) -> bool:
        """True if the second weights are better, and every guard set has enough data to show that they aren't worse."""
        return self.verdict is GateVerdict.BETTER and all(guard.judged for guard in self.guards)

    def to_dict(self) -> dict[str, Any]:
        """Convert the judgment to JSON-serializable values."""
        return {
            "verdict": self.verdict.value,
            "reasons": list(self.reasons),
            "passes": self.passes,
            "decided_by": DECIDES,
            "masks_favoring_first": self.favoring_first,
            "independent": [asdict(each) for each in self.independent],
            "assisted": {
                "masks_by_model": dict(self.assisted_by),
                "corrected": self.corrected_separately,
                "compared": [asdict(each) for each in self.assisted],
            },
            "guards": [
                {
                    "name": guard.name,
                    "worse": [each.measure for each in guard.worse],
                    "compared": [asdict(each) for each in guard.compared],
                }
                for guard in self.guards
            ],
            "lineages": [each.to_dict() for each in self.lineages],
            "images": [asdict(each) for each in self.truths],
            "guard_images": [asdict(each) for each in self.guard_images],
            "guard_skipped": {
                "count": len(self.guard_skipped),
                "first": [each._asdict() for each in self.guard_skipped[:LISTED]],
            },
        }

    def lines(self) -> list[str]:
        """Format the judgment as human-readable lines, starting with the verdict."""
        return [
            f"gate: {self.question} {self.verdict.value}",
            *(f"  {reason}" for reason in self.reasons),
            *([f"  {TO_DO}"] if self.verdict is GateVerdict.NO_TRUTH else []),
            *(
                f"  {where}, {measured}: {change} {decides}".rstrip()
                for where, measured, _, _, change, decides in self.table()
            ),
            *(f"  {each}" for each in self.notes()),
            *not_checked_lines(self.not_checked),
        ]

    @property
    def not_checked(self) -> list[str]:
        """Items that the gate couldn't check: guard sets with too little data, and unreadable images and shards."""
        guards = [f"guard set {each.name}: can't decide" for each in self.guards if not each.judged]
        judged = (*self.truths, *self.guard_images)
        return [
            *guards,
            *(f"guard set {each}" for each in self.guard_skipped),
            *(f"{each.name}: {line}" for each in judged for line in each.skipped),
        ]

    @property
    def question(self) -> str:
        """Question that the verdict answers."""
        first, second = (each.weights.label for each in self.lineages)
        return f"may {second} replace {first}?"

    def table(self) -> Iterator[tuple[str, ...]]:
        """Yield each comparison as a row: masks, measure, both means, their difference, and whether it may decide."""
        parts = [("independent masks", self.independent, (DECIDES,)), ("assisted masks", self.assisted, ())]
        parts += [(f"guard set {guard.name}", guard.compared, GUARDED) for guard in self.guards]
        for name, compared, deciding in parts:
            for each in compared:
                where = f"{name}, {counted(each.masks, 'mask')} of {counted(each.images, 'image')}"
                decides = "" if each.measure in deciding else "(does not decide)"
                change = percent_points(each) + ("" if each.interval else " (no interval)")
                yield where, NAMES[each.measure], percent(each.first), percent(each.second), change, decides

    def notes(self) -> Iterator[str]:
        """Yield notes on the weights and the images."""
        if self.assisted:
            by = ", ".join(f"{count:,} by {model}" for model, count in self.assisted_by.items() if count)
            yield f"assisted masks favor the model that assisted{f': {by}' if by else ''}"
        if self.corrected_separately:
            yield (
                f"{counted(self.corrected_separately, 'mask')} corrected from predictions of the second weights, or "
                "of their ancestors, may favor the second weights: reported with the assisted masks"
            )
        if self.favoring_first:
            yield (
                f"{counted(self.favoring_first, 'independent mask')} were corrected from predictions of the first "
                "weights, or of their ancestors, and favor the first weights. They may hide an improvement, but "
                "never cause a rejection"
            )
        yield from (each.line() for each in self.lineages)
        yield from (each.line() for each in self.truths)
        yield from (f"guard set {each.line()}" for each in self.guard_images)

    def values(self) -> Mapping[str, Any]:
        """Return the values for the page's template."""
        return {
            "verdict": self.verdict.value,
            "kind": {GateVerdict.BETTER: "good", GateVerdict.WORSE: "bad"}.get(self.verdict, ""),
            "question": self.question,
            "reasons": [*self.reasons, *([TO_DO] if self.verdict is GateVerdict.NO_TRUTH else [])],
            "rows": list(self.table()),
            "notes": list(self.notes()),
        }


@dataclass(frozen=True)
class GateResult:
    """Evaluation with its judgment. `points` is None if there was nothing to evaluate."""

    subject: EvaluationSubject
    judgment: GateJudgment
    points: PointsResult | None = None

    def to_dict(self) -> dict[str, Any]:
        """Convert the result to JSON-serializable values."""
        if self.points is not None:
            return self.points.to_dict()
        return {**self.subject.to_dict(), "gate": self.judgment.to_dict()}

    def lines(self) -> list[str]:
        """Format the result as human-readable lines."""
        if self.points is not None:
            return self.points.lines()
        return [*self.judgment.lines(), *self.subject.closing_lines()]
