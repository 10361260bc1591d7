"""The masks that people corrected in a study, from COCO JSON, or from an export of Label Studio or its converter."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from segmint.catalogs.layout import image_name
from segmint.operators.annotations import coco, label_studio
from segmint.operators.annotations.image import AnnotatedImage, Size
from segmint.operators.annotations.names import image_number
from segmint.pipeline.study.pairs import StudyMask


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

    def add(self, answer: AnnotatedImage) -> None:
        """Add the answer for an image; the first one counts."""
        image = image_number(answer.name)
        if image is None or image not in self.sizes:
            self.foreign += 1
        elif image in self.masks:
            self.superseded += 1
        else:
            self.masks[image] = [StudyMask(mask.id, dict(mask.rle)) for mask in answer.masks]
            self.polygons += sum(mask.polygon for mask in answer.masks)
            self.unreadable += [f"{image_name(image)}, {problem}" for problem in answer.unreadable]
            self.unreadable_ids.update(answer.unreadable_ids)

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
    found.unreadable += file.unreadable
    return found


def read_label_studio(tasks: Iterable[Mapping[str, Any]], sizes: Mapping[int, Size], brush: Any) -> Corrections:
    """Read the brush strokes of Label Studio's JSON or JSON_MIN with its SDK's converter `brush`.

    The latest annotation of a task that was not canceled counts; a task without one has no answer. Raises `KeyError`
    or `TypeError` if these are not tasks.
    """
    found = Corrections(sizes)
    for task in label_studio.read_tasks(tasks, brush, found.size_of):
        found.superseded += task.superseded
        found.add(task.image)
    return found
