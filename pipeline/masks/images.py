"""Photographs and boxes that `segmint masks` is given. Does not import torch.

Discovery of photographs from files, URIs, folders, and patterns. Does not import torch.

Boxes of a COCO file or YOLO labels, from which `segmint masks --boxes` makes masks. Does not import torch.
"""

import glob
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from segmint.catalogs.layout import IMAGE_ENDINGS, json_sha256
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError, StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import LOCAL, UriNotAllowedError, absolute, base_name, child, local_path, scheme
from segmint.infra.wording import counted, some
from segmint.operators.annotations.coco import parse_coco, read_coco_boxes
from segmint.operators.annotations.image import yolo_boxes

OVERLAY = ".overlay.png"
NEXT_TO = ".masks"
"""Infix between a photograph's name and the extension of an output next to it, as in `photo.masks.json`."""

CUTOUTS = ".cutouts"
"""Suffix of folders for cut-out objects. These folders aren't searched for photographs."""

DRAWN = (OVERLAY, f"{NEXT_TO}.png")
"""Suffixes of drawings of masks. Such files aren't treated as photographs."""


@dataclass(frozen=True)
class Photograph:
    """Photograph: its path or URI, and its relative path in the output tree, such as `street/a.jpg`."""

    name: str
    place: str


@dataclass(frozen=True)
class Photographs:
    """Photographs that the arguments name. `is_one` is True for a single file, as opposed to a folder or pattern.

    `passed_over` lists the skipped entries of folders that may be photographs, and `unreadable` lists the folders that
    can't be read. Both include the reason.
    """

    images: tuple[Photograph, ...]
    is_one: bool
    passed_over: tuple[str, ...] = ()
    unreadable: tuple[str, ...] = ()


def find_photographs(storage: Storage, arguments: Sequence[str], *, recursive: bool) -> Photographs:
    """Return the photographs that the arguments name, without duplicates.

    Files and URIs keep their order; all other photographs are sorted by name. A folder, or a prefix that ends with a
    slash, selects the photographs in it, and with `recursive` also the photographs in its subfolders. A pattern such as
    `photos/**/*.jpg` selects its matches.

    Raises `UsageError` if files are missing, or if folders or patterns contain no photographs. Raises
    `StorageFaultError` if nothing is found because folders can't be read.
    """
    absent = [name for name in arguments if _is_absent(name)]
    if absent:
        streams = [name for name in absent if local_path(name).exists()]
        if streams:
            raise UsageError(f"{some(streams)}: a pipe or device; expected a file, folder, or pattern")
        raise UsageError(f"no such file: {some(absent)}")
    found: dict[str, Photograph] = {}
    unusable: list[str] = []
    unreadable: list[str] = []
    is_one = len(arguments) == 1
    for argument in arguments:
        if _is_folder(argument):
            several: list[Photograph] | None = _of_folder(storage, argument, recursive, unreadable)
        else:
            several = _of_pattern(argument, unreadable)
        is_one &= several is None
        for image in (Photograph(argument, base_name(argument)),) if several is None else several:
            try:
                found.setdefault(absolute(image.name), image)
            except UriNotAllowedError as error:
                if several is None:
                    raise
                unusable.append(f"{error}. Rename the photograph.")
    if not found and unreadable:
        raise StorageFaultError(f"no photographs found: {some(unreadable)}")
    if not found:
        raise UsageError(f"no photograph has a usable name: {unusable[0]}")
    folders = [name for name in arguments if is_local(name) and _is_folder(name)]
    passed_over = tuple(line for folder in folders for line in _passed_over(local_path(folder), recursive))
    unread = tuple(dict.fromkeys(unreadable))
    return Photographs(tuple(found.values()), is_one, (*unusable, *passed_over), unread)


def is_local(name: str) -> bool:
    """Return whether a path or URI is on the local file system."""
    return scheme(name) == LOCAL


def _is_absent(name: str) -> bool:
    if not is_local(name):
        return False
    path = local_path(name)
    is_hidden = os.path.isdir(path.parent) and not _is_readable(path.parent)  # noqa: PTH112 (as below)
    return not (os.path.isfile(path) or os.path.isdir(path) or glob.has_magic(str(path)) or is_hidden)  # noqa: PTH112, PTH113


