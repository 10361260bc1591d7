"""Results of all evaluations: predictions, measures, and what their results and files share.

Reader of another model's predictions, which are evaluated in place of weights.

The file is a JSON list of COCO results with masks. For an evaluation by clicks, each result also names the true mask
(`annotation_id`) and the number of clicks so far (`clicks`). If a model predicts several masks after a click, the first
one in the file is its choice.

Output folder of an evaluation. Existing files are never overwritten.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike

from segmint.catalogs.dataset.outputs import note_output, refuse_inside
from segmint.catalogs.layout import bytes_sha256, image_name
from segmint.catalogs.parquet import RowGroupWriter
from segmint.infra.arrays import Pixels
from segmint.infra.assets import absolute_name, resolve, sha256_of
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.log import without_secrets
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location, put_new_file, refuse_existing
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import base_name
from segmint.infra.version import VERSION
from segmint.infra.wording import counted, listed, not_checked_lines
from segmint.model.automatic.rle import CocoRle
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.operators.annotations.image import UnreadableMaskError, checked_rle, id_number
from segmint.operators.evaluate.points import embed_for_all
from segmint.operators.evaluate.settings import DATASET
from segmint.operators.intervals import LEAST_IMAGES, Interval
from segmint.operators.rows import Row
from segmint.pipeline.engine.evaluate.truth import SkippedTruth, Truth, TruthImage

HEAD = [
    pa.field("truth", pa.int32(), nullable=False),  # index of the dataset or file in the command, from 0
    pa.field("image_id", pa.string(), nullable=False),
    pa.field("image", pa.string(), nullable=False),  # file name
]
"""First columns of each row of results, with the meanings in `TruthImage`."""

WEIGHTS = pa.field("weights", pa.int32(), nullable=False)
"""Column with the index of a row's weights in the command, from 0."""


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


_EXPECTED = "expected COCO results, a list of {image_id, segmentation: {size, counts}, …}"


def read_predictions(
    files: Sequence[str], truths: Sequence[Truth], storage: Storage, required: Sequence[str] = ()
) -> tuple[Predictions, ...]:
    """Read files of COCO results. Image ids refer to the ground truth file, or to a segmint dataset's export.

    Raises `UsageError` if there are several truths, if a file is in a different format, or if an entry lacks one of the
    `required` keys. The error names the file or the entry.
    """
    if files and len(truths) > 1:
        raise UsageError(f"--predictions takes only one dataset or file, but {len(truths)} were given")
    return tuple(_read(Location(storage, file), truths[0].kind == DATASET, required) for file in files)


def check_matched(models: Sequence[EvaluatedWeights], matched: ArrayLike, keys: str = "image_id") -> None:
    """Raise `UsageError` if none of a model's predictions belongs to an evaluated image or mask.

    `matched` (M,) bool is true for models with such a prediction.
    """
    for model, is_matched in zip(models, np.asarray(matched), strict=False):
        if isinstance(model, Predictions) and not is_matched:
            raise UsageError(
                f"no prediction in {model.name} belongs to an evaluated image: expected {keys} to be the ids in the "
                "ground truth file, or the numbers or file names of the dataset"
            )


def read_entries(option: str, file: Location, expected: str) -> tuple[list[Any], str]:
    """Read a list of COCO results and its file's SHA-256. Raises `UsageError` if the file contains no such list."""
    try:
        data = file.read()
        entries = json.loads(data)
    except NotFoundError as error:
        raise UsageError(f"{option} {file}: no such file") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{option} {file} is not JSON ({error}): {expected}") from error
    if not isinstance(entries, list) or not entries:
        raise UsageError(f"{option} {file} is {'an empty' if entries == [] else 'not a'} list: {expected}")
    return entries, bytes_sha256(data)


def image_key(image_id: int | str, of_dataset: bool) -> str:
    """Return the key of an entry's image. For the number of an image in a segmint dataset, this is its file name."""
    return image_name(image_id) if of_dataset and isinstance(image_id, int) else str(image_id)


def is_number(value: Any) -> bool:
    """Return whether a JSON value is a finite number."""
    return type(value) in (int, float) and abs(value) <= sys.float_info.max


def _read(file: Location, of_dataset: bool, required: Sequence[str]) -> Predictions:
    entries, sha256 = read_entries("--predictions", file, _EXPECTED)
    by_image: dict[str, list[PredictedResult]] = {}
    for number, entry in enumerate(entries, start=1):
        try:
            image, result = _result(entry, required)
        except UnreadableMaskError as error:
            raise UsageError(f"--predictions {file}, entry {number}: {error}") from error
        by_image.setdefault(image_key(image, of_dataset), []).append(result)
    return Predictions(str(file), sha256, by_image, of_dataset)


