"""Interface of the measures, and the task and results of a run, shared by all kinds of evaluation."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa

from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.known import absolute_name
from segmint.infra.assets.resolve import resolve
from segmint.infra.errors import UsageError
from segmint.infra.uris import base_name
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.operators.annotations.image import CocoRle
from segmint.operators.evaluate.encoders import embed_for_all
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.truth import Pixels, SkippedTruth, Truth, TruthImage

HEAD = [
    pa.field("truth", pa.int32(), nullable=False),  # index of the dataset or file in the command, from 0
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("image", pa.string(), nullable=False),  # file name
]
"""First columns of each row of results, with the meanings in `TruthImage`."""


class PartlyMeasuredError(ValueError):
    """Raised when one of the models returns no prediction for an image.

    `rows` contains the rows of all models; the failed model gets the lowest scores.
    """

    def __init__(self, message: str, rows: list[Row]) -> None:
        """Store the reason and the rows."""
        super().__init__(message)
        self.rows = rows


class Measure(Protocol):
    """Evaluation of one kind. It is picklable and self-contained, so every process computes the same results."""

    @property
    def name(self) -> str:
        """Name of the command, such as "points"."""

    @property
    def schema(self) -> pa.Schema:
        """Schema of the rows, which starts with `HEAD` and ends with the measure's columns."""

    def check(self, truths: Sequence[Truth]) -> None:
        """Raise `UsageError` if the measure can't run on these truths. Called before any weights are loaded."""

    def rows(self, models: Sequence["Model"], image: TruthImage) -> list[Row]:
        """Measure one or two models on an image, and return rows without the columns of `HEAD`.

        Raises ValueError if the image can't be measured and should be listed as skipped. Raises `PartlyMeasuredError`
        if it should be listed, but still count in the scores.
        """


@dataclass(frozen=True)
class EvaluatedWeights:
    """Weights to evaluate: a known name or an absolute path, and the file's hash. Every process checks the hash."""

    name: str
    sha256: str

    @classmethod
    def of(cls, name_or_path: str) -> "EvaluatedWeights":
        """Find weights on this machine, given a known name or a path. Raises `AssetError` if they don't exist."""
        return cls(absolute_name(name_or_path), sha256_of(resolve(name_or_path)))

    def find(self) -> Path:
        """Return the file's path on this machine. Raises `UsageError` if its hash differs from the first machine's."""
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
        """Convert the weights to JSON-serializable values. Of a path, only the file name is included."""
        return {"name": self.label, "sha256": self.sha256}


@dataclass(frozen=True)
class PredictedResult:
    """Mask that another model predicted, with its category, true mask, and number of clicks, if they are known."""

    rle: CocoRle
    score: float | None = None
    category: int | None = None
    mask: int | None = None
    clicks: int | None = None


@dataclass(frozen=True)
class Predictions(EvaluatedWeights):
    """Results of another model, which are evaluated in place of weights. They are grouped by image, in order.

    With `by_name`, images are keyed by file name.
    """

    by_image: Mapping[str, Sequence[PredictedResult]] = field(default_factory=dict)
    by_name: bool = False

    def results_for(self, image: TruthImage) -> Sequence[PredictedResult]:
        """Return the results for an image. Raises ValueError if a result isn't of the image's size."""
        found = self.by_image.get(image.name if self.by_name else image.image_id, ())
        wrong = [result.rle["size"] for result in found if tuple(result.rle["size"]) != image.size]
        if wrong:
            height, width = wrong[0]
            raise ValueError(f"{self.label} has a mask of {width} x {height} pixels for it: expected its size")
        return found


Model = Predictor | Predictions
"""Model to measure, as loaded weights or as the predictions of another model."""


def with_embeddings(models: Sequence[Model], pixels: Pixels) -> list[tuple[Predictor, Embedding] | Predictions]:
    """Embed an image with each model, except for predictions, which need no embedding."""
    embeddings = iter(embed_for_all([each for each in models if isinstance(each, Predictor)], pixels))
    return [(each, next(embeddings)) if isinstance(each, Predictor) else each for each in models]


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
    """Measurements of a part. The rows follow the measure's schema and the order of the truth."""

    table: pa.Table
    skipped: list[SkippedTruth] = field(default_factory=list)
    images: int = 0  # measured images
    computed_on: str = ""  # for example "cpu, fp32"
    seconds: float = 0.0  # time of one worker
