"""What an evaluation measures on an image, and what a run of it returns: the same for all kinds of evaluation."""

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
    pa.field("truth", pa.int32(), nullable=False),  # place of the dataset or file in the command, from 0
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("image", pa.string(), nullable=False),  # file name
]
"""The columns that each row of results begins with; `TruthImage` has their meaning."""


class PartlyMeasuredError(ValueError):
    """Some of the weights have no answer to an image; `rows` are of all weights, with the lowest scores for these."""

    def __init__(self, message: str, rows: list[Row]) -> None:
        """Take why, and the rows."""
        super().__init__(message)
        self.rows = rows


class Measure(Protocol):
    """One kind of evaluation. Picklable, and the same in every process: what it needs of an image is all there."""

    @property
    def name(self) -> str:
        """The command's name, such as "points"."""

    @property
    def schema(self) -> pa.Schema:
        """The schema of its rows: `HEAD`, then its own columns."""

    def check(self, truths: Sequence[Truth]) -> None:
        """Raise `UsageError` if it cannot be measured on these; called before any weights are loaded."""

    def rows(self, models: Sequence[Predictor], image: TruthImage) -> list[Row]:
        """Measure the models, one or two, on an image: rows without the columns of `HEAD`.

        Raises ValueError for an image that cannot be measured, which is then listed as left out, and
        `PartlyMeasuredError` for one that counts and is listed.
        """


@dataclass(frozen=True)
class EvaluatedWeights:
    """Weights that are evaluated: a known name or an absolute path, and the file's hash, which every process checks."""

    name: str
    sha256: str

    @classmethod
    def of(cls, name_or_path: str) -> "EvaluatedWeights":
        """Find weights on this machine, by a known name or a path; raises `AssetError` if they are not there."""
        return cls(absolute_name(name_or_path), sha256_of(resolve(name_or_path)))

    def find(self) -> Path:
        """Return the file in this process; raises `UsageError` if it has other bytes than on the first machine."""
        path = resolve(self.name)
        found = sha256_of(path)
        if found != self.sha256:
            raise UsageError(f"{path} has SHA-256 {found} here, and {self.sha256} where the run was started")
        return path

    @property
    def label(self) -> str:
        """A short name for tables: the known name, or the file's."""
        return base_name(self.name)

    def to_dict(self) -> dict[str, Any]:
        """The weights as JSON values; of a path only the file's name, which says nothing of a machine."""
        return {"name": self.label, "sha256": self.sha256}


@dataclass(frozen=True)
class EvaluateTask:
    """What a worker must know of a run."""

    measure: Measure
    weights: tuple[EvaluatedWeights, ...]
    device: str = "auto"
    precision: str = "auto"
    threads: str | int = "auto"


@dataclass(frozen=True)
class PartResult:
    """What was measured on a part: rows of the measure's schema, in the order of the truth."""

    table: pa.Table
    skipped: list[SkippedTruth] = field(default_factory=list)
    images: int = 0  # that were measured
    computed_on: str = ""  # such as "cpu, fp32"
    seconds: float = 0.0  # of one worker
