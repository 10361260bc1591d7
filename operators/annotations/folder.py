"""Reader of masks in a folder with one file per image: JSON of SA-1B or labelme, GeoJSON, or label maps."""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any

from segmint.catalogs.layout import MOST_MEMBER_BYTES
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.operators.annotations.geojson import ENDING as GEOJSON
from segmint.operators.annotations.geojson import read_geojson
from segmint.operators.annotations.image import AnnotatedImage, Size, mapping, parse_image
from segmint.operators.annotations.label_maps import ENDINGS, UnreadableMapError, label_masks, read_label_map
from segmint.operators.annotations.labelme import SHAPES, read_labelme

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
    readers: dict[str, _Reader] = {JSON: read_json, GEOJSON: read_geojson}
    read_map = partial(_read_map, ignore=ignore)
    names = sorted(found.name for found in folder.walk())
    chosen = []
    for name in names:
        ending = PurePosixPath(name).suffix.lower()
        if ending in (JSON, GEOJSON, *ENDINGS) and not _is_hidden(name) and (name != _INDEX or len(names) == 1):
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
        add_to_hash(f"{name} {hashlib.sha256(data).hexdigest()}\n".encode())
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
