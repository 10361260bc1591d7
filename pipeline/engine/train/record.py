"""Records of a training run: `run.json`, `images.json`, `training.json`, and the weights `sam-<hash>.pth`."""

import hashlib
import json
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
from segmint.infra.scratch import ScratchFolder
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
    """Contents of `run.json`, which identify a run. They are fixed when the run first starts.

    `config` contains the keys that determine what the model learns, with hashes in place of weights and datasets.
    """

    schema_version: Literal[1] = 1
    code_version: str
    config: dict[str, Any]
    parent: TrainingRound
    lineage: tuple[TrainingRound, ...]

    @property
    def sha256(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))

    @property
    def fingerprint(self) -> str:
        """Identifier that the run's checkpoints contain."""
        return fingerprint({"config": self.config, "parent": self.parent.weights})


class InputsRecord(Frozen):
    """Contents of `images.json`: the images that the first start of a run found.

    A later start could find others, because `bad_shards: skip` omits unreadable shards.
    """

    schema_version: Literal[1] = 1
    images: int
    masks: int
    sha256: str  # covers all images and the choice of masks


class TrainingRecord(Frozen):
    """Contents of `training.json`, which describe how the weights were trained. `lineage` ends with these weights."""

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


def identity_with_digests(config: TrainConfig, datasets: Sequence[TrainingDataset]) -> dict[str, Any]:
    """Return `identity_keys` with the datasets' digests instead of their URIs, and hashes of the selected images."""
    keys = identity_keys(config)
    opened = {dataset.location.uri: dataset for dataset in datasets}
    for entry in keys["datasets"]:
        dataset, select = opened[entry["uri"]], entry.pop("select")
        entry["uri"] = dataset.digest
        if select is not None:
            entry["select"] = dataset.subsets[select].sha256
    return keys


def describe_run(
    config: TrainConfig, datasets: Sequence[TrainingDataset], weights: Path, storage: Storage
) -> TrainingRunRecord:
    """Describe a run in a record. `weights` is the parent's file on this machine."""
    keys = identity_with_digests(config, datasets)
    begun = TrainingRound(weights=sha256_of(weights), name=plain_name(config.weights))
    keys["weights"] = begun.weights
    lineage = _lineage_of(config.weights, begun.weights, storage) or (begun,)
    return TrainingRunRecord(code_version=VERSION, config=keys, parent=lineage[-1], lineage=lineage)


def _lineage_of(weights: str, sha256: str, storage: Storage) -> tuple[TrainingRound, ...]:
    try:
        return readable_lineage_of(weights, sha256, storage)
    except UsageError as error:
        raise UsageError(
            f"weights: {error}. Restore the file that their training run wrote, because the new weights' training.json "
            "lists all earlier rounds. If they don't come from a training run, move them to a separate folder"
        ) from error


def pin_run(output: Location, record: TrainingRunRecord) -> TrainingRunRecord:
    """Write `run.json`, or check that the existing file is from the same run, and return its contents.

    Raises the same errors as `start_run`.
    """
    if (output / RUN).put_if_absent(record.to_json()):
        return record
    begun = start_run(output, record)
    if begun is None:
        raise UnfinishedError(f"{output / RUN} disappeared: something else is writing to the output")
    return begun


def start_run(output: Location, record: TrainingRunRecord) -> TrainingRunRecord | None:
    """Return the contents of `run.json`, or None if the run hasn't started.

    Raises `UsageError` if the output contains a different run. The error names the keys that differ.
    """
    begun = read_record(output / RUN, TrainingRunRecord)
    if begun is not None and begun.fingerprint != record.fingerprint:
        keys = differing_keys(begun.config, record.config)
        hints = {
            "datasets": "datasets (their masks, weights, or contents: a dataset changed since)",
            "text": "text (projections of CLIP, which can't be trained anymore)",
        }
        raise UsageError(
            f"{output} contains a run that differs in {', '.join(hints.get(key, key) for key in keys)}. Choose "
            "another output to train again, or use the same configuration to resume"
        )
    return begun


def pin_images(output: Location, found: InputsRecord) -> None:
    """Write `images.json`, or raise `UsageError` if the run started with different images or masks."""
    file = output / IMAGES
    if file.put_if_absent(canonical_json(found.model_dump(mode="json"))):
        return
    begun = read_record(file, InputsRecord)
    if begun != found:
        had = "others" if begun is None else f"{begun.images:,} with {begun.masks:,} masks"
        raise UsageError(
            f"the {found.images:,} images with {found.masks:,} masks differ from those that the run in {output} "
            f"started with ({had}), because different shards or images were readable then. Run `segmint repair` on "
            "the datasets or free memory, and run again, or choose another output to train from the start"
        )


def read_record(file: Location, kind: type[Record]) -> Record | None:
    """Read a record, or return None if the file doesn't exist. Raises `UsageError` if the file isn't a `kind`."""
    try:
        data = file.read(max_bytes=_MOST_BYTES)
    except NotFoundError:
        return None
    try:
        return kind.model_validate(json.loads(data))
    except ValidationError as error:
        raise UsageError(f"{file} was not written by segmint train: {wrong_fields(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{file} was not written by segmint train: {str(error)[:200]}") from error


def put_weights(output: Location, parent: Path, trained: Mapping[str, Tensor]) -> tuple[str, str]:
    """Write the parent's checkpoint with the trained weights as `sam-<hash>.pth`. Return its name and its SHA-256.

    The file has the format of SAM's official checkpoints: a dict of float32 tensors by their official names. As a
    check, it is loaded once in strict mode before it is stored.
    """
    state = {name: tensor.to(torch.float32).contiguous() for name, tensor in load_sam(parent).state_dict().items()}
    unknown = trained.keys() - state.keys()
    if unknown:
        raise ValueError(f"the parent has no weights named {', '.join(sorted(unknown))}")
    state |= {name: tensor.to("cpu", torch.float32).contiguous() for name, tensor in trained.items()}
    with ScratchFolder() as name:
        path = Path(name) / "sam.pth"  # a fixed name, because torch stores it in the file
        torch.save({key: tensor.clone() for key, tensor in state.items()}, path)
        load_sam(path)
        return put_by_hash(output, path)


def put_by_hash(output: Location, path: Path) -> tuple[str, str]:
    """Store a file such as `sam.pth` under a name with its hash, `sam-<hash>.pth`. Return the name and the SHA-256."""
    sha256 = sha256_of(path)
    file = f"{path.stem}-{sha256[:12]}{path.suffix}"
    if not (output / file).put_file_if_absent(path):
        raise UnfinishedError(f"{output / file} exists with different content. Delete it, and run again")
    return file, sha256


def put_record(file: Location, record: Frozen) -> None:
    """Write a run's final record. Raises `UnfinishedError` if another run has already written a different one."""
    if not file.put_if_absent(canonical_json(record.model_dump(mode="json"))):
        raise UnfinishedError(f"{file} already exists. Another run used the same output and wrote different results")
