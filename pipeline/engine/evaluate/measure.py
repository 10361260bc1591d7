"""Interface of the measures, and the task and results of a run, shared by all kinds of evaluation."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.known import absolute_name
from segmint.infra.assets.resolve import resolve
from segmint.infra.errors import UsageError
from segmint.infra.uris import base_name
from segmint.model.sam.predictor import Predictor
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.truth import SkippedTruth, Truth, TruthImage

HEAD = [
    pa.field("truth", pa.int32(), nullable=False),  # index of the dataset or file in the command, from 0
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("image", pa.string(), nullable=False),  # file name
]
"""First columns of each row of results, defined as in `TruthImage`."""


class PartlyMeasuredError(ValueError):
    """Error if a model returns no prediction. `rows` are those of all models, with the lowest scores for this one."""

    def __init__(self, message: str, rows: list[Row]) -> None:
        """Store the reason and the rows."""
        super().__init__(message)
        self.rows = rows


class Measure(Protocol):
    """Kind of evaluation. Picklable and self-contained, so it gives the same results in every process."""

    @property
    def name(self) -> str:
        """Name of the command, such as "points"."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of the rows: `HEAD`, then the measure's columns."""

    def check(self, truths: Sequence[Truth]) -> None:
        """Raise `UsageError` if the measure can't run on these truths; called before loading any weights."""

    def rows(self, models: Sequence[Predictor], image: TruthImage) -> list[Row]:
        """Measure one or two models on an image, and return rows without the columns of `HEAD`.

        Raises ValueError for an image that can't be measured, which is listed as skipped. Raises `PartlyMeasuredError`
        for one that is listed as well, but counts.
        """


@dataclass(frozen=True)
class EvaluatedWeights:
    """Weights to evaluate: a known name or an absolute path, and the file's hash, which every process verifies."""

    name: str
    sha256: str

    @classmethod
    def of(cls, name_or_path: str) -> "EvaluatedWeights":
        """Find weights on this machine by a known name or a path. Raises `AssetError` if they don't exist."""
        return cls(absolute_name(name_or_path), sha256_of(resolve(name_or_path)))

    def find(self) -> Path:
        """Return the file's path on this machine. Raises `UsageError` if its hash isn't that of the first machine's."""
        path = resolve(self.name)
        found = sha256_of(path)
        if found != self.sha256:
            raise UsageError(f"{path} has SHA-256 {found} here, but {self.sha256} where the run was started")
        return path

    @property
    def label(self) -> str:
        """Short name for tables: the known name, or the file's name."""
        return base_name(self.name)

    def to_dict(self) -> dict[str, Any]:
        """Return the weights as JSON values; a path becomes the file's name, so no machine's paths are exposed."""
        return {"name": self.label, "sha256": self.sha256}


@dataclass(frozen=True)
class EvaluateTask:
    """Arguments of a worker."""

    measure: Measure
    weights: tuple[EvaluatedWeights, ...]
    device: str = "auto"
    precision: str = "auto"
    threads: str | int = "auto"


@dataclass(frozen=True)
class PartResult:
    """Measurements of a part: rows in the measure's schema, in the order of the truth."""

    table: pa.Table
    skipped: list[SkippedTruth] = field(default_factory=list)
    images: int = 0  # measured images
    computed_on: str = ""  # for example "cpu, fp32"
    seconds: float = 0.0  # measured in one worker