def _is_folder(name: str) -> bool:
    # In an unreadable folder, the methods of `Path` raise `PermissionError`.
    return os.path.isdir(local_path(name)) if is_local(name) else name.endswith("/")  # noqa: PTH112


def _of_folder(storage: Storage, folder: str, recursive: bool, unreadable: list[str]) -> list[Photograph]:
    own: list[str] = []
    names = sorted(_photographs_in(storage, folder, recursive, own))
    if not names and not own:
        deeper = [] if recursive else list(_photographs_in(storage, folder, True, own))
        advice = f"; its subfolders contain {len(deeper):,}. Pass --recursive." if deeper else ""
        raise UsageError(f"{folder} contains no photographs ({', '.join(IMAGE_ENDINGS)}){advice}")
    unreadable += own
    return [Photograph(child(folder, name), name) for name in names]


def _photographs_in(storage: Storage, folder: str, recursive: bool, unreadable: list[str]) -> Iterator[str]:
    if not is_local(folder):
        location = Location(storage, folder)
        return _photographs_of(entry.name for entry in (location.walk() if recursive else location.list()))
    top = local_path(folder)
    paths = (root / name for root, _, names in _walk(top, recursive, unreadable) for name in _photographs_of(names))
    return (path.relative_to(top).as_posix() for path in paths if path.is_file())


