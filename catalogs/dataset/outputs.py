"""What uses a dataset outside of it: recorded outputs, and training's cache on a machine's disk.

Outputs of commands about a dataset: allowed locations, and notes of them.

A command that writes an output outside the dataset adds a note, `outputs/<hash>.json`, to the dataset. A takedown uses
the notes to list all outputs. If the output is near the dataset, the note contains the relative path from the dataset.
Otherwise, it contains only the output's name, so that the dataset doesn't reveal folder names on somebody's disk. An
export lists its files in `segmint-files.jsonl` in its own folder, and its note contains the hash of that list.

Training's cache of images on a machine's disk: its location, size limit, and deletion with the reader's cache.

The cache stores embeddings as `embeddings/<dataset>/<weights>/<SHA-256 of the JPEG>.npy`, and shard scans with their
thumbnails as `scans/<dataset>/<SHA-256 of the tar>.npz`. Takedowns use this file, so it must not import torch.
"""

import fcntl
import json
import os
import platform
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import Literal

from pydantic import ValidationError

from segmint.catalogs.dataset.manifest import dataset_keys, manifest_generations, put_dataset_id, read_dataset_id
from segmint.catalogs.dataset.reading.cache import SHARD_CACHE, drop_stale
from segmint.catalogs.frozen import Frozen
from segmint.catalogs.layout import REPORT, DamagedDatasetError, canonical_json, fingerprint, is_known
from segmint.infra.assets import cache_folder
from segmint.infra.errors import UsageError
from segmint.infra.log import get_logger
from segmint.infra.storage.errors import StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import LOCAL, absolute, base_name, is_below, local_path, scheme
from segmint.infra.wording import counted

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
    notes = [_read_note(dataset / path) for path in _note_paths(dataset)]
    completed = {(note.command, note.where) for note in notes if note.complete}
    return [note for note in notes if note.complete or (note.command, note.where) not in completed]


def damaged_notes(dataset: Location) -> dict[str, str]:
    """Return the problem with each damaged note, keyed by its path below the dataset."""
    problems = {}
    for path in _note_paths(dataset):
        try:
            _read_note(dataset / path)
        except DamagedDatasetError as error:
            problems[path] = str(error)
    return problems


def _note_paths(dataset: Location) -> list[str]:
    paths = (f"{OUTPUTS}/{entry.name}" for entry in (dataset / OUTPUTS).list())
    return [path for path in paths if is_known(path)]


def _read_note(file: Location) -> OutputNote:
    try:
        return OutputNote.model_validate(json.loads(file.read()))
    except (ValidationError, ValueError, RecursionError) as error:
        raise DamagedDatasetError(f"{file} is not the note of an output: {error}") from error


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


CACHE = "cache"
"""Name of the cache folder in a local output. The configuration can name another folder."""

OTHER_CACHES = (
    "caches in other folders and on other machines were not looked at: a reader or a training run deletes the outdated "
    "files when it next opens this dataset with such a cache"
)
"""Line to print after the lines from `forget_dataset`."""

EMBEDDINGS, SCANS = "embeddings", "scans"

_USED = "embeddings.used"
_FILES = {
    EMBEDDINGS: re.compile(r"[^/]+/[0-9a-f]{64}\.npy", re.ASCII),
    SCANS: re.compile(r"[0-9a-f]{64}\.npz", re.ASCII),
}


def default_cache() -> Location:
    """Return the location of the cache for training runs whose output is not on this machine's disk."""
    return Location(Storage(), str(cache_folder() / "train"))


class CacheSize:
    """Total size in bytes of the embeddings in a folder. Processes share it in a locked file next to the embeddings."""

    def __init__(self, folder: Location) -> None:
        self._file = local_path(absolute((folder / _USED).uri))

    @contextmanager
    def locked(self) -> Iterator["LockedCount"]:
        """Lock the total. Until the lock is released, no other process or thread adds or deletes embeddings."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self._file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield LockedCount(file)
        finally:
            os.close(file)


class LockedCount:
    """Number of used bytes, stored in an open file. If a process dies between two writes, the number is too large."""

    def __init__(self, file: int) -> None:
        self._file = file

    def get(self) -> int:
        """Return the number of bytes, or 0 if the file doesn't contain a number."""
        text = os.pread(self._file, 32, 0)
        return int(text) if text.strip().isdigit() else 0

    def set(self, count: int) -> None:
        """Write the number of bytes."""
        os.pwrite(self._file, f"{max(0, count):<32d}".encode(), 0)


