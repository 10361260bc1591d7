"""Records of a training run: `run.json`, `images.json`, `training.json`, and the weights `sam-<hash>.pth`.

Checkpoints of a training run: a state file named by its hash, and a small JSON file that is written last.

The folder `checkpoints/` contains two files per checkpoint. `step-000050-<hash>.pt` contains the trained weights and
the optimizer's state. `step-000050.json` contains the hash of the `.pt` file and the evaluations so far. A `.pt` file
that isn't named in a JSON file is ignored.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import Field, ValidationError
from torch import Tensor

from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import bytes_sha256, canonical_json, differing_keys, fingerprint, wrong_fields
from segmint.catalogs.lineage import TrainingDatasetRef, TrainingRound, readable_lineage_of
from segmint.infra.assets import plain_name, sha256_of
from segmint.infra.errors import SegmintError, UnfinishedError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.version import VERSION
from segmint.model.sam.load import load_sam
from segmint.pipeline.engine.train.images import SkippedImages, TrainingDataset, TrainingImages
from segmint.pipeline.engine.train.settings import TrainConfig, identity_keys
from segmint.pipeline.engine.train.trainer import Evaluation

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
        return bytes_sha256(self.to_json())

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


def pin_images(output: Location, images: TrainingImages) -> None:
    """Write `images.json`, or raise `UsageError` if the run started with different images or masks."""
    found = InputsRecord(images=len(images), masks=len(images.annotations), sha256=images.digest())
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


CHECKPOINTS = "checkpoints"

_IN_FLIGHT = timedelta(days=1)
"""Age, by the store's clock, up to which a state without a JSON may still be in use by another process."""

_JSON = re.compile(r"step-(\d{6,})\.json", re.ASCII)
_STATE = re.compile(r"step-(\d{6,})-[0-9a-f]{12}\.pt", re.ASCII)


class DamagedCheckpointError(SegmintError):
    """Raised when a checkpoint doesn't match its name or its JSON."""


class Checkpoint(Frozen):
    """Contents of a checkpoint's JSON. `run` is the fingerprint of the run that wrote the checkpoint."""

    schema_version: Literal[1] = 1
    run: str
    step: int = Field(ge=0)
    file: str = Field(pattern=r"\Astep-\d{6,}-[0-9a-f]{12}\.pt\z")
    sha256: str
    evaluations: tuple[Evaluation, ...]
    skipped: dict[str, int]
    listed: tuple[dict[str, int | str], ...]
    numerics: tuple[dict[str, Any], ...]


def put_checkpoint(folder: Location, state: Mapping[str, Any], **fields: Any) -> Checkpoint:
    """Write a state, then the JSON with these fields, and return the JSON's contents.

    Raises `UnfinishedError` if another run in the same folder has already written a different checkpoint for this step.
    """
    with ScratchFolder() as name:
        path = Path(name) / "checkpoint.pt"  # a fixed name, because torch stores it in the file
        try:
            torch.save(dict(state), path)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError if the disk is full
            raise SegmintError(
                f"can't write the checkpoint to {name}: {error}. Free space there or set TMPDIR, and run again. "
                "Training resumes from the previous checkpoint"
            ) from error
        sha256 = sha256_of(path)
        file = f"step-{fields['step']:06d}-{sha256[:12]}.pt"
        there = (folder / file).put_file_if_absent(path)
    checkpoint = Checkpoint(file=file, sha256=sha256, **fields)
    data = canonical_json(checkpoint.model_dump(mode="json"))
    if not there or not (folder / _json_name(checkpoint.step)).put_if_absent(data):
        raise UnfinishedError(
            f"{folder} already contains another checkpoint of step {checkpoint.step}, so another run is writing to "
            "the same output. Wait until it ends, or choose another output"
        )
    return checkpoint


