"""Names of a dataset's files, shard ranges, and the extensions of image files.

`segmint.catalogs.dataset.manifest` defines the content of `dataset.json`.

```
dataset.json                     the manifest; dataset.g2.json and so on after the dataset grew
id.json                          a random id of the dataset, by which caches and embeddings are keyed
catalog/part-0-<digest>.parquet  the normalized catalog; part-1 and so on after the dataset grew
shards/sa_000000-<digest>.tar    images and annotations, as in SA-1B
images/sa_000000-<digest>.parquet, masks/…, rejects/…
commits/000000.g1.json           lists the files of one generation of one shard; written last
reservations/000000.g2-<digest>.json   lists the files that a writer is about to commit; deleted after that
reservations/dataset.g2-<digest>.json  lists the parts that a manifest's next generation will name; deleted after that
reservations/amended.g2-<digest>.json  an amendment of segmint 0.3.0 that didn't finish; no longer read or written
summaries/000000-<digest>.json   sums over a block of commits; can be rebuilt
shards.json                      WebDataset's index; can be rebuilt
tombstones/<digest>.json         the images that a takedown removed
versions/1.json, versions/1.<key>.sig  a recorded version, and its signatures
fingerprints/000000.g1.json      hashes of pictures and JPEGs that corrections removed or replaced
outputs/<digest>.json            notes an output elsewhere that was made from the dataset
annotations/…                    submissions, returns, and ratings
report/…                         the page of `segmint report`
```

`is_known` recognizes these names; a dataset contains no others.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from tarfile import TarInfo
from typing import TYPE_CHECKING, Any, NamedTuple

from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.tars import is_plain_file

if TYPE_CHECKING:
    from pydantic import ValidationError

    from segmint.infra.storage.location import Location


SCHEMA_VERSION = 4
"""Format version of new datasets, which is `schema_version` in `dataset.json`."""

READABLE_VERSIONS = (3, SCHEMA_VERSION)
"""Format versions that segmint reads and corrects. It builds only `SCHEMA_VERSION`."""

ADDED_COLUMNS = ("unconfirmed_detections", "left_alone", "redacted_share", "masks_model")
"""Columns of `images` that format 3 lacks. Readers fill them with null."""

ANNOTATION_COLUMNS = ("submission", "annotator", "stage", "seconds", "complete", "next_mask", "masks_model")
"""Columns of `images` that describe later changes to masks, in order. After a build, all but `next_mask` are null."""

LEVELS = {"output": "outputs", "container": "containers"}
"""Columns of `masks` that an image's JSON also contains, each with the key of its list of values in the JSON."""

MANIFEST = "dataset.json"
DATASET_ID = "id.json"
SHARDS_INDEX = "shards.json"
CATALOG = "catalog"
COMMITS = "commits"
RESERVATIONS = "reservations"
SUMMARIES = "summaries"
REPORT = "report"
"""Folder for the files of a report."""

MOST_PIXELS = 250_000_000
"""Maximum number of pixels of an image that readers of a dataset decode. It equals the default limit of ingest."""

MOST_MEMBER_BYTES = 256 << 20
"""Maximum size in bytes of a JPEG or JSON in a tar. Readers don't load larger ones into memory."""

DATA_KINDS = {"shards": "tar", "images": "parquet", "masks": "parquet", "rejects": "parquet"}
"""Folders of data files, and the extension of the files in each of them."""

DIGEST_DIGITS = 12
_SHOWN = 10
_DATA_PATH = re.compile(r"(?P<kind>[a-z]+)/sa_(?P<shard>\d{6,})-(?P<digest>[0-9a-f]{12})\.(?P<ending>[a-z]+)", re.ASCII)
_PART = re.compile(r"catalog/part-(?P<number>0|[1-9]\d*)-[0-9a-f]{12}\.parquet", re.ASCII)
_PART_RESERVATION = re.compile(r"dataset\.g(?P<generation>[2-9]|[1-9]\d+)-[0-9a-f]{12}\.json", re.ASCII)
_RESERVATION = re.compile(r"(?P<commit>\d{6,}\.g[1-9]\d*)-[0-9a-f]{12}\.json", re.ASCII)
_COMMIT = re.compile(r"(?P<shard>\d{6,})\.g(?P<generation>[1-9]\d*)\.json", re.ASCII)

