"""Checkpoints of a training run: a state file named by its hash, and a small JSON file that is written last.

The folder `checkpoints/` contains two files per checkpoint. `step-000050-<hash>.pt` contains the trained weights and
the optimizer's state. `step-000050.json` contains the hash of the `.pt` file and the evaluations so far. A `.pt` file
that isn't named in a JSON file is ignored.
"""

import json
import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import Field, ValidationError

from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import canonical_json, wrong_fields
from segmint.infra.assets.cache import sha256_of
from segmint.infra.errors import SegmintError, UnfinishedError
from segmint.infra.log import get_logger
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.pipeline.engine.train.evaluation import Evaluation

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
