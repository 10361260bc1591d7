"""The files that say what a run is and what came out of it: `run.json`, `sam-<hash>.pth`, `training.json`."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import ValidationError
from torch import Tensor

from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import canonical_json, differing_keys, fingerprint, wrong_fields
from segmint.catalogs.lineage import TrainingDatasetRef, TrainingRound, readable_lineage_of
from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.known import plain_name
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.version import VERSION
from segmint.model.sam.load import load_sam
from segmint.pipeline.engine.train.data.images import TrainingDataset
from segmint.pipeline.engine.train.settings import TrainConfig, identity_keys

Record = TypeVar("Record", bound=Frozen)

RUN = "run.json"
IMAGES = "images.json"

_MOST_BYTES = 64 << 20


class TrainingRunRecord(Frozen):
    """`run.json`: what a run is, fixed by its first start.

    `config` has the keys that decide what is learned; the weights and datasets in it are named by their content.
    """

    schema_version: Literal[1] = 1
    code_version: str
    config: dict[str, Any]
    parent: TrainingRound
    lineage: tuple[TrainingRound, ...]

    @property
    def sha256(self) -> str:
        """The SHA-256 of the file."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """The bytes of the file."""
        return canonical_json(self.model_dump(mode="json"))

    @property
    def fingerprint(self) -> str:
        """What checkpoints name the run by."""
        return fingerprint({"config": self.config, "parent": self.parent.weights})


class InputsRecord(Frozen):
    """`images.json`: the images that a run's first start found, as `bad_shards: skip` leaves out some."""

    schema_version: Literal[1] = 1
    images: int
    masks: int
    sha256: str  # of all of them and of the choice of masks


class TrainingRecord(Frozen):
    """`training.json`, beside the weights: where they come from. `lineage` ends with themselves."""

    schema_version: Literal[1] = 1
    code_version: str
    weights: str  # SHA-256
    file: str
    architecture: str
    config: dict[str, Any]
    parent: TrainingRound
    datasets: tuple[TrainingDatasetRef, ...]
    trained: dict[str, Any]  # images, masks, steps, best_step, stopped
    held_out: dict[str, Any]
    evaluations: tuple[dict[str, Any], ...]
    skipped: dict[str, Any]
    numerics: tuple[dict[str, Any], ...]
    lineage: tuple[TrainingRound, ...]


def describe_run(
    config: TrainConfig, datasets: Sequence[TrainingDataset], weights: Path, storage: Storage
) -> TrainingRunRecord:
    """Describe a run; `weights` is the parent's file on this machine."""
    keys = identity_keys(config)
    digests = {dataset.location.uri: dataset.digest for dataset in datasets}
    for entry in keys["datasets"]:
        entry["uri"] = digests[entry["uri"]]
    begun = TrainingRound(weights=sha256_of(weights), name=plain_name(config.weights))
    keys["weights"] = begun.weights
    lineage = _lineage_of(config.weights, begun.weights, storage) or (begun,)
    return TrainingRunRecord(code_version=VERSION, config=keys, parent=lineage[-1], lineage=lineage)


def _lineage_of(weights: str, sha256: str, storage: Storage) -> tuple[TrainingRound, ...]:
    try:
        return readable_lineage_of(weights, sha256, storage)
    except UsageError as error:
        raise UsageError(
            f"weights: {error}. Put back the file that their training wrote: what they were trained on decides what "
            "counts as held out. If they are no weights of a training, put them into a separate folder"
        ) from error


def pin_run(output: Location, record: TrainingRunRecord) -> TrainingRunRecord:
    """Put `run.json`, or check that the one there is of the same run; returns what it holds.

    Raises as `start_run` does.
    """
    if (output / RUN).put_if_absent(record.to_json()):
        return record
    begun = start_run(output, record)
    if begun is None:
        raise UnfinishedError(f"{output / RUN} was there and is gone: something else writes to the output")
    return begun


def start_run(output: Location, record: TrainingRunRecord) -> TrainingRunRecord | None:
    """What `run.json` holds, None if it is not there.

    Raises `UsageError`, naming the keys, if another run was begun in the output.
    """
    begun = read_record(output / RUN, TrainingRunRecord)
    if begun is not None and begun.fingerprint != record.fingerprint:
        keys = differing_keys(begun.config, record.config)
        hints = {"datasets": "datasets (their masks and weights, or what is in them: a dataset has changed since)"}
        raise UsageError(
            f"{output} has a run that differs in {', '.join(hints.get(key, key) for key in keys)}: choose another "
            "output to train again, or give the same configuration to go on"
        )
    return begun


def pin_images(output: Location, found: InputsRecord) -> None:
    """Put `images.json`, or check that the one there is the same.

    Raises `UsageError` if the run has begun with other images or masks.
    """
    file = output / IMAGES
    if file.put_if_absent(canonical_json(found.model_dump(mode="json"))):
        return
    begun = read_record(file, InputsRecord)
    if begun != found:
        had = "others" if begun is None else f"{begun.images:,} with {begun.masks:,} masks"
        raise UsageError(
            f"the {found.images:,} images with {found.masks:,} masks found now are not those that the run in {output} "
            f"began with, {had}: other shards or images could be read then. Mend the datasets with `segmint repair` or "
            "free memory, and run again; or choose another output to train again"
        )


def read_record(file: Location, kind: type[Record]) -> Record | None:
    """Read a record; None if it is not there. Raises `UsageError` for another file."""
    try:
        data = file.read(max_bytes=_MOST_BYTES)
    except NotFoundError:
        return None
    try:
        return kind.model_validate(json.loads(data))
    except ValidationError as error:
        raise UsageError(f"{file} is not what segmint train writes: {wrong_fields(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} is not what segmint train writes: {str(error)[:200]}") from error


def put_weights(output: Location, parent: Path, trained: Mapping[str, Tensor]) -> tuple[str, str]:
    """Write the parent's checkpoint with the trained weights as `sam-<hash>.pth`; return its name and its SHA-256.

    It is an official checkpoint: a dict of float32 tensors by the names that SAM's own files use. It is loaded once,
    strictly, before it is put.
    """
    state = {name: tensor.to(torch.float32).contiguous() for name, tensor in load_sam(parent).state_dict().items()}
    unknown = trained.keys() - state.keys()
    if unknown:
        raise ValueError(f"the parent has no weights named {', '.join(sorted(unknown))}")
    state |= {name: tensor.to("cpu", torch.float32).contiguous() for name, tensor in trained.items()}
    with tempfile.TemporaryDirectory(prefix="segmint-train-") as name:
        path = Path(name) / "sam.pth"  # one name always: torch writes it into the file
        torch.save({key: tensor.clone() for key, tensor in state.items()}, path)
        load_sam(path)
        return put_by_hash(output, path)


def put_by_hash(output: Location, path: Path) -> tuple[str, str]:
    """Put a file such as `sam.pth` as `sam-<hash>.pth`; return its name there and its SHA-256."""
    sha256 = sha256_of(path)
    file = f"{path.stem}-{sha256[:12]}{path.suffix}"
    if not (output / file).put_file_if_absent(path):
        raise UnfinishedError(f"{output / file} is there with another content: delete it, and run again")
    return file, sha256


def put_record(file: Location, record: Frozen) -> None:
    """Put the record of a run that ended, last; raises `UnfinishedError` if another run has put its own."""
    if not file.put_if_absent(canonical_json(record.model_dump(mode="json"))):
        raise UnfinishedError(f"{file} is there with another content: another run ended in the same output")
