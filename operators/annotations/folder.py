"""Readers of masks in folders: JSON of SA-1B or labelme, GeoJSON, label maps, YOLO, and datasets of Hugging Face."""

import itertools
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from pycocotools import mask as coco

from segmint.catalogs.layout import IMAGE_ENDINGS, MOST_MEMBER_BYTES, bytes_sha256
from segmint.infra.arrays import Bools, Size
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.model.automatic.rle import CocoRle
from segmint.operators.annotations.coco import fill_polygons, usable_polygons
from segmint.operators.annotations.image import (
    AnnotatedImage,
    AnnotatedMask,
    UnreadableMaskError,
    check_pixels,
    class_name,
    encode_mask,
    id_number,
    label_lines,
    label_text,
    mapping,
    parse_image,
    read_yolo_settings,
    stated,
)
from segmint.operators.annotations.label_maps import ENDINGS, UnreadableMapError, label_masks, read_label_map
from segmint.operators.annotations.label_studio import SHAPES, read_labelme
from segmint.operators.prepare.ingest import upright_size
from segmint.operators.rows import Row

ENDING = ".geojson"


def read_geojson(data: bytes, name: str, size: Size | None = None) -> AnnotatedImage:
    """Read the features of one image. Its name is `image.file_name` or, if that is missing, the name of the file.

    `size` is the image's (height, width), if known. A mask's label is the name of its feature's classification. Masks
    that can't be read, or that contradict their boxes or areas, are listed and skipped. Beside a mask, points are
    listed as prompts.
    """
    image, about, features = parse_image(data, name, size, "features", "a GeoJSON feature collection", _parse)
    points = []
    for feature in features:
        feature = mapping(feature)
        said, geometry = mapping(feature.get("properties")), feature.get("geometry", {})
        id, kind = id_number(said.get("id")), mapping(geometry).get("type")
        if kind in ("Point", "MultiPoint"):
            points.append((id, kind))
            continue
        try:
            label, source = _label(said.get("classification")), label_text(said.get("label_source"))
            area = said.get("area") if about else None  # elsewhere, areas may be in other units
            rle = _mask(geometry, image.size)
            more = stated(area, feature.get("bbox"))
            image.masks.append(AnnotatedMask(rle, id, label, label_source=source, **more))
        except UnreadableMaskError as error:
            image.leave_out(id, error)
    for id, kind in points:
        image.leave_out_prompt(id, kind, f"its geometry is {kind}: expected Polygon or MultiPolygon")
    image.leave_out_contradictions()
    return image


def _parse(data: bytes) -> Any:
    """Parse the JSON. Other tools' files say nothing about the image."""
    document = json.loads(data)
    document["image"] = document.get("image") or {}
    return document


def fill_rings(rings: Sequence[Sequence[float]], size: Size) -> Bools:
    """Return the pixels whose centers lie inside an odd number of rings, (height, width) bool.

    A ring is a sequence of coordinates x, y, x, y, …. Pixel (0, 0) extends from corner (0, 0) to corner (1, 1).
    """
    height, width = size
    flips = np.zeros((height, width + 1), np.uint8)
    for ring in rings:
        x, y = np.asarray(ring, np.float64).reshape(-1, 2).T
        next_x, next_y = np.roll(x, -1), np.roll(y, -1)
        # Rows whose centers the edge crosses.
        edges = np.minimum(y, next_y), np.maximum(y, next_y)
        first, stop = (np.clip(np.ceil(ends - 0.5), 0, height) for ends in edges)
        counts = (stop - first).astype(np.int64)
        edge = np.repeat(np.arange(len(x)), counts)
        rows = np.arange(len(edge)) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge].astype(np.int64)
        slope = (next_x - x)[edge] / (next_y - y)[edge]
        crossed = np.ceil(x[edge] + (rows + 0.5 - y[edge]) * slope - 0.5)
        np.add.at(flips, (rows, np.clip(crossed, 0, width).astype(np.int64)), 1)
    return (np.cumsum(flips, axis=1, dtype=np.uint8)[:, :width] & 1).astype(bool)


