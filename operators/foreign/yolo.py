"""Lists the images of a YOLO dataset in the layout of Ultralytics, and reads the lines of its labels."""

from collections.abc import Iterator
from itertools import cycle
from typing import Any

from segmint.catalogs.dataset.foreign import ListedImage, YoloClasses
from segmint.catalogs.endings import IMAGE_ENDINGS
from segmint.catalogs.findings import Code, FindingCollector, FindingLocation
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.operators.annotations.boxes import read_yolo_settings
from segmint.operators.annotations.image import Size, UnreadableMaskError, label_text, mapping
from segmint.operators.annotations.yolo import class_name
from segmint.operators.foreign.coco import PictureFolder
from segmint.operators.foreign.masks import ForeignImage

SETTINGS = ("data.yaml", "data.yml", "dataset.yaml")
"""Names of the file that describes a YOLO dataset, in the dataset's folder."""

_SPLITS = ("train", "val", "test")
_LICENSED = ("LICENSE", "LICENCE", "COPYING", "ATTRIBUTIONS")
_SETTINGS_BYTES = 16 << 20
_LIST_BYTES = 1 << 30  # of a file that lists images


class YoloFolder:
    """A YOLO dataset: the YAML file that describes it, and the files below its folder.

    Raises `UsageError` if the file isn't YAML, or names no classes or no images.
    """

    def __init__(self, settings: Location, pictures: PictureFolder) -> None:
        if settings.size() > _SETTINGS_BYTES:
            raise UsageError(f"{settings} has over {_SETTINGS_BYTES:,} bytes: expected the YAML file of a YOLO dataset")
        read = read_yolo_settings(settings)
        shape = read.get("kpt_shape")
        keypoints = shape[0] * shape[1] if isinstance(shape, list) and list(map(type, shape)) == [int, int] else 0
        self._splits = {split: read[split] for split in _SPLITS if read.get(split)}
        if not self._splits:
            raise UsageError(f"{settings} names no images: expected a folder of images as train, val, or test")
        self.classes = YoloClasses(read["names"], keypoints, "segmint" in read)
        self._file = settings.name
        self._lists: set[str] = set()  # names of text files that list images
        self._pictures = pictures
        start = _joined("", str(read.get("path") or ""))
        self._start = start if any(name.startswith(f"{start}/") for name in pictures.sizes) else ""
        self._license = label_text(read.get("license", mapping(read.get("roboflow")).get("license")))
        self._is_licensed = bool(self._license) or any(name.upper().startswith(_LICENSED) for name in pictures.sizes)

    def images(self, findings: FindingCollector) -> Iterator[ListedImage]:
        """Yield the images of all splits in order. Splits that list the same images count as one, like `train+val`.

        Reports splits without images, label files without an image, and a dataset without a license.
        """
        place = FindingLocation(self._file)
        if not self._is_licensed:
            findings.add(place.finding(Code.LICENSE_NOT_ALLOWED, "a license in this file or beside it", "none"))
        listed: dict[tuple[str, ...], list[str]] = {}
        for split, value in self._splits.items():
            names = [name for each in (value if isinstance(value, list) else [value]) for name in self._listed(each)]
            if not names:
                findings.add(
                    place.finding(Code.MISSING_FILE, "images in its folder", "none", f"{split}: {value!r:.60}")
                )
            listed.setdefault(tuple(dict.fromkeys(names)), []).append(split)
        used = set(self._lists)
        folders = set()
        for pictures, splits in listed.items():
            for name in pictures:
                labels = label_name(name)
                used.add(labels)
                folders.add(labels.rpartition("/")[0])
                yield self._pictures.image(
                    name, labels, "+".join(splits), labels=self._pictures.file(labels), license=self._license
                )
        for name in sorted(self._pictures.sizes.keys() - used):
            folder, _, base = name.rpartition("/")
            if folder in folders and base.endswith(".txt") and base != "classes.txt":
                findings.add(FindingLocation(name).finding(Code.MISSING_PAIR, "an image of the same name", "none"))

    def _listed(self, value: Any) -> list[str]:
        """Return the names of the images in a folder, or of those that a text file lists."""
        if not isinstance(value, str):
            return []
        name = _joined(self._start, value)
        if not name.endswith(".txt"):
            start = f"{name}/" if name else ""
            found = [each for each in self._pictures.sizes if each.startswith(start)]
            return [each for each in found if each.lower().endswith(IMAGE_ENDINGS)]
        if name not in self._pictures.sizes:
            return []
        self._lists.add(name)
        lines = (self._pictures.folder / name).read(max_bytes=_LIST_BYTES).decode("utf-8", "replace").split("\n")
        beside = name.rpartition("/")[0]
        return [
            _joined(beside if line.startswith("./") else self._start, line.strip()) for line in lines if line.strip()
        ]


def _joined(folder: str, path: str) -> str:
    """Return a path in a YOLO dataset's files as a name below the dataset's folder.

    Some tools write `../train/images` for `train/images`, and Ultralytics reads it like this, too. Other paths that
    lead elsewhere stay what they are, so no file in the folder has their name.
    """
    if path.startswith("/"):
        return path
    parts = [part for part in path.removeprefix("../").split("/") if part not in ("", ".")]
    return "/".join([folder, *parts]).strip("/")


def label_name(image: str) -> str:
    """Return the name of an image's label file, with `labels` for the last folder `images`, and the ending .txt."""
    stem = image.rpartition(".")[0]
    start, found, rest = f"/{stem}".rpartition("/images/")
    return f"{start}/labels/{rest}.txt".removeprefix("/") if found else f"{stem}.txt"


def read_labels(data: bytes, image: ForeignImage, classes: YoloClasses, place: FindingLocation) -> list[dict[str, Any]]:
    """Return the lines of a label file as annotations in COCO's form, and report the others in `image`.

    A line is a class and a box, polygon, or box with keypoints, in shares of the image's sides. The size of `image`
    must be known.
    """
    annotations = []
    for number, line in enumerate(data.decode("utf-8-sig", "replace").splitlines(), 1):
        fields = line.split()
        if not fields:
            continue
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
    return {"segmentation": [[value * side for value, side in zip(values, cycle((width, height)), strict=False)]]}
