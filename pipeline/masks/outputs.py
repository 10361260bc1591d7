"""Where the masks of each photograph go: one file, or a folder that keeps the tree. Loads no torch."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from segmint.catalogs.endings import IMAGE_ENDINGS
from segmint.infra.errors import UsageError
from segmint.infra.uris import absolute, join, local_path
from segmint.pipeline.masks.images import OVERLAY, Photograph, Photographs, is_local

_JSON = ".json"
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


@dataclass(frozen=True)
class Outputs:
    """All tasks, and the folder they go to; None: one file that the user named."""

    tasks: tuple[Task, ...]
    folder: str | None


def plan_outputs(photographs: Photographs, output: str) -> Outputs:
    """Return each photograph with its file: `output` itself if that ends with `.json`, else a file in that folder.

    In a folder the tree is kept, and a photograph's ending where another one's name differs in nothing else. Raises
    `UsageError` for several photographs into one file, for an ending of another kind of file, if two would go to one
    file, and if one would overwrite a photograph.
    """
    images = photographs.images
    if _is_file(output):
        if not photographs.is_one:
            raise UsageError(
                f"-o {output} is one file: expected a folder, for {len(images)} photographs of a folder or a list"
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


def _tasks_in(folder: str, images: tuple[Photograph, ...]) -> list[Task]:
    alike = Counter(_stem(image.place) for image in images)
    tasks = []
    for image in images:
        stem = _stem(image.place)
        name = image.place if alike[stem] > 1 else stem
        tasks.append(Task(image, join(folder, name + _JSON), image_id(image.place)))
    return tasks


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
                "that holds both with --recursive, which keeps the tree, or run the command once for each"
            )
        for target in (task.target, task.overlay):
            if _identity(target) in photographs:
                raise UsageError(
                    f"-o {output} would write over the photograph {target}: expected another file or a folder"
                )


def _identity(name: str) -> str:
    return str(Path(absolute(str(local_path(name)))).resolve()) if is_local(name) else name
