"""Readers of Label Studio's JSON, with its run lengths, and of labelme's polygons.

Codec for Label Studio's run lengths, which apply thi.ng's rle-pack format to the mask's RGBA pixels.

The format is a stream of bits, starting with the highest bit of each byte. It begins with a header: the number of
values (32 bits), the size of a value in bits minus one (5 bits), and the sizes in bits of four kinds of lengths, each
minus one (4 bits each). The header is followed by records. Each record contains a bit that is 1 for a run, the kind of
its length (2 bits), and the length minus one. After that, a run contains its value once, and any other record contains
`length` values.
"""

import contextlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from pycocotools import mask as coco

from segmint.infra.arrays import Bools, Bytes, Size
from segmint.operators.annotations.coco import fill_polygons
from segmint.operators.annotations.image import (
    AnnotatedImage,
    AnnotatedMask,
    UnreadableMaskError,
    check_pixels,
    encode_mask,
    id_number,
    label_text,
    mapping,
    parse_image,
    sides,
    stated,
)

_CHANNELS = 4  # values per pixel; the last one is its opacity
_HEADER = 32 + 5 + 4 * 4  # bits

# As Label Studio's SDK writes: values of 8 bits, and lengths of up to 8, 16, 256, and 65,536 values.
_VALUE_BITS = 8
_LENGTH_BITS = np.array([3, 4, 8, 16])
_LENGTHS = 1 << _LENGTH_BITS
_SETTINGS = int(f"{_VALUE_BITS - 1:05b}" + "".join(f"{bits - 1:04b}" for bits in _LENGTH_BITS), 2)


