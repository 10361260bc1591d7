"""Data of unknown origin: its layout (pairs as in SA-1B, COCO files, or YOLO), its files, and its images.

Finds out in which layout data of unknown origin is, and lists its images: pairs as in SA-1B, COCO files, or YOLO.

Data that segmint did not write, in shards: pairs of a JPEG and a JSON as in SA-1B, or images that a file lists.

The names of pairs don't have to start with `sa_`. Each tar counts as a shard. Pairs of loose files are grouped into
shards of up to 1,000, and so are the images that a COCO file or a YOLO folder lists.
"""

import re
from collections import Counter
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.tables import DatasetTables, Foreign, Kind
from segmint.catalogs.findings import Code, FindingLocation
from segmint.catalogs.layout import IMAGE_ENDINGS
from segmint.infra.arrays import Size
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import base_name, parent
from segmint.infra.wording import counted, some
from segmint.operators.annotations.coco import CocoKey, coco_entries, coco_image, coco_key, parse_coco
from segmint.operators.annotations.folder import label_name
from segmint.operators.annotations.image import (
    AnnotatedImage,
    UnreadableMaskError,
    class_name,
    id_number,
    label_lines,
    label_text,
    mapping,
    objects,
    read_yolo_settings,
)
from segmint.operators.foreign.masks import ForeignImage

IMAGES_IN_SHARD = 1_000
"""Maximum number of images in a shard that isn't a tar."""

JPEGS = pa.schema(
    [
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),  # of the JPEG or the tar that contains it
        pa.field("offset", pa.int64(), nullable=False),  # of the JPEG's first byte in the file
        pa.field("size", pa.int64(), nullable=False),  # bytes
        ("split", pa.string()),  # null in SA-1B-style data
    ]
)
"""Schema of the view `jpegs`: where each picture is. Images without one have no row. Listed ones may not be JPEGs."""

_ENDINGS = {".jpg": "jpeg", ".jpeg": "jpeg", ".json": "json"}


@dataclass(frozen=True)
class ForeignFile:
    """File that segmint didn't write: its name relative to the data's folder or to its tar, and where its bytes are.

    - `uri`: the URI of the file, or of the tar that contains it.
    - `size`: bytes.
    - `offset`: the place of its first byte at the URI.
    """

    name: str
    uri: str
    size: int
    offset: int = 0


@dataclass(frozen=True)
class YoloClasses:
    """Names of a YOLO dataset's classes, and what the lines of its labels contain.

    - `keypoints`: number of values for keypoints behind each box.
    - `through_centers`: whether polygons go through the centers of the outermost pixels, as in an export of segmint.
    """

    names: Mapping[int, Any]
    keypoints: int = 0
    through_centers: bool = False


NO_CLASSES = YoloClasses({})
"""Classes of a dataset in another layout."""


@dataclass(frozen=True)
class ListedImage:
    """Image of foreign data: a pair as in SA-1B, or an image that a COCO file or a YOLO folder lists.

    - `name`: the picture's path below the data's folder or in its tar. That of a pair has no ending.
    - `picture`: the picture's file, or None if it doesn't exist.
    - `file`: the name of the file with the annotations, or of the picture of a pair without them, for findings.
    - `folder`: the URI of the folder where a listed picture should be.
    - `split`: the split, such as `train`, or None in SA-1B's layout.
    - `size`: the (height, width) that a COCO file states, if any.
    - `annotations`: the annotations of a COCO file. Those of a pair and of YOLO are in `labels` instead.
    - `labels`: the image's own file with annotations, or None if it doesn't exist.
    - `license`, `source_url`: what the file says about the image, if anything.
    - `is_repeated`: whether an earlier COCO file lists the image. Then only its annotations are checked.
    """

    name: str
    picture: ForeignFile | None
    file: str
    folder: str = ""
    split: str | None = None
    size: Size | None = None
    annotations: tuple[Mapping[str, Any], ...] = ()
    labels: ForeignFile | None = None
    license: str | None = None
    source_url: str | None = None
    is_repeated: bool = False


