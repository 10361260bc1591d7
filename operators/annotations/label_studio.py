"""Reader of brush-stroke masks in Label Studio's JSON or JSON_MIN."""

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from segmint.operators.annotations.image import (
    LONGEST_SIDE,
    AnnotatedImage,
    AnnotatedMask,
    Size,
    UnreadableMaskError,
    check_pixels,
    encode_mask,
    id_number,
    label_text,
)
from segmint.operators.annotations.label_studio_rle import decode_runs

PART_KEY = "segmint_part"
"""Key in a task's data that states which part of an image's masks the task contains, such as `2/3`."""

_LABELS = "brushlabels"
_PART = re.compile(r"([1-9][0-9]{0,4})/([1-9][0-9]{0,4})")
_NO_SHAPES = ("choices", "datetime", "number", "pairwise", "ranker", "rating", "relation", "taxonomy", "textarea")
"""Types of results that describe an image, or a region whose shape is in another result."""


class ByteStream(Protocol):
    """A stream of bytes."""

    def read(self, size: int = -1, /) -> bytes:
        """Return up to `size` bytes, or nothing at the end."""


class TaskAnnotation(NamedTuple):
    """The annotation that counts for a task, and the number of other annotations that it supersedes."""

    image: AnnotatedImage
    superseded: int


class _TaskParts:
    """Annotations of an image that was exported in parts, one task per part."""

    def __init__(self) -> None:
        self._latest: dict[int, AnnotatedImage] = {}
        self._count = self._superseded = 0

    def add(self, part: int, count: int, image: AnnotatedImage, superseded: int) -> None:
        """Add an annotation of a part. If the part has several annotations, the latest one counts."""
        self._count = max(self._count, count)
        self._superseded += superseded
        other = self._latest.get(part)
        if other is not None:
            self._superseded += 1
            if (image.saved or -math.inf) <= (other.saved or -math.inf):
                return
        self._latest[part] = image

    def join(self) -> TaskAnnotation:
        """Combine the masks of all parts into one image."""
        images = [self._latest[part] for part in sorted(self._latest)]
        whole = AnnotatedImage(
            images[0].name,
            None,
            images[0].size,
            masks=[mask for image in images for mask in image.masks],
            unreadable=[line for image in images for line in image.unreadable],
            unreadable_ids=[id for image in images for id in image.unreadable_ids],
            saved=max((image.saved for image in images if image.saved is not None), default=None),
        )
        missing = [part for part in range(1, self._count + 1) if part not in self._latest]
        for part in missing:
            whole.unreadable.append(f"the masks of part {part} of {self._count}: its task has no submission")
        return TaskAnnotation(whole, self._superseded)


def read_tasks(
    tasks: Iterable[Mapping[str, Any]], size_of: Callable[[str], Size | None] = lambda name: None
) -> Iterator[TaskAnnotation]:
    """Yield the annotation that counts for each task.

    The latest annotation that wasn't canceled counts. A task without such an annotation is skipped. JSON_MIN contains a
    separate record for each annotation, so every annotation is yielded with its time, and the caller must find the
    latest.

    An image's name is its path or URL. If a task has no image, the name identifies the task. `size_of` maps an image's
    name to its (height, width), or to None if unknown. If a mask's size is different, it is listed as unreadable
    without being decoded.

    A mask's id is the id of its region if that is a number. Results that aren't objects or have no shape are ignored.
    If an image was exported in parts, its tasks contain `PART_KEY`. The masks of all parts are combined into one image,
    which is yielded at the end. A part without an annotation is listed as unreadable.

    Raises `KeyError` or `TypeError` if the items aren't tasks.
    """
    parts: dict[str, _TaskParts] = {}
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, dict):
            raise TypeError(f"task number {number} is not an object")
        answers = _sorted(task)
        if not answers:
            continue
        (saved, regions), superseded = answers[0], len(answers) - 1
        data = task.get("data", task)
        name = data.get("image") if isinstance(data, dict) else None
        if not isinstance(name, str) or not name:
            yield TaskAnnotation(
                AnnotatedImage(f"task number {number}", None, None, unreadable=["it has no `image`"]), superseded
            )
            continue
        image = AnnotatedImage(name, None, size_of(name), saved=saved)
        for region in regions:
            if region.get("type") not in _NO_SHAPES:
                _add(image, region)
        part = _PART.fullmatch(str(data.get(PART_KEY, "")))
        if part is None:
            yield TaskAnnotation(image, superseded)
        else:
            parts.setdefault(name, _TaskParts()).add(int(part[1]), int(part[2]), image, superseded)
    for each in parts.values():
        yield each.join()


