"""Reads masks as brush strokes from Label Studio's JSON or JSON_MIN."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from segmint.catalogs.layout import MOST_PIXELS
from segmint.operators.annotations.image import (
    LONGEST_SIDE,
    AnnotatedImage,
    AnnotatedMask,
    CocoRle,
    Size,
    UnreadableMaskError,
    encode_mask,
    id_number,
    label_text,
)

_CHANNELS = 4
_LABELS = "brushlabels"
_NO_SHAPES = ("choices", "datetime", "number", "pairwise", "ranker", "rating", "relation", "taxonomy", "textarea")
"""Types of results that say something of an image, or of a region that has a result with its shape too."""


class Readable(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes; none at the end."""


class Task(NamedTuple):
    """The answer that counts of a task, and the number of its other answers."""

    image: AnnotatedImage
    superseded: int


def read_tasks(
    tasks: Iterable[Mapping[str, Any]], brush: Any, size_of: Callable[[str], Size | None] = lambda name: None
) -> Iterator[Task]:
    """Yield the answers of tasks, with the converter `brush` of Label Studio's SDK.

    The latest annotation of a task that was not canceled counts; a task without one is left out. `size_of` returns the
    (height, width) of an image by its name where that is known: then masks of other sizes are not even decoded. The
    name is the image's path or URL; a mask's id is that of its region where that is a number. Results that are no
    objects or have no shape are ignored; a task without an image has a name that says so. Raises `KeyError` or
    `TypeError` if these are not tasks.
    """
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, dict):
            raise TypeError(f"task number {number} is no object")
        answer = answer_of(task)
        if answer is None:
            continue
        regions, superseded = answer
        data = task.get("data", task)
        name = data.get("image") if isinstance(data, dict) else None
        if not isinstance(name, str) or not name:
            yield Task(
                AnnotatedImage(f"task number {number}", None, None, unreadable=["it has no `image`"]), superseded
            )
            continue
        image = AnnotatedImage(name, None, size_of(name))
        for region in regions:
            if region.get("type") not in _NO_SHAPES:
                _add(image, region, brush)
        yield Task(image, superseded)


def iter_tasks(stream: Readable) -> Iterator[Any]:
    """Yield the items of a JSON array as a stream: a task has megabytes of numbers. Raises `ValueError` for others."""
    import ijson  # type: ignore[import-untyped]  # comes with Label Studio's SDK

    class Peeked:
        """The stream, whose first byte that is not white space must begin a list."""

        begun = False

        def read(self, size: int = -1) -> bytes:
            data = stream.read(size)
            if not self.begun and data.strip():
                if data.lstrip()[:1] != b"[":
                    raise ValueError("it is no list of tasks")
                self.begun = True
            return data

    try:
        yield from ijson.items(Peeked(), "item", use_float=True)
    except ijson.JSONError as error:
        raise ValueError(str(error)) from error


def answer_of(task: Mapping[str, Any]) -> tuple[list[Mapping[str, Any]], int] | None:
    """Return the regions of a task's answer and the number of its other answers; None if it has no answer."""
    answers = answers_of(task)
    return (answers[0], len(answers) - 1) if answers else None


def answers_of(task: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """Return the regions of each answer of a task that was not canceled, the latest answer first."""
    if "annotations" not in task:  # JSON_MIN: one record per answer, without ids
        if task.get("annotation_id") is None:
            return []
        lists = [value for value in task.values() if isinstance(value, list)]
        return [[region for regions in lists for region in regions if isinstance(region, dict)]]
    kept = [each for each in task["annotations"] if not (each.get("was_cancelled") or each.get("skipped"))]
    # Stable: of equally late ones the first.
    kept.sort(key=lambda each: str(each.get("updated_at") or each.get("created_at") or ""), reverse=True)
    return [[region for region in each["result"] if isinstance(region, dict) and "value" in region] for each in kept]


def _add(image: AnnotatedImage, region: Mapping[str, Any], brush: Any) -> None:
    id = _number(region.get("id"))
    try:
        value = region.get("value", region)
        if "rle" not in value:
            raise UnreadableMaskError(f"it is of type {region.get('type')}, not a brush stroke")
        sized = {**region, **value}  # JSON_MIN has the size in the value
        size = (int(sized["original_height"]), int(sized["original_width"]))
        # Before decoding: a few bytes may expand to gigabytes.
        image.check_size(size)
        if not all(0 < side <= LONGEST_SIDE for side in size) or size[0] * size[1] > MOST_PIXELS:
            raise UnreadableMaskError(f"its size is {size[1]} x {size[0]} pixels")
        image.masks.append(AnnotatedMask(_brush_rle(value["rle"], size, brush), id, _label(value)))
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        image.leave_out(id, error)


def _brush_rle(runs: list[int], size: Size, brush: Any) -> CocoRle:
    height, width = size
    announced = int.from_bytes(bytes(runs[:4]))
    if announced != height * width * _CHANNELS:
        raise UnreadableMaskError(f"its run lengths have {announced} values, expected {height} x {width} x 4")
    pixels = np.reshape(brush.decode_rle(runs), (height, width, _CHANNELS))
    return encode_mask(pixels[:, :, 3] > 0)


def _label(value: Mapping[str, Any]) -> str | None:
    """The first label of a region; None if it has none."""
    labels = value.get(_LABELS)
    return label_text(labels[0]) if isinstance(labels, list) and labels else None


def _number(text: Any) -> int | None:
    return id_number(int(text)) if isinstance(text, str) and text.isdecimal() and len(text) < 19 else None
