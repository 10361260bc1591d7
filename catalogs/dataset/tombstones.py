"""`tombstones/`: what was taken down, why and when. Nothing else in a dataset names an image that was taken down."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from segmint.catalogs.layout import DamagedDatasetError, canonical_json, fingerprint, wrong_fields
from segmint.infra.storage.location import Location

TOMBSTONES = "tombstones"

BLANK = ""
"""The `image_id` and `uri` of an image that was taken down; no other row has them empty."""

DETAIL = "taken down after the catalog was pinned; a file in tombstones/ says why"
"""The detail of every row that was taken down."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TakenImage(_Frozen):
    """An image as the dataset named it."""

    ordinal: int = Field(ge=0)
    id: int = Field(ge=1)
    image_id: str
    uri: str
    sha256: str | None  # of the source's bytes, if the catalog or the build knew it


class Asked(_Frozen):
    """A request to take images down: exactly one of `ids`, `license` and `provider`."""

    ids: tuple[str, ...] | None = None
    license: str | None = None
    provider: str | None = None


class Tombstone(_Frozen):
    """One takedown."""

    schema_version: Literal[1] = 1
    asked: Asked
    reason: str
    when: str  # UTC, YYYY-MM-DDTHH:MM:SSZ, when it was asked for
    images: tuple[TakenImage, ...]  # in order of ordinals

    @property
    def name(self) -> str:
        """The file's name, a hash of everything but `when`: the same request finds it again."""
        value = self.model_dump(mode="json", exclude={"when"})
        return f"{fingerprint(value)}.json"

    def to_json(self) -> bytes:
        """Return the bytes of the tombstone's file."""
        return canonical_json(self.model_dump(mode="json"))


def put_tombstone(dataset: Location, tombstone: Tombstone) -> None:
    """Put a tombstone if the same takedown has none; an existing one keeps its time."""
    (dataset / TOMBSTONES / tombstone.name).put_if_absent(tombstone.to_json())


def read_tombstones(dataset: Location) -> list[Tombstone]:
    """Read all tombstones of a dataset, by name; raises `DamagedDatasetError` for any other file."""
    found = []
    for entry in (dataset / TOMBSTONES).list():
        file = dataset / TOMBSTONES / entry.name
        try:
            found.append(Tombstone.model_validate(json.loads(file.read())))
        except ValidationError as error:
            raise DamagedDatasetError(f"{file} is not a tombstone: {wrong_fields(error)}") from error
        except (ValueError, RecursionError) as error:
            raise DamagedDatasetError(f"{file} is not a tombstone: {str(error)[:200]}") from error
    return found


def taken_images(tombstones: Iterable[Tombstone]) -> dict[int, TakenImage]:
    """Return the images that were taken down, by ordinal."""
    return {image.ordinal: image for tombstone in tombstones for image in tombstone.images}


def by_shard(ordinals: Iterable[int], images_per_shard: int) -> dict[int, frozenset[int]]:
    """Group ordinals by their shard, in order of shards."""
    found: dict[int, set[int]] = {}
    for ordinal in sorted(ordinals):
        found.setdefault(ordinal // images_per_shard, set()).add(ordinal)
    return {shard: frozenset(each) for shard, each in found.items()}


def is_taken_down(row: Mapping[str, Any]) -> bool:
    """Whether a row of the normalized catalog was blanked by a takedown."""
    return bool(row["image_id"] == BLANK)
