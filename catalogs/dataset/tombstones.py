"""Tombstones and fingerprints: what a dataset keeps of images that were taken down, and how it recognizes them.

Tombstones: records of taken-down images, with reason and time. No other file of a dataset names these images.

Fingerprints: hashes by which segmint recognizes copies of removed pictures, and former JPEGs of redacted ones.

`fingerprints/<shard>.g<generation>.json` contains the hashes for the images of one shard. Only the highest generation
of a shard counts, and the version digest covers it. After a takedown, no other file of the dataset may contain the
hashes of a removed image.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Literal, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from segmint.catalogs.dataset.commits import generations_of
from segmint.catalogs.frozen import ExactCount, Frozen
from segmint.catalogs.layout import (
    DamagedDatasetError,
    commit_name,
    fingerprint,
    json_with_digest,
    parse_commit_name,
    wrong_fields,
)
from segmint.catalogs.parquet import Row
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.stores import ObjectInfo
from segmint.infra.uris import plain_form, plain_forms

Read = TypeVar("Read")

FINGERPRINTS = "fingerprints"

_SHA256 = r"^[0-9a-f]{64}$"
_MOST_READ = 10_000
_READ: dict[tuple[str, int, datetime], Any] = {}  # tombstones and fingerprints by URI, size, and time


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
            listed = list_fingerprints(dataset).items()
            return {shard: _cached(dataset, FINGERPRINTS, entry, _read_fingerprints) for shard, (_, entry) in listed}
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


def _cached(dataset: Location, folder: str, entry: ObjectInfo, read: Callable[[Location, str], Read]) -> Read:
    """Read a listed file of `folder`, unless the process has read it before."""
    key = (dataset / folder / entry.name).uri, entry.size, entry.modified
    if key not in _READ:
        if len(_READ) >= _MOST_READ:
            _READ.clear()
        _READ[key] = read(dataset, entry.name)
    found: Read = _READ[key]
    return found


def _read_fingerprints(dataset: Location, name: str) -> ShardFingerprints:
    return _parse(dataset, name, (dataset / FINGERPRINTS / name).read())


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


TOMBSTONES = "tombstones"

BLANK = ""
"""`image_id` and `uri` of a row that was taken down. These fields aren't empty in any other row."""

DETAIL = "taken down after the catalog was pinned; a file in tombstones/ says why"
"""Detail of each row that was taken down."""

SAME_SOURCE = "its URI, bytes, or pixels were taken down under another row; a file in tombstones/ says why"
"""Detail of a row that a build rejects because a tombstone names its source."""

_ODD_URI = r"(?:^|[^:/])/\./|(?:^|/)\.\.?(?:/|$)|[^:]//|^/*//|/$|^[Ff][Ii][Ll][Ee]:|^[^/:]*[A-Z][^/:]*://"
"""Pattern that matches each URI that isn't in its plain form, and also a few others."""


class RemovedImage(Frozen):
    """Identifiers of a taken-down image in its dataset."""

    ordinal: ExactCount
    id: int = Field(ge=1, le=1 << 53)
    image_id: str
    uri: str
    sha256: str | None  # of the source's bytes, if a build read them
    shared: bool = False  # a remaining row has the same image_id, URI, bytes, or pixels, so these exclude no other row


class TakedownRequest(Frozen):
    """Request to take down the images that exactly one of `ids`, `license`, and `provider` selects."""

    ids: tuple[str, ...] | None = None
    license: str | None = None
    provider: str | None = None
    with_copies: bool = False  # for a license or provider: also other images with the same bytes or pixels
    with_similar: bool = False  # also images that look like these
    fingerprints: bool = True  # whether to store hashes that recognize copies of the images


