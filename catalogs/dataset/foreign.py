"""SA-1B-style data that segmint did not write: pairs of a JPEG and a JSON of one name, loose in folders or in tars.

Names need not begin with `sa_`. A tar is a shard; loose files are cut into shards in order of names.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow as pa

from segmint.catalogs.dataset.tables import DatasetTables
from segmint.infra.storage.location import Location

PAIRS_IN_SHARD = 1_000
"""The number of pairs of loose files in a shard."""

JPEGS = pa.schema(
    [
        pa.field("ordinal", pa.int64(), nullable=False),
        pa.field("uri", pa.string(), nullable=False),  # of the JPEG, or of its tar
        pa.field("offset", pa.int64(), nullable=False),  # its first byte there
        pa.field("size", pa.int64(), nullable=False),  # bytes
    ]
)
"""The view `jpegs`: where the JPEG of each image is, for images that have one."""

_ENDINGS = {".jpg": "jpeg", ".jpeg": "jpeg", ".json": "json"}


@dataclass(frozen=True)
class LooseFile:
    """A file below the data's folder: its name relative to that, and its size in bytes."""

    name: str
    size: int


@dataclass(frozen=True)
class FilePair:
    """The JPEG and the JSON of one name; one of them may be missing."""

    stem: str  # the name without its ending
    jpeg: LooseFile | None = None
    json: LooseFile | None = None


@dataclass(frozen=True)
class ForeignShard:
    """A tar by its name, or pairs of loose files."""

    shard: int
    tar: str | None = None
    pairs: tuple[FilePair, ...] = ()


def find_shards(folder: Location) -> Iterator[ForeignShard]:
    """Yield the shards below a folder as they are found, numbered in that order.

    In a listing sorted by name, only files whose other half is missing so far are kept in memory.
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


def kind_of(name: str) -> str | None:
    """Return `jpeg` or `json` by the ending of a name; None for other files."""
    dot = name.rfind(".")
    return _ENDINGS.get(name[dot:].lower()) if dot >= 0 else None


def read_jpeg(tables: DatasetTables, ordinal: int) -> bytes | None:
    """Return the JPEG of an image in foreign data, unchanged; None if it has none."""
    found = tables.query('SELECT uri, "offset", size FROM jpegs WHERE ordinal = ?', [ordinal]).to_pylist()
    if not found:
        return None
    with tables.location.storage.open_ranges(found[0]["uri"]) as stream:
        stream.seek(found[0]["offset"])
        return stream.read(found[0]["size"])