_SHARD = r"(?:\d{6}|[1-9]\d{6,})"
PATTERNS = (  # every path below a dataset's root that segmint may put
    r"dataset(?:\.g(?:[2-9]|[1-9]\d+))?\.json|id\.json|shards\.json",
    r"catalog/part-(?:0|[1-9]\d*)-[0-9a-f]{12}\.parquet",
    rf"(?:shards/sa_{_SHARD}-[0-9a-f]{{12}}\.tar|(?:images|masks|rejects)/sa_{_SHARD}-[0-9a-f]{{12}}\.parquet)",
    rf"(?:commits|fingerprints)/{_SHARD}\.g[1-9]\d*\.json",
    rf"reservations/(?:{_SHARD}\.g[1-9]\d*|(?:dataset|amended)\.g(?:[2-9]|[1-9]\d+))-[0-9a-f]{{12}}\.json",
    rf"summaries/(?:leaves-)?{_SHARD}(?:-[0-9a-f]{{12}})+\.json",
    r"(?:tombstones|outputs)/[0-9a-f]{12}\.json",
    r"versions/[1-9]\d*\.(?:json|[0-9a-f]{16}\.sig)",
    r"annotations/(?:0|[1-9]\d{0,15})/[01]\.[1-9]\d{0,8}(?:\.return)?\.json",
    r"annotations/ratings/(?:0|[1-9]\d{0,15})/(?:0|[1-9]\d{0,15})\.[0-9a-f]{12}\.[1-9]\d{0,8}\.json",
    r"report/(?:index\.html|README\.md|disclosure\.md|statistics\.parquet|(?:statistics|beside|ratings|croissant)\.json)",
    r"report/figures/(?:masks_per_image|funnel|countries|regions|income|licenses|providers|rejected)\.png",
    r"report/figures/(?:relative_size|concavity|scores|centers|labels)\.png",
)
_KNOWN = re.compile("|".join(PATTERNS), re.ASCII)


class DamagedDatasetError(SegmintError):
    """A file of a dataset doesn't match its name or its commit."""


def check_member(tar: "Location", member: TarInfo) -> None:
    """Raise `DamagedDatasetError` unless a member of a shard's tar is a regular file that isn't too large to read."""
    if not is_plain_file(member):
        raise DamagedDatasetError(f"{tar} is not a shard: {member.name} is not a regular file")
    if member.size > MOST_MEMBER_BYTES:
        raise DamagedDatasetError(
            f"{tar} is not a shard: {member.name} has {member.size:,} bytes; at most {MOST_MEMBER_BYTES:,} are read"
        )


class DataFile(NamedTuple):
    """Components of the name of a data file."""

    kind: str  # a key of `DATA_KINDS`
    shard: int
    digest: str  # the first twelve hexadecimal digits of its SHA-256


def canonical_json(value: Any) -> bytes:
    """Serialize a value to canonical JSON, which a dataset stores, hashes, and compares.

    Canonical JSON has sorted keys, no spaces between tokens, UTF-8 encoding, and a newline at the end. Raises
    `ValueError` for NaN and infinities, because JSON can't represent them.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.encode() + b"\n"


def wrong_fields(error: "ValidationError") -> str:
    """Describe the first ten invalid fields of a file: the name of each field, and what was expected."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    lines = [f"{'.'.join(map(str, problem['loc'])) or 'the file'}: {problem['msg']}" for problem in problems]
    return "; ".join([*lines[:_SHOWN], *([f"and {len(lines) - _SHOWN} more"] if len(lines) > _SHOWN else [])])


