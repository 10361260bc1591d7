"""Annotation files of an image, as canonical JSON.

Each file is written once and never changed. If the image is taken down, its files are deleted.
"""

from collections.abc import Callable
from typing import Annotated, Self, TypeVar

from pydantic import ConfigDict, Field, ValidationError

from segmint.catalogs.dataset.tombstones import read_tombstones, removed_images
from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import canonical_json, wrong_fields
from segmint.infra.errors import SegmintError
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location

SavedAt = Annotated[str, Field(pattern=r"\A\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\z")]
"""Time of a save: UTC, in whole seconds."""


class RemovedImageError(SegmintError):
    """The image was taken down, so a new file for it was not kept."""


class SavedRecord(Frozen):
    """Content of an annotation file."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    saved_at: SavedAt

    def to_json(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))

    def same_work(self, other: Self) -> bool:
        """Return whether another record differs only in the time of the save, as after a retried save."""
        return self.model_copy(update={"saved_at": other.saved_at}) == other


S = TypeVar("S", bound=SavedRecord)


def parse_saved(kind: type[S], data: bytes, problem: Callable[[str], SegmintError]) -> S:
    """Parse an annotation file. Raises the error that `problem` creates if the file is invalid."""
    try:
        saved = kind.model_validate_json(data)
    except ValidationError as error:
        raise problem(wrong_fields(error)) from error
    if saved.to_json() != data:
        raise problem("it is not in canonical form")
    return saved


def read_saved(file: Location, most: int, problem: type[SegmintError]) -> bytes:
    """Read a file of up to `most` bytes. Raises `problem` if the file is larger or missing."""
    try:
        return file.read(most)
    except NotFoundError as error:
        raise problem(f"{file} is gone") from error
    except ObjectTooLargeError as error:
        raise problem(f"{file} has {error.size:,} bytes: expected at most {most:,}") from error


def put_saved(dataset: Location, path: str, data: bytes, ordinal: int, kind: str) -> bool:
    """Write an annotation file of an image if its name is free, and return whether the store now contains this file.

    This never changes an existing file. If the image was taken down, it deletes the new file again and raises
    `RemovedImageError`. A takedown at the same time can't be missed: this function writes the file before it reads the
    tombstones, and a takedown writes its tombstone before it lists the files. `kind` is the plural name of such files,
    for messages.
    """
    file = dataset / path
    won = file.put_if_absent(data)
    if ordinal in removed_images(read_tombstones(dataset)):
        file.purge()
        raise RemovedImageError(f"image {ordinal + 1} was taken down: its {kind} are not kept")
    return won
