"""Where masks go: one file, a folder that keeps the tree, or next to each photograph. Loads no torch.

A folder remembers the settings and weights that it was begun with.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from segmint.catalogs.endings import IMAGE_ENDINGS
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.uris import absolute, base_name, join, local_path
from segmint.infra.wording import counted, some
from segmint.pipeline.masks.images import NEXT_TO, OVERLAY, Photograph, Photographs, is_local
from segmint.pipeline.masks.options import MasksOptions

_JSON = ".json"
_LONGEST_NAME = 255  # bytes of a file's name on Linux and macOS
_ID_BITS = 39  # ids of masks are 10,000 times as large and stay under 2^53

RECORD = ".segmint-masks.json"
"""The file in the folder; hidden, so that nobody takes it for the masks of a photograph."""

_ADVICE = "set these back, name another folder, or give --overwrite to make all of its masks again"


@dataclass(frozen=True)
class PhotographTask:
    """A photograph, the file that its masks go to, and the number that its JSON has for it."""

    image: Photograph
    target: str
    image_id: int

    @property
    def overlay(self) -> str:
        """The file that its drawn masks go to."""
        stem = self.target.removesuffix(_JSON)
        return stem + (".png" if stem.endswith(NEXT_TO) else OVERLAY)

    def too_long(self, overlay: bool) -> str | None:
        """What is wrong with the name of a local file that no folder can hold; None if nothing is."""
        longest = max(self.target, self.overlay if overlay else "", key=len)
        size = len(os.fsencode(base_name(longest))) if is_local(longest) else 0
        if size <= _LONGEST_NAME:
            return None
        return f"its file here would have a name of {size} bytes, and {_LONGEST_NAME} are possible: rename it"


@dataclass(frozen=True)
class Outputs:
    """All tasks, and the folder they go to; None: one file that the user named, or next to each photograph."""

    tasks: tuple[PhotographTask, ...]
    folder: str | None
    next_to: bool = False

    def candidates(self, image: Photograph) -> tuple[str, str]:
        """Return the names of a photograph's file without and with its ending, the second where the first is taken."""
        if self.folder is not None:
            base, ending = join(self.folder, image.place), _JSON
        else:
            base, ending = str(local_path(image.name)), NEXT_TO + _JSON
        return base.removesuffix(PurePosixPath(base).suffix) + ending, base + ending


def plan_outputs(photographs: Photographs, output: str | None) -> Outputs:
    """Return each photograph with its file: `output` itself if that ends with `.json`, else a file in that folder.

    Without an output the file is next to the photograph: `photo.masks.json`. A folder keeps the tree; a name keeps the
    photograph's ending where two would go to one file without. Raises `UsageError` for several photographs into one
    file, for an ending of another kind of file, if two would go to one file, if one would overwrite a photograph, and
    for photographs in a store without an output.
    """
    images = photographs.images
    if output is None:
        stored = next((image.name for image in images if not is_local(image.name)), None)
        if stored is not None:
            raise UsageError(
                f"{stored} is in a store, and masks go next to photographs on this machine only: name a file or a "
                "folder with -o"
            )
        outputs = _with_tasks(Outputs((), None, next_to=True), images)
    elif _is_file(output):
        if not photographs.is_one:
            raise UsageError(
                f"-o {output} is one file: expected a folder, for {counted(len(images), 'photograph')} of a folder or "
                "a list"
            )
        outputs = Outputs((PhotographTask(images[0], output, 1),), None)
    else:
        outputs = _with_tasks(Outputs((), output.rstrip("/") or "/"), images)
    _check(outputs, images)
    return outputs


def _is_file(output: str) -> bool:
    if output.endswith("/") or (is_local(output) and local_path(output).is_dir()):
        return False
    if output.lower().endswith(IMAGE_ENDINGS):
        raise UsageError(
            f"-o {output} is a picture's name, and masks are written as JSON: expected x.json or a folder; --overlay "
            f"also draws them, as x{OVERLAY}"
        )
    if is_local(output) and local_path(output).exists() and not output.endswith(_JSON):
        raise UsageError(f"-o {output} is a file: expected a name that ends with .json, or a folder")
    return output.endswith(_JSON)


