"""Fingerprints: hashes by which segmint recognizes copies of removed pictures, and former JPEGs of redacted ones.

`fingerprints/<shard>.g<generation>.json` contains the hashes for the images of one shard. Only the highest generation
of a shard counts, and the version digest covers it. After a takedown, no other file of the dataset may contain the
hashes of a removed image.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from segmint.catalogs.dataset.commits import generations_of
from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import DamagedDatasetError, commit_name, json_with_digest, parse_commit_name
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import ObjectInfo

FINGERPRINTS = "fingerprints"

_SHA256 = r"^[0-9a-f]{64}$"
_MOST_READ = 10_000
_READ: dict[tuple[str, int, datetime], "ShardFingerprints"] = {}  # by URI, size, and time


class Fingerprint(Frozen):
    """Hashes of an image.

    It contains no hashes if the image was removed before its JPEG was released, or if the hashes are `forgotten`.
    """

    released: tuple[str, ...] = ()  # SHA-256 of its former JPEGs, ascending
    pixels: str | None = Field(None, pattern=_SHA256)  # `pixels_sha256`, if it was removed
    hashes: str = Field("", pattern=r"^([0-9a-f]{144})?$")  # the nine `hashes` as big-endian numbers, if it was removed

    forgotten: bool = False  # its hashes were removed, and new ones aren't stored

    @property
    def digests(self) -> frozenset[str]:
        """All SHA-256 hashes in the fingerprint. An image with any of these hashes shows the same picture."""
        return frozenset(each for each in (*self.released, self.pixels) if each is not None)

    def views(self) -> NDArray[np.uint64]:
        """Return the perceptual hashes, (1, 9) or (0, 9) uint64."""
        return np.frombuffer(bytes.fromhex(self.hashes), ">u8").astype(np.uint64).reshape(-1, 9)

    def joined(self, other: "Fingerprint") -> "Fingerprint":
        """Combine two fingerprints of the same image.

        The result contains the SHA-256 of all former JPEGs. `pixels` and `hashes` come from `other` if it contains
        them. A forgotten fingerprint doesn't change.
        """
        if self.forgotten:
            return self
        released = tuple(sorted({*self.released, *other.released}))
        return Fingerprint(released=released, pixels=other.pixels or self.pixels, hashes=other.hashes or self.hashes)


class OtherPicture(Frozen):
    """A person's decision that an image is not a copy of any image that a tombstone names."""

    id: int = Field(ge=1)
    tombstone: str  # its file's name
    reason: str
    when: str  # UTC, YYYY-MM-DDTHH:MM:SSZ


class ShardFingerprints(Frozen):
    """Fingerprints of a shard's images, keyed by image number, and people's decisions about images in the shard."""

    schema_version: Literal[1] = 1
    images: dict[int, Fingerprint] = Field(default_factory=dict)
    others: tuple[OtherPicture, ...] = ()

    def to_json(self) -> bytes:
        """Return the bytes of the file. Its field `digest` covers all other fields."""
        return json_with_digest(self.model_dump(mode="json"))

    def joined(self, images: Mapping[int, Fingerprint]) -> "ShardFingerprints":
        """Return a copy that also contains the hashes of these images."""
        known = self.images
        joined = {**known, **{id: known.get(id, Fingerprint()).joined(new) for id, new in images.items()}}
        return self.model_copy(update={"images": dict(sorted(joined.items()))})

    def without(self, ids: Iterable[int]) -> "ShardFingerprints":
        """Return a copy in which these images have no hashes and are marked as forgotten."""
        images = {**self.images, **{id: Fingerprint(forgotten=True) for id in ids}}
        return self.model_copy(update={"images": dict(sorted(images.items()))})

    def with_decision(self, new: OtherPicture) -> "ShardFingerprints":
        """Return a copy with a new decision, unless a decision for the same image and tombstone already exists."""
        known = any((each.id, each.tombstone) == (new.id, new.tombstone) for each in self.others)
        return self if known else self.model_copy(update={"others": (*self.others, new)})


def fingerprints_path(shard: int, generation: int) -> str:
    """Return the path of a fingerprints file below the dataset."""
    return f"{FINGERPRINTS}/{commit_name(shard, generation)}"


def parse_fingerprints_path(path: str) -> tuple[int, int] | None:
    """Parse the path of a fingerprints file into shard and generation. Returns None for any other path."""
    folder, _, name = path.partition("/")
    return parse_commit_name(name) if folder == FINGERPRINTS else None


def list_fingerprints(dataset: Location) -> dict[int, tuple[int, ObjectInfo]]:
    """Return the latest generation of each shard's fingerprints and the entry of its file, in shard order."""
    found: dict[int, tuple[int, ObjectInfo]] = {}
    for entry in (dataset / FINGERPRINTS).list():
        parsed = parse_commit_name(entry.name)
        if parsed is not None and parsed[1] > found.get(parsed[0], (0, entry))[0]:
            found[parsed[0]] = parsed[1], entry
    return dict(sorted(found.items()))


