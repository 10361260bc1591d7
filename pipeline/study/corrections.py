"""Reads corrected masks from COCO JSON, or from an export of Label Studio or its converter."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from segmint.catalogs.layout import image_name
from segmint.pipeline.study.pairs import StudyMask

_IMAGE = re.compile(r"(?:^|[^A-Za-z0-9])sa_(\d+)\.\w+$")

Size = tuple[int, int]
"""(height, width) in pixels."""


class UnreadableMaskError(ValueError):
    """A mask of a corrected file cannot be read; the message says why."""


@dataclass
class Corrections:
    """Corrected masks. An answered image has a key in `masks`, even if all of its masks were deleted.

    `foreign` counts images that were not drawn, `superseded` further answers for an image; `unreadable` has the
    reason for each mask that was left out, and `unreadable_ids` their ids, if they had one; `polygons` counts masks
    returned as polygons, which have no holes.
    """

    sizes: Mapping[int, Size]  # of the images drawn, by id
    masks: dict[int, list[StudyMask]] = field(default_factory=dict)
    unreadable: list[str] = field(default_factory=list)
    unreadable_ids: set[int] = field(default_factory=set)
    foreign: int = 0
    superseded: int = 0
    polygons: int = 0

    def begin(self, image: int | None) -> int | None:
        """Record an answer for an image; returns the image's id if the answer counts."""
        if image is None or image not in self.sizes:
            self.foreign += 1
        elif image in self.masks:
            self.superseded += 1
        else:
            self.masks[image] = []
            return image
        return None

    def take(self, image: int, mask: StudyMask) -> None:
        """Add a mask to an image's answer; raises `UnreadableMaskError` if it has another size than the image."""
        height, width = mask.rle["size"]
        self.check(image, (height, width))
        self.masks[image].append(mask)

    def check(self, image: int, size: Size) -> None:
        """Raise `UnreadableMaskError` if a mask has another size than its image."""
        if size != self.sizes[image]:
            height, width = self.sizes[image]
            raise UnreadableMaskError(f"it is {size[1]} x {size[0]} pixels, its image {width} x {height}")

    def leave_out(self, image: int, id: int | None, why: object) -> None:
        """Record a mask that cannot be read."""
        self.unreadable.append(f"{image_name(image)}, mask {'without an id' if id is None else id}: {why}")
        if id is not None:
            self.unreadable_ids.add(id)


def image_number(path: str) -> int | None:
    """Return the image's id in a path or URL that ends in `sa_<id>.jpg`, even if a tool added a prefix."""
    match = _IMAGE.search(path)
    return None if match is None else int(match[1])


def read_coco(document: Mapping[str, Any], sizes: Mapping[int, Size]) -> Corrections:
    """Read the masks of a COCO document: compressed or uncompressed run lengths, or polygons.

    Images are identified by file name, because tools renumber them. Raises `KeyError` or `TypeError` if the document
    is not COCO.
    """
    found = Corrections(sizes)
    # Its contours go through the centers of the outermost pixels, COCO's polygons around them.
    contours = document.get("info", {}).get("contributor") == "Label Studio Converter"
    images: dict[Any, int] = {}
    for image in document["images"]:
        number = found.begin(image_number(image["file_name"]))
        if number is not None:
            images[image["id"]] = number
    for annotation in document["annotations"]:
        home = images.get(annotation["image_id"])
        if home is None:
            continue  # its image was counted as foreign or superseded
        try:
            rle = _coco_rle(annotation["segmentation"], sizes[home], contours)
            found.take(home, StudyMask(annotation["id"], rle))
            found.polygons += isinstance(annotation["segmentation"], list)
        except (ValueError, KeyError, TypeError, OverflowError) as error:
            found.leave_out(home, annotation["id"], error)
    return found


def read_label_studio(tasks: Iterable[Mapping[str, Any]], sizes: Mapping[int, Size], brush: Any) -> Corrections:
    """Read the brush strokes of Label Studio's JSON or JSON_MIN with its SDK's converter `brush`.

    The latest annotation of a task that was not cancelled counts; a task without one has no answer. Raises `KeyError`
    or `TypeError` if these are not tasks.
    """
    found = Corrections(sizes)
    for task in tasks:
        answer = answer_of(task)
        if answer is None:
            continue
        regions, others = answer
        found.superseded += others
        number = found.begin(image_number(str(task.get("data", task)["image"])))
        if number is None:
            continue
        for region in regions:
            value, id = region.get("value", region), _number(region.get("id"))
            try:
                if "rle" not in value:
                    raise UnreadableMaskError(f"it is of type {region.get('type')}, not a brush stroke")
                sized = {**region, **value}  # JSON_MIN has the size in the value
                size = (int(sized["original_height"]), int(sized["original_width"]))
                found.check(number, size)  # before decoding: a few bytes may expand to gigabytes
                found.take(number, StudyMask(id, _brush_rle(value["rle"], size, brush)))
            except (ValueError, KeyError, TypeError, IndexError) as error:
                found.leave_out(number, id, error)
    return found


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
    return [[region for region in each["result"] if "value" in region] for each in kept]


def _coco_rle(segmentation: Any, size: Size, contours: bool) -> dict[str, Any]:
    height, width = size
    if isinstance(segmentation, Mapping):
        counts = segmentation["counts"]
        if isinstance(counts, str):
            return _checked({"size": list(segmentation["size"]), "counts": counts.encode("ascii")})
        return _checked(dict(coco.frPyObjects(dict(segmentation), *segmentation["size"])))
    if not segmentation:
        raise UnreadableMaskError("it has a box but no mask")
    if contours:
        import cv2

        mask = np.zeros(size, np.uint8)
        cv2.fillPoly(mask, [np.asarray(points, np.int32).reshape(-1, 2) for points in segmentation], 1)
        return _encode(mask)
    return dict(coco.merge(coco.frPyObjects(segmentation, height, width)))


def _checked(rle: dict[str, Any]) -> dict[str, Any]:
    """Check that the runs fill the size: pycocotools does not, and reads out of bounds."""
    from segmint.model.automatic.rle import Rle, area

    height, width = rle["size"]
    area(Rle((height, width), rle["counts"].decode("ascii")))
    return rle


def _brush_rle(runs: list[int], size: Size, brush: Any) -> dict[str, Any]:
    height, width = size
    announced = int.from_bytes(bytes(runs[:4]))
    if announced != height * width * 4:
        raise UnreadableMaskError(f"its run lengths have {announced} values, expected {height} x {width} x 4")
    pixels = np.reshape(brush.decode_rle(runs), (height, width, 4))
    return _encode((pixels[:, :, 3] > 0).astype(np.uint8))


def _encode(mask: NDArray[np.uint8]) -> dict[str, Any]:
    return dict(coco.encode(np.asfortranarray(mask)))


def _number(text: Any) -> int | None:
    return int(text) if isinstance(text, str) and text.isdecimal() else None