def bytes_sha256(data: bytes) -> str:
    """Return the SHA-256 of bytes, 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def json_sha256(value: Any) -> str:
    """Return the SHA-256 of a value's canonical JSON, 64 hexadecimal digits."""
    return bytes_sha256(canonical_json(value))


def fingerprint(value: Any) -> str:
    """Return the first twelve hexadecimal digits of the SHA-256 of a value's canonical JSON."""
    return json_sha256(value)[:DIGEST_DIGITS]


def json_with_digest(value: Mapping[str, Any]) -> bytes:
    """Return a value's canonical JSON with another field, `digest`, which is a hash of all other fields."""
    return canonical_json({**value, "digest": fingerprint(value)})


def is_known(path: str) -> bool:
    """Return whether segmint uses this path below the dataset. Paths of temporary files don't count."""
    return _KNOWN.fullmatch(path) is not None


def shard_name(shard: int) -> str:
    """Format a shard's number for file names: six digits, or more for shards from a million on."""
    return f"{shard:06d}"


def image_stem(image: int) -> str:
    """Return the name of an image's files, without the extension. `image` is the image's number in the dataset."""
    return f"sa_{image}"


def image_name(image: int) -> str:
    """Return the name of an image's JPEG in its tar."""
    return f"{image_stem(image)}.jpg"


def annotation_name(image: int) -> str:
    """Return the name of an image's JSON, which contains its masks, in its tar."""
    return f"{image_stem(image)}.json"


def part_path(part: int, sha256: str) -> str:
    """Return the path of a catalog part below the dataset. `sha256` is the hash of the part's bytes.

    The path contains the hash. Therefore, two builds that start or extend a dataset at the same time never overwrite
    each other's files.
    """
    return f"{CATALOG}/part-{part}-{sha256[:DIGEST_DIGITS]}.parquet"


def is_part_path(path: str) -> bool:
    """Return whether a path below the dataset is the path of a catalog part."""
    return _PART.fullmatch(path) is not None


def part_number(path: str) -> int:
    """Return the number of a catalog part from its path below the dataset. Raises `ValueError` for any other path."""
    match = _PART.fullmatch(path)
    if match is None:
        raise ValueError(f"{path} is not part of a catalog")
    return int(match["number"])


def data_beginning(shard: int) -> str:
    """Return how the names of a shard's data files begin, in each of the folders."""
    return f"sa_{shard_name(shard)}-"


def data_path(kind: str, shard: int, sha256: str) -> str:
    """Return the path of a data file below the dataset.

    `kind` is a key of `DATA_KINDS`, and `sha256` is the file's hash.
    """
    return f"{kind}/{data_beginning(shard)}{sha256[:DIGEST_DIGITS]}.{DATA_KINDS[kind]}"


def parse_data_path(path: str) -> DataFile | None:
    """Parse the path of a data file below the dataset. Returns None for any other path."""
    match = _DATA_PATH.fullmatch(path)
    if match is None or DATA_KINDS.get(match["kind"]) != match["ending"]:
        return None
    if match["shard"] != shard_name(int(match["shard"])):
        return None
    return DataFile(match["kind"], int(match["shard"]), match["digest"])


def commit_beginning(shard: int) -> str:
    """Return how the names of a shard's commits begin."""
    return f"{shard_name(shard)}.g"


def commit_name(shard: int, generation: int) -> str:
    """Return the name of a commit's file in `commits/`."""
    return f"{commit_beginning(shard)}{generation}.json"


def parse_commit_name(name: str) -> tuple[int, int] | None:
    """Return the shard and the generation in the name of a commit's file, or None for any other name."""
    match = _COMMIT.fullmatch(name)
    if match is None or match["shard"] != shard_name(int(match["shard"])):
        return None
    return int(match["shard"]), int(match["generation"])


def commit_path(shard: int, generation: int) -> str:
    """Return the path of a commit's file below the dataset."""
    return f"{COMMITS}/{commit_name(shard, generation)}"


