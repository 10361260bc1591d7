"""What a session of annotators is about."""

from dataclasses import dataclass
from typing import Any

from segmint.catalogs.dataset.versions.record import VersionName

IDLE_S = 30
"""Seconds without input after which time is not counted."""

HINT_S = 30
"""Seconds on one mask after which the page suggests the next image, as in the SAM paper."""


@dataclass(frozen=True)
class SessionInfo:
    """What a session is about: shown to its annotators, and said in answers."""

    name: str
    version: VersionName | None
    images: int
    stage: str
    weights: str
    weights_sha256: str
    overlap: float = 0.0
    study: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return it as JSON values."""
        digest = None if self.version is None else str(self.version)
        return {
            "dataset": {"name": self.name, "digest": digest, "images": self.images},
            "stage": self.stage,
            "weights": self.weights,
            "overlap": self.overlap,
            "study": self.study,
            "idle_s": IDLE_S,
            "hint_s": HINT_S,
        }
