"""Reader of YOLO's segmentation labels: one text file per image, with a class and a polygon in each line."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from segmint.catalogs.endings import IMAGE_ENDINGS
from segmint.infra.storage.location import Location
from segmint.operators.annotations.boxes import label_lines, read_yolo_settings
from segmint.operators.annotations.coco import fill_polygons
from segmint.operators.annotations.folder import read_files
from segmint.operators.annotations.image import AnnotatedImage, AnnotatedMask, Size, UnreadableMaskError, label_text
from segmint.operators.prepare.ingest import upright_size

SETTINGS = "data.yaml"

LEFT_OUT = "left_out.csv"
"""File of an export that lists masks without a suitable polygon."""

_MOST_DIGITS = 9


def is_yolo(names: Sequence[str]) -> bool:
    """Return whether a folder with files of these names has YOLO's layout: `data.yaml` and folders of labels."""
    return SETTINGS in names and any(map(_is_label_file, names))


def read_yolo_folder(
    folder: Location, add_to_hash: Callable[[bytes], Any], size_of: Callable[[str], Size | None] = lambda name: None
) -> Iterator[AnnotatedImage]:
    """Yield an image for each file `….txt` in the folders `labels`, sorted by file name.

    `data.yaml` contains the names of the classes. An image's name and size are those of its picture, which has the same
    path in `images`. Without a picture, its size is that of `size_of`, a function that maps names to (height, width),
    or to None if unknown. If an export of segmint left out some of an image's masks, the image's `unreadable` says so.
    `add_to_hash` is called with each file's name and hash.

    Raises `UsageError` if `data.yaml` doesn't name the classes.
    """
    names = sorted(found.name for found in folder.walk())
    settings = read_yolo_settings(folder / SETTINGS)
    add_to_hash(f"{SETTINGS} {(folder / SETTINGS).sha256()}\n".encode())
    is_ours = "segmint" in settings
    left_out = (folder / LEFT_OUT).read().decode(errors="replace") if is_ours and LEFT_OUT in names else ""
    pictures = {label_name(name): name for name in names if name.lower().endswith(IMAGE_ENDINGS)}
    for name, data in read_files(folder, filter(_is_label_file, names), add_to_hash):
        if isinstance(data, AnnotatedImage):
            yield data
            continue
        stem = f"/{name}".removesuffix(".txt").rpartition("/labels/")[2]
        picture = pictures.get(name)
        size = None if picture is None else _picture_size(folder / picture)
        image = read_yolo_labels(data, picture or name, size or size_of(name), settings["names"], is_ours)
        if f"\n{stem}.jpg," in left_out:
            image.unreadable.append(f"{LEFT_OUT} lists masks that aren't in its labels")
        yield image


def label_name(image: str) -> str:
    """Return the name of an image's label file, with `labels` for the last folder `images`, and the ending .txt."""
    stem = image.rpartition(".")[0]
    start, found, rest = f"/{stem}".rpartition("/images/")
    return f"{start}/labels/{rest}.txt".removeprefix("/") if found else f"{stem}.txt"


def read_yolo_labels(
    data: bytes, name: str, size: Size | None, labels: Mapping[int, Any], through_centers: bool = False
) -> AnnotatedImage:
    """Read the lines of a label file: a class, and x, y, x, y, … as shares of the image's sides.

    `name` and `size`, (height, width), are those of the image, and `labels` the names of the classes. With
    `through_centers`, as in an export of segmint, polygons go through the centers of a mask's outermost pixels.
    Otherwise, they enclose the pixels, as in COCO; see `fill_polygons`. Lines that can't be read, including boxes, are
    listed and skipped.
    """
    image = AnnotatedImage(name, None, size)
    for number, (kind, *shares) in label_lines(data):
        try:
            label = class_name(kind, labels)
            rle = fill_polygons([[float(share) for share in shares]], size, through_centers, whole=1)
        except ValueError as error:
            image.unreadable.append(f"line {number}: {error}")
            continue
        image.masks.append(AnnotatedMask(rle, label=label, polygon=True))
    return image


def class_name(text: str, labels: Mapping[int, Any]) -> str | None:
    """Return the name of the class in a line. Raises `UnreadableMaskError` if it has none."""
    if not text.isdecimal() or len(text) > _MOST_DIGITS or int(text) not in labels:
        raise UnreadableMaskError(f"found the class {text!r:.40}, which has no name")
    return label_text(str(labels[int(text)]))


def _is_label_file(name: str) -> bool:
    return name.endswith(".txt") and "/labels/" in f"/{name}"


def _picture_size(file: Location) -> Size | None:
    """Return the (height, width) of an upright picture, or None if it can't be read."""
    try:
        with file.open() as stream, Image.open(stream) as picture:
            width, height = upright_size(picture)
            return height, width
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