@dataclass(frozen=True)
class ForeignShard:
    """Shard of foreign data in one of the layouts: up to 1,000 images, or the pairs in a tar, given by its name."""

    kind: Kind
    shard: int
    images: tuple[ListedImage, ...] = ()
    tar: str | None = None
    classes: YoloClasses = NO_CLASSES


def find_shards(folder: Location, foreign: Foreign) -> Iterator[ForeignShard]:
    """Yield the shards of pairs below a folder as they are found, and then those of tars.

    Images that aren't JPEGs are only counted in `foreign`.
    """
    tars: list[str] = []

    def files() -> Iterator[ForeignFile]:
        for entry in folder.walk():
            if entry.name.lower().endswith(".tar"):
                tars.append(entry.name)
            else:
                foreign.unlisted += is_other_image(entry.name)
                yield ForeignFile(entry.name, (folder / entry.name).uri, entry.size)

    return list_shards("sa1b", pair_files(files()), tars=tars)


def pair_files(files: Iterable[ForeignFile]) -> Iterator[ListedImage]:
    """Yield the pairs of a JPEG and a JSON with the same name as they are found, and then the files without a partner.

    Only files whose counterpart hasn't been found yet are kept in memory. In a listing that is sorted by name, these
    are few. Other files are ignored.
    """
    halves: dict[str, ListedImage] = {}
    for file in files:
        kind = kind_of(file.name)
        if kind is None:
            continue
        stem = file.name.rpartition(".")[0]
        pair = halves.pop(stem, None) or ListedImage(stem, None, file.name)
        pair = replace(pair, picture=file) if kind == "jpeg" else replace(pair, file=file.name, labels=file)
        if pair.picture is None or pair.labels is None:
            halves[stem] = pair
        else:
            yield pair
    yield from (halves[stem] for stem in sorted(halves))


def list_shards(
    kind: Kind, images: Iterable[ListedImage], classes: YoloClasses = NO_CLASSES, tars: Iterable[str] = ()
) -> Iterator[ForeignShard]:
    """Yield images as shards of up to 1,000, numbered from 0, and then a shard for each tar."""
    remaining = iter(images)
    count = 0
    while listed := tuple(islice(remaining, IMAGES_IN_SHARD)):
        yield ForeignShard(kind, count, listed, classes=classes)
        count += 1
    for number, tar in enumerate(tars, count):
        yield ForeignShard(kind, number, tar=tar)


def kind_of(name: str) -> str | None:
    """Return `jpeg` or `json`, depending on a file name's extension, or None for any other file."""
    return _ENDINGS.get(name[name.rfind(".") :].lower())


def is_other_image(name: str) -> bool:
    """Return whether a file has the name of an image that isn't a JPEG, and therefore belongs to no pair."""
    return kind_of(name) is None and name.lower().endswith(IMAGE_ENDINGS)


def read_file(storage: Storage, file: ForeignFile, most: int) -> bytes:
    """Return the bytes of a file, but only the first `most` of them, with one request. Raises `NotFoundError`."""
    size = min(file.size, most)
    return storage.read_part(file.uri, file.offset, file.offset + size) if size else b""


def read_jpeg(tables: DatasetTables, ordinal: int) -> bytes | None:
    """Return the unchanged bytes of an image's JPEG in foreign data, or None if the image has no JPEG."""
    found = tables.query('SELECT uri, size, "offset" FROM jpegs WHERE ordinal = ?', [ordinal]).to_pylist()
    if not found:
        return None
    file = ForeignFile("", **found[0])
    return read_file(tables.location.storage, file, file.size)


_SPLIT = re.compile("(?<![a-z])(train|val|test)")
_NAMES_COMPARED = 100
_LONGEST = 60  # characters of a value in a finding