def recount(folder: Location) -> dict[str, int]:
    """Measure the embeddings in a cache's folder again, and store the total.

    Returns each file's size in bytes by path. The total includes unfinished files of killed processes.
    """
    with CacheSize(folder).locked() as used:
        sizes = {entry.name: entry.size for entry in (folder / EMBEDDINGS).walk(include_temporary=True)}
        used.set(sum(sizes.values()))
    return sizes


def purge_scans(folder: Location, dataset: str, tars: Collection[str]) -> None:
    """Delete the shard scans of the dataset with this key, except the scans of tars with these SHA-256 hashes."""
    kept = {f"{sha256}.npz" for sha256 in tars}
    for entry in (folder / SCANS / dataset).list(include_temporary=True):
        if entry.name not in kept:
            (folder / SCANS / dataset / entry.name).delete()


def forget_dataset(dataset: Location) -> list[str]:
    """Delete a dataset's removed images from the caches on this machine, and return lines of text about them.

    This covers the machine's default caches, and the training caches near the dataset that the dataset's notes name. In
    a training cache, it deletes everything about the dataset, and the next run recreates what it needs. The lines also
    report files that are in use or can't be deleted.

    If `id.json` is missing or damaged, some caches can't be found. In that case, a line says so, and this function
    creates `id.json`.
    """
    places: dict[str, str] = {}
    with suppress(UsageError):  # without a home folder, there is no default cache
        places[default_cache().uri] = "this machine's training cache"
    for note in read_notes(dataset):
        place = note.location(dataset) if note.command == "train" else None
        if place is not None and scheme(place.uri) == LOCAL:
            places |= {place.uri: note.place, (place / CACHE).uri: f"{note.place}/{CACHE}"}
    lines, keys = _forget_shards(dataset), dataset_keys(dataset)
    if read_dataset_id(dataset) is None:
        lines.append("not checked: caches of this machine: id.json was missing or damaged")
        put_dataset_id(dataset)
    for uri, name in places.items():
        try:
            count = sum(_forget(Location(Storage(), uri), key) for key in keys)
        except (StorageFaultError, OSError) as error:
            lines.append(f"{name}: some embeddings and thumbnails could not be deleted; delete them yourself: {error}")
            continue
        if count:
            lines.append(f"{name}: {counted(count, 'file')} of embeddings and thumbnails deleted")
    return lines


def _forget_shards(dataset: Location) -> list[str]:
    """Delete outdated copies from the default cache of readers, and return lines of text about them."""
    name = "this machine's shard cache"
    try:
        folder = cache_folder() / SHARD_CACHE
    except UsageError:  # without a home folder, there is none
        return []
    try:
        deleted, used = drop_stale(folder, dataset)
    except (StorageFaultError, UsageError, OSError) as error:
        return [f"{name}: some copies of shards could not be deleted; delete them yourself: {error}"]
    later = "outdated ones are deleted when a reader next opens the dataset or starts an epoch"
    return [
        *([f"{name}: {counted(deleted, 'outdated file')} deleted"] if deleted else []),
        *([f"{name}: {counted(used, 'outdated or unfinished file')} in use; {later}"] if used else []),
    ]


def _forget(folder: Location, key: str) -> int:
    """Delete a dataset's embeddings and shard scans from a cache, and return the number of deleted files."""
    count = 0
    for kind, names in _FILES.items():
        own = folder / kind / key
        path = local_path(own.uri)
        if path.is_symlink() or not path.is_dir():
            continue
        for entry in list(own.walk(include_temporary=True)):
            # A note may name any folder, so only a cache's own files are deleted.
            if names.fullmatch(entry.name) or base_name(entry.name).startswith(TEMPORARY_PREFIX):
                (own / entry.name).delete()
                count += 1
        if kind == EMBEDDINGS:
            recount(folder)
    return count
