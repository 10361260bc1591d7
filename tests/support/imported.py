"""Files of masks for the datasets of `protocol`, as people and tools write them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segmint.operators.rows import Row
from segmint.operators.shards.revise import read_committed_rows
from segmint.pipeline.corrections.import_merge import ImportMode
from segmint.pipeline.corrections.imports import ImportFormat, ImportList, ImportRequest, import_masks
from segmint.pipeline.corrections.mask_revision import RevisionResult
from tests.support.described_rows import rectangle_mask
from tests.support.locations import location_of
from tests.support.protocol import DatasetPath

Box = tuple[int, int, int, int]
"""(top, left, bottom, right) in an image of 30 x 40 pixels."""


def coco_of(images: Mapping[int, Sequence[tuple[Box, int | None]]], label: str = "object") -> dict[str, Any]:
    """A COCO document: rectangles with the ids that they have, by the image's number."""
    annotations = []
    for image, boxes in images.items():
        for box, id in boxes:
            code = rectangle_mask(30, 40, *box)["segmentation"]
            annotation = {"id": 900 + len(annotations) if id is None else id, "image_id": image, "category_id": 1}
            annotations.append({**annotation, "segmentation": code})
    return {
        "images": [{"id": image, "file_name": f"sa_{image}.jpg", "height": 30, "width": 40} for image in images],
        "categories": [{"id": 1, "name": label}],
        "annotations": annotations,
    }


def write_coco(
    place: DatasetPath, images: Mapping[int, Sequence[tuple[Box, int | None]]], label: str = "object"
) -> Path:
    """Write such a document beside a dataset, under a name of its own."""
    text = json.dumps(coco_of(images, label))
    path = Path(f"{place.uri}-{abs(hash(text))}.json")
    path.write_text(text)
    return path


def import_coco(
    place: DatasetPath, path: Path, mode: ImportMode = ImportMode.REPLACE, **request: Any
) -> RevisionResult[ImportList]:
    """Import a COCO file."""
    return import_masks(place.location, ImportRequest(location_of(path), ImportFormat.COCO, mode, **request))


def masks_of(place: DatasetPath, ordinal: int) -> list[Row]:
    """The described masks of an image, whose shard has three rows, with their annotation ids."""
    commit = place.log.latest(ordinal // 3)
    assert commit is not None
    row = next(row for row in read_committed_rows(place.location, commit) if row["ordinal"] == ordinal)
    return [
        {**mask, "annotation_id": row["id"] * 10_000 + (place if mask["index"] is None else mask["index"])}
        for place, mask in enumerate(row["masks"])
    ]


FIRST: Box = (2, 3, 12, 20)
SECOND: Box = (3, 4, 13, 21)
"""The masks of an image of `protocol`, with the ids image * 10,000 and one more."""
