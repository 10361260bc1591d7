"""Outputs of commands about a dataset: allowed locations, and notes of them.

A command that writes an output outside the dataset adds a note, `outputs/<hash>.json`, to the dataset. A takedown uses
the notes to list all outputs. If the output is near the dataset, the note contains the relative path from the dataset.
Otherwise, it contains only the output's name, so that the dataset doesn't reveal folder names on somebody's disk. An
export lists its files in `segmint-files.jsonl` in its own folder, and its note contains the hash of that list.
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
"""File in an export's folder: a line about the export, then the path, size, and SHA-256 of each exported file."""

_FAR = "../../../"
"""Prefix of the relative path of an output that is too far from the dataset. Such a path would reveal folder names."""


class OutputNote(Frozen):
    """Note of a report, an export, or another output that a command created from a dataset."""

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
        """Name of the note's file. It is a hash of the note's content, so an identical note isn't stored twice."""
        return f"{fingerprint(self.model_dump(mode='json'))}.json"

    def to_json(self) -> bytes:
        return canonical_json(self.model_dump(mode="json"))

    def location(self, dataset: Location) -> Location | None:
        """Return the output's location, or None if the note doesn't contain a path to it."""
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
    """Add a note of an output to its dataset.

    `place` is the output's folder, or the output itself if it is a single file. `files` maps the paths of the main
    files, relative to `place`, to their SHA-256. `OutputNote` describes the other arguments. Outputs in the dataset's
    `report/` don't need a note. If the note can't be written, only a warning is logged.
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
    """Format notes, given as lines from `line_of`, for people, together with advice.

    `dataset` is the path or URI of the dataset, to which the paths in the lines are relative. If a local output isn't
    at its path, only its name is shown, because the output may have been moved, or the dataset may be a copy.
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
    """Read the notes of a dataset's outputs. Raises `DamagedDatasetError` if a file is invalid.

    An export adds a note when it starts and another when it is complete. If both exist, only the second is returned.
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
    """Return a fingerprint of a location, which identifies the location in a note without revealing it."""
    if scheme(place.uri) != LOCAL:
        return fingerprint(place.uri.rstrip("/"))
    return fingerprint([platform.node(), os.path.realpath(local_path(place.uri))])


def _is_beside(dataset: Location, place: Location) -> bool:
    """Return whether a location is on the dataset's disk or in its bucket.

    If so, either both are reachable or neither is.
    """
    (root, here), (other_root, there) = _root_and_path(dataset), _root_and_path(place)
    if root or other_root:
        return root == other_root
    own, other = (next(each for each in (path, *path.parents) if each.exists()) for path in (Path(here), Path(there)))
    return own.stat().st_dev == other.stat().st_dev


def _place(dataset: Location, folder: Location) -> str:
    """Return the relative path from the dataset to a folder. If the folder is too far away, return only its name."""
    (root, here), (other_root, there) = _root_and_path(dataset), _root_and_path(folder)
    place = PurePosixPath(os.path.relpath(there, here)).as_posix()
    return folder.name if root != other_root or f"{place}/".startswith(_FAR) else place


def _root_and_path(place: Location) -> tuple[str, str]:
    """Split a location into its bucket ("" for local files) and the absolute path there, with links resolved."""
    if scheme(place.uri) == LOCAL:
        return "", os.path.realpath(local_path(place.uri))
    bucket, _, key = place.uri.partition("://")[2].partition("/")
    return f"{scheme(place.uri)}://{bucket}", f"/{key}"


def refuse_inside(dataset: Location, target: Location, option: str) -> None:
    """Raise `UsageError` if `target`, given as `option`, is inside the dataset but not in its `report/`.

    A takedown deletes `report/`. In any other folder of the dataset, it wouldn't find files that name an image.
    """
    allowed = not is_below(target.uri, dataset.uri) or is_below(target.uri, (dataset / REPORT).uri)
    if not allowed and manifest_generations(dataset):
        raise UsageError(
            f"{option}: {target} is inside the dataset {dataset}, where a takedown would not find it: choose a place "
            f"outside, or in {dataset / REPORT}"
        )
