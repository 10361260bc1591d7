"""Measured recall of the bundled detectors, as plans and dataset cards state it.

`make bench-privacy` measures the recall. A test compares the numbers in this module with the recorded result.
"""

from collections.abc import Iterable
from dataclasses import dataclass

Share = tuple[int, int]
"""Number of marked faces or plates that a detector found, and the number of all marked ones."""

PHOTOGRAPHS = 13
COMPOSITES = 40


@dataclass(frozen=True)
class MeasuredRecall:
    """Recall of a detector in upright photographs, photographs rotated by 90, 180, or 270 degrees, and composites."""

    kind: str  # in the plural
    upright: Share
    turned: Share
    composites: Share

    @property
    def shares(self) -> tuple[Share, Share, Share]:
        """The shares for upright photographs, rotated photographs, and composites."""
        return self.upright, self.turned, self.composites


RECALL = {
    "mtcnn": MeasuredRecall("faces", upright=(37, 37), turned=(111, 111), composites=(135, 138)),
    "clp": MeasuredRecall("plates", upright=(2, 2), turned=(1, 6), composites=(5, 5)),
}
"""Measured recall, keyed by bundled detector."""


def describe_recall(names: Iterable[str]) -> str:
    """Describe the measured recall of the bundled detectors in `names`, in sentences."""
    parts = []
    for name in names:
        found = RECALL.get(name)
        if found is not None:
            upright, turned, made = (f"{hits} of {marks}" for hits, marks in found.shares)
            parts.append(
                f"{name} found {upright} {found.kind} upright, {turned} rotated by 90, 180, or 270 degrees, and {made} "
                "in the composites."
            )
    measured = f"They were measured on {PHOTOGRAPHS} photographs and {COMPOSITES} composites of them: "
    return measured + " ".join(parts) if parts else ""
