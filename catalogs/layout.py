"""A dataset's files: how each is named. What is in `dataset.json` is in `segmint.catalogs.dataset.manifest`.

```
dataset.json                     what the dataset is; dataset.g2.json and on once it grew
catalog/part-0-<digest>.parquet  the normalized catalog; part-1 and on once it grew
shards/sa_000000-<digest>.tar    images and annotations, as in SA-1B
images/sa_000000-<digest>.parquet, masks/…, rejects/…
commits/000000.g1.json           names the files of one generation of one shard; written last
summaries/000000-<digest>.json   sums over a thousand commits; can be rebuilt
shards.json                      WebDataset's index; can be rebuilt
```
"""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from segmint.infra.errors import SegmintError

SCHEMA_VERSION = 1
MANIFEST = "dataset.json"
SHARDS_INDEX = "shards.json"
CATALOG = "catalog"
COMMITS = "commits"
SUMMARIES = "summaries"
REPORT = "report"
"""The folder that a report is written to."""

DATA_KINDS = {"shards": "tar", "images": "parquet", "masks": "parquet", "rejects": "parquet"}
"""The folders of data files, each with the ending of its files."""

_DIGEST_DIGITS = 12
_DATA_PATH = re.compile(r"(?P<kind>[a-z]+)/sa_(?P<shard>\d{6,})-(?P<digest>[0-9a-f]{12})\.(?P<ending>[a-z]+)")
_PART = re.compile(r"catalog/part-(0|[1-9]\d*)-[0-9a-f]{12}\.parquet")
_COMMIT = re.compile(r"(?P<shard>\d{6,})\.g(?P<generation>[1-9]\d*)\.json")


class DamagedDatasetError(SegmintError):
    """A file of a dataset is not what its name and its commit say."""


class DataFile(NamedTuple):
    """What the name of a data file says."""

    kind: str  # a key of `DATA_KINDS`
    shard: int
    digest: str  # the first twelve hexadecimal digits of its SHA-256


def canonical_json(value: Any) -> bytes:
    """The one JSON form of all that a dataset hashes or compares: sorted keys, compact, UTF-8, a final newline.

    Raises `ValueError` for NaN and infinities, which JSON has not.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def fingerprint(value: Any) -> str:
    """The first twelve hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value)).hexdigest()[:_DIGEST_DIGITS]


def shard_name(shard: int) -> str:
    """A shard's number as file names have it: six digits, more from a million on."""
    return f"{shard:06d}"


def image_stem(image: int) -> str:
    """The name of an image's files without their ending; `image` is its number in the dataset."""
    return f"sa_{image}"


def image_name(image: int) -> str:
    """The name of an image's JPEG in a tar."""
    return f"{image_stem(image)}.jpg"


def annotation_name(image: int) -> str:
    """The name of the JSON with an image's masks in a tar."""
    return f"{image_stem(image)}.json"


def part_path(part: int, sha256: str) -> str:
    """The path of a part of the normalized catalog, below the dataset; `sha256` is of its bytes.

    As all data files it is named by its content, so that two builds that begin or grow a dataset at once never write
    over one another's.
    """
    return f"{CATALOG}/part-{part}-{sha256[:_DIGEST_DIGITS]}.parquet"


def is_part_path(path: str) -> bool:
    """Whether a path below the dataset is named like a part of the normalized catalog."""
    return _PART.fullmatch(path) is not None


def data_path(kind: str, shard: int, sha256: str) -> str:
    """The path of a data file below the dataset; `kind` is a key of `DATA_KINDS`, `sha256` of its bytes."""
    return f"{kind}/sa_{shard_name(shard)}-{sha256[:_DIGEST_DIGITS]}.{DATA_KINDS[kind]}"


def parse_data_path(path: str) -> DataFile | None:
    """What a path below the dataset says of a data file; None when it is none of ours."""
    match = _DATA_PATH.fullmatch(path)
    if match is None or DATA_KINDS.get(match["kind"]) != match["ending"]:
        return None
    if match["shard"] != shard_name(int(match["shard"])):
        return None
    return DataFile(match["kind"], int(match["shard"]), match["digest"])


def commit_name(shard: int, generation: int) -> str:
    """The name of a commit's file in the folder `commits`."""
    return f"{shard_name(shard)}.g{generation}.json"


def parse_commit_name(name: str) -> tuple[int, int] | None:
    """Shard and generation of a commit's file; None when the name is none of ours."""
    match = _COMMIT.fullmatch(name)
    if match is None or match["shard"] != shard_name(int(match["shard"])):
        return None
    return int(match["shard"]), int(match["generation"])


def config_sha256(config: Mapping[str, Any]) -> str:
    """The hash of a configuration's identity keys, 64 hexadecimal digits."""
    return hashlib.sha256(canonical_json(config)).hexdigest()


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """The dotted keys in which two trees of configuration differ, sorted; a key only one has counts."""
    keys: list[str] = []
    for key in sorted({*old, *new}):
        if key not in old or key not in new:
            keys.append(key)
        elif isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            keys.extend(f"{key}.{inner}" for inner in differing_keys(old[key], new[key]))
        elif canonical_json(old[key]) != canonical_json(new[key]):
            keys.append(key)
    return keys