def encode_runs(mask: Bools) -> list[int]:
    """Encode a mask, (height, width) bool, to the same bytes as Label Studio's `mask2rle` for the values 255 and 0."""
    flat = np.asarray(mask, dtype=bool).ravel()
    starts = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]) + 1])
    lengths = np.diff(starts, append=flat.size) * _CHANNELS
    kinds = np.searchsorted(_LENGTHS[:-1], lengths)
    pieces = -(-lengths // _LENGTHS[-1])  # only lengths of the longest kind may need several records
    last = np.cumsum(pieces) - 1
    kind, value = np.repeat(kinds, pieces), np.repeat(flat[starts], pieces) * 255
    length = np.full(kind.size, _LENGTHS[-1])
    length[last] = lengths - (pieces - 1) * _LENGTHS[-1]
    bits = _LENGTH_BITS[kind]
    records = ((((1 << 2 | kind) << bits) | (length - 1)) << _VALUE_BITS) | value
    fields = np.concatenate([[flat.size * _CHANNELS, _SETTINGS], records])
    widths = np.concatenate([[32, _HEADER - 32], 3 + bits + _VALUE_BITS])
    ends = np.cumsum(widths)
    below = np.repeat(ends, widths) - 1 - np.arange(ends[-1])  # distance of each bit from its field's lowest
    packed = np.packbits((np.repeat(fields, widths) >> below & 1).astype(np.uint8)).tolist()
    return packed if ends[-1] % 8 else [*packed, 0]  # the SDK adds one to eight zeros


def decode_runs(runs: Any, size: Size) -> Bools:
    """Decode a mask of `size` (height, width) to bool. A pixel is true unless it is fully transparent.

    Values may have 1 to 32 bits, and lengths 1 to 16. Raises `UnreadableMaskError` for damaged run lengths. If the
    number of pixels doesn't match `size`, raises it before decoding.
    """
    height, width = size
    data = _bytes(runs)
    count, total = height * width * _CHANNELS, 8 * len(data)
    announced = int.from_bytes(data[:4])
    if announced != count:
        raise UnreadableMaskError(f"its run lengths have {announced} values: expected {height} x {width} x 4")
    padded = data + bytes(8)  # 57 bits can be read at any position, and a record's fields take at most 51
    settings = int.from_bytes(padded[:8]) >> (64 - _HEADER)
    value_bits = (settings >> 16 & 31) + 1
    length_bits = [(settings >> shift & 15) + 1 for shift in (12, 8, 4, 0)]
    bits: Bytes | None = None  # bits of all bytes, unpacked when the first literal values occur
    opaque = np.zeros(height * width, dtype=bool)
    done, at = 0, _HEADER
    while done < count:
        ahead = int.from_bytes(padded[at >> 3 : (at >> 3) + 8]) << (at & 7) & 0xFFFF_FFFF_FFFF_FFFF
        is_run, each = ahead >> 63, length_bits[ahead >> 61 & 3]
        end = done + 1 + (ahead >> (61 - each) & (1 << each) - 1)
        start = at + 3 + each
        at = start + value_bits * (1 if is_run else end - done)
        if at > total:
            raise UnreadableMaskError(f"its run lengths are cut off after {done} of {count} values")
        if end > count:
            raise UnreadableMaskError(f"its run lengths continue after their {count} values")
        # Every fourth value overall is the opacity of a pixel.
        if not is_run:
            bits = np.unpackbits(np.frombuffer(data, np.uint8)) if bits is None else bits
            values: Bools = bits[start:at].reshape(-1, value_bits).max(axis=1) > 0
            opaque[done // _CHANNELS : end // _CHANNELS] = values[_CHANNELS - 1 - done % _CHANNELS :: _CHANNELS]
        elif ahead >> (61 - each - value_bits) & (1 << value_bits) - 1:
            opaque[done // _CHANNELS : end // _CHANNELS] = True
        done = end
    return opaque.reshape(size)


def _bytes(runs: Any) -> bytes:
    if isinstance(runs, list):  # bytes() of a number would return that many zeros
        with contextlib.suppress(TypeError, ValueError):
            return bytes(runs)
    raise UnreadableMaskError("its run lengths are not a list of numbers from 0 to 255")


PART_KEY = "segmint_part"
"""Key in a task's data that states which part of an image's masks the task contains, such as `2/3`."""

_PART = re.compile(r"([1-9][0-9]{0,4})/([1-9][0-9]{0,4})")
_NO_SHAPES = ("choices", "datetime", "number", "pairwise", "ranker", "rating", "relation", "taxonomy", "textarea")
"""Types of results that describe an image, or a region whose shape is in another result."""

_BRUSHES = ("brushlabels", "brush")
_POLYGONS = ("polygonlabels", "polygon")
_KEYPOINTS = ("keypoint", "keypointlabels")
_RECTANGLES = ("rectangle", "rectanglelabels")
_LABELS = "labels"
"""Type of results that only contain the labels of a region whose shape is in another result."""

_LEAST_INSIDE = 0.5
"""Minimum share of a mask's box inside a rectangle if the rectangle is a prompt for the mask."""


Answer = tuple[float | None, list[Mapping[str, Any]]]
"""Time of an annotation, in seconds since 1970, and its regions."""


class TaskAnnotation(NamedTuple):
    """The annotation that counts for a task, and the number of other annotations that it supersedes."""

    image: AnnotatedImage
    superseded: int


class _Part(NamedTuple):
    """Annotation of one of the `total` parts in which an image was exported, one task per part."""

    number: int
    total: int
    image: AnnotatedImage
    superseded: int


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

    A mask's id is the id of its region if that is a number. Results with the same id form a region, whose label may be
    in any of them. Results that aren't objects or have no shape are ignored. Beside a mask, so are prompts: keypoints,
    and rectangles that contain a mask. They are listed in the image's `prompts`. Other shapes are unreadable masks, and
    so are the masks of a task if they belong to several images. If an image was exported in parts, its tasks contain
    `PART_KEY`. The masks of all parts are combined into one image, which is yielded at the end. A part without an
    annotation is listed as unreadable.

    Raises `KeyError` or `TypeError` if the items aren't tasks.
    """
    parts: dict[str, list[_Part]] = {}
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, dict):
            raise TypeError(f"task number {number} is not an object")
        answers = answers_of(task)
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
        _add_regions(image, regions)
        part = _PART.fullmatch(str(data.get(PART_KEY, "")))
        if part is None:
            yield TaskAnnotation(image, superseded)
        else:
            parts.setdefault(name, []).append(_Part(int(part[1]), int(part[2]), image, superseded))
    for each in parts.values():
        yield _join(each)


def _join(parts: list[_Part]) -> TaskAnnotation:
    """Combine the masks of all parts into one image. If a part has several annotations, the latest one counts."""
    parts.sort(key=lambda part: _time(part.image.saved), reverse=True)
    whole = replace(parts[0].image, masks=[], unreadable=[], unreadable_ids=[], prompts=[])
    latest: dict[int, AnnotatedImage] = {}
    superseded = 0
    count = 0
    for part in parts:
        superseded += part.superseded
        count = max(count, part.total, part.number)
        if part.number in latest:
            superseded += 1
        else:
            latest[part.number] = part.image
    for number in range(1, count + 1):
        image = latest.get(number)
        if image is None:
            whole.unreadable.append(f"the masks of part {number} of {count}: its task has no submission")
            continue
        whole.masks.extend(image.masks)
        whole.unreadable.extend(image.unreadable)
        whole.unreadable_ids.extend(image.unreadable_ids)
        whole.prompts.extend(image.prompts)
    return TaskAnnotation(whole, superseded)


def iter_tasks(stream: BinaryIO) -> Iterator[Any]:
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


def answers_of(task: Mapping[str, Any]) -> list[Answer]:
    """Return the time and regions of each annotation of a task, latest annotation first.

    Canceled annotations and those without a `result` are skipped.
    """
    if "annotations" not in task:  # JSON_MIN: one record per annotation, without ids
        if task.get("annotation_id") is None:
            return []
        lists = [value for value in task.values() if isinstance(value, list)]
        return [(_saved(task), [region for regions in lists for region in regions if isinstance(region, dict)])]
    answers: list[Answer] = []
    for each in task["annotations"] or ():
        if each.get("was_cancelled") or each.get("skipped") or each.get("result") is None:
            continue
        regions: list[Mapping[str, Any]] = [
            region for region in each["result"] if isinstance(region, dict) and "value" in region
        ]
        answers.append((_saved(each), regions))
    # The sort is stable, so of several annotations with the same time, the first wins.
    answers.sort(key=lambda answer: _time(answer[0]), reverse=True)
    return answers


def _time(saved: float | None) -> float:
    """Return a time for comparisons. An unknown time is earlier than all others."""
    return -math.inf if saved is None else saved


def _saved(answer: Mapping[str, Any]) -> float | None:
    """Return the time at which an annotation was saved, in seconds since 1970, or None if unknown."""
    for name in ("updated_at", "created_at"):
        try:
            time = datetime.fromisoformat(str(answer.get(name)))
        except ValueError:
            continue
        return (time if time.tzinfo is not None else time.replace(tzinfo=UTC)).timestamp()
    return None


def _add_regions(image: AnnotatedImage, regions: Sequence[Mapping[str, Any]]) -> None:
    """Add the masks of an annotation, whose results with the same id describe the same region."""
    shapes = []
    labels: dict[object, str] = {}
    with_shape = set()
    for region in regions:
        kind, key, value = _type_of(region), _key(region), _value(region)
        if kind in _NO_SHAPES:
            continue
        shapes.append((kind, key, value, region))
        if (label := _label(value)) is not None:
            labels.setdefault(key, label)
        if kind != _LABELS:
            with_shape.add(key)
    drawn: dict[object, list[Any]] = {}
    others = []
    strokes = [region for kind, _, value, region in shapes if _drawing(kind, value) is not None]
    if len({(str(region.get("to_name")), region.get("item_index") or 0) for region in strokes}) > 1:
        for region in strokes:
            image.leave_out(_number(region.get("id")), "its task contains masks of several images")
        return
    for kind, key, value, region in shapes:
        drawing = _drawing(kind, value)
        if drawing is None:
            if kind != _LABELS or key not in with_shape:
                others.append((kind, value, region))
        elif drawing not in drawn.setdefault(key, []):
            drawn[key].append(drawing)
            _add(image, region, _label(value) or labels.get(key))
    for kind, value, region in others:
        id, why = _number(region.get("id")), f"it is of type {kind}, neither a brush stroke nor a polygon"
        if kind in _KEYPOINTS or (kind in _RECTANGLES and _contains_mask(image, value)):
            image.leave_out_prompt(id, kind, why)
        else:
            image.leave_out(id, why)


def _drawing(kind: Any, value: Mapping[str, Any]) -> Any:
    """Return the run lengths of a brush stroke, or the points of a polygon, or None for other results."""
    if "rle" in value:
        return value["rle"]
    return value.get("points") if kind in _POLYGONS else None


def _value(region: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the shape and labels of a result, which JSON_MIN stores in the result itself."""
    return mapping(region.get("value", region))


def _type_of(region: Mapping[str, Any]) -> Any:
    """Return a result's type. JSON_MIN has no types, but most of its values are under the name of their type."""
    for name in (*_BRUSHES, *_POLYGONS, *_KEYPOINTS, *_RECTANGLES, _LABELS, *_NO_SHAPES):
        if "type" not in region and name in _value(region):
            return name
    return region.get("type")


def _key(region: Mapping[str, Any]) -> object:
    """Return what results of the same region have in common. In JSON_MIN, which has no ids, that is the shape."""
    id = region.get("id")
    if isinstance(id, str | int):
        return id
    if "type" in region:
        return object()
    return repr([_value(region).get(name) for name in ("rle", "x", "y", "width", "height", "points")])


def _contains_mask(image: AnnotatedImage, value: Mapping[str, Any]) -> bool:
    """Return whether a rectangle, in percent of the image, contains most of the box of one of the image's masks."""
    box = stated(None, [value.get(name) for name in ("x", "y", "width", "height")])["stated_box"]
    for mask in image.masks if box else ():
        high, wide = mask.rle["size"]
        pixels = np.array([box]) * [wide, high, wide, high] / 100
        if coco.iou(coco.toBbox([mask.rle]), pixels, [1])[0][0] >= _LEAST_INSIDE:  # the share of the mask's box
            return True
    return False


def _add(image: AnnotatedImage, region: Mapping[str, Any], label: str | None) -> None:
    id = _number(region.get("id"))
    try:
        value = _value(region)
        sized = {**region, **value}  # JSON_MIN stores the size in the value
        height, width = int(sized["original_height"]), int(sized["original_width"])
        # Check this before decoding, because a few bytes may expand to gigabytes.
        image.check_size((height, width))
        size = sides(height, width)
        if size is None:
            raise UnreadableMaskError(f"its size is {width} x {height} pixels")
        check_pixels(size)
        is_polygon = "rle" not in value
        if is_polygon:
            rle = fill_polygons([[share for x, y in value["points"] for share in (x, y)]], size, whole=100)
        else:
            rle = encode_mask(decode_runs(value["rle"], size))
        image.masks.append(AnnotatedMask(rle, id, label, polygon=is_polygon))
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        image.leave_out(id, error)


def _label(value: Mapping[str, Any]) -> str | None:
    """Return the first label of a result, or None if the result has no label."""
    for name in ("brushlabels", "polygonlabels", _LABELS):
        labels = value.get(name)
        if isinstance(labels, list) and labels:
            return label_text(labels[0])
    return None


def _number(text: Any) -> int | None:
    return id_number(int(text)) if isinstance(text, str) and text.isdecimal() and len(text) < 19 else None


SHAPES = "shapes"
"""Key of the list of shapes, by which labelme's JSON is recognized."""


def read_labelme(data: bytes, name: str, size: Size | None = None) -> AnnotatedImage:
    """Read the polygons of an image. Its name is `imagePath` or, if that is missing, `name`.

    Its size is the one in the file or, if that is missing, `size` (height, width). Polygons with the same label and
    `group_id` form a mask, whose pixels are those of `fill_polygons`. Other shapes are listed as unreadable.
    """
    image, _, shapes = parse_image(data, name, None, SHAPES, "labelme's JSON", _parse)
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for number, shape in enumerate(map(mapping, shapes), 1):
        group = shape.get("group_id")
        key = f"shape {number}" if group is None else f"group {group} of {shape.get('label')}"
        groups.setdefault(key, []).append(shape)
    for key, parts in groups.items():
        polygons = []
        try:
            for shape in parts:
                if shape.get("shape_type", "polygon") != "polygon":
                    raise UnreadableMaskError(f"it is of type {str(shape['shape_type'])[:40]}, not a polygon")
                polygons.append([value for x, y in shape["points"] for value in (x, y)])
            rle = fill_polygons(polygons, image.size or size)
        except (ValueError, TypeError, KeyError) as error:
            image.unreadable.append(f"{key}: {error}")
            continue
        image.masks.append(AnnotatedMask(rle, label=label_text(parts[0].get("label")), polygon=True))
    return image


def _parse(data: bytes) -> Any:
    """Parse the JSON, and describe the image as other formats do."""
    document = json.loads(data)
    sides = {"height": document.get("imageHeight"), "width": document.get("imageWidth")}
    return {**document, "image": {"file_name": document.get("imagePath"), **sides}}
