"""Lineage of weights, and the stages that made a dataset's columns.

Lineage of weights: the training runs that led to them, from `training.json` and `dataset.json`.

`segmint train` writes `training.json` next to the weights. When a build starts a dataset, it copies the lineage to the
dataset's manifest. A build reads only the fields that it needs, so that later versions can add other fields.
"""

import json
from typing import Annotated, Any, Literal, NamedTuple, Self

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from segmint.catalogs.frozen import ExactCount, Frozen, Sha256
from segmint.catalogs.layout import wrong_fields
from segmint.infra.assets import ASSETS, is_web_address
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import absolute, parent
from segmint.infra.wording import counted, listed

TRAINING = "training.json"
"""Name of the file next to weights that records where they come from."""

MOST_ROUNDS = 1000
"""Maximum number of links in a valid lineage."""

DIGITS = 12
"""Number of digits of a hash that messages show."""

_MOST_BYTES = 64 << 20

Name = Annotated[str, Field(max_length=1000)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class TrainingDatasetRef(Frozen):
    """Dataset used for training. `digest` is its version digest, a SHA-256."""

    name: Name
    digest: Sha256


class HeldOutScores(Frozen):
    """Quality of weights before and after a training run: mean IoUs over `masks` masks in held-out images.

    `before` and `after` score the mask that the model selects for one click. The oracle scores use the best of the
    model's three masks instead. The run held out `images` images and evaluated `measured` of them. `after` is slightly
    too high, because the same images were used to choose the training step.
    """

    images: ExactCount
    measured: ExactCount
    masks: ExactCount
    before: Share
    after: Share
    oracle_before: Share
    oracle_after: Share

    def __str__(self) -> str:
        """Return the scores as text."""
        return (
            f"mean IoU at one click {self.before:.3f} before and {self.after:.3f} at the best step, on "
            f"{counted(self.masks, 'mask')} of {counted(self.measured, 'held-out image')}"
        )


class TrainingRound(Frozen):
    """One link of a lineage: weights, and the datasets on which they were trained.

    The training started from the weights of the previous link. The first link lists no datasets if segmint didn't train
    its weights, or if no `training.json` was found for them.
    """

    weights: Sha256
    name: Name
    datasets: tuple[TrainingDatasetRef, ...] = ()
    held_out: HeldOutScores | None = None
    held_out_share: Share | None = None  # of the datasets' images, by the hash of their sources; None: unknown


Lineage = Annotated[tuple[TrainingRound, ...], Field(max_length=MOST_ROUNDS)]
"""Training rounds in order. The last round produced the weights. The lineage is empty if nothing is known."""


def trainings(lineage: tuple[TrainingRound, ...]) -> int:
    """Return the number of training runs in a lineage.

    This is the round of a dataset that is built with the last weights.
    """
    return sum(bool(link.datasets) for link in lineage)


def describe_rounds(lineage: tuple[TrainingRound, ...]) -> list[str]:
    """Describe each training run of a lineage in a sentence without a period, in order."""
    lines = []
    number = 0
    for place, link in enumerate(lineage):
        if not link.datasets:
            continue
        number += 1
        datasets = [f"{each.name} (digest {each.digest[:DIGITS]})" for each in link.datasets]
        begun = f" from {lineage[place - 1].name}" if place else ""
        weights = f"{link.name} (SHA-256 {link.weights[:DIGITS]})"
        measured = "" if link.held_out is None else f"; {link.held_out}"
        lines.append(f"round {number}: weights {weights}, trained on {listed(datasets)}{begun}{measured}")
    return lines


class _TrainingFile(BaseModel):
    """The fields of `training.json` that are read."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    weights: Sha256
    datasets: tuple[TrainingDatasetRef, ...] | None = None
    lineage: Lineage


def lineage_of(weights: str, sha256: str, storage: Storage) -> tuple[TrainingRound, ...]:
    """Return the lineage of weights, given as in a configuration, from the `training.json` next to them.

    The lineage is empty for the names of known weights, for web addresses, and if there is no `training.json`. If the
    file can't be read or describes weights with another SHA-256, this function logs a warning and returns an empty
    lineage.
    """
    try:
        return readable_lineage_of(weights, sha256, storage)
    except (SegmintError, OSError) as error:
        _warn(str(error))
        return ()


def readable_lineage_of(weights: str, sha256: str, storage: Storage) -> tuple[TrainingRound, ...]:
    """Return the lineage of weights like `lineage_of`, but raise an error if their `training.json` can't be read.

    Training uses this function, because its record must include all earlier rounds. If the file describes other
    weights, this function still only logs a warning. Raises `UsageError` for a damaged file, and the errors of the
    store.
    """
    if weights in ASSETS or is_web_address(weights):
        return ()
    file = Location(storage, parent(absolute(weights))) / TRAINING
    try:
        training = _TrainingFile.model_validate(json.loads(file.read(_MOST_BYTES)))
        if training.weights == sha256:
            check_lineage(sha256, training.lineage, training.datasets)
    except NotFoundError:
        return ()
    except ValidationError as error:
        raise UsageError(f"{file} was not written by segmint train: {wrong_fields(error)[:500]}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} was not written by segmint train: {str(error)[:500]}") from error
    if training.weights != sha256:
        _warn(f"{file} describes the weights {training.weights[:DIGITS]}…, but these are {sha256[:DIGITS]}…")
        return ()
    return training.lineage


def _warn(problem: str) -> None:
    note = "the origin of the weights is unknown"
    get_logger("lineage").warning("lineage_unknown", problem=problem[:700], note=note)


def check_lineage(
    weights: str, lineage: tuple[TrainingRound, ...], datasets: tuple[TrainingDatasetRef, ...] | None
) -> None:
    """Raise `ValueError` if the lineage in a `training.json` doesn't end with the weights and datasets of that file.

    `datasets` is None if the file doesn't list its training datasets.
    """
    if not lineage or lineage[-1].weights != weights:
        raise ValueError("its lineage does not end with its weights")
    if datasets is not None and lineage[-1].datasets != datasets:
        raise ValueError("its datasets are not those of the last round of its lineage")


STAGE_PREFIX = "stage_"
"""Prefix of the name of a custom stage's column."""

_Name = Annotated[str, Field(pattern=r"\A[a-z][a-z0-9_]{0,62}\z")]
_Type = Literal[
    "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "float", "double", "string",
    "list", "struct",
]  # fmt: skip


class StageField(Frozen):
    """Value that a custom stage writes. Any value may be null.

    `type` is the name of an Arrow type. A `list` has exactly one field, which describes its elements. A `struct` has
    one or more fields.
    """

    name: _Name
    type: _Type
    fields: tuple["StageField", ...] = ()

    @property
    def arrow_type(self) -> pa.DataType:
        """Arrow type of the values."""
        if self.type == "list":
            return pa.list_(self.fields[0].arrow_type)
        if self.type == "struct":
            return pa.struct([(field.name, field.arrow_type) for field in self.fields])
        return pa.type_for_alias(self.type)

    @model_validator(mode="after")
    def _check(self) -> Self:
        least, most = {"list": (1, 1), "struct": (1, 1000)}.get(self.type, (0, 0))
        if not least <= len(self.fields) <= most:
            raise ValueError(f"{self.name}: a {self.type} can't have {len(self.fields)} fields")
        if len({field.name for field in self.fields}) < len(self.fields):
            raise ValueError(f"{self.name}: two fields have the same name")
        return self


class TableColumn(NamedTuple):
    """Column of a custom stage as it is in a table: `images` or `masks`."""

    table: str
    arrow_field: pa.Field


class StageColumn(StageField):
    """Column of the custom stage `name`: a struct at the end of the table."""

    table: Literal["images", "masks"]
    type: Literal["struct"] = "struct"

    @property
    def arrow_field(self) -> pa.Field:
        """Arrow field of the column. Its name is `stage_<name>`."""
        return pa.field(f"{STAGE_PREFIX}{self.name}", self.arrow_type)

    @property
    def in_table(self) -> TableColumn:
        """The column as it is in a table."""
        return TableColumn(self.table, self.arrow_field)


STAGE_SHA256 = "stage_sha256"
"""Last field of an applied column: the SHA-256 of the identity of the stage that computed the row's values."""


class AppliedColumn(StageColumn):
    """Column that `segmint apply` added to a finished dataset, with the stage that computes it.

    A shard may lack the column, because it was written earlier or by a build. A null value means that the stage hasn't
    judged the row yet. `removed` is true after `apply --remove`; a shard that still contains the column isn't done.
    """

    stage: str
    version: str
    arguments: dict[str, Any]
    sha256: Sha256
    removed: bool = False

    @model_validator(mode="after")
    def _names_stage(self) -> Self:
        if (self.fields[-1].name, self.fields[-1].type) != (STAGE_SHA256, "string"):
            raise ValueError(f"{self.name}: the last field must be {STAGE_SHA256}, a string")
        return self
