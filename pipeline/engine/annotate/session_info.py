"""Facts about an annotation session."""

from dataclasses import asdict, dataclass
from typing import Any

from segmint.catalogs.dataset.versions.record import VersionName
from segmint.pipeline.serving.levels import OutputOrder

IDLE_S = 30
"""Seconds without input after which the page stops counting time."""

HINT_S = 30
"""Seconds on one mask after which the page suggests moving on, as in the SAM paper."""


@dataclass(frozen=True)
class SessionInfo:
    """Facts about a session, which the page shows to annotators and submissions record."""

    name: str
    key: str  # from `dataset_keys`; the browser stores drafts under it, because two datasets may share a name
    version: VersionName | None
    images: int
    stage: str
    weights: str
    weights_sha256: str
    overlap: float = 0.0
    study: str | None = None
    order: OutputOrder | None = None  # order of the outputs of the dataset's weights, if it was measured

    def to_dict(self) -> dict[str, Any]:
        digest = None if self.version is None else str(self.version)
        return {
            "dataset": {"name": self.name, "key": self.key, "digest": digest, "images": self.images},
            "stage": self.stage,
            "weights": self.weights,
            "overlap": self.overlap,
            "study": self.study,
            "output_order": None if self.order is None else asdict(self.order),
            "idle_s": IDLE_S,
            "hint_s": HINT_S,
        }