def check_writable(outputs: Outputs) -> None:
    """Raise `UsageError` for local folders that cannot be made or written, before masks are made for them."""
    targets = [task.target for task in outputs.tasks] if outputs.folder is None else [join(outputs.folder, "x")]
    for folder in {local_path(target).parent: None for target in targets if is_local(target)}:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise UsageError(f"{folder}: {there} is a file, so there can be no folder of that name")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UsageError(f"the folder {there} cannot be written to: name another one with -o")


def _with_tasks(outputs: Outputs, images: tuple[Photograph, ...]) -> Outputs:
    targets = [outputs.candidates(image)[0] for image in images]
    while True:
        alike = Counter(targets)
        clearer = [
            outputs.candidates(image)[1] if alike[target] > 1 else target
            for image, target in zip(images, targets, strict=True)
        ]  # x.jpg beside x.png, which may in turn meet x.jpg.tif
        if clearer == targets:
            break
        targets = clearer
    # Next to a photograph, the number is the same whichever folder or pattern named it.
    ids = [image_id(base_name(image.name) if outputs.next_to else image.place) for image in images]
    return replace(outputs, tasks=tuple(map(PhotographTask, images, targets, ids)))


def files_next_to(outputs: Outputs) -> set[str]:
    """Return the files next to the photographs that are there already, with names that masks have there."""
    names = {name for task in outputs.tasks for name in (*outputs.candidates(task.image), task.target)}
    drawn = {
        PhotographTask(task.image, name, 1).overlay for task in outputs.tasks for name in outputs.candidates(task.image)
    }
    return {name for name in names | drawn if os.path.lexists(name)}


def with_kept_files(outputs: Outputs, there: Collection[str], photograph_of: Callable[[str], str]) -> Outputs:
    """Return the tasks with the files that their photographs had before one of a similar name came or went.

    Else a photograph's masks would be there twice, as `x.json` and as `x.jpg.json`. `there` are the files that are
    there, `photograph_of` returns the name of the photograph that one of them is of.
    """
    if outputs.folder is None and not outputs.next_to:
        return outputs
    taken = {task.target for task in outputs.tasks}
    tasks = []
    for task in outputs.tasks:
        for file in outputs.candidates(task.image):
            is_free = task.target not in there and file in there and file not in taken
            if is_free and photograph_of(file) == base_name(task.image.name):
                task = replace(task, target=file)
        tasks.append(task)
    return replace(outputs, tasks=tuple(tasks))


def image_id(place: str) -> int:
    """Return the number of a photograph in a folder: of its place alone, so that it stays as the folder grows."""
    digest = hashlib.sha256(place.encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _ID_BITS)) or 1


def _check(outputs: Outputs, images: tuple[Photograph, ...]) -> None:
    taken: dict[str, PhotographTask] = {}
    photographs = {_identity(image.name) for image in images}
    for task in outputs.tasks:
        other = taken.setdefault(task.target, task)
        if other is not task:
            raise UsageError(
                f"{other.image.name} and {task.image.name} would both be written to {task.target}: give the folder "
                "that holds both with --recursive, which keeps the tree, or name an output for each"
            )
        for target in (task.target, task.overlay):
            if _identity(target) in photographs:
                raise UsageError(
                    f"the masks of {task.image.name} would go over the photograph {target}: name another file or "
                    "folder with -o"
                )


def _identity(name: str) -> str:
    return str(Path(absolute(str(local_path(name)))).resolve()) if is_local(name) else name


def settings_of(options: MasksOptions, weights_sha256: str) -> dict[str, Any]:
    """Return what decides masks, as plain JSON values: the settings and the weights' digest."""
    return {"weights_sha256": weights_sha256, **options.settings()}


def digest_of(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 that names settings with weights."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def open_folder(
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