def read_fingerprints(dataset: Location) -> dict[int, ShardFingerprints]:
    """Read the latest fingerprints of all shards, keyed by shard. Raises `DamagedDatasetError` if a file is invalid.

    Every writer of a shard calls this function. Therefore, the process caches the files that it has read.
    """
    while True:
        try:
            return {shard: _cached(dataset, entry) for shard, (_, entry) in list_fingerprints(dataset).items()}
        except NotFoundError:
            continue  # another writer replaced it


def by_image(shards: Iterable[ShardFingerprints]) -> dict[int, Fingerprint]:
    """Combine the fingerprints of several shards into one dictionary, keyed by the image's number."""
    return {id: each for shard in shards for id, each in shard.images.items()}


def damaged_fingerprints(dataset: Location) -> dict[str, str]:
    """Return the first damaged file's message, keyed by the folder's name, or {} if no file is damaged."""
    try:
        read_fingerprints(dataset)
    except DamagedDatasetError as error:
        return {FINGERPRINTS: str(error)}
    return {}


def change_fingerprints(
    dataset: Location, shard: int, change: Callable[[ShardFingerprints], ShardFingerprints], *, purge: bool = False
) -> None:
    """Apply `change` to a shard's fingerprints.

    If the result differs, this function writes it as the next generation, and deletes the replaced generation. If
    another writer was faster, it applies `change` to that writer's result. With `purge`, it also deletes older versions
    of the files in a bucket. If a call was interrupted, repeat it to complete the change.

    Raises `DamagedDatasetError` if the current fingerprints can't be read.
    """
    while True:
        generations = _generations(dataset, shard)
        latest = generations[-1] if generations else 0
        try:
            name = commit_name(shard, latest)
            data = (dataset / FINGERPRINTS / name).read() if latest else None
        except NotFoundError:
            continue
        now = ShardFingerprints() if data is None else _parse(dataset, name, data)
        after = change(now)
        if after != now:
            file = dataset / fingerprints_path(shard, latest + 1)
            if not file.put_if_absent(after.to_json()):
                continue
            if _generations(dataset, shard)[-1] > latest + 1:  # this writer was too slow, and readers ignore its file
                file.delete()
                continue
            latest += 1
        for number in _generations(dataset, shard, ever=purge):
            if number < latest:
                file = dataset / fingerprints_path(shard, number)
                file.purge() if purge else file.delete()
        return


def put_fingerprints(dataset: Location, shard: int, images: Mapping[int, Fingerprint]) -> None:
    """Add hashes of a shard's images.

    Call this before the images are removed or replaced. A repeated call has no effect.
    """
    if images:
        change_fingerprints(dataset, shard, lambda now: now.joined(images))


def forget_fingerprints(dataset: Location, shard: int, ids: Iterable[int]) -> None:
    """Remove the hashes of these images from a shard's fingerprints for good, including all older versions of the file.

    If a call was interrupted, repeat it to complete the removal.
    """
    change_fingerprints(dataset, shard, lambda now: now.without(ids), purge=True)


def _generations(dataset: Location, shard: int, *, ever: bool = False) -> list[int]:
    """Return the generations of a shard's fingerprints, ascending.

    With `ever`, this includes deleted generations that still have an older version in the bucket.
    """
    folder = dataset / FINGERPRINTS
    names = folder.walk_ever() if ever else (entry.name for entry in folder.list())
    return sorted(generations_of(names).get(shard, []))


def _cached(dataset: Location, entry: ObjectInfo) -> ShardFingerprints:
    file = dataset / FINGERPRINTS / entry.name
    key = file.uri, entry.size, entry.modified
    if key not in _READ:
        if len(_READ) >= _MOST_READ:
            _READ.clear()
        _READ[key] = _parse(dataset, entry.name, file.read())
    return _READ[key]


def _parse(dataset: Location, name: str, data: bytes) -> ShardFingerprints:
    """Parse a fingerprints file, and check that all of its bytes match its digest."""
    file = dataset / FINGERPRINTS / name
    how = f"Run `segmint repair {dataset}` to find all damage"
    try:
        value = json.loads(data)
        value.pop("digest")
        found = ShardFingerprints.model_validate(value)
    except (ValidationError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        problem = " ".join(str(error).split())[:200]
        raise DamagedDatasetError(f"{file} doesn't contain fingerprints: {problem}. {how}") from None
    if found.to_json() != data:
        raise DamagedDatasetError(f"{file} was changed: expected the bytes that its field digest covers. {how}")
    return found
