"""Readers for the file formats of `segmint import`. Each file is read once, into a `MaskStaging`."""

import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, BinaryIO

from segmint.catalogs.dataset.manifest import manifest_generations
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.operators.annotations.coco import parse_coco, read_coco
from segmint.operators.annotations.folder import read_folder
from segmint.operators.annotations.hf import is_data_file, read_export
from segmint.operators.annotations.label_studio import iter_tasks, read_tasks
from segmint.operators.annotations.yolo import is_yolo, read_yolo_folder
from segmint.pipeline.corrections.imports.matching import MatchMode
from segmint.pipeline.corrections.imports.staging import MaskStaging


class ImportFormat(StrEnum):
    """Formats that can be imported."""

    COCO = "coco"
    LABEL_STUDIO = "label-studio"
    HF = "hf"  # an export for Hugging Face
    YOLO = "yolo"  # segmentation labels with a YAML file
    FOLDER = "folder"
    DATASET = "dataset"  # another dataset, whose annotated masks are carried over


_OF_KEYS = {
    ("", "images"): ImportFormat.COCO,
    ("", "categories"): ImportFormat.COCO,
    ("annotations.item", "image_id"): ImportFormat.COCO,
    ("item", "annotations"): ImportFormat.LABEL_STUDIO,
    ("item", "annotation_id"): ImportFormat.LABEL_STUDIO,  # JSON_MIN
}
"""Formats, keyed by the location and name of the first characteristic key in a JSON document."""

SizeOf = Callable[[str], tuple[int, int] | None]
"""Function that maps an image's name in the file to its (height, width) in the dataset, or to None if unknown."""


def detect_format(where: Location) -> ImportFormat:
    """Detect the format of a file or folder by its content. Reading stops at the first characteristic key.

    Raises `UsageError` if nothing exists at this location or the content is inconclusive.
    """
    if not where.exists():
        if manifest_generations(where):
            return ImportFormat.DATASET
        names = [found.name for found in where.walk()]
        if not names:
            raise UsageError(f"{where} does not exist: expected a file or folder with masks, or another dataset")
        if any(map(is_data_file, names)):
            return ImportFormat.HF
        return ImportFormat.YOLO if is_yolo(names) else ImportFormat.FOLDER
    import ijson  # type: ignore[import-untyped]

    expected = f"Pass its format with --format, one of {', '.join(ImportFormat)}."
    try:
        with where.open() as stream:
            for place, event, key in ijson.parse(stream):
                if event == "map_key" and (place, key) in _OF_KEYS:
                    return _OF_KEYS[place, key]
                if event == "map_key" and (place, key) in (("", "image"), ("", "features"), ("", "shapes")):
                    expected = "To import the SA-1B JSON, GeoJSON, or labelme JSON of an image, pass its folder."
                    break
                if event == "end_map" and place == "item":
                    break  # a list of other items, such as COCO results
    except (ijson.JSONError, ValueError) as error:
        raise UsageError(f"{where} is neither COCO's nor Label Studio's JSON ({error}). {expected}") from error
    raise UsageError(f"{where} is neither COCO's nor Label Studio's JSON. {expected}")


def stage_file(
    where: Location, format: ImportFormat, stage: MaskStaging, size_of: SizeOf, ignore: Collection[int] = ()
) -> str:
    """Read a file or folder into a stage and return its SHA-256.

    A folder and Label Studio tasks are read image by image. A COCO document is held in memory as a whole. In label
    maps, the numbers in `ignore` aren't masks. Raises `UsageError` if there is nothing in this format.
    """
    try:
        if format is ImportFormat.FOLDER:
            return _stage_folder(where, stage, lambda add: read_folder(where, add, size_of, ignore))
        if format is ImportFormat.YOLO:
            return _stage_folder(where, stage, lambda add: read_yolo_folder(where, add, size_of))
        if format is ImportFormat.HF:
            return _stage_hf(where, stage)
        if format is ImportFormat.LABEL_STUDIO:
            return _stage_tasks(where, stage, size_of)
        return _stage_coco(where, stage, size_of)
    except NotFoundError as error:
        raise UsageError(f"{where} does not exist: expected a file with masks") from error


def _stage_coco(where: Location, stage: MaskStaging, size_of: SizeOf) -> str:
    data = where.read()
    digest = hashlib.sha256(data).hexdigest()
    found = read_coco(parse_coco(data, str(where)), size_of)
    del data
    for problem in found.unreadable:
        stage.leave_out(problem)
    stage.homeless = found.homeless
    for image in found.images:
        stage.add(image)
    return digest


def _stage_tasks(where: Location, stage: MaskStaging, size_of: SizeOf) -> str:
    try:
        with where.open() as stream:
            hashed = hashlib.sha256()
            hashing = _HashingStream(stream, hashed.update)
            for task in read_tasks(iter_tasks(hashing), size_of):
                stage.superseded += task.superseded
                stage.add(task.image)
            while hashing.read(1 << 20):
                pass
            return hashed.hexdigest()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{where} can't be read as Label Studio tasks ({type(error).__name__}: {error}): expected its JSON or "
            "JSON_MIN format"
        ) from error


def _stage_folder(where: Location, stage: MaskStaging, read: Callable[[Callable[[bytes], Any]], Any]) -> str:
    """Stage the images that `read` yields. It calls its argument with what it read."""
    hashed = hashlib.sha256()
    image = None
    for image in read(hashed.update):
        stage.add(image)
    if image is None:
        raise UsageError(
            f"{where} has no masks: expected a folder with one file per image, JSON of SA-1B or labelme (.json), "
            "GeoJSON (.geojson), or label maps (.png, .tif, .npy), or YOLO's data.yaml and folders `labels`"
        )
    return hashed.hexdigest()


def _stage_hf(where: Location, stage: MaskStaging) -> str:
    hashed = hashlib.sha256()
    for image in read_export(where, hashed.update, stage.match is MatchMode.IMAGE_ID):
        stage.add(image)
    return hashed.hexdigest()


@dataclass(frozen=True)
class _HashingStream:
    """Stream that hashes its data while it is read."""

    stream: BinaryIO
    add_to_hash: Callable[[bytes], Any]

    def read(self, size: int = -1) -> bytes:
        data = self.stream.read(size)
        self.add_to_hash(data)
        return data