@dataclass(frozen=True)
class PictureFolder:
    """Files below a folder: their sizes in bytes by name."""

    folder: Location
    sizes: Mapping[str, int]

    def file(self, name: str) -> ForeignFile | None:
        """Return the file with this name relative to the folder, or None if there is none, as for names with `..`."""
        size = self.sizes.get(name)
        return None if size is None else ForeignFile(name, (self.folder / name).uri, size)

    def start_of(self, names: list[str], split: str) -> str:
        """Return what to put before the names in a COCO file to get those of the most files in this folder.

        Several folders may have files with these names. Then that of the file's split is used, if it has most of them.
        """
        wanted: dict[str, list[str]] = {}
        for name in names[:_NAMES_COMPARED]:
            wanted.setdefault(base_name(name), []).append(name)
        starts = Counter(
            file.removesuffix(name)
            for file in self.sizes
            for name in wanted.get(base_name(file), ())
            if f"/{file}".endswith(f"/{name}")
        )
        usual = [start for start, names in starts.items() if 2 * names >= max(starts.values())]
        return max(usual, key=lambda start: (split in start, starts[start], -len(start), start), default="")


def split_of(file: str) -> str:
    """Return the split in the name of an annotation file or of its folder, or else the file's name without an ending.

    `instances_train2017.json` and `train/_annotations.coco.json` are `train`.
    """
    folder, _, name = file.rpartition("/")
    for part in (name, base_name(folder)):
        if found := _SPLIT.search(part.lower()):
            return found[1]
    return name.rpartition(".")[0]


def list_coco(
    document: Mapping[str, Any], file: str, pictures: PictureFolder, coco: Foreign, listed: set[tuple[str, str]]
) -> Iterator[ListedImage]:
    """Yield the images of a document from `parse_coco`. `file` is its name.

    Annotations without a unique image are reported and left out. `listed` contains the split and name of each image in
    earlier files, such as COCO's files of captions and keypoints, and gets those of this file.
    """
    place = FindingLocation(file)
    images: dict[CocoKey, tuple[AnnotatedImage, Mapping[str, Any]]] = {}
    names: set[str] = set()
    unnamed: set[CocoKey | None] = set()

    def report(code: Code, where: str, expected: str, found: str, mask: int | None = None) -> None:
        coco.findings.add(place.finding(code, expected, found, where, mask=mask))

    for number, entry, id in coco_entries(document, "images", "id"):
        image = coco_image(entry)
        where = f"image number {number}"
        if image is None or id is None:
            report(Code.BAD_JSON, where, "an id and a file_name", _short(document["images"][number - 1]))
            unnamed.add(id)
        elif id in images or image.name in names:
            found = f"another image with the id {id} or the name {image.name}"
            report(Code.ROW_IDENTITY, where, "a unique id and file_name", found)
        else:
            images[id] = image, entry
            names.add(image.name)
    annotations = _annotations(document, images.keys() | unnamed, report)
    licenses = _licenses(document.get("licenses"))
    if not licenses and images:
        report(Code.LICENSE_NOT_ALLOWED, "", "licenses of its images", "none")
    split = split_of(file)
    start = pictures.start_of([image.name for image, _ in images.values()], split)
    repeated = 0
    for id, (image, entry) in images.items():
        name = start + image.name.removeprefix("./")
        masks = tuple(annotations.get(id, ()))
        if (split, name) in listed:
            repeated += 1
            yield ListedImage(name, None, file, size=image.size, annotations=masks, is_repeated=True)
            continue
        listed.add((split, name))
        license = licenses.get(coco_key(entry.get("license")))
        if licenses and license is None:
            expected = "the id of one of the file's licenses"
            report(Code.LICENSE_NOT_ALLOWED, image.name, expected, _short(entry.get("license")))
        if image.size is None:
            found = f"{_short(entry.get('width'))} x {_short(entry.get('height'))}"
            report(Code.BAD_JSON, image.name, "a width and height in pixels", found)
        yield ListedImage(
            name,
            pictures.file(name),
            file,
            pictures.folder.uri,
            split,
            size=image.size,
            annotations=masks,
            license=license,
            source_url=label_text(entry.get("flickr_url", entry.get("coco_url", entry.get("source_url")))),
        )
    if repeated:
        coco.notes.append(
            f"{file}: {counted(repeated, 'image')} of an earlier file; their annotations here were checked, but not "
            "counted"
        )