class Tombstone(Frozen):
    """Record of one takedown."""

    schema_version: Literal[1] = 1
    request: TakedownRequest
    reason: str
    when: str  # UTC, YYYY-MM-DDTHH:MM:SSZ, when it was requested
    version_before: str | None = None  # the dataset's version digest before the takedown; set on put
    images: tuple[RemovedImage, ...]  # in ordinal order

    @property
    def name(self) -> str:
        """File name.

        It is a hash of all fields except `when` and `version_before`, so a repeated request has the same name.
        """
        value = self.model_dump(mode="json", exclude={"when", "version_before"})
        return f"{fingerprint(value)}.json"

    def to_json(self) -> bytes:
        """Return the bytes of the tombstone's file. Its field `digest` covers all other fields, including the time."""
        unknown = {"version_before"} if self.version_before is None else set()
        return json_with_digest(self.model_dump(mode="json", exclude=unknown))


def put_tombstone(dataset: Location, tombstone: Tombstone) -> None:
    """Put a tombstone. If the same takedown already has a tombstone, that file and its time stay unchanged."""
    (dataset / TOMBSTONES / tombstone.name).put_if_absent(tombstone.to_json())


def list_tombstones(dataset: Location) -> list[ObjectInfo]:
    """List the JSON files in the folder of the tombstones.

    Files of other kinds are ignored. A JSON file that isn't a tombstone is a damaged one, because it may have been
    renamed or overwritten.
    """
    return [entry for entry in (dataset / TOMBSTONES).list() if entry.name.endswith(".json")]


def read_tombstones(dataset: Location) -> list[Tombstone]:
    """Read all tombstones of a dataset, ordered by name. Raises `DamagedDatasetError` if a file is invalid.

    Every writer of a shard calls this function. Therefore, the process caches the tombstones that it has read.
    """
    return [_cached(dataset, TOMBSTONES, entry, _read_tombstone) for entry in list_tombstones(dataset)]


def damaged_tombstones(dataset: Location) -> dict[str, str]:
    """Return the problem with each damaged tombstone, keyed by its path below the dataset."""
    problems = {}
    for entry in list_tombstones(dataset):
        try:
            _read_tombstone(dataset, entry.name)
        except DamagedDatasetError as error:
            problems[f"{TOMBSTONES}/{entry.name}"] = str(error)
    return problems


def _read_tombstone(dataset: Location, name: str) -> Tombstone:
    """Read a tombstone, and check that its name and its digest match all of its bytes."""
    file = dataset / TOMBSTONES / name
    how = f"Run `segmint repair {dataset}` to find all damage"
    data = file.read()
    try:
        value = json.loads(data)
        if isinstance(value, dict):
            value.pop("digest", None)
        tombstone = Tombstone.model_validate(value)
    except ValidationError as error:
        raise DamagedDatasetError(f"{file} is not a tombstone: {wrong_fields(error)}. {how}") from error
    except (ValueError, RecursionError) as error:
        raise DamagedDatasetError(f"{file} is not a tombstone: {str(error)[:200]}. {how}") from error
    if tombstone.name != name or tombstone.to_json() != data:
        raise DamagedDatasetError(
            f"{file} was changed: expected the bytes that its name and its field digest cover. {how}"
        )
    return tombstone


def removed_images(tombstones: Iterable[Tombstone]) -> dict[int, RemovedImage]:
    """Return the taken-down images, keyed by ordinal."""
    return {image.ordinal: image for tombstone in tombstones for image in tombstone.images}


