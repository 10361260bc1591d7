"""Marks of former JPEGs: the SHA-256 of released JPEGs that corrections removed or replaced, by image number.

`marks/<shard>-<hash>.json` lets `--prove` recognize these JPEGs. It contains neither pixels nor names, and the version
digest doesn't cover it.
"""

import hashlib
import json
from collections.abc import Mapping

from segmint.catalogs.layout import DamagedDatasetError, canonical_json, shard_name
from segmint.infra.storage.location import Location

MARKS = "marks"


def put_marks(dataset: Location, shard: int, released: Mapping[int, str | None]) -> None:
    """Put the SHA-256 of images' JPEGs, before these are removed or replaced; None for an image that has no JPEG.

    Repeating the call changes nothing.
    """
    if released:
        data = canonical_json({"schema_version": 1, "released": dict(released)})
        (dataset / MARKS / _name(shard, data)).put_if_absent(data)


def read_marks(dataset: Location, shard: int, image: int) -> frozenset[str] | None:
    """Return the SHA-256 of an image's former JPEGs; None if the image has no mark.

    Raises `DamagedDatasetError` for a file that doesn't match its name.
    """
    found: set[str | None] = set()
    for entry in (dataset / MARKS).list(beginning=f"{shard_name(shard)}-"):
        data = (dataset / MARKS / entry.name).read()
        if entry.name != _name(shard, data):
            raise DamagedDatasetError(
                f"{dataset / MARKS / entry.name} was changed: its name is not that of its content"
            )
        released = json.loads(data)["released"]
        found |= {released[str(image)]} if str(image) in released else set()
    return frozenset(sha256 for sha256 in found if sha256 is not None) if found else None


def _name(shard: int, data: bytes) -> str:
    return f"{shard_name(shard)}-{hashlib.sha256(data).hexdigest()[:12]}.json"
