"""Lists the images of a YOLO dataset in the layout of Ultralytics, and reads the lines of its labels."""

from collections.abc import Iterator
from typing import Any

from segmint.catalogs.dataset.foreign import ForeignShard, ListedImage, YoloClasses, list_shards
from segmint.catalogs.dataset.tables import Foreign
from segmint.catalogs.endings import IMAGE_ENDINGS
from segmint.catalogs.findings import Code, FindingLocation
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted
from segmint.operators.annotations.boxes import label_lines, read_yolo_settings
from segmint.operators.annotations.image import Size, UnreadableMaskError, label_text, mapping
from segmint.operators.annotations.yolo import class_name, label_name
from segmint.operators.foreign.coco import PictureFolder
from segmint.operators.foreign.masks import ForeignImage

SETTINGS = ("data.yaml", "data.yml", "dataset.yaml")
"""Names of the file that describes a YOLO dataset, in the dataset's folder."""

SPLITS = ("train", "val", "test")
"""Splits in order."""

_LICENSED = ("LICENSE", "LICENCE", "COPYING", "ATTRIBUTIONS")
_SETTINGS_BYTES = 16 << 20
_LIST_BYTES = 1 << 30  # of a file that lists images


def list_yolo(file: Location, pictures: PictureFolder, foreign: Foreign) -> Iterator[ForeignShard]:
    """Return the shards of a YOLO dataset, which a YAML file describes.

    Reports splits without images, label files without an image, and a dataset without a license, and notes how many
    images have no label file. Raises `UsageError` if the file isn't YAML, or names no classes or no images.
    """
    if file.size() > _SETTINGS_BYTES:
        raise UsageError(f"{file} has over {_SETTINGS_BYTES:,} bytes: expected the YAML file of a YOLO dataset")
    settings = read_yolo_settings(file)
    splits = {split: settings[split] for split in SPLITS if settings.get(split)}
    if not splits:
        raise UsageError(f"{file} names no images: expected a folder of images as train, val, or test")
    shape = settings.get("kpt_shape")
    keypoints = shape[0] * shape[1] if isinstance(shape, list) and list(map(type, shape)) == [int, int] else 0
    classes = YoloClasses(settings["names"], keypoints, "segmint" in settings)
    start = _joined("", str(settings.get("path") or ""))
    if not any(name.startswith(f"{start}/") for name in pictures.sizes):
        start = ""
    place = FindingLocation(file.name)
    license = label_text(settings.get("license", mapping(settings.get("roboflow")).get("license")))
    if not license and not any(name.upper().startswith(_LICENSED) for name in pictures.sizes):
        foreign.findings.add(place.finding(Code.LICENSE_NOT_ALLOWED, "a license in this file or beside it", "none"))
    listed: dict[tuple[str, ...], list[str]] = {}  # splits by the images that they list: equal ones count as one
    used: set[str] = set()  # files that list images, and label files of images
    for split, value in splits.items():
        parts = value if isinstance(value, list) else [value]
        names = dict.fromkeys(name for part in parts for name in _listed(pictures, start, part))
        if not names:
            place_of_split = f"{split}: {value!r:.60}"
            foreign.findings.add(place.finding(Code.MISSING_FILE, "images in its folder", "none", place_of_split))
        listed.setdefault(tuple(names), []).append(split)
        used.update(_joined(start, str(part)) for part in parts)
    labels = [label_name(name) for names in listed for name in names]
    without = sum(name not in pictures.sizes for name in labels)
    if without:
        foreign.notes.append(f"{counted(without, 'image')} without a label file, which YOLO reads as empty images")
    folders = {name.rpartition("/")[0] for name in labels}
    for name in sorted(pictures.sizes.keys() - used.union(labels)):
        beside, _, base = name.rpartition("/")
        if beside in folders and base.endswith(".txt") and base != "classes.txt":
            missing = FindingLocation(name).finding(Code.MISSING_PAIR, "an image of the same name", "none")
            foreign.findings.add(missing)
    folder = pictures.folder.uri
    images = (
        ListedImage(
            name, pictures.file(name), file, folder, "+".join(splits), labels=pictures.file(file), license=license
        )
        for names, splits in listed.items()
        for name, file in zip(names, map(label_name, names), strict=True)
    )
    return list_shards("yolo", images, classes)


def _listed(pictures: PictureFolder, start: str, value: Any) -> list[str]:
    """Return the names of the images in a folder, or of those that a text file lists, relative to `start`."""
    if not isinstance(value, str):
        return []
    name = _joined(start, value)
    if not name.endswith(".txt"):
        beginning = f"{name}/" if name else ""
        return [each for each in pictures.sizes if each.startswith(beginning) and each.lower().endswith(IMAGE_ENDINGS)]
    if name not in pictures.sizes:
        return []
    lines = (pictures.folder / name).read(max_bytes=_LIST_BYTES).decode("utf-8", "replace").split("\n")
    beside = name.rpartition("/")[0]
    return [_joined(beside if line.startswith("./") else start, line.strip()) for line in lines if line.strip()]


def _joined(folder: str, path: str) -> str:
    """Return a path in a YOLO dataset's files as a name below the dataset's folder.

    Some tools write `../train/images` for `train/images`, and Ultralytics reads it like this, too. Other paths that
    lead elsewhere stay what they are, so no file in the folder has their name.
    """
    if path.startswith("/"):
        return path
    parts = [part for part in path.removeprefix("../").split("/") if part not in ("", ".")]
    return "/".join([folder, *parts]).strip("/")


def read_labels(data: bytes, image: ForeignImage, classes: YoloClasses, place: FindingLocation) -> list[dict[str, Any]]:
    """Return the lines of a label file as annotations in COCO's form, and report the others in `image`.

    A line is a class and a box, polygon, or box with keypoints, in shares of the image's sides. The size of `image`
    must be known.
    """
    annotations = []
    for number, fields in label_lines(data):
        where = f"line {number}"
        try:
            class_name(fields[0], classes.names)
        except UnreadableMaskError as error:
            image.findings.add(place.finding(Code.BAD_LABEL, "the number of a class", error, where))
        try:
            annotations.append({"name": f"of {where}", **_annotation(fields[1:], image.size or (1, 1), classes)})
        except ValueError as error:
            image.findings.add(place.finding(Code.BAD_RLE, "a box or a polygon", error, where))
    return annotations


def _annotation(fields: list[str], size: Size, classes: YoloClasses) -> dict[str, Any]:
    height, width = size
    values = [float(field) for field in fields]
    if len(values) in (4, 5, 4 + classes.keypoints):
        x, y, wide, high = values[:4]
        return {"bbox": [(x - wide / 2) * width, (y - high / 2) * height, wide * width, high * height]}
    if len(values) < 6 or len(values) % 2:
        raise ValueError(f"{len(values)} values")
    return {"segmentation": [[value * (width, height)[place % 2] for place, value in enumerate(values)]]}