def iter_tasks(stream: ByteStream) -> Iterator[Any]:
    """Yield the items of a JSON array one by one, because a task may take megabytes. Raise `ValueError` if invalid."""
    import ijson  # type: ignore[import-untyped]

    class PeekedStream:
        """Stream that must begin with a list, apart from white space."""

        begun = False

        def read(self, size: int = -1) -> bytes:
            data = stream.read(size)
            if not self.begun and data.strip():
                if data.lstrip()[:1] != b"[":
                    raise ValueError("it is not a list of tasks")
                self.begun = True
            return data

    try:
        yield from ijson.items(PeekedStream(), "item", use_float=True)
    except ijson.JSONError as error:
        raise ValueError(str(error)) from error


def answers_of(task: Mapping[str, Any]) -> list[list[Mapping[str, Any]]]:
    """Return the regions of each of a task's annotations, latest annotation first. Canceled annotations are skipped."""
    return [regions for _, regions in _sorted(task)]


def _sorted(task: Mapping[str, Any]) -> list[tuple[float | None, list[Mapping[str, Any]]]]:
    """Return the time and regions of each annotation of a task, latest first. Skip annotations without a `result`."""
    if "annotations" not in task:  # JSON_MIN: one record per annotation, without ids
        if task.get("annotation_id") is None:
            return []
        lists = [value for value in task.values() if isinstance(value, list)]
        return [(_saved(task), [region for regions in lists for region in regions if isinstance(region, dict)])]
    given = task["annotations"] or ()
    kept = [each for each in given if not (each.get("was_cancelled") or each.get("skipped"))]
    answers: list[tuple[float | None, list[Mapping[str, Any]]]] = [
        (_saved(each), [region for region in each["result"] if isinstance(region, dict) and "value" in region])
        for each in kept
        if each.get("result") is not None
    ]
    # The sort is stable, so of several annotations with the same time, the first wins.
    answers.sort(key=lambda answer: -math.inf if answer[0] is None else answer[0], reverse=True)
    return answers


def _saved(answer: Mapping[str, Any]) -> float | None:
    """Return the time at which an annotation was saved, in seconds since 1970, or None if unknown."""
    for name in ("updated_at", "created_at"):
        try:
            time = datetime.fromisoformat(str(answer.get(name)))
        except ValueError:
            continue
        return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()
    return None


def _add(image: AnnotatedImage, region: Mapping[str, Any]) -> None:
    id = _number(region.get("id"))
    try:
        value = region.get("value", region)
        if "rle" not in value:
            raise UnreadableMaskError(f"it is of type {region.get('type')}, not a brush stroke")
        sized = {**region, **value}  # JSON_MIN stores the size in the value
        size = (int(sized["original_height"]), int(sized["original_width"]))
        # Check this before decoding, because a few bytes may expand to gigabytes.
        image.check_size(size)
        if not all(0 < side <= LONGEST_SIDE for side in size):
            raise UnreadableMaskError(f"its size is {size[1]} x {size[0]} pixels")
        check_pixels(size)
        image.masks.append(AnnotatedMask(encode_mask(decode_runs(value["rle"], size)), id, _label(value)))
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        image.leave_out(id, error)


def _label(value: Mapping[str, Any]) -> str | None:
    """Return the first label of a region, or None if the region has no label."""
    labels = value.get(_LABELS)
    return label_text(labels[0]) if isinstance(labels, list) and labels else None


def _number(text: Any) -> int | None:
    return id_number(int(text)) if isinstance(text, str) and text.isdecimal() and len(text) < 19 else None
