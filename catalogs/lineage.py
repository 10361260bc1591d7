"""Where weights come from: the trainings that led to them, as `training.json` beside them and `dataset.json` say.

`segmint train` writes `training.json`; a build copies the lineage in it into the manifest of the dataset that it
begins. What is read here is only what a build needs of that file, so that a later one may say more.
"""

import json
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import wrong_fields
from segmint.infra.assets.known import ASSETS, is_web_address
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import absolute, parent
from segmint.infra.wording import counted, listed

TRAINING = "training.json"
"""The name of the file beside weights that says where they come from."""

MOST_ROUNDS = 1000
"""A longer lineage is not one that a training has written."""

DIGITS = 12
"""The digits of a hash that people are shown."""

_MOST_BYTES = 64 << 20

Sha256 = Annotated[str, Field(pattern=r"\A[0-9a-f]{64}\z")]
Name = Annotated[str, Field(max_length=1000)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class TrainingDatasetRef(Frozen):
    """A dataset that was trained on; `digest` is its version's, a SHA-256."""

    name: Name
    digest: Sha256


class HeldOutScores(Frozen):
    """How good weights were before and after a training, on images that it did not see: mean IoUs over `masks`.

    `before` and `after` are of the model's choice at one click, the oracle's of the best of its three masks. `images`
    are those that were held out; measured was on `measured` of them.
    """

    images: Annotated[int, Field(ge=0, lt=1 << 53)]
    measured: Annotated[int, Field(ge=0, lt=1 << 53)]
    masks: Annotated[int, Field(ge=0, lt=1 << 53)]
    before: Share
    after: Share
    oracle_before: Share
    oracle_after: Share

    def __str__(self) -> str:
        """What was measured, in words."""
        return (
            f"mean IoU at one click {self.before:.3f} before and {self.after:.3f} after, on "
            f"{counted(self.masks, 'mask')} of {counted(self.measured, 'held-out image')}"
        )


class TrainingRound(Frozen):
    """One link of a lineage: weights, and the datasets that they were trained on from the link before.

    The first link of a lineage was not trained by segmint, or its `training.json` is not known: it has no datasets.
    """

    weights: Sha256
    name: Name
    datasets: tuple[TrainingDatasetRef, ...] = ()
    held_out: HeldOutScores | None = None
    held_out_share: Share | None = None  # of the datasets' images, by the hash of their sources; None: not known


Lineage = Annotated[tuple[TrainingRound, ...], Field(max_length=MOST_ROUNDS)]
"""The rounds up to some weights, which are the last; empty where nothing is known."""


def trainings(lineage: tuple[TrainingRound, ...]) -> int:
    """Return how many trainings a lineage has: the round of a dataset that its last weights made."""
    return sum(bool(link.datasets) for link in lineage)


def describe_rounds(lineage: tuple[TrainingRound, ...]) -> list[str]:
    """Return each training of a lineage as a sentence without its full stop, in order."""
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
    """What is read of `training.json`."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    weights: Sha256
    datasets: tuple[TrainingDatasetRef, ...] | None = None
    lineage: Lineage


def lineage_of(weights: str, sha256: str, storage: Storage) -> tuple[TrainingRound, ...]:
    """Return the lineage of weights, named as in a configuration, by the `training.json` beside them.

    Empty if there is none, and for known names and web addresses. A file that cannot be read, or that is of other
    weights than those with this SHA-256, is a warning, and the answer is empty.
    """
    try:
        return readable_lineage_of(weights, sha256, storage)
    except (SegmintError, OSError) as error:
        _warn(str(error))
        return ()


def readable_lineage_of(weights: str, sha256: str, storage: Storage) -> tuple[TrainingRound, ...]:
    """Return the lineage of weights as `lineage_of` does, but refuse a `training.json` that cannot be read.

    A training needs it: without it the gate would take images that were trained on as held out. A file that is of other
    weights is a warning here, too. Raises `UsageError` for a damaged file, and what the store raises.
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
        raise UsageError(f"{file} is not what segmint train writes: {wrong_fields(error)[:500]}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not what segmint train writes: {str(error)[:500]}") from error
    if training.weights != sha256:
        _warn(f"{file} is of the weights {training.weights[:DIGITS]}…, and these are {sha256[:DIGITS]}…")
        return ()
    return training.lineage


def _warn(problem: str) -> None:
    note = "it will not be said where the weights come from"
    get_logger("lineage").warning("lineage_unknown", problem=problem[:700], note=note)


def check_lineage(
    weights: str, lineage: tuple[TrainingRound, ...], datasets: tuple[TrainingDatasetRef, ...] | None
) -> None:
    """Raise `ValueError` if a lineage in `training.json` does not end with its weights, or with its datasets.

    `datasets` are those that the file says were trained on; None: it does not say.
    """
    if not lineage or lineage[-1].weights != weights:
        raise ValueError("its lineage does not end with its weights")
    if datasets is not None and lineage[-1].datasets != datasets:
        raise ValueError("its datasets are not those of the last round of its lineage")
