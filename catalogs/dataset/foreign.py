"""Data that segmint did not write, in shards: pairs of a JPEG and a JSON as in SA-1B, or images that a file lists.

The names of pairs don't have to start with `sa_`. Each tar counts as a shard. Loose files are grouped into shards of up
to 1,000 pairs, in order of name. The images that a COCO file or a YOLO folder lists are grouped in the same way.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.tables import DatasetTables
from segmint.infra.storage.location import Location

PAIRS_IN_SHARD = 1_000
"""Number of pairs of loose files per shard."""

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
class LooseFile:
    """File that is not in a tar: its name relative to the data's folder, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class FilePair:
    """A JPEG and a JSON with the same name. Either can be missing."""

    stem: str  # the name without its extension
    jpeg: LooseFile | None = None
    json: LooseFile | None = None


@dataclass(frozen=True)
class YoloClasses:
    """Names of a YOLO dataset's classes, and what the lines of its labels contain.

    - `keypoints`: number of values for keypoints behind each box.
    - `through_centers`: whether polygons go through the centers of the outermost pixels, as in an export of segmint.
    """

    names: Mapping[int, Any]
    keypoints: int = 0
    through_centers: bool = False


@dataclass(frozen=True)
class ListedImage:
    """Image that a COCO file or a YOLO folder lists.

    - `name`: the picture's path relative to `folder`.
    - `picture`: the picture's file, or None if it doesn't exist. `folder` is the URI of its folder.
    - `file`: the name of the file with the annotations, for findings.
    - `split`: the split, such as `train`.
    - `size`: the (height, width) that the file states, if any.
    - `annotations`: the annotations in COCO's form. Those of YOLO are in `labels` instead, and may be absent.
    - `license`, `source_url`: what the file says about the image, if anything.
    - `repeats`: whether an earlier image of the same split has the same picture.
    """

    name: str
    folder: str
    picture: LooseFile | None
    file: str
    split: str
    size: tuple[int, int] | None = None
    annotations: tuple[Mapping[str, Any], ...] = ()
    labels: LooseFile | None = None
    license: str | None = None
    source_url: str | None = None
    repeats: bool = False


@dataclass(frozen=True)
class ForeignShard:
    """Shard of foreign data: a tar, given by its name, pairs of loose files, or images that a file lists."""

    shard: int
    tar: str | None = None
    pairs: tuple[FilePair, ...] = ()
    listed: tuple[ListedImage, ...] = ()
    classes: YoloClasses | None = None  # of YOLO's labels


def find_shards(folder: Location) -> Iterator[ForeignShard]:
    """Yield the shards below a folder as they are found, numbered from 0.

    Only files whose counterpart hasn't been found yet are kept in memory. In a listing that is sorted by name, these
    are few.
    """
    shard = 0
    halves: dict[str, FilePair] = {}
    whole: list[FilePair] = []
    for entry in folder.walk():
        if entry.name.lower().endswith(".tar"):
            yield ForeignShard(shard, tar=entry.name)
            shard += 1
        kind = kind_of(entry.name)
        if kind is None:
            continue
        stem = entry.name.rpartition(".")[0]
        file = LooseFile(entry.name, entry.size)
        other = halves.pop(stem, None) or FilePair(stem)
        pair = FilePair(stem, file, other.json) if kind == "jpeg" else FilePair(stem, other.jpeg, file)
        if pair.jpeg is None or pair.json is None:
            halves[stem] = pair
            continue
        whole.append(pair)
        if len(whole) == PAIRS_IN_SHARD:
            yield ForeignShard(shard, pairs=tuple(whole))
            shard, whole = shard + 1, []
    whole.extend(halves[stem] for stem in sorted(halves))
    for start in range(0, len(whole), PAIRS_IN_SHARD):
        yield ForeignShard(shard, pairs=tuple(whole[start : start + PAIRS_IN_SHARD]))
        shard += 1


def list_shards(images: Iterable[ListedImage], classes: YoloClasses | None = None) -> Iterator[ForeignShard]:
    """Yield listed images as shards of up to 1,000, numbered from 0."""
    remaining = iter(images)
    shard = 0
    while listed := tuple(islice(remaining, PAIRS_IN_SHARD)):
        yield ForeignShard(shard, listed=listed, classes=classes)
        shard += 1


def kind_of(name: str) -> str | None:
    """Return `jpeg` or `json`, depending on a file name's extension, or None for any other file."""
    dot = name.rfind(".")
    return _ENDINGS.get(name[dot:].lower()) if dot >= 0 else None


def read_jpeg(tables: DatasetTables, ordinal: int) -> bytes | None:
    """Return the unchanged bytes of an image's JPEG in foreign data, or None if the image has no JPEG."""
    found = tables.query('SELECT uri, "offset", size FROM jpegs WHERE ordinal = ?', [ordinal]).to_pylist()
    if not found:
        return None
    with tables.location.storage.open_ranges(found[0]["uri"]) as stream:
        stream.seek(found[0]["offset"])
        return stream.read(found[0]["size"])