def _annotations(
    document: Mapping[str, Any], images: Container[Any], report: Callable[[Code, str, str, str, int | None], None]
) -> dict[CocoKey, list[Mapping[str, Any]]]:
    """Return the annotations of each image. Report those without an image, and wrong ids and categories.

    If the document contains no masks, empty ones mean that each annotation is just a box, as some tools write it.
    """
    only_boxes = not any(entry.get("segmentation") for entry in objects(document.get("annotations")))
    categories = {coco_key(each.get("id")) for each in objects(document.get("categories"))}
    found: dict[CocoKey, list[Mapping[str, Any]]] = {}
    ids: set[int] = set()
    for number, entry, id in coco_entries(document, "annotations", "image_id"):
        own = id_number(entry.get("id"))
        where = f"annotation number {number}" if own is None else f"mask {own}"
        if id is None or id not in images:
            expected = "the image_id of an image in the file"
            report(Code.ROW_IDENTITY, where, expected, _short(entry.get("image_id")), own)
            continue
        if own is not None:
            if own in ids:
                report(Code.ROW_IDENTITY, where, "a unique id", "that of another mask", own)
            ids.add(own)
        if categories and "category_id" in entry and coco_key(entry["category_id"]) not in categories:
            report(Code.BAD_LABEL, where, "the id of a category", _short(entry["category_id"]), own)
        if only_boxes and "segmentation" in entry:
            entry = {**entry, "segmentation": None}
        found.setdefault(id, []).append(entry)
    return found


def _licenses(listed: Any) -> dict[Any, str]:
    """Map the ids of a file's licenses to their names, or else to their URLs. Licenses without either are left out."""
    found = {}
    for entry in objects(listed):
        name, id = label_text(entry.get("name")) or label_text(entry.get("url")), coco_key(entry.get("id"))
        if name and id is not None:
            found[id] = name
    return found


def _short(value: Any) -> str:
    return f"{value!r:.{_LONGEST}}"


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
    if not license and not any(name.removeprefix(f"{start}/").upper().startswith(_LICENSED) for name in pictures.sizes):
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
        except UnreadableMaskError:
            found = f"{_short(fields[0])}, which has no name"
            image.findings.add(place.finding(Code.BAD_LABEL, "the number of a class", found, where))
        try:
            annotations.append({"name": f"of {where}", **_annotation(fields[1:], image.size or (1, 1), classes)})
        except ValueError as error:
            found = f"one that can't be read: {error}"
            image.findings.add(place.finding(Code.BAD_RLE, "a box or a polygon", found, where))
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


_COCO_BYTES = 4 << 30
_MOST_FILES = 1_000
"""Maximum number of JSON files without a picture of the same name. A folder with more isn't searched for COCO files."""

_Document = tuple[str, Mapping[str, Any]]  # the name and the content of a COCO file


_Layout = tuple[Foreign, Iterator[ForeignShard]]


def find_layout(data: Sequence[Location], images: Location | None = None) -> _Layout:
    """Return the layout of data, and its shards. Findings and notes are added while the shards are read.

    `data` is a folder, the YAML file of a YOLO dataset, or one or more COCO files. `images` is the folder with the
    images, if it isn't beside the files. Raises `UsageError` if a file that the user named is missing, too large, or
    neither COCO's nor YOLO's.
    """
    try:
        return _find_layout(data, images)
    except (NotFoundError, ObjectTooLargeError) as error:
        raise UsageError(str(error)) from error


def _find_layout(files: Sequence[Location], images: Location | None) -> _Layout:
    data, *more = files
    if all(file.name.lower().endswith(".json") for file in files):
        return _named_coco(files, images)
    if more:
        raise UsageError(
            f"{', '.join(map(str, files))}: only COCO files, which end with .json, can be audited together"
        )
    settings = [data] if data.name.lower().endswith((".yaml", ".yml")) else [data / name for name in SETTINGS]
    for file in settings:
        if file == data or file.exists():
            yolo = Foreign("yolo")
            pictures = _pictures(images or Location(file.storage, parent(file.uri)))
            return yolo, _count_unlisted(list_yolo(file, pictures, yolo), pictures, yolo)
    found = _json_files(data)
    if found is not None:
        coco = Foreign("coco")
        names, sizes = found
        documents = _documents(data, names, coco)
        for first in documents:  # without one, the folder contains no COCO file
            pictures = PictureFolder(data, sizes) if images is None else _pictures(images)
            return coco, _coco_shards(chain([first], documents), pictures, coco)
    if images is not None:
        raise UsageError(f"--images is only for COCO files and YOLO datasets, which {data} isn't")
    pairs = Foreign("sa1b")
    return pairs, find_shards(data, pairs)


