"""Where the masks of each photograph go: one file, or a folder that keeps the tree. Loads no torch."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from segmint.catalogs.endings import IMAGE_ENDINGS
from segmint.infra.errors import UsageError
from segmint.infra.uris import absolute, base_name, join, local_path
from segmint.infra.wording import counted
from segmint.pipeline.masks.images import OVERLAY, Photograph, Photographs, is_local

_JSON = ".json"
_LONGEST_NAME = 255  # bytes of a file's name on Linux and macOS
_ID_BITS = 39  # ids of masks are 10,000 times as large and stay under 2^53


@dataclass(frozen=True)
class Task:
    """A photograph, the file that its masks go to, and the number that its JSON has for it."""

    image: Photograph
    target: str
    image_id: int

    @property
    def overlay(self) -> str:
        """The file that its drawn masks go to."""
        return self.target.removesuffix(_JSON) + OVERLAY

    def too_long(self, overlay: bool) -> str | None:
        """What is wrong with the name of a local file that no folder can hold; None if nothing is."""
        longest = self.overlay if overlay else self.target
        size = len(os.fsencode(base_name(longest))) if is_local(longest) else 0
        if size <= _LONGEST_NAME:
            return None
        return f"its file here would have a name of {size} bytes, and {_LONGEST_NAME} are possible: rename it"


@dataclass(frozen=True)
class Outputs:
    """All tasks, and the folder they go to; None: one file that the user named."""

    tasks: tuple[Task, ...]
    folder: str | None


def plan_outputs(photographs: Photographs, output: str) -> Outputs:
    """Return each photograph with its file: `output` itself if that ends with `.json`, else a file in that folder.

    In a folder the tree is kept, and a photograph's ending where two would go to one file without. Raises
    `UsageError` for several photographs into one file, for an ending of another kind of file, if two would go to one
    file, and if one would overwrite a photograph.
    """
    images = photographs.images
    if _is_file(output):
        if not photographs.is_one:
            raise UsageError(
                f"-o {output} is one file: expected a folder, for {counted(len(images), 'photograph')} of a folder or "
                "a list"
            )
        outputs = Outputs((Task(images[0], output, 1),), None)
    else:
        folder = output.rstrip("/") or "/"
        outputs = Outputs(tuple(_tasks_in(folder, images)), folder)
    _check(outputs, images, output)
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


def check_writable(output: str, *, is_file: bool) -> None:
    """Raise `UsageError` for a local folder that cannot be made or written, before masks are made for it."""
    if not is_local(output):
        return
    folder = local_path(output).parent if is_file else local_path(output)
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir():
        raise UsageError(f"-o {output}: {there} is a file, so there can be no folder of that name")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UsageError(f"-o {output}: the folder {there} cannot be written to")


def _tasks_in(folder: str, images: tuple[Photograph, ...]) -> list[Task]:
    names = [_stem(image.place) for image in images]
    while True:
        alike = Counter(names)
        clearer = [
            image.place if alike[name] > 1 else name for image, name in zip(images, names, strict=True)
        ]  # x.jpg beside x.png, which may in turn meet x.jpg.tif
        if clearer == names:
            break
        names = clearer
    return [
        Task(image, join(folder, name + _JSON), image_id(image.place))
        for image, name in zip(images, names, strict=True)
    ]


def with_kept_files(outputs: Outputs, there: Collection[str], photograph_of: Callable[[str], str]) -> Outputs:
    """Return the tasks with the files that their photographs had before one of a similar name came or went.

    Else a photograph's masks would be in a folder twice, as `x.json` and as `x.jpg.json`. `there` are the files in the
    folder, `photograph_of` returns the name of the photograph that one of them is of.
    """
    if outputs.folder is None:
        return outputs
    taken = {task.target for task in outputs.tasks}
    tasks = []
    for task in outputs.tasks:
        for name in (_stem(task.image.place), task.image.place):
            file = join(outputs.folder, name + _JSON)
            is_free = task.target not in there and file in there and file not in taken
            if is_free and photograph_of(file) == base_name(task.image.name):
                task = replace(task, target=file)
        tasks.append(task)
    return replace(outputs, tasks=tuple(tasks))


def _stem(place: str) -> str:
    return str(PurePosixPath(place).with_suffix(""))


def image_id(place: str) -> int:
    """Return the number of a photograph in a folder: of its place alone, so that it stays as the folder grows."""
    digest = hashlib.sha256(place.encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _ID_BITS)) or 1


def _check(outputs: Outputs, images: tuple[Photograph, ...], output: str) -> None:
    taken: dict[str, Task] = {}
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
                    f"-o {output} would write over the photograph {target}: expected another file or a folder"
                )


def _identity(name: str) -> str:
    return str(Path(absolute(str(local_path(name)))).resolve()) if is_local(name) else name
