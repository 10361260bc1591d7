"""Data that segmint did not write, in shards: pairs of a JPEG and a JSON as in SA-1B, or images that a file lists.

The names of pairs don't have to start with `sa_`. Each tar counts as a shard. Pairs of loose files are grouped into
shards of up to 1,000, and so are the images that a COCO file or a YOLO folder lists.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.tables import DatasetTables, Kind
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage

IMAGES_IN_SHARD = 1_000
"""Maximum number of images in a shard that isn't a tar."""

JPEGS = pa.schema(
    [
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),  # of the JPEG or the tar that contains it
        pa.field("offset", pa.int64(), nullable=False),  # of the JPEG's first byte in the file
        pa.field("size", pa.int64(), nullable=False),  # bytes
        pa.field("split", pa.string()),  # null in SA-1B-style data
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
    """

    name: str
    picture: ForeignFile | None
    file: str
    folder: str = ""
    split: str | None = None
    size: tuple[int, int] | None = None
    annotations: tuple[Mapping[str, Any], ...] = ()
    labels: ForeignFile | None = None
    license: str | None = None
    source_url: str | None = None


@dataclass(frozen=True)
class ForeignShard:
    """Shard of foreign data in one of the layouts: up to 1,000 images, or the pairs in a tar, given by its name."""

    kind: Kind
    shard: int
    images: tuple[ListedImage, ...] = ()
    tar: str | None = None
    classes: YoloClasses = NO_CLASSES


def find_shards(folder: Location) -> Iterator[ForeignShard]:
    """Yield the shards of pairs below a folder as they are found, and then those of tars."""
    tars: list[str] = []

    def files() -> Iterator[ForeignFile]:
        for entry in folder.walk():
            if entry.name.lower().endswith(".tar"):
                tars.append(entry.name)
            else:
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