@dataclass(frozen=True)
class RemovedNames:
    """Identifiers of taken-down images. A row with any of these identifiers must not enter the dataset.

    `uris` contains plain forms (see `segmint.infra.uris.plain_forms`). `sha256` contains hashes of the sources' bytes,
    which some tombstones lack. `pictures` contains SHA-256 hashes of pixels and released JPEGs, from the images'
    fingerprints.
    """

    image_ids: frozenset[str] = frozenset()
    uris: frozenset[str] = frozenset()
    sha256: frozenset[str] = frozenset()
    pictures: frozenset[str] = frozenset()

    @classmethod
    def of(cls, images: Iterable[RemovedImage], catalog_uri: str | None = None) -> "RemovedNames":
        """Collect the identifiers of these images. `catalog_uri`, the source catalog's URI, resolves relative URIs."""
        images = list(images)
        own = [image for image in images if not image.shared]  # the image_ids of all images identify rows of the source
        return cls(
            frozenset(image.image_id for image in images),
            frozenset(form for image in own for form in plain_forms(image.uri, catalog_uri)),
            frozenset(image.sha256.lower() for image in own if image.sha256 is not None),
        )

    def names_source(self, uri: str, sha256: str | None = None) -> bool:
        """Return whether this URI, or the SHA-256 of the image's bytes, belongs to a taken-down image."""
        return sha256 in self.sha256 or (bool(self.uris) and plain_form(uri) in self.uris)

    def names_picture(self, row: Row) -> bool:
        """Return whether the URI, source bytes, pixels, or JPEG of a released row belong to a taken-down image."""
        same = row["pixels_sha256"] in self.pictures or row["release_sha256"] in self.pictures
        return same or self.names_source(row["uri"], row["source_sha256"])

    def any_of(self, image: RemovedImage) -> bool:
        """Return whether the image_id, URI, or SHA-256 of this image belongs to a taken-down image."""
        return image.image_id in self.image_ids or self.names_source(image.uri, image.sha256)

    def marks(self, rows: pa.RecordBatch) -> pa.BooleanArray:
        """Return a mask of the catalog rows that have one of these identifiers.

        Comparing plain forms one by one is slow, so only URIs that match `_ODD_URI` are converted.
        """
        uris = rows.column("uri")
        odd = pc.indices_nonzero(pc.match_substring_regex(uris, _ODD_URI))
        if self.uris and len(odd):
            plain = uris.to_pylist()
            for index in odd.to_pylist():
                plain[index] = plain_form(plain[index])
            uris = pa.array(plain, pa.string())
        found = pc.is_in(uris, value_set=pa.array(sorted(self.uris), pa.string()))
        for column, values in (("image_id", self.image_ids), ("sha256", self.sha256)):
            found = pc.or_(found, pc.is_in(rows.column(column), value_set=pa.array(sorted(values), pa.string())))
        return found


NO_NAMES = RemovedNames()
"""Identifiers in a dataset without tombstones."""


@dataclass(frozen=True)
class Removals:
    """All takedowns of a dataset."""

    images: Mapping[int, RemovedImage]  # by ordinal
    names: RemovedNames

    def of_ordinals(self, start: int, stop: int) -> frozenset[int]:
        """Return the ordinals in [start, stop) whose images were taken down."""
        return frozenset(ordinal for ordinal in range(start, stop) if ordinal in self.images)


def read_removals(dataset: Location, catalog_uri: str | None = None) -> Removals | None:
    """Read all takedowns of a dataset. Returns None if it has no tombstones.

    `catalog_uri` is as in `RemovedNames.of`.
    """
    images = removed_images(read_tombstones(dataset))
    if not images:
        return None
    own = {image.id for image in images.values() if not image.shared}
    pictures = frozenset(sha256 for id, each in digests_of(dataset).items() if id in own for sha256 in each)
    return Removals(images, replace(RemovedNames.of(images.values(), catalog_uri), pictures=pictures))


def digests_of(dataset: Location) -> dict[int, frozenset[str]]:
    """Return the SHA-256 hashes of pixels and former JPEGs from all fingerprints, keyed by the image's number."""
    return {id: each.digests for id, each in by_image(read_fingerprints(dataset).values()).items()}


def by_shard(ordinals: Iterable[int], images_per_shard: int) -> dict[int, frozenset[int]]:
    """Group ordinals by shard, in shard order."""
    found: dict[int, set[int]] = {}
    for ordinal in sorted(ordinals):
        found.setdefault(ordinal // images_per_shard, set()).add(ordinal)
    return {shard: frozenset(each) for shard, each in found.items()}


def is_taken_down(row: Row) -> bool:
    """Return whether a takedown has emptied this row of the normalized catalog."""
    return bool(row["image_id"] == BLANK)
