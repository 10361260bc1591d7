"""Outputs of commands about a dataset: allowed locations, and notes of them.

If a command stores an output outside the dataset, it adds a note, `outputs/<hash>.json`, so that a takedown can list
the output. The note contains the output's location relative to the dataset if it is nearby. Otherwise, it contains only
a name, to reveal nothing about anyone's disk. An export lists its files in its own `segmint-files.jsonl`, and the note
contains that list's hash.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import ValidationError

from segmint.catalogs.dataset.manifest import manifest_generations, read_dataset_id
from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import REPORT, DamagedDatasetError, canonical_json, fingerprint, is_known
from segmint.infra.errors import UsageError
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import LOCAL, base_name, is_below, local_path, scheme

OUTPUTS = "outputs"

FILES_LIST = "segmint-files.jsonl"
"""List of an export's files in its folder: a line about the export, then path, size, and SHA-256 of each file."""

_FAR = "../../../"
"""Prefix of a relative path that is too far from the dataset; it would reveal folder names of a machine."""


class OutputNote(Frozen):
    """A report, an export, or another file made from a dataset."""

    schema_version: Literal[1] = 1
    command: str  # that made it, such as "export"
    place: str  # its folder or only file: relative to the dataset, or a base name if it is too far away
    files: dict[str, str]  # SHA-256 of files that describe its content, by path below the folder
    dataset_id: str | None  # None for a dataset without an id
    listed: str | None = None  # SHA-256 of an export's list of files
    count: int | None = None  # files in that list
    complete: bool = True  # False for an export that was started
    where: str  # fingerprint of the absolute location, and of the machine if it's local
    beside: bool  # True on the dataset's disk or in its bucket

    @property
    def name(self) -> str:
        """Name of the note's file; the same output always has the same note."""
        return f"{fingerprint(self.model_dump(mode='json'))}.json"

    def to_json(self) -> bytes:
        """Return the bytes of the note's file."""
        return canonical_json(self.model_dump(mode="json"))

    def location(self, dataset: Location) -> Location | None:
        """Return where the output was put, or None if that can't be derived from the dataset's location."""
        if self.place.partition("/")[0] != "..":
            return None
        root, here = _root_and_path(dataset)
        return Location(dataset.storage, root + os.path.normpath(f"{here}/{self.place}"))


def note_output(
    dataset: Location,
    command: str,
    place: Location,
    files: Mapping[str, str],
    listed: str | None = None,
    count: int | None = None,
    *,
    complete: bool = True,
) -> None:
    """Note an output in its dataset. `files` maps the main files' paths below `place` to their SHA-256.

    `place` is a folder, or the output itself if it is a single file. The other arguments are fields of `OutputNote`.
    Outputs in the dataset's `report/` need no note. If the dataset isn't writable, a warning is logged instead.
    """
    if is_below(place.uri, dataset.uri) or not manifest_generations(dataset):
        return
    known = {"dataset_id": read_dataset_id(dataset), "where": where_is(place), "beside": _is_beside(dataset, place)}
    listing = {"files": dict(files), "listed": listed, "count": count, "complete": complete}
    note = OutputNote.model_validate({"command": command, "place": _place(dataset, place)} | known | listing)
    try:
        (dataset / OUTPUTS / note.name).put_if_absent(note.to_json())
    except (StorageFaultError, UsageError, OSError) as error:
        get_logger("outputs").warning(
            "not_noted", dataset=str(dataset), output=note.place, error=str(error), note="a takedown will not list it"
        )


def line_of(note: OutputNote) -> str:
    """Return a note as a line of text."""
    files = f": {', '.join(sorted(note.files)[:5])}" if note.files else ""
    return f"{note.place} (segmint {note.command}{files})"


