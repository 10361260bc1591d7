"""Boxes of a detector, read from a file of COCO results, as prompts for the model."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from segmint.infra.arrays import Floats, Ints
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.operators.annotations.image import id_number
from segmint.pipeline.engine.evaluate.result import Predictions, image_key, is_number, read_entries

_EXPECTED = "expected COCO results, a list of {image_id, category_id, bbox: [x, y, width, height], score}"

NO_CATEGORY = 0
"""Category that all boxes and masks get if the file doesn't contain categories."""


@dataclass(frozen=True)
class ImageBoxes:
    """Boxes of one image, in the file's order.

    Attributes:
        boxes: (N, 4) float64, x0, y0, x1, y1 in pixels of the image.
        scores: (N,) float64, or None if the file has no scores.
        categories: (N,) int64.
    """

    boxes: Floats
    scores: Floats | None
    categories: Ints

    def best(self, most: int) -> "ImageBoxes":
        """Return the `most` boxes with the highest scores per category. COCO's evaluation ignores all other boxes."""
        if self.scores is None:
            return self
        kept: list[int] = []
        ranked = np.argsort(-self.scores, kind="stable")
        for category in np.unique(self.categories):
            kept.extend(ranked[self.categories[ranked] == category][:most].tolist())
        return self._of(sorted(kept))

    def best_of_all(self, most: int) -> "ImageBoxes":
        """Return the `most` boxes with the highest scores over all categories, as in LVIS's evaluation."""
        if self.scores is None:
            return self
        return self._of(sorted(np.argsort(-self.scores, kind="stable")[:most].tolist()))

    def _of(self, kept: list[int]) -> "ImageBoxes":
        scores = None if self.scores is None else self.scores[kept]
        return ImageBoxes(self.boxes[kept], scores, self.categories[kept])


@dataclass(frozen=True)
class BoxesByImage:
    """Boxes from a file, by image. Keys are file names if `by_name` is set, and ids as text otherwise."""

    by_image: Mapping[str, ImageBoxes]
    scored: bool
    categories: bool
    by_name: bool
    facts: Mapping[str, Any]

    @property
    def of_categories(self) -> frozenset[int]:
        """Ids of the boxes' categories. Empty if the boxes have no categories."""
        found = set[int]()
        if self.categories:
            for image in self.by_image.values():
                found.update(image.categories.tolist())
        return frozenset(found)

    def without_categories(self) -> "BoxesByImage":
        """Return the same boxes, all in one category."""
        by_image = {}
        for key, each in self.by_image.items():
            by_image[key] = replace(each, categories=np.full_like(each.categories, NO_CATEGORY))
        return replace(self, by_image=by_image, categories=False)

    def of(self, image_id: str, name: str) -> ImageBoxes:
        """Return the boxes of an image. There may be no boxes."""
        nothing = ImageBoxes(np.zeros((0, 4)), np.zeros(0) if self.scored else None, np.zeros(0, np.int64))
        return self.by_image.get(name if self.by_name else image_id, nothing)


def boxes_of_results(predictions: Sequence[Predictions]) -> BoxesByImage:
    """Create empty boxes with the scores and categories of masks that were predicted without boxes."""
    first = predictions[0]
    categories = (each.category for file in predictions for results in file.by_image.values() for each in results)
    by_image = {}
    for key, results in first.by_image.items():
        boxes = [_BoxEntry(key, (0, 0, 0, 0), each.score, each.category) for each in results]
        by_image[key] = _image_boxes(boxes, True)
    facts = {"name": first.name, "sha256": first.sha256, "boxes": sum(map(len, first.by_image.values()))}
    return BoxesByImage(by_image, True, all(each is not None for each in categories), first.by_name, facts)


def no_image_error(boxes: BoxesByImage) -> UsageError:
    """Build the error for a file without a box for any evaluated image."""
    expected = "image ids in the ground truth file"
    if boxes.by_name:
        expected = "file names of the dataset"
    return UsageError(
        f"no box in {boxes.facts['name']} belongs to an evaluated image: expected image_id to be {expected}"
    )


def no_category_error(boxes: BoxesByImage) -> UsageError:
    """Build the error for boxes in categories without true masks."""
    return UsageError(
        f"no category of the boxes in {boxes.facts['name']} has a ground truth mask: expected category_id to "
        "be category ids in the ground truth file"
    )


def read_boxes(file: Location, of_dataset: bool) -> BoxesByImage:
    """Read boxes from a file of COCO results. With `of_dataset`, image ids refer to a segmint dataset's export.

    Raises `UsageError`, which names the entry, if the file is in a different format, if a box has no width or height,
    or if some boxes have a score or a category and others don't.
    """
    entries, sha256 = read_entries("--boxes", file, _EXPECTED)
    checked = [_checked(entry, f"--boxes {file}, entry {number}") for number, entry in enumerate(entries, start=1)]
    scored, categories = _all_or_none(file, "score", checked), _all_or_none(file, "category_id", checked)
    grouped: dict[str, list[_BoxEntry]] = {}
    for entry in checked:
        grouped.setdefault(image_key(entry.image_id, of_dataset), []).append(entry)
    facts = {"name": str(file), "sha256": sha256, "boxes": len(checked)}
    by_image = {key: _image_boxes(found, scored) for key, found in grouped.items()}
    return BoxesByImage(by_image, scored, categories, of_dataset, facts)


@dataclass(frozen=True)
class _BoxEntry:
    image_id: int | str
    box: tuple[float, float, float, float]
    score: float | None
    category_id: int | None


def _checked(entry: Any, where: str) -> _BoxEntry:
    if not isinstance(entry, dict):
        raise UsageError(f"{where} is {str(entry)[:40]}: {_EXPECTED}")
    image_id, box = entry.get("image_id"), entry.get("bbox")
    if not isinstance(image_id, int | str) or isinstance(image_id, bool):
        raise UsageError(f"{where}: its image_id is {image_id!r}: expected an image's id")
    if not isinstance(box, list) or len(box) != 4 or not all(map(is_number, box)):
        raise UsageError(f"{where}: its bbox is {str(box)[:60]}: expected [x, y, width, height] in pixels")
    x, y, width, height = map(float, box)
    if width <= 0 or height <= 0:
        raise UsageError(f"{where}: its bbox is {width:g} wide and {height:g} high: expected more than 0")
    score, category = entry.get("score"), entry.get("category_id")
    if score is not None and not is_number(score):
        raise UsageError(f"{where}: its score is {score!r}: expected a number")
    if category is not None and id_number(category) is None:
        raise UsageError(f"{where}: its category_id is {category!r}: expected a whole number")
    return _BoxEntry(
        image_id, (x, y, x + width, y + height), None if score is None else float(score), id_number(category)
    )


def _all_or_none(file: Location, key: str, entries: Sequence[_BoxEntry]) -> bool:
    there = [getattr(entry, key) is not None for entry in entries]
    if any(there) and not all(there):
        number = there.index(False) + 1
        raise UsageError(f"--boxes {file}, entry {number} has no {key}, but others do: expected it in all or none")
    return all(there)


def _image_boxes(entries: Iterable[_BoxEntry], scored: bool) -> ImageBoxes:
    found = list(entries)
    return ImageBoxes(
        np.array([entry.box for entry in found], dtype=np.float64),
        np.array([entry.score for entry in found], dtype=np.float64) if scored else None,
        np.array([NO_CATEGORY if entry.category_id is None else entry.category_id for entry in found], dtype=np.int64),
    )
