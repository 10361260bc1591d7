"""A folder of masks remembers the settings and weights that it was begun with. Loads no torch."""

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import some
from segmint.pipeline.masks.options import MasksOptions
from segmint.pipeline.masks.outputs import Outputs

RECORD = ".segmint-masks.json"
"""The file in the folder; hidden, so that nobody takes it for the masks of a photograph."""

_ADVICE = "set these back, name another folder, or give --overwrite to make all of its masks again"


def settings_of(options: MasksOptions, weights_sha256: str) -> dict[str, Any]:
    """Return what decides masks, as plain JSON values: the settings and the weights' digest."""
    return {"weights_sha256": weights_sha256, **options.settings()}


def digest_of(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 that names settings with weights."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def claim_folder(
    folder: Location, outputs: Outputs, there: Collection[str], settings: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Put the record of a folder with the files `there`, or check that its record is of the same settings.

    With `overwrite` the new record replaces the old one. Raises `UsageError` for other settings, naming what differs,
    and for masks whose settings nobody recorded.
    """
    record = folder / RECORD
    text = json.dumps({"sha256": digest_of(settings), "settings": settings}, indent=1).encode() + b"\n"
    if overwrite:
        record.put(text)
        return
    try:
        _check_settings(folder, record.read(), settings)
    except NotFoundError:
        unknown = [task.target for task in outputs.tasks if task.target in there]
        if unknown:
            raise UsageError(
                f"{folder} has {some(unknown, 3)} and no {RECORD}, so nobody knows by which settings: name another "
                "folder, or give --overwrite to make these masks again"
            ) from None
        if not record.put_if_absent(text):
            _check_settings(folder, record.read(), settings)


def _check_settings(folder: Location, recorded: bytes, settings: Mapping[str, Any]) -> None:
    try:
        before = json.loads(recorded)["settings"]
        leaves = dict(_leaves(before))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f"{folder}/{RECORD} is not what this command wrote there, so the folder's settings are not known: name "
            "another folder, or give --overwrite to make all of its masks again"
        ) from None
    now = dict(_leaves(settings))
    keys = [key for key in {**leaves, **now} if leaves.get(key) != now.get(key)]
    if keys:
        lines = [f"{key}: {_said(leaves.get(key))} before, {_said(now.get(key))} now" for key in keys]
        raise UsageError(f"{folder} was begun with other settings:\n  " + "\n  ".join(lines) + f"\n{_ADVICE}")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _said(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)