def _named_coco(files: Sequence[Location], images: Location | None) -> _Layout:
    """Return the layout of COCO files that the user named. Their images are in `images` or beside the first."""
    folder = parent(files[0].uri)
    if images is None and base_name(folder) == "annotations":
        folder = parent(folder)
    by_name = {file.uri.removeprefix(f"{folder}/"): file for file in files}
    documents = [
        (name, parse_coco(by_name[name].read(_COCO_BYTES), str(by_name[name]))) for name in sorted(by_name, key=_order)
    ]
    coco = Foreign("coco")
    return coco, _coco_shards(documents, _pictures(images or Location(files[0].storage, folder)), coco)


def _coco_shards(documents: Iterable[_Document], pictures: PictureFolder, coco: Foreign) -> Iterator[ForeignShard]:
    listed: set[tuple[str, str]] = set()
    images = (list_coco(document, name, pictures, coco, listed) for name, document in documents)
    return _count_unlisted(list_shards("coco", chain.from_iterable(images)), pictures, coco)


def _count_unlisted(
    shards: Iterable[ForeignShard], pictures: PictureFolder, foreign: Foreign
) -> Iterator[ForeignShard]:
    """Yield the shards, and then count the image files in the folder that none of them lists."""
    listed = set[str]()
    for shard in shards:
        listed.update(image.name for image in shard.images)
        yield shard
    others = pictures.sizes.keys() - listed
    foreign.unlisted = sum(name.lower().endswith(IMAGE_ENDINGS) for name in others)


def _documents(folder: Location, names: Sequence[str], coco: Foreign) -> Iterator[_Document]:
    """Yield the COCO files among JSON files, with their names. Report those that aren't JSON, and note all others."""
    others = []
    for name in names:
        try:
            yield name, parse_coco((folder / name).read(_COCO_BYTES), name)
        except (UsageError, ObjectTooLargeError) as error:
            if str(error).startswith(f"{name} is not a COCO file"):
                others.append(name)
            else:
                coco.findings.add(FindingLocation(name).finding(Code.BAD_JSON, "JSON that can be read", error))
    if others:
        coco.notes.append(f"not checked, because they aren't COCO files: {some(others)}")


def _json_files(folder: Location) -> tuple[list[str], dict[str, int]] | None:
    """Return the JSON files below a folder by split, and the sizes of all other files.

    Return None as soon as something shows that the folder contains pairs or tars, as in SA-1B.
    """
    sizes: dict[str, int] = {}
    names: list[str] = []
    for entry in folder.walk():
        stem, _, ending = entry.name.rpartition(".")
        if ending.lower() == "tar" or len(names) > _MOST_FILES:
            return None
        if ending.lower() != "json":
            sizes[entry.name] = entry.size
            continue
        names.append(entry.name)
        pictures = (f"{stem}.{each}" for each in ("jpg", "jpeg", "JPG"))
        if any(picture in sizes or (folder / picture).exists() for picture in pictures):
            return None
    return sorted(names, key=_order), sizes


def _order(name: str) -> tuple[int, bool, str]:
    """Return a key that sorts files by split, so that a duplicate is reported in the later split.

    In a split, COCO's `instances_….json` is first, because other files contain only some of its masks, or none.
    """
    split = split_of(name)
    return SPLITS.index(split) if split in SPLITS else len(SPLITS), "instances" not in name, name


def _pictures(folder: Location) -> PictureFolder:
    return PictureFolder(folder, {entry.name: entry.size for entry in folder.walk()})