def _result(entry: Any, required: Sequence[str]) -> tuple[int | str, PredictedResult]:
    if not isinstance(entry, dict) or not isinstance(entry.get("segmentation"), dict):
        raise UnreadableMaskError(f"it is {str(entry)[:40]}: {_EXPECTED}")
    image, score = entry.get("image_id"), entry.get("score")
    numbers = {key: entry.get(key) for key in ("category_id", "annotation_id", "clicks")}
    missing = [key for key in ("image_id", *required) if entry.get(key) is None]
    if missing:
        raise UnreadableMaskError(f"it has no {missing[0]}")
    if not isinstance(image, int | str) or isinstance(image, bool):
        raise UnreadableMaskError(f"its image_id is {str(image)[:40]}: expected an image's id")
    if score is not None and not is_number(score):
        raise UnreadableMaskError(f"its score is {str(score)[:40]}: expected a number")
    for key, value in numbers.items():
        if value is not None and id_number(value) is None:
            raise UnreadableMaskError(f"its {key} is {str(value)[:40]}: expected a whole number")
    return image, PredictedResult(checked_rle(entry["segmentation"]), score, *map(id_number, numbers.values()))


SHOWN = 10
"""Maximum number of skipped items to list on a terminal."""

LISTED = 10_000
"""Maximum number of skipped items to list in JSON."""

Cell = tuple[str, str]
"""Score in percent, with its interval."""

BETTER, WORSE, NO_DIFFERENCE = "better", "worse", "no difference shown"
"""Verdicts on the second of two models, compared with the first."""

LEVEL = 0.05
"""Significance level. A difference whose corrected p reaches it has no verdict."""


