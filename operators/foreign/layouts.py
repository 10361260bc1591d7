"""Finds out in which layout data of unknown origin is, and lists its images: pairs as in SA-1B, COCO files, or YOLO."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

from segmint.catalogs.dataset.foreign import ForeignShard, find_shards, list_shards
from segmint.catalogs.dataset.tables import Foreign
from segmint.catalogs.findings import Code, FindingLocation
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.uris import base_name, parent
from segmint.infra.wording import some
from segmint.operators.annotations.coco import parse_coco
from segmint.operators.foreign.coco import PictureFolder, list_coco, split_of
from segmint.operators.foreign.yolo import SETTINGS, SPLITS, list_yolo

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
            return yolo, list_yolo(file, _pictures(images or Location(file.storage, parent(file.uri))), yolo)
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
    return Foreign("sa1b"), find_shards(data)


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
    images = (list_coco(document, name, pictures, coco.findings) for name, document in documents)
    return list_shards("coco", chain.from_iterable(images))


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


def _order(name: str) -> tuple[int, str]:
    """Return a key that sorts files by split, so that a duplicate is reported in the later split."""
    split = split_of(name)
    return SPLITS.index(split) if split in SPLITS else len(SPLITS), name


def _pictures(folder: Location) -> PictureFolder:
    return PictureFolder(folder, {entry.name: entry.size for entry in folder.walk()})