def shown_outputs(dataset: str, lines: Sequence[str], advice: str) -> list[str]:
    """Format the lines of `line_of` for people, with advice.

    `dataset` is the path or URI of the dataset, to which the paths in the lines are relative. If nothing exists at a
    local output's path, only the output's name is shown: the output may have been moved, or the dataset may be a copy.
    """
    return [f"created from this dataset, {advice}: {_shown(dataset, line)}" for line in lines]


def _shown(dataset: str, line: str) -> str:
    place, mark, rest = line.partition(" (segmint ")
    if place.partition("/")[0] == "..":
        if scheme(dataset) != LOCAL:
            root, here = _root_and_path(Location(Storage(), dataset))
            return f"{root}{os.path.normpath(f'{here}/{place}')}{mark}{rest}"
        for folder in (str(local_path(dataset)), os.path.realpath(local_path(dataset))):
            path = os.path.normpath(f"{folder}/{place}")
            if os.path.exists(path):  # noqa: PTH110 (unlike `Path`, raises no errors)
                return f"{path}{mark}{rest}"
    return f"{base_name(place)}{mark}{rest}, in another place"


def read_notes(dataset: Location) -> list[OutputNote]:
    """Read the notes of a dataset's outputs; raises `DamagedDatasetError` for an invalid file.

    A complete export has two notes, one from its start and one from its end; only the second is returned.
    """
    notes = []
    for entry in (each for each in (dataset / OUTPUTS).list() if is_known(f"{OUTPUTS}/{each.name}")):
        file = dataset / OUTPUTS / entry.name
        try:
            notes.append(OutputNote.model_validate(json.loads(file.read())))
        except (ValidationError, ValueError, RecursionError) as error:
            raise DamagedDatasetError(f"{file} is not the note of an output: {error}") from error
    completed = {(note.command, note.where) for note in notes if note.complete}
    return [note for note in notes if note.complete or (note.command, note.where) not in completed]


def where_is(place: Location) -> str:
    """Return a fingerprint of a location; a note that contains it doesn't reveal the location."""
    if scheme(place.uri) != LOCAL:
        return fingerprint(place.uri.rstrip("/"))
    return fingerprint([platform.node(), os.path.realpath(local_path(place.uri))])


def _is_beside(dataset: Location, place: Location) -> bool:
    """Return whether a location is on the dataset's disk or in its bucket, so either both are reachable or neither."""
    (root, here), (other_root, there) = _root_and_path(dataset), _root_and_path(place)
    if root or other_root:
        return root == other_root
    own, other = (next(each for each in (path, *path.parents) if each.exists()) for path in (Path(here), Path(there)))
    return own.stat().st_dev == other.stat().st_dev


def _place(dataset: Location, folder: Location) -> str:
    """Return the relative path from the dataset to a folder near it, else the folder's name."""
    (root, here), (other_root, there) = _root_and_path(dataset), _root_and_path(folder)
    place = PurePosixPath(os.path.relpath(there, here)).as_posix()
    return folder.name if root != other_root or f"{place}/".startswith(_FAR) else place


def _root_and_path(place: Location) -> tuple[str, str]:
    """Return the bucket of a location ("" for local files), and its absolute path there, with links resolved."""
    if scheme(place.uri) == LOCAL:
        return "", os.path.realpath(local_path(place.uri))
    bucket, _, key = place.uri.partition("://")[2].partition("/")
    return f"{scheme(place.uri)}://{bucket}", f"/{key}"


def refuse_inside(dataset: Location, target: Location, option: str) -> None:
    """Raise `UsageError` if `target`, given as `option`, is in the dataset but not in its `report/`.

    A takedown deletes `report/`, but it wouldn't find an image's name in a file elsewhere in the dataset.
    """
    allowed = not is_below(target.uri, dataset.uri) or is_below(target.uri, (dataset / REPORT).uri)
    if not allowed and manifest_generations(dataset):
        raise UsageError(
            f"{option}: {target} is inside the dataset {dataset}, where a takedown would not find it: choose a place "
            f"outside, or in {dataset / REPORT}"
        )
