"""Photographs of a folder with the JSON files of their masks, as `segmint masks` names them."""

import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath

from segmint.catalogs.dataset.manifest import is_dataset
from segmint.infra.errors import SegmintError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import base_name, local_path
from segmint.pipeline.corrections.folder.documents import photograph_of
from segmint.pipeline.corrections.folder.working import WORKING
from segmint.pipeline.masks.images import find_photographs, is_local
from segmint.pipeline.masks.outputs import (
    PhotographTask,
    existing_files,
    plan_outputs,
    sweep_temporary,
    with_kept_files,
)

_JSON = ".json"
_UNREADABLE = "/"  # no photograph has this name


def is_photograph_folder(name: str, *, pairs: bool = True) -> bool:
    """Return whether a path is a local folder that directly contains photographs and isn't a dataset.

    A folder of SA-1B-style pairs (`a.jpg` and `a.json`) only counts if `pairs` is True or the folder contains a working
    dataset.
    """
    # Unlike `os.path`, methods of `Path` raise errors for long paths and unreadable folders.
    if not is_local(name) or not os.path.isdir(local_path(name)) or is_dataset(Location(Storage(), name)):  # noqa: PTH112
        return False
    if os.path.isdir(local_path(name) / WORKING):  # noqa: PTH112
        return True
    try:
        photographs = find_photographs(Storage(), [name], recursive=False).images
    except SegmintError:
        return False
    return pairs or not any(local_path(each.name).with_suffix(_JSON).exists() for each in photographs)


def find_images(folder: str) -> tuple[dict[str, PhotographTask], list[str]]:
    """Return the photographs directly in a local folder, by name, and a line for each skipped file.

    A photograph's JSON is the output of `segmint masks` (`a.masks.json`) or, if that doesn't exist, SA-1B's (`a.json`).
    Temporary files of killed runs are deleted. Raises `UsageError` if there are no photographs.
    """
    storage = Storage()
    found = find_photographs(storage, [folder], recursive=False)
    outputs = plan_outputs(found, None)
    there = existing_files(storage, outputs)
    outputs = with_kept_files(outputs, there, lambda file: _photograph_in(storage, file) or "")
    sweep_temporary(outputs)
    names = {base_name(task.image.name) for task in outputs.tasks}
    stems = Counter(PurePosixPath(name).stem for name in names)
    skipped = [line.partition("; pass --recursive")[0] for line in (*found.passed_over, *found.unreadable)]
    images = {}
    for task in outputs.tasks:
        try:
            task.image.place.encode()
        except UnicodeEncodeError:
            skipped.append(f"{task.image.name}: a name that isn't UTF-8. Rename the photograph.")
            continue
        target = task.target if task.target in there else _other_document(storage, task, names, stems)
        images[task.image.place] = replace(task, target=target)
    return images, skipped


def _other_document(storage: Storage, task: PhotographTask, names: set[str], stems: Mapping[str, int]) -> str:
    """Return the path of a photograph's SA-1B JSON.

    If the file is missing or may belong to another photograph, this returns the path that `segmint masks` would use.
    """
    own = base_name(task.image.name)
    is_alone = stems[PurePosixPath(own).stem] == 1
    path = str(local_path(task.image.name))
    for file in (path.removesuffix(PurePosixPath(path).suffix) + _JSON, path + _JSON):
        found = _photograph_in(storage, file) if Path(file).is_file() else None
        if found in (own, _UNREADABLE) or (found is not None and found not in names and is_alone):
            return file
    return task.target


def _photograph_in(storage: Storage, file: str) -> str | None:
    """Call `photograph_of` for a JSON file, but return `_UNREADABLE` if the file can't be read."""
    try:
        return photograph_of(storage.read(file))
    except SegmintError:
        return _UNREADABLE