def save_checkpoint(
    folder: Location,
    state: Mapping[str, Any],
    run: str,
    step: int,
    skipped: SkippedImages,
    keep: int,
    kept: int | None = None,
    evaluations: tuple[Evaluation, ...] = (),
    numerics: tuple[dict[str, Any], ...] = (),
) -> None:
    """Write a run's checkpoint of a step, and delete all but the last `keep` checkpoints and the one of step `kept`."""
    put_checkpoint(
        folder,
        state,
        run=run,
        step=step,
        evaluations=evaluations,
        skipped=dict(skipped.counts),
        listed=tuple(skipped.listed),
        numerics=numerics,
    )
    steps = sorted(each for each in list_steps(folder) if each <= step)  # later steps belong to another process
    prune(folder, {*steps[:-keep]} - {kept})


def list_checkpoints(folder: Location) -> list[Checkpoint]:
    """Read the JSON of every checkpoint and sort them by step. Log a warning for each unusable one."""
    found = []
    for entry in folder.list():
        if _JSON.fullmatch(entry.name):
            try:
                found.append(Checkpoint.model_validate(json.loads((folder / entry.name).read())))
            except (NotFoundError, ValidationError, ValueError, RecursionError) as error:
                why = wrong_fields(error) if isinstance(error, ValidationError) else str(error)
                get_logger("train").warning("checkpoint_unusable", file=str(folder / entry.name), error=why)
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def load_state(folder: Location, checkpoint: Checkpoint) -> dict[str, Any]:
    """Load a checkpoint's state on the CPU. Unpickles only tensors and plain values.

    Raises `DamagedCheckpointError` if the file is missing or its hash differs.
    """
    with ScratchFolder() as name:
        path = Path(name) / "checkpoint.pt"
        try:
            (folder / checkpoint.file).get_file(path)
        except NotFoundError as error:
            raise DamagedCheckpointError(f"{folder / checkpoint.file} is gone") from error
        if sha256_of(path) != checkpoint.sha256:
            raise DamagedCheckpointError(f"{folder / checkpoint.file} doesn't match the SHA-256 in its JSON")
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def load_newest(
    folder: Location, run: str, load: Callable[[Mapping[str, Any]], None]
) -> tuple[Checkpoint | None, set[int]]:
    """Load the last usable checkpoint of a run.

    `load` receives the checkpoint's state, and raises ValueError or KeyError if the state belongs to a different model.
    Returns the loaded checkpoint, or None if none is usable, and the steps of the unusable checkpoints, which the run
    will replace.
    """
    found = [each for each in list_checkpoints(folder) if each.run == run]
    unusable = list_steps(folder) - {each.step for each in found}
    for checkpoint in reversed(found):
        try:
            load(load_state(folder, checkpoint))
        except (DamagedCheckpointError, ValueError, KeyError) as error:
            get_logger("train").warning("checkpoint_unusable", step=checkpoint.step, error=str(error))
            unusable.add(checkpoint.step)
            continue
        return checkpoint, unusable
    return None, unusable


def list_steps(folder: Location) -> set[int]:
    """Return the steps of all checkpoints, including unusable ones."""
    return {int(match[1]) for entry in folder.list() if (match := _JSON.fullmatch(entry.name))}


def prune(folder: Location, steps: Collection[int]) -> None:
    """Delete the checkpoints of these steps, and the states that no JSON will ever name.

    If a step has no JSON, its state is kept for a day, because another process may be about to write the JSON.
    """
    named = {checkpoint.step: checkpoint.file for checkpoint in list_checkpoints(folder)}
    for step in steps:
        (folder / _json_name(step)).delete()
    before = datetime.now(UTC) - _IN_FLIGHT
    for entry in folder.list(include_temporary=True):
        match = _STATE.fullmatch(entry.name)
        if match is None or (int(match[1]) not in steps and named.get(int(match[1])) == entry.name):
            continue
        if int(match[1]) in steps or int(match[1]) in named or entry.modified < before:
            (folder / entry.name).delete()


def _json_name(step: int) -> str:
    return f"step-{step:06d}.json"