def parse_commit_path(path: str) -> tuple[int, int] | None:
    """Return the shard and the generation in the path of a commit's file, relative to the dataset.

    Returns None if `path` isn't the path of a commit's file.
    """
    folder, _, name = path.partition("/")
    return parse_commit_name(name) if folder == COMMITS else None


def reservation_name(shard: int, generation: int, digest: str) -> str:
    """Return the name of a reservation's file in `reservations/`.

    `digest` is the fingerprint of the paths that it lists.
    """
    return f"{commit_beginning(shard)}{generation}-{digest}.json"


def parse_reservation_name(name: str) -> tuple[int, int] | None:
    """Return the shard and the generation in the name of a reservation's file, or None for any other name."""
    match = _RESERVATION.fullmatch(name)
    return None if match is None else parse_commit_name(f"{match['commit']}.json")


def part_reservation_name(generation: int, digest: str) -> str:
    """Return the name of the file that reserves catalog parts for a generation of the manifest.

    `digest` is the fingerprint of the parts' paths.
    """
    return f"dataset.g{generation}-{digest}.json"


def parse_part_reservation_name(name: str) -> int | None:
    """Parse the name of a reservation of catalog parts into the manifest's generation.

    Returns None for any other name.
    """
    match = _PART_RESERVATION.fullmatch(name)
    return None if match is None else int(match["generation"])


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the sorted dotted keys whose values differ between two configurations or exist in only one of them."""
    keys: list[str] = []
    for key in sorted({*old, *new}):
        if key not in old or key not in new:
            keys.append(key)
        elif isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
            keys.extend(f"{key}.{inner}" for inner in differing_keys(old[key], new[key]))
        elif canonical_json(old[key]) != canonical_json(new[key]):
            keys.append(key)
    return keys


@dataclass(frozen=True)
class ShardSpan:
    """Shard with its ordinals [start, stop)."""

    shard: int
    start: int
    stop: int

    @property
    def rows(self) -> int:
        """Number of rows in the shard."""
        return self.stop - self.start


@dataclass(frozen=True)
class ShardPart:
    """One of `parts` disjoint parts of all shards.

    The parts differ in size by at most one shard. `index` counts from 0.
    """

    index: int
    parts: int

    def of(self, shards: int) -> range:
        """Return the shards in this part, out of `shards` shards. It is empty if there are fewer shards than parts."""
        return range(shards * self.index // self.parts, shards * (self.index + 1) // self.parts)


def choose_shards(count: int, wanted: tuple[int, int] | ShardPart | None) -> range:
    """Return the requested shards out of `count`: the range [first, last), a part, or all shards.

    Raises `UsageError` if the range contains no shard. A part may be empty.
    """
    whole = range(count)
    if wanted is None:
        return whole
    if isinstance(wanted, ShardPart):
        return wanted.of(count)
    chosen = range(max(wanted[0], 0), min(wanted[1], count))
    if not chosen:
        raise UsageError(f"--shards {wanted[0]}:{wanted[1]} names no shard: the dataset has shards 0 to {count - 1}")
    return chosen


def parse_shards(text: str) -> tuple[int, int] | ShardPart:
    """Parse "A:B" (shards A to B - 1) or "K/N" (part K of N parts). Raises `UsageError` for any other text."""
    match = re.fullmatch(r"([0-9]{1,18})([:/])([0-9]{1,18})", text.strip())
    if match is None or int(match[1]) >= int(match[3]):
        raise UsageError(
            f"--shards {text!r}: expected A:B with A < B, such as 0:10 for the first ten shards, or K/N with K < N, "
            "such as 0/4 for the first quarter"
        )
    first, second = int(match[1]), int(match[3])
    return (first, second) if match[2] == ":" else ShardPart(first, second)


IMAGE_ENDINGS = (
    ".jpg",
    ".jpeg",
    ".png",
    ".tif",
    ".tiff",
    ".webp",
    ".bmp",
    ".heic",
    ".heif",
    ".avif",
    ".jp2",
    ".gif",
)
"""Extensions in lowercase. A file with such an extension may still turn out not to be an image."""
