"""JSON files of a folder's masks, which are read into rows and edited without losing what others wrote into them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from segmint.catalogs.findings import FindingLocation
from segmint.catalogs.layout import LEVELS
from segmint.infra.arrays import Size
from segmint.infra.errors import UsageError
from segmint.infra.uris import base_name
from segmint.operators.annotations.folder import read_json
from segmint.operators.annotations.image import checked_rle, label_text
from segmint.operators.foreign.masks import ForeignImage
from segmint.operators.foreign.masks import read_masks as measure_masks
from segmint.operators.rows import AUTOMATIC, IMPORT, MASKS_PER_IMAGE_LIMIT, Row
from segmint.operators.shards.put import annotation_id, counts_of
from segmint.pipeline.corrections.import_merge import canonical_counts
from segmint.pipeline.masks.outputs import CORRECTED, PhotographTask

_OUTPUTS = {0, 1, 2}
_KEYS = ("segmentation", "bbox", "area", "predicted_iou", "stability_score", "crop_box", "point_coords")


class BadFileError(UsageError):
    """Error for a photograph or JSON file of a folder that can't be used.

    The message states the file and the reason.
    """


@dataclass(frozen=True)
class MasksDocument:
    """JSON file of a photograph's masks: its content, its (height, width) in pixels, and a row for each mask.

    Each row contains the keys of `MASK` with canonical run lengths, and the columns for label and source.
    """

    value: Mapping[str, Any]
    size: Size
    masks: tuple[Row, ...]


def photograph_of(data: bytes) -> str | None:
    """Return the file name in an image's SA-1B JSON, "" if the JSON lacks it, or None for the JSON of other tools."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(value, dict) or not isinstance(value.get("image"), dict) or "annotations" not in value:
        return None
    return str(value["image"].get("file_name") or "")


def read_masks(data: bytes, where: str, sha256: str) -> MasksDocument:
    """Read a JSON file whose SHA-256 is `sha256` in hexadecimal digits.

    Raises `BadFileError`, which names the file as `where`, if any mask can't be read.
    """
    parse = cache(json.loads)
    image = read_json(data, where, parse=parse)
    if image.unreadable:
        more = f", and {len(image.unreadable) - 1:,} more" if len(image.unreadable) > 1 else ""
        raise BadFileError(f"{where}: {image.unreadable[0]}{more}")
    if image.size is None:
        raise BadFileError(f"{where}: its image has no width and height")
    value = parse(data)
    annotations = value["annotations"]
    if len(annotations) > MASKS_PER_IMAGE_LIMIT:
        raise BadFileError(f"{where}: {len(annotations):,} masks, but the limit is {MASKS_PER_IMAGE_LIMIT:,}")
    measured = ForeignImage(1, image.size)
    measure_masks(annotations, measured, FindingLocation(where), exact=True)
    outputs = value.get("outputs")
    if not isinstance(outputs, list) or len(outputs) != len(annotations):
        outputs = [None] * len(annotations)
    whole = [0.0, 0.0, float(image.size[1]), float(image.size[0])]
    masks = tuple(
        {
            **row,
            "segmentation": {"size": list(image.size), "counts": canonical_counts(mask.rle["counts"], image.size)},
            "crop_box": row["crop_box"] or whole,
            "point_coords": row["point_coords"] or [],
            "output": output if type(output) is int and output in _OUTPUTS else None,
            **_origin(annotation, row, sha256),
        }
        for row, mask, annotation, output in zip(measured.masks, image.masks, annotations, outputs, strict=True)
    )
    return MasksDocument(value, image.size, masks)


def _origin(annotation: Mapping[str, Any], row: Row, sha256: str) -> Row:
    """Return the columns for a mask's label and source. If a mask lacks a predicted IoU, no model made it."""
    label = label_text(annotation.get("label")) or None
    made = row["predicted_iou"] is not None
    return {
        "label": label,
        "label_source": IMPORT if label else None,
        "source": AUTOMATIC if made else "imported",
        "origin": None if made else {"sha256": sha256, "license": None},
    }


def edit_document(value: Mapping[str, Any], masks: Sequence[Row]) -> bytes:
    """Replace the masks in a JSON file with `masks` (keys of `DESCRIBED_MASK`), and return the file's bytes.

    Annotations whose pixels don't change keep their content and order. New masks get new ids. All other keys of the
    file stay unchanged. If anything changes, the key `CORRECTED` is set, so that `segmint masks` keeps the file.
    """
    size = (value["image"]["height"], value["image"]["width"])
    before = list(value["annotations"])
    places: dict[str, list[int]] = {}
    for place, annotation in enumerate(before):
        places.setdefault(_counts(annotation, size), []).append(place)
    kept = [found.pop(0) if (found := places.get(counts_of(mask))) else None for mask in masks]
    ids = [annotation["id"] for annotation in before if type(annotation.get("id")) is int]
    number = value["image"].get("image_id")
    first = annotation_id(number, 0) if type(number) is int else 0
    following = max([first - 1, *ids]) + 1
    annotations = []
    for mask, old_place in zip(masks, kept, strict=True):
        new = {"id": following, **{key: mask[key] for key in _KEYS}}
        annotation = new if old_place is None else dict(before[old_place])
        following += old_place is None
        if mask["label"]:
            annotation["label"] = mask["label"]
        elif label_text(annotation.get("label")):
            del annotation["label"]
        annotations.append(annotation)
    edited: dict[str, Any] = {**value, "annotations": annotations}
    gone = set(ids).difference(each["id"] for each in annotations if type(each.get("id")) is int)
    for key in LEVELS.values():
        old = value.get(key)
        if not isinstance(old, list) or len(old) != len(before):  # another program wrote this list
            continue
        values = [None if place is None else old[place] for place in kept]
        edited[key] = [None if key != "outputs" and type(each) is int and each in gone else each for each in values]
    if edited != value:
        edited[CORRECTED] = True
    return json.dumps(edited, separators=(",", ":")).encode("ascii") + b"\n"


def new_document(task: PhotographTask, size: Size) -> dict[str, Any]:
    """Return the content of a JSON file without masks.

    `size` is the (height, width) of the photograph's future masks.
    """
    name = base_name(task.image.name)
    image = {"image_id": task.image_id, "width": size[1], "height": size[0], "file_name": name}
    return {"image": image, "annotations": []}


def _counts(annotation: Mapping[str, Any], size: Size) -> str:
    return canonical_counts(checked_rle(annotation["segmentation"])["counts"], size)
