"""Finds out in which layout data of unknown origin is, and lists its images: pairs as in SA-1B, COCO files, or YOLO."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from segmint.catalogs.dataset.foreign import ForeignShard, find_shards, list_shards
from segmint.catalogs.dataset.tables import Kind
from segmint.catalogs.findings import Code, FindingCollector, FindingLocation
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.uris import base_name, parent
from segmint.operators.annotations.coco import parse_coco
from segmint.operators.foreign.coco import PictureFolder, list_coco, split_of
from segmint.operators.foreign.yolo import SETTINGS, YoloFolder

_COCO_BYTES = 4 << 30
_MOST_FILES = 1_000
"""Maximum number of JSON files without a picture of the same name. A folder with more isn't searched for COCO files."""

_SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class ForeignData:
    """What a user wants to audit: a folder, COCO files, or the YAML file of a YOLO dataset.

    `more` are further COCO files, and `images` is the folder with the images, if it isn't beside the files.
    """

    data: Location
    more: tuple[Location, ...] = ()
    images: Location | None = None

    def __str__(self) -> str:
        return ", ".join(map(str, (self.data, *self.more)))


@dataclass
class Layout:
    """Shards in one of the layouts. `findings` and `ignored` grow while `shards` are read.

    `ignored` contains the names of JSON files that aren't COCO's.
    """

    kind: Kind
    shards: Iterator[ForeignShard]
    findings: FindingCollector = field(default_factory=FindingCollector)
    ignored: list[str] = field(default_factory=list)


def find_layout(given: ForeignData) -> Layout:
    """Return the layout of data.

    Raises `UsageError` if a file that the user named is missing, too large, or neither COCO's nor YOLO's.
    """
    try:
        return _find_layout(given)
    except (NotFoundError, ObjectTooLargeError) as error:
        raise UsageError(str(error)) from error


def _find_layout(given: ForeignData) -> Layout:
    data = given.data
    names = [each.name.lower() for each in (data, *given.more)]
    if all(name.endswith(".json") for name in names):
        return _coco_of(given)
    if given.more:
        raise UsageError(f"{given}: only COCO files, which end with .json, can be audited together")
    if names[0].endswith((".yaml", ".yml")):
        return _yolo_of(data, given.images)
    for name in SETTINGS:
        if (data / name).exists():
            return _yolo_of(data / name, given.images)
    found = _json_files(data)
    if found is not None:
        layout = Layout("coco", iter(()))
        files, sizes = found
        pictures = PictureFolder(data, sizes) if given.images is None else _pictures(given.images)
        documents = _documents(data, files, layout)
        first = next(documents, None)
        if first is not None:
            layout.shards = _list_all(chain([first], documents), pictures, layout)
            return layout
    if given.images is not None:
        raise UsageError(f"--images is only for COCO files and YOLO datasets, which {data} isn't")
    return Layout("sa1b", find_shards(data))


def _coco_of(given: ForeignData) -> Layout:
    """Return the layout of COCO files that the user named. Their images are in `images` or beside the first."""
    folder = parent(given.data.uri)
    if given.images is None and base_name(folder) == "annotations":
        folder = parent(folder)
    pictures = _pictures(given.images or Location(given.data.storage, folder))
    layout = Layout("coco", iter(()))
    documents = [
        (_name(each, folder), parse_coco(each.read(_COCO_BYTES), str(each))) for each in (given.data, *given.more)
    ]
    layout.shards = _list_all(sorted(documents, key=lambda each: _order(each[0])), pictures, layout)
    return layout


def _yolo_of(settings: Location, images: Location | None) -> Layout:
    pictures = _pictures(images or Location(settings.storage, parent(settings.uri)))
    yolo = YoloFolder(settings, pictures)
    layout = Layout("yolo", iter(()))
    layout.shards = list_shards(yolo.images(layout.findings), yolo.classes)
    return layout


def _list_all(
    documents: Iterator[tuple[str, Mapping[str, Any]]] | Sequence[tuple[str, Mapping[str, Any]]],
    pictures: PictureFolder,
    layout: Layout,
) -> Iterator[ForeignShard]:
    images = (image for name, document in documents for image in list_coco(document, name, pictures, layout.findings))
    return list_shards(images)


def _documents(folder: Location, files: Sequence[str], layout: Layout) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the COCO files among JSON files, with their names. Report those that aren't JSON, and note all others."""
    for name in files:
        try:
            yield name, parse_coco((folder / name).read(_COCO_BYTES), name)
        except (UsageError, ObjectTooLargeError) as error:
            if not str(error).startswith(f"{name} is not a COCO file"):
                layout.findings.add(FindingLocation(name).finding(Code.BAD_JSON, "JSON that can be read", error))
            else:
                layout.ignored.append(name)


def _json_files(folder: Location) -> tuple[list[str], dict[str, int]] | None:
    """Return the JSON files below a folder by split, and the sizes of all other files.

    Return None as soon as something shows that the folder contains pairs or tars, as in SA-1B.
    """
    sizes: dict[str, int] = {}
    files: list[str] = []
    for entry in folder.walk():
        name = entry.name
        stem, _, ending = name.rpartition(".")
        if ending.lower() == "tar" or len(files) > _MOST_FILES:
            return None
        if ending.lower() != "json":
            sizes[name] = entry.size
            continue
        files.append(name)
        pictures = (f"{stem}.{each}" for each in ("jpg", "jpeg", "JPG"))
        if any(picture in sizes or (folder / picture).exists() for picture in pictures):
            return None
    return sorted(files, key=_order), sizes


def _order(name: str) -> tuple[int, str]:
    """Return a key that sorts files by split, so that a duplicate is reported in the later split."""
    split = split_of(name)
    return _SPLITS.index(split) if split in _SPLITS else len(_SPLITS), name


def _pictures(folder: Location) -> PictureFolder:
    return PictureFolder(folder, {entry.name: entry.size for entry in folder.walk()})


def _name(file: Location, folder: str) -> str:
    return file.uri.removeprefix(f"{folder}/")
