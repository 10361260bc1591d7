"""Boxes of images for the catalog's column `prompts`, and the reader of YOLO's label files."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import yaml
from pydantic import ValidationError

from segmint.catalogs.reasons import RejectedError
from segmint.catalogs.source.prompts import Prompt, problem_of
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.operators.annotations.image import mapping
from segmint.operators.prompts import released_prompts


@dataclass
class BoxFile:
    """Boxes of a file or folder, image by image.

    - `names`: names of the images' files. Those of YOLO have no endings.
    - `read`: returns an image's boxes as a value of `PROMPTS`, given its place in `names`.
    - `crowds`: number of boxes around groups of objects, which are left out.
    - `unreadable`: a line for each box and image that can't be read, and is left out.
    """

    names: list[str]
    read: Callable[[int], dict[str, Any]]
    crowds: int = 0
    unreadable: list[str] = field(default_factory=list)


class UnreadableBoxError(ValueError):
    """Raised when a box can't be read. The message gives the reason."""


def checked_box(box: Any, label: Any, score: Any, frame: tuple[float, float]) -> dict[str, Any]:
    """Return a box in a frame, (width, height), as a prompt. Raises `UnreadableBoxError` if a build would refuse it."""
    prompt = {"box": box, "label": label, "score": score}
    try:
        prompt = Prompt.model_validate(prompt).model_dump()
        released_prompts({"width": frame[0], "height": frame[1], "prompts": [prompt]}, frame, frame)
    except ValidationError as error:
        found, place, expected = problem_of(error)
        raise UnreadableBoxError(f"found {found!r:.60} as {place}; expected {expected}") from error
    except RejectedError as error:
        raise UnreadableBoxError(error.detail.removeprefix("prompts.0 has ")) from error
    return prompt


def read_yolo(folder: Location, labels: Mapping[int, str]) -> BoxFile:
    """Read the label files below a folder, `<name>.txt`: a line with class, x, y, width, height, and maybe a score.

    x and y are the box's center, and all four are shares of the image's sides. `labels` are the names of the classes. A
    file is read when its boxes are.
    """
    found = (entry.name.removesuffix(".txt") for entry in folder.walk() if entry.name.endswith(".txt"))
    boxes = BoxFile(sorted(name for name in found if name != "classes"), lambda place: {})

    def read(place: int) -> dict[str, Any]:
        prompts = []
        name = f"{boxes.names[place]}.txt"
        for number, fields in label_lines((folder / name).read()):
            try:
                prompts.append(_yolo_box(fields, labels))
            except ValueError as error:
                boxes.unreadable.append(f"{name}, line {number}: {error}")
        return {"width": 1.0, "height": 1.0, "prompts": prompts}

    boxes.read = read
    return boxes


def read_yolo_settings(data: Location) -> dict[str, Any]:
    """Read YOLO's YAML file about a dataset. The result's `names` maps the classes' numbers to their names.

    Raises `UsageError` if it has no names.
    """
    try:
        settings = mapping(yaml.safe_load(data.read()))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"{data} is not YAML: {error}") from error
    names = settings.get("names")
    if isinstance(names, list):
        names = dict(enumerate(names))
    if not names or not isinstance(names, dict):
        raise UsageError(f"{data} has no `names`; expected a list of the classes' names, or a name for each number")
    return {**settings, "names": names}


def yolo_boxes(folder: Location, data: Location) -> BoxFile:
    """Read the boxes of a folder of YOLO labels. `data` is the YAML file with the names of the classes.

    Raises `UsageError` if it has no names, or if the folder has no labels.
    """
    boxes = read_yolo(folder, read_yolo_settings(data)["names"])
    if not boxes.names:
        raise UsageError(f"{folder} has no labels; expected a file <name>.txt for each image")
    return boxes


def label_lines(data: bytes) -> Iterator[tuple[int, list[str]]]:
    """Yield the lines of one of YOLO's label files, each with its number and its values. Blank ones are left out."""
    for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), 1):
        if line.strip():
            yield number, line.split()


def _yolo_box(fields: Sequence[str], labels: Mapping[int, str]) -> dict[str, Any]:
    if len(fields) not in (5, 6):
        expected = "class, x, y, width, height, and maybe a score; polygons aren't read"
        raise UnreadableBoxError(f"found {len(fields)} values; expected {expected}")
    if not fields[0].isdecimal() or int(fields[0]) not in labels:
        raise UnreadableBoxError(f"found the class {fields[0]!r:.40}, which has no name")
    x, y, width, height, *scores = map(float, fields[1:])
    box = [x - width / 2, y - height / 2, width, height]
    return checked_box(box, labels[int(fields[0])], scores[0] if scores else None, (1, 1))