def _mask(geometry: Any, size: Size | None) -> CocoRle:
    if size is None:
        raise UnreadableMaskError("neither the dataset nor the file has a height and width for its image")
    check_pixels(size)
    if geometry is None:
        return encode_mask(np.zeros(size, bool))
    found: Any = mapping(geometry)
    kind, coordinates = found.get("type"), found.get("coordinates")
    if kind not in ("Polygon", "MultiPolygon"):
        raise UnreadableMaskError(f"its geometry is {str(kind)[:40]}: expected Polygon or MultiPolygon")
    try:
        polygons = [coordinates] if kind == "Polygon" else coordinates
        parts = [
            [[value for point in ring for value in (point[0], point[1])] for ring in polygon] for polygon in polygons
        ]
    except (TypeError, LookupError) as error:
        raise UnreadableMaskError("its coordinates are not lists of points") from error
    if any(len(polygon) > 1 and len(polygon[0]) < 3 for polygon in polygons):  # its holes would be filled
        raise UnreadableMaskError("a polygon with holes has an outline of fewer than three points")
    usable_polygons(list(itertools.chain.from_iterable(parts)), size)
    mask = np.zeros(size, bool)
    for rings in parts:
        mask |= fill_rings(rings, size)
    return encode_mask(mask)


def _label(classification: Any) -> str | None:
    """Return the name of a classification. QuPath writes a class that has a parent as a list of `names`."""
    if not isinstance(classification, Mapping):
        return label_text(classification)
    names = classification.get("names")
    if isinstance(names, list) and all(isinstance(name, str) for name in names):
        return label_text(": ".join(names))
    return label_text(classification.get("name"))


JSON = ".json"

MAP_START = b'{"label_map":'
"""Start of the JSON file that describes an exported label map."""

_Reader = Callable[[bytes, str, Size | None], AnnotatedImage]
_INDEX = "index.json"  # several exports list their images in this file


def read_folder(
    folder: Location,
    add_to_hash: Callable[[bytes], Any],
    size_of: Callable[[str], Size | None] = lambda name: None,
    ignore: Collection[int] = (),
) -> Iterator[AnnotatedImage]:
    """Yield an image for each JSON file of SA-1B or labelme, GeoJSON file, and label map, sorted by file name.

    Other files are ignored. `add_to_hash` is called with each file's name and hash. `size_of` maps an image's name to
    its (height, width), or to None if unknown. In label maps, the numbers in `ignore` aren't masks. An image's
    `unreadable` lists everything that can't be read. Raises `UsageError` for an exported label map, because other masks
    cover parts of its masks.
    """
    readers: dict[str, _Reader] = {JSON: read_json, ENDING: read_geojson}
    read_map = partial(_read_map, ignore=ignore)
    names = sorted(found.name for found in folder.walk())
    chosen = []
    for name in names:
        ending = PurePosixPath(name).suffix.lower()
        if ending in (JSON, ENDING, *ENDINGS) and not _is_hidden(name) and (name != _INDEX or len(names) == 1):
            chosen.append(name)
    for name, data in read_files(folder, chosen, add_to_hash):
        if isinstance(data, AnnotatedImage):
            yield data
            continue
        if data.startswith(MAP_START):
            raise UsageError(
                f"{folder / name} belongs to a label map of `segmint export`, in which masks cover parts of others. "
                "Importing it would cut those. Use an export in another format, such as coco."
            )
        reader = readers.get(PurePosixPath(name).suffix.lower(), read_map)
        if reader is read_json and f'"{SHAPES}"'.encode() in data:
            reader = read_labelme
        yield reader(data, name, size_of(name))


def read_files(
    folder: Location, names: Iterable[str], add_to_hash: Callable[[bytes], Any]
) -> Iterator[tuple[str, bytes | AnnotatedImage]]:
    """Yield the content of each file, or an image without masks if the file is too large.

    `add_to_hash` is called with each file's name and hash.
    """
    for name in names:
        try:
            data = (folder / name).read(max_bytes=MOST_MEMBER_BYTES)
        except ObjectTooLargeError as error:
            yield name, AnnotatedImage(name, None, None, unreadable=[f"the file: {error}"])
            continue
        add_to_hash(f"{name} {bytes_sha256(data)}\n".encode())
        yield name, data


def _is_hidden(name: str) -> bool:
    """Return whether a file is system metadata, such as `__MACOSX/._sa_1.json` in a zip from a Mac."""
    return any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)


