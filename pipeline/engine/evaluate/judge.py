"""What may judge an evaluation from its results, for its answer and its page."""

from collections.abc import Mapping
from typing import Any, Protocol

from segmint.pipeline.engine.evaluate.measure import PartResult


class Judgment(Protocol):
    """A part of an answer."""

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""

    def lines(self) -> list[str]:
        """Return it as lines for a person."""

    def values(self) -> Mapping[str, Any]:
        """Return what the page's template shows."""


class Judge(Protocol):
    """Sees the results of an evaluation as they come, and judges once all have come."""

    def see(self, result: PartResult) -> None:
        """Take the results of a part."""

    def judge(self) -> Judgment:
        """Judge what was seen."""