def _walk(top: Path, recursive: bool, unreadable: list[str]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Yield each local folder with its subfolders and files.

    Skip hidden folders, and add unreadable ones to `unreadable`.
    """
    for root, folders, files in os.walk(top, onerror=lambda error: unreadable.append(_said(error.filename))):
        folders[:] = sorted(name for name in folders if not _is_hidden(name))
        if not _is_readable(root):
            unreadable.append(_said(root))
            folders.clear()
            continue
        yield Path(root), folders, files
        if not recursive:
            return


def _is_readable(folder: str | Path) -> bool:
    return os.access(folder, os.R_OK | os.X_OK, effective_ids=True)


def _said(folder: str | Path) -> str:
    return f"{folder}: the folder can't be read"


def _passed_over(folder: Path, recursive: bool) -> Iterator[str]:
    """Yield a line for each skipped entry of a local folder: subfolders, links to folders, broken links, and pipes."""
    for root, folders, files in _walk(folder, recursive, []):
        for name in folders:
            if recursive and (root / name).is_symlink():
                yield f"{root / name}: a link to a folder; pass its path to include the contents"
        for path in (root / name for name in sorted(_photographs_of(files))):
            if not path.is_file():
                yield f"{path}: {'a broken link' if path.is_symlink() else 'a pipe or device'}"
        if not recursive:
            below = [name for name in folders if _holds_photographs(root / name)]
            if below:
                yield f"{folder} has photographs in subfolders ({some(below)}); pass --recursive to include them"


def _holds_photographs(folder: Path) -> bool:
    return not folder.is_symlink() and any(any(_photographs_of(files)) for _, _, files in os.walk(folder))


def _photographs_of(names: Iterable[str]) -> Iterator[str]:
    for name in names:
        if name.lower().endswith(IMAGE_ENDINGS) and not name.endswith(DRAWN) and not _is_hidden(name):
            yield name


def _is_hidden(name: str) -> bool:
    return any(
        part.startswith(".") or part == "__MACOSX" or part.endswith(CUTOUTS) for part in PurePosixPath(name).parts
    )


def _of_pattern(argument: str, unreadable: list[str]) -> list[Photograph] | None:
    """Return the photographs that match a pattern, or None if the argument is a file name or a URI.

    The photographs' places are relative to the last folder before a wildcard. Folders that may contain matches but
    can't be read are added to `unreadable`.
    """
    if not is_local(argument) or os.path.isfile(local_path(argument)):  # noqa: PTH113 (as in `_is_folder`)
        return None
    steps = local_path(argument).parts
    steps = (*steps, "*") if steps[-1] == "**" else steps  # before Python 3.13, a trailing `**` matches only folders
    fixed = next((index for index, step in enumerate(steps) if glob.has_magic(step)), len(steps) - 1)
    root, rest = Path(*steps[:fixed]), str(Path(*steps[fixed:]))
    try:
        matches = [path.relative_to(root).as_posix() for path in root.glob(rest) if os.path.isfile(path)]  # noqa: PTH113
        outer = [root]
        for end in range(fixed + 1, len(steps)):
            outer += root.glob("/".join(steps[fixed:end]))
    except (ValueError, NotImplementedError) as error:
        raise UsageError(f"{argument!r} is not a valid pattern: {error}") from None
    folders = [path for path in outer if not _is_hidden(str(path.relative_to(root))) and os.path.isdir(path)]  # noqa: PTH112
    unread = [_said(folder) for folder in dict.fromkeys(folders) if not _is_readable(folder)]
    unreadable += unread
    places = sorted(_photographs_of(matches))
    if not places and not unread:
        raise UsageError(f"no photograph matches {argument!r} ({', '.join(IMAGE_ENDINGS)})")
    return [Photograph(str(root / place), place) for place in places]


@dataclass(frozen=True)
class PhotographBoxes:
    """Boxes of a file or folder, read before a run.

    - `file`: the file or folder.
    - `images`: the name of each image, and its boxes as a value of `PROMPTS`. YOLO's names have no endings.
    - `with_endings`: whether names have endings.
    - `unreadable`: a line for each box and image that can't be read, and is left out.
    - `crowds`: number of boxes around groups of objects, which are left out.
    """

    file: str
    images: tuple[tuple[str, Mapping[str, Any]], ...]
    with_endings: bool
    unreadable: tuple[str, ...] = ()
    crowds: int = 0

    @property
    def sha256(self) -> str:
        """SHA-256 of the names and boxes."""
        return json_sha256(self.images)

    @property
    def mean(self) -> int:
        """Mean number of boxes of an image, at least 1."""
        total = sum(len(entry["prompts"]) for _, entry in self.images)
        return max(1, round(total / max(1, len(self.images))))

    def by_place(self, places: Sequence[str]) -> tuple[dict[str, Mapping[str, Any]], list[str]]:
        """Return the boxes of photographs by their place, and a line for all images and one for all crowds left out.

        An image is a photograph if the photograph's place ends with the image's name, or the other way around. Raises
        `UsageError` if no image is a photograph, if one could be several, or if two are the same.
        """
        known: dict[str, list[str]] = {}
        for place in places:
            known.setdefault(base_name(self._path(place)), []).append(place)
        found: dict[str, Mapping[str, Any]] = {}
        absent = []
        for name, entry in self.images:
            path = "/" + name.replace("\\", "/").removeprefix("./").lstrip("/")
            fitting = [place for place in known.get(base_name(path), ()) if _is_end(path, self._path(place))]
            if not fitting:
                absent.append(name)
                continue
            if len(fitting) > 1 or fitting[0] in found:
                raise UsageError(
                    f"{self.file}: the image {name!r} fits {fitting[0]} and another photograph, or another image also "
                    "fits it: expected names that end differently"
                )
            found[fitting[0]] = entry
        if not found:
            raise UsageError(f"{self.file} has no image with the name of one of the {len(places):,} photographs")
        left_out = [f"{self.file}: no photograph has the name of {some(absent)}"] if absent else []
        return found, left_out + ([f"{self.file}: {counted(self.crowds, 'crowd')}"] if self.crowds else [])

    def _path(self, place: str) -> str:
        if self.with_endings:
            return "/" + place
        stem, dot, ending = place.rpartition(".")
        return "/" + (stem if dot and "/" not in ending else place)


def _is_end(one: str, other: str) -> bool:
    return one.endswith(other) or other.endswith(one)


def read_boxes(storage: Storage, boxes: str, names: str | None) -> PhotographBoxes:
    """Read a COCO file or, if `names` is the YAML file with the names of its classes, a folder of YOLO labels.

    Raises `UsageError` if one of them doesn't exist or isn't of this kind.
    """
    place = Location(storage, boxes)
    try:
        if names is None:
            found = read_coco_boxes(parse_coco(place.read(), str(place)))
        else:
            found = yolo_boxes(place, Location(storage, names))
        images = tuple((name, found.read(number)) for number, name in enumerate(found.names))
    except (NotFoundError, IsADirectoryError) as error:
        raise UsageError(f"{error}: expected a COCO file, or a folder of YOLO labels with --names") from error
    return PhotographBoxes(boxes, images, names is None, tuple(found.unreadable), found.crowds)
