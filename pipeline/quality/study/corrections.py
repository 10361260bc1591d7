"""The masks that people corrected in a study, from COCO JSON, or from an export of Label Studio or its converter."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from segmint.catalogs.layout import image_name
from segmint.operators.annotations import coco, label_studio
from segmint.operators.annotations.image import AnnotatedImage, Size
from segmint.operators.annotations.names import image_number
from segmint.pipeline.quality.study.pairs import StudyMask


@dataclass
class Corrections:
    """Corrected masks. An answered image has a key in `masks`, even if all of its masks were deleted.

    `foreign` counts images that were not drawn, `superseded` further answers for an image.
    """

    sizes: Mapping[int, Size]  # of the images drawn, by id
    answers: dict[int, AnnotatedImage] = field(default_factory=dict)
    homeless: list[str] = field(default_factory=list)  # unreadable entries of no image
    foreign: int = 0
    superseded: int = 0

    def add(self, answer: AnnotatedImage) -> None:
        """Add the answer for an image; the one that was saved last counts, the first where that is not known."""
        image = image_number(answer.name)
        if image is None or image not in self.sizes:
            self.foreign += 1
            return
        former = self.answers.get(image)
        self.superseded += former is not None
        if former is None or (former.saved or -math.inf) < (answer.saved or -math.inf):
            self.answers[image] = answer

    @property
    def masks(self) -> dict[int, list[StudyMask]]:
        """The masks of each image that has an answer, by its id."""
        return {
            image: [StudyMask(mask.id, dict(mask.rle)) for mask in answer.masks]
            for image, answer in self.answers.items()
        }

    @property
    def unreadable(self) -> list[str]:
        """The reason for each mask that was left out."""
        read = self.answers.items()
        lines = [f"{image_name(image)}, {problem}" for image, answer in read for problem in answer.unreadable]
        return [*lines, *self.homeless]

    @property
    def unreadable_ids(self) -> set[int]:
        """The ids of those that have one."""
        return {id for answer in self.answers.values() for id in answer.unreadable_ids}

    @property
    def polygons(self) -> int:
        """The number of masks returned as polygons, which have no holes."""
        return sum(mask.polygon for answer in self.answers.values() for mask in answer.masks)

    def size_of(self, name: str) -> Size | None:
        """Return the size of an image that was drawn, by its name."""
        number = image_number(name)
        return None if number is None else self.sizes.get(number)


def read_coco(document: Mapping[str, Any], sizes: Mapping[int, Size]) -> Corrections:
    """Read the masks of a document that `segmint.operators.annotations.coco.parse_coco` returned.

    Images are identified by file name, because tools renumber them.
    """
    found = Corrections(sizes)
    file = coco.read_coco(document, found.size_of)
    for image in file.images:
        found.add(image)
    found.homeless += file.unreadable
    return found


def read_label_studio(tasks: Iterable[Mapping[str, Any]], sizes: Mapping[int, Size]) -> Corrections:
    """Read the brush strokes of Label Studio's JSON or JSON_MIN.

    The latest annotation of a task that was not canceled counts; a task without one has no answer. Raises `KeyError`
    or `TypeError` if these are not tasks.
    """
    found = Corrections(sizes)
    for task in label_studio.read_tasks(tasks, found.size_of):
        found.superseded += task.superseded
        found.add(task.image)
    return found
