"""A dataset's files: how each is named, and `dataset.json`, which says what the dataset is.

```
dataset.json                     what the dataset is: written once, extended when it grows
catalog/part-0.parquet           the normalized catalog
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
from datetime import date
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.errors import SegmintError, UsageError
from infra.retry import NotFoundError
from infra.storage import Storage
from infra.uris import join

SCHEMA_VERSION = 1
MANIFEST = "dataset.json"
SHARDS_INDEX = "shards.json"
COMMITS = "commits"
SUMMARIES = "summaries"
DATA_KINDS = {"shards": "tar", "images": "parquet", "masks": "parquet", "rejects": "parquet"}
"""The folders of data files, each with the ending of its files."""

_DIGEST_DIGITS = 12
_DATA_PATH = re.compile(r"(?P<kind>[a-z]+)/sa_(?P<shard>\d{6,})-(?P<digest>[0-9a-f]{12})\.(?P<ending>[a-z]+)")
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


def part_path(part: int) -> str:
    """The path of a part of the normalized catalog, below the dataset."""
    return f"catalog/part-{part}.parquet"


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


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CatalogPart(_Frozen):
    """One part of the normalized catalog: its ordinals begin at `first_shard` · `images_per_shard`.

    `sha256` is that of the part itself, `source_sha256` that of the catalog's file it was made from.
    """

    path: str
    rows: int = Field(ge=0)
    sha256: str
    source_sha256: str
    first_shard: int = Field(ge=0)


class Weights(_Frozen):
    """The weights of the model that made the masks."""

    name: str
    sha256: str


class DatasetManifest(_Frozen):
    """`dataset.json`: what a dataset is, fixed at its first start but for `catalog`, which grows by parts.

    `config` holds the identity keys of the configuration as a tree; `numerics` all that decides the last bits
    of the results; `policy_date` is the day by which licenses are judged.
    """

    schema_version: int = SCHEMA_VERSION
    name: str
    config: dict[str, Any]
    config_sha256: str
    numerics: dict[str, Any]
    code_version: str
    weights: Weights
    licenses: dict[str, Any] = Field(default_factory=dict)
    catalog: tuple[CatalogPart, ...]
    images_per_shard: int = Field(gt=0)
    policy_date: date

    @property
    def numerics_fingerprint(self) -> str:
        """What a commit names its numerics by: twelve hexadecimal digits."""
        return fingerprint(self.numerics)

    @property
    def shards(self) -> int:
        """How many shards the whole dataset has, committed or not."""
        if not self.catalog:
            return 0
        last = self.catalog[-1]
        return last.first_shard + -(-last.rows // self.images_per_shard)

    def ordinals(self, shard: int) -> tuple[int, int]:
        """The ordinals [a, b) of a shard; raises `ValueError` for a shard that the dataset has not."""
        for part in self.catalog:
            first = part.first_shard * self.images_per_shard
            start = shard * self.images_per_shard
            if first <= start < first + part.rows:
                return start, min(start + self.images_per_shard, first + part.rows)
        raise ValueError(f"there is no shard {shard}: the dataset has {self.shards}")

    def to_json(self) -> bytes:
        """The manifest's file."""
        return canonical_json(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, data: bytes, where: str = MANIFEST) -> "DatasetManifest":
        """Reads a manifest's file; raises `UsageError`, which names `where`, for a foreign or a newer one."""
        try:
            value = json.loads(data)
            version = value.get("schema_version") if isinstance(value, dict) else None
            if version != SCHEMA_VERSION:
                raise UsageError(f"{where}: its schema_version is {version!r}; this segmint reads {SCHEMA_VERSION}")
            return cls.model_validate(value)
        except (ValidationError, ValueError) as error:
            raise UsageError(f"{where} is no dataset's manifest: {error}") from error


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


def read_manifest(storage: Storage, dataset_uri: str) -> DatasetManifest | None:
    """The manifest of the dataset at `dataset_uri`; None when no dataset was begun there."""
    uri = join(dataset_uri, MANIFEST)
    try:
        data = storage.read(uri)
    except NotFoundError:
        return None
    return DatasetManifest.from_json(data, uri)


def load_manifest(storage: Storage, dataset_uri: str) -> DatasetManifest:
    """The manifest of the dataset at `dataset_uri`; raises `UsageError` when no dataset was begun there."""
    manifest = read_manifest(storage, dataset_uri)
    if manifest is None:
        raise UsageError(f"{dataset_uri} is no dataset: it has no {MANIFEST}; check the path, or build one there")
    return manifest