def read_json(
    data: bytes, name: str, size: Size | None = None, parse: Callable[[bytes], Any] = json.loads
) -> AnnotatedImage:
    """Read SA-1B's JSON of one image. Its name is `image.file_name` or, if that is missing, the name of the JSON file.

    `size` is the image's (height, width), if known. Masks that can't be read, or that contradict their boxes or areas,
    are listed and skipped. To keep the parsed JSON, pass a `parse` that stores it.
    """
    form = "SA-1B's JSON for an image, with `image` and `annotations`"
    image, _, annotations = parse_image(data, name, size, "annotations", form, parse)
    for annotation in annotations:
        image.add_runs(annotation, mapping(annotation).get("segmentation"))
    image.leave_out_contradictions()
    return image


def _read_map(data: bytes, name: str, size: Size | None, ignore: Collection[int]) -> AnnotatedImage:
    """Read a label map. Its masks get no ids or labels, because its numbers are neither a dataset's ids nor names."""
    image = AnnotatedImage(name, None, size)
    try:
        labels = read_label_map(data, name, size)
        image.masks.extend(replace(mask, id=None, label=None) for mask in label_masks(labels, ignore))
        return image if size is not None else replace(image, size=(labels.shape[0], labels.shape[1]))
    except UnreadableMapError as error:
        image.unreadable.append(f"the label map: {error}")
        return image


SETTINGS = "data.yaml"

LEFT_OUT = "left_out.csv"
"""File of an export that lists masks without a suitable polygon."""


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


_ROWS = 8  # number of images held in memory
_COLUMNS = ["id", "image_id", "width", "height", "objects"]


def is_data_file(name: str) -> bool:
    """Return whether a file contains rows, judging by its path within the export's folder."""
    return name.startswith("data/") and name.endswith(".parquet")


def read_export(
    folder: Location, add_to_hash: Callable[[bytes], Any], by_image_id: bool = False
) -> Iterator[AnnotatedImage]:
    """Yield the images of an export in order, named by `image_id` if `by_image_id` is set, otherwise as in tars.

    `add_to_hash` is called with each file's name and hash. Raises `UsageError` if a file isn't part of an export.
    """
    for name in sorted(found.name for found in folder.walk() if is_data_file(found.name)):
        file = folder / name
        add_to_hash(f"{name} {file.sha256()}\n".encode())
        try:
            with file.open() as stream:
                for batch in pq.ParquetFile(stream).iter_batches(_ROWS, columns=_COLUMNS):
                    yield from (_image(row, by_image_id) for row in batch.to_pylist())
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError, AttributeError) as error:
            why = " ".join(str(error).split())[:200]
            raise UsageError(
                f"{file} can't be read ({type(error).__name__}: {why}): expected a file of `segmint export --format hf`"
            ) from error


def _image(row: Row, by_image_id: bool) -> AnnotatedImage:
    name = str(row["image_id"]) if by_image_id else f"sa_{row['id']}.jpg"
    image = AnnotatedImage(name, None, (row["height"], row["width"]))
    for value in row["objects"]:
        label, source = (label_text(value.get(name)) for name in ("label", "label_source"))
        image.add_runs(value, value, label=label, label_source=source)
    image.leave_out_contradictions()
    return image


Rles = Sequence[Mapping[str, Any]]
"""Compressed masks of the same size, in pycocotools' format."""

LEAST_IOU = 0.1
"""Minimum IoU of two masks that `best_matches` pairs."""


def best_matches(rows: Rles, columns: Rles) -> list[tuple[int, int, float]]:
    """Pair masks greedily by IoU, which must be at least `LEAST_IOU`. Return (row, column, IoU), best first.

    No mask is in more than one pair.
    """
    matrix = iou(rows, columns)
    candidates = sorted(
        (-float(matrix[row][column]), row, column)
        for row in range(len(rows))
        for column in range(len(columns))
        if matrix[row][column] >= LEAST_IOU
    )
    matches: list[tuple[int, int, float]] = []
    used_rows: set[int] = set()
    used_columns: set[int] = set()
    for value, row, column in candidates:
        if row not in used_rows and column not in used_columns:
            matches.append((row, column, -value))
            used_rows.add(row)
            used_columns.add(column)
    return matches


def iou(rows: Rles, columns: Rles) -> Any:
    """Return the IoU of all pairs, (rows, columns) float64, or an empty result if either input is empty."""
    return coco.iou(list(rows), list(columns), [0] * len(columns))