@dataclass(frozen=True)
class FailIfWorse:
    """Outcome of `--fail-if-worse`: a measure's difference (second minus first) and its 95% interval, if it has one."""

    measure: str
    difference: float | None
    interval: Interval | None

    @property
    def worse(self) -> bool:
        """True if the second weights are worse, because the whole interval is below 0."""
        return self.interval is not None and self.interval[1] < 0

    def to_dict(self) -> dict[str, Any]:
        """Convert the outcome to JSON-serializable values. `worse` is None without an interval."""
        if self.interval is None:
            return {**asdict(self), "worse": None}
        return {**asdict(self), "worse": self.worse}

    def __str__(self) -> str:
        """Return the outcome as text."""
        option = f"--fail-if-worse {self.measure}"
        if self.interval is None:
            return (
                f"{option}: the difference has no 95% interval, because fewer than {LEAST_IMAGES} images were "
                "evaluated, or too few images affect it"
            )
        word = "the second weights aren't shown to be worse"
        if self.worse:
            word = "the second weights are worse"
        return f"{option}: {word}, {percent(self.difference, self.interval, '+')}"


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
    fail_if_worse: FailIfWorse | None = None

    def with_change(self, measure: str, difference: float | None, interval: Interval | None) -> "EvaluationSubject":
        """Return a copy with the outcome of `--fail-if-worse` for a measure."""
        return replace(self, fail_if_worse=FailIfWorse(measure, difference, interval))

    @property
    def worse(self) -> list[FailIfWorse]:
        """Outcome of `--fail-if-worse` if the second weights are worse. Otherwise, the list is empty."""
        if self.fail_if_worse is None or not self.fail_if_worse.worse:
            return []
        return [self.fail_if_worse]

    @property
    def not_checked(self) -> list[SkippedTruth | FailIfWorse]:
        """Skipped items, and the outcome of `--fail-if-worse` if it's unknown for lack of an interval."""
        if self.fail_if_worse is None or self.fail_if_worse.interval is not None:
            return [*self.skipped]
        return [self.fail_if_worse, *self.skipped]

    @property
    def names(self) -> list[str]:
        """Name of each set of weights. If names are equal, their hashes follow them."""
        labels = [weights.label for weights in self.weights]
        if len(set(labels)) == len(labels):
            return labels
        return [f"{weights.label} ({weights.sha256[:12]})" for weights in self.weights]

    def to_dict(self) -> dict[str, Any]:
        """Convert the first keys of a result to JSON-serializable values."""
        answer = {
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
        if self.fail_if_worse is not None:
            answer["fail_if_worse"] = self.fail_if_worse.to_dict()
        return answer

    def head(self) -> str:
        """Return the first line of a result."""
        head = f"{self.evaluation}: {self.size} of {listed(truth.name for truth in self.truths)}"
        predicted = [each.label for each in self.weights if isinstance(each, Predictions)]
        if predicted:
            head += f"; {listed(predicted)}: predictions from a file"
        return head

    @property
    def runs_weights(self) -> bool:
        """True unless all predictions come from files."""
        return not all(isinstance(each, Predictions) for each in self.weights)

    @property
    def size(self) -> str:
        """Number of masks and images, such as `41 masks of 4 images`."""
        images = counted(self.images, "image")
        if self.masks is None:
            return images
        return f"{counted(self.masks, 'mask')} of {images}"

    def closing_lines(self) -> list[str]:
        """Return the last lines: the outcome of `--fail-if-worse`, the skipped items, and the written page."""
        lines = not_checked_lines(self.not_checked)
        if self.fail_if_worse is not None and self.fail_if_worse.interval is not None:
            lines.insert(0, str(self.fail_if_worse))
        if self.page:
            lines.append(f"written: open {self.page}")
        return lines


def check_measured(images: int, skipped: Sequence[SkippedTruth]) -> None:
    """Raise `NothingMeasuredError` if no image was measured."""
    if not images:
        reasons = "".join(f"\n  {each}" for each in skipped[:SHOWN])
        raise NothingMeasuredError(f"no image could be evaluated:{reasons}")


def percent(value: float | None, interval: Interval | None = None, sign: str = "") -> str:
    """Format a score in percent with its interval, such as `81.3 (79.0 to 83.4)`, or a dash if there is no score."""
    return joined(cell(value, interval, sign))


def cell(value: float | None, interval: Interval | None = None, sign: str = "") -> Cell:
    """Format a score and its interval in percent, or a dash if there is no score."""
    if value is None:
        return "-", ""
    text = f"{100 * value:{sign}.1f}"
    if interval is None:
        return text, ""
    return text, f"{100 * interval[0]:{sign}.1f} to {100 * interval[1]:{sign}.1f}"


def joined(shown: Cell) -> str:
    """Return a cell as one text, with its interval in parentheses."""
    value, between = shown
    if not between:
        return value
    return f"{value} ({between})"


def p_value(p: float | None) -> str:
    """Format a p-value as text: `p = 0.012`, `p < 0.001`, or `p unknown`."""
    if p is None:
        return "p unknown"
    if p < 0.001:
        return "p < 0.001"
    return f"p = {p:.3f}"


def verdict(difference: float | None, interval: Interval | None, p: float | None, images: int) -> str:
    """Return the verdict on the second model, based on the corrected p, or the reason why there is none."""
    if difference is None or p is None:
        return "not tested"
    if images < LEAST_IMAGES:
        return "too few images"
    if interval is None or interval[0] <= 0 <= interval[1] or p >= LEVEL:
        return NO_DIFFERENCE
    return BETTER if difference > 0 else WORSE


RESULTS, ANSWER, PAGE, TABLES = "results.parquet", "evaluation.json", "index.html", "tables.md"


class OutputFolder(AbstractContextManager["OutputFolder"]):
    """Output of an evaluation, which collects rows in a local file and stores all files at the end. A context manager.

    Without a `folder`, nothing is written. Raises `UsageError` if one of the files already exists, or if the folder is
    inside a dataset among the `truths`, where a takedown wouldn't find the files.
    """

    def __init__(self, folder: str | None, storage: Storage, truths: Sequence[Truth], schema: pa.Schema) -> None:
        self._folder = None if folder is None else Location(storage, folder)
        self._datasets: list[Location] = []
        if self._folder is not None:
            self._datasets = [truth.dataset for truth in truths if truth.dataset is not None]
            for dataset in self._datasets:
                refuse_inside(dataset, self._folder, "-o")
            for name in (RESULTS, ANSWER, PAGE, TABLES):
                refuse_existing(self._folder / name)
        self._scratch = ScratchFolder()
        self._path = Path(self._scratch.name) / RESULTS
        self._writer = RowGroupWriter(self._path, schema)
        self._schema = schema

    @property
    def wanted(self) -> bool:
        """True if there is a folder to write to."""
        return self._folder is not None

    @property
    def page(self) -> str:
        """Path of the page, or an empty string without a folder."""
        return "" if self._folder is None else str(self._folder / PAGE)

    def add(self, table: pa.Table) -> None:
        """Add rows in the schema."""
        if self._folder is not None:
            self._writer.add(table.cast(self._schema).combine_chunks().to_batches())

    def put(self, answer: Mapping[str, Any], page: str, tables: str) -> None:
        """Record the files in each dataset among the truths, and then store them, with the JSON result last.

        `tables` contains the tables as Markdown.
        """
        if self._folder is None:
            return
        self._writer.__exit__(None, None, None)
        text = json.dumps(without_secrets(answer), indent=2, ensure_ascii=False, allow_nan=False, default=str) + "\n"
        files = {RESULTS: self._path}
        for name, content in ((PAGE, page), (TABLES, tables), (ANSWER, text)):
            files[name] = self._path.with_name(name)
            files[name].write_text(content, encoding="utf-8")
        hashes = {name: sha256_of(path) for name, path in files.items()}
        for dataset in self._datasets:
            note_output(dataset, "evaluate", self._folder, hashes)
        for name, path in files.items():
            put_new_file(self._folder / name, path)

    def __exit__(self, *_: object) -> None:
        self._scratch.cleanup()
