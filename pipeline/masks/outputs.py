"""Output files for masks: one file, a folder with the same tree, or next to each photograph. Does not import torch.

An output folder records the settings and weights of its first run.

Reading and writing of a photograph's masks as SA-1B JSON, including their origin. Does not import torch.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from segmint.catalogs.layout import IMAGE_ENDINGS, bytes_sha256
from segmint.infra.arrays import Size
from segmint.infra.errors import UsageError
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.storage.stores import TEMPORARY_PREFIX
from segmint.infra.uris import absolute, base_name, join, local_path, parent
from segmint.infra.wording import counted, some
from segmint.model.automatic.rle import MaskRecord, Rle, area
from segmint.operators.annotations.image import checked_rle
from segmint.operators.segment.segment import check_count, mask_row
from segmint.operators.shards.put import annotations_json
from segmint.pipeline.masks.images import CUTOUTS, NEXT_TO, OVERLAY, Photograph, Photographs, is_local

if TYPE_CHECKING:
    from segmint.pipeline.masks.predict import PromptedMask


_JSON = ".json"
_LONGEST_NAME = 255  # maximum length of a file name in bytes on Linux and macOS
_ID_BITS = 39  # annotation ids are 10,000 times larger and must stay below 2^53

RECORD = ".segmint-masks.json"
"""Name of the record in an output folder. The name is hidden, so that nobody mistakes the record for masks."""

_ADVICE = "Restore these settings, choose another folder, or pass --overwrite to regenerate all masks."


def _overlay_of(target: str) -> str:
    stem = target.removesuffix(_JSON)
    return stem + (".png" if stem.endswith(NEXT_TO) else OVERLAY)


@dataclass(frozen=True)
class PhotographTask:
    """Photograph with the output file for its masks and its image id in the JSON."""

    image: Photograph
    target: str
    image_id: int

    @property
    def overlay(self) -> str:
        """Output file for the drawing of the masks."""
        return _overlay_of(self.target)

    @property
    def cutouts(self) -> str:
        """Output folder for the cut-out objects."""
        stem, photograph = self.target.removesuffix(_JSON), PurePosixPath(self.image.name)
        if base_name(stem) in (photograph.name, photograph.stem):  # else a.jpg and a.masks.jpg would share a folder
            return stem + CUTOUTS
        return stem.removesuffix(NEXT_TO) + CUTOUTS

    def too_long(self, overlay: bool, cutouts: bool = False) -> str | None:
        """Return an error message if the local file system can't store an output's file name, or None."""
        longest = max(self.target, self.overlay if overlay else "", self.cutouts if cutouts else "", key=len)
        size = len(os.fsencode(base_name(longest))) if is_local(longest) else 0
        if size <= _LONGEST_NAME:
            return None
        return f"the output's name would have {size} bytes, but the limit is {_LONGEST_NAME}. Rename the photograph."


@dataclass(frozen=True)
class Outputs:
    """All tasks and their output folder.

    The folder is None for a single named file or files next to the photographs.
    """

    tasks: tuple[PhotographTask, ...]
    folder: str | None
    next_to: bool = False

    def candidates(self, image: Photograph) -> tuple[str, str]:
        """Return two possible output files of a photograph, without and with the photograph's extension.

        The file with the extension avoids a collision between photographs such as a.jpg and a.png.
        """
        if self.folder is not None:
            base, ending = join(self.folder, image.place), _JSON
        else:
            base, ending = str(local_path(image.name)), NEXT_TO + _JSON
        return base.removesuffix(PurePosixPath(base).suffix) + ending, base + ending


def plan_outputs(photographs: Photographs, output: str | None) -> Outputs:
    """Assign an output file to each photograph and return the tasks.

    If `output` ends with `.json`, it's the file for a single photograph. Any other `output` is a folder, which gets the
    same tree as the photographs. Without `output`, each file is written next to its photograph, as `photo.masks.json`.
    If two photographs would share a file, their file names keep the photographs' extensions.

    Raises `UsageError` if several photographs have a single output file, if `output` has the extension of another file
    type, if two photographs would share a file even with their extensions, if a file would overwrite a photograph, or
    if a photograph is remote and there is no `output`.
    """
    images = photographs.images
    if output is None:
        stored = next((image.name for image in images if not is_local(image.name)), None)
        if stored is not None:
            raise UsageError(
                f"{stored} is in a store, but masks can only be written next to local photographs. Choose a file or "
                "folder with -o."
            )
        outputs = _with_tasks(Outputs((), None, next_to=True), images)
    elif _is_file(output):
        if not photographs.is_one:
            raise UsageError(
                f"-o {output} is a single file: expected a folder, because the input is a folder or list with "
                f"{counted(len(images), 'photograph')}"
            )
        outputs = Outputs((PhotographTask(images[0], output, 1),), None)
    else:
        outputs = _with_tasks(Outputs((), output.rstrip("/") or "/"), images)
    _check(outputs, images)
    return outputs


def _is_file(output: str) -> bool:
    if output.endswith("/") or (is_local(output) and local_path(output).is_dir()):
        return False
    if output.lower().endswith(IMAGE_ENDINGS):
        raise UsageError(
            f"-o {output} is an image file, but masks are written as JSON: expected x.json or a folder. To also draw "
            f"them, as x{OVERLAY}, pass --overlay."
        )
    if is_local(output) and local_path(output).exists() and not output.endswith(_JSON):
        raise UsageError(f"-o {output} is a file: expected a name that ends in .json, or a folder")
    return output.endswith(_JSON)


def check_writable(outputs: Outputs) -> None:
    """Raise `UsageError` if a local folder can't be created or written. Call this before generating any masks."""
    targets = [task.target for task in outputs.tasks] if outputs.folder is None else [join(outputs.folder, "x")]
    for folder in {local_path(target).parent: None for target in targets if is_local(target)}:
        there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not there.is_dir():
            raise UsageError(f"can't create the folder {folder}, because {there} is a file")
        if not os.access(there, os.W_OK | os.X_OK):
            raise UsageError(f"the folder {there} isn't writable. Choose another one with -o.")


def _with_tasks(outputs: Outputs, images: tuple[Photograph, ...]) -> Outputs:
    targets = [outputs.candidates(image)[0] for image in images]
    while True:
        alike = Counter(targets)
        clearer = [
            outputs.candidates(image)[1] if alike[target] > 1 else target
            for image, target in zip(images, targets, strict=True)
        ]  # x.jpg and x.png collide, and the longer name x.jpg.json may in turn collide with the name for x.jpg.tif
        if clearer == targets:
            break
        targets = clearer
    # Next to a photograph, the id must not depend on the folder or pattern that the user passed.
    ids = [image_id(base_name(image.name) if outputs.next_to else image.place) for image in images]
    return replace(outputs, tasks=tuple(map(PhotographTask, images, targets, ids)))


def existing_files(storage: Storage, outputs: Outputs) -> set[str]:
    """Return the existing files that have the name of a mask file or an overlay.

    A single named file is always overwritten, so the result is empty in this case.
    """
    if outputs.folder is None and not outputs.next_to:
        return set()
    names = {name for task in outputs.tasks for name in (*outputs.candidates(task.image), task.target)}
    names |= {_overlay_of(name) for name in names}
    if outputs.folder is None or is_local(outputs.folder):
        return {name for name in names if os.path.lexists(local_path(name))}
    folders: dict[str, list[str]] = {}
    for name in names:
        folders.setdefault(parent(name), []).append(base_name(name))
    found = set()
    for folder, inside in folders.items():
        beginning = os.path.commonprefix(inside)  # noqa: RUF071 (of characters, as a store lists)
        found |= {join(folder, entry.name) for entry in storage.list(folder, beginning=beginning)}
    return names & found


def sweep_temporary(outputs: Outputs) -> None:
    """Delete the temporary files of killed runs. If a live writer loses its file, the writer writes it again."""
    targets = [task for task in outputs.tasks if is_local(task.target)]
    folders = {local_path(task.target).parent for task in targets}
    cutouts = {local_path(task.cutouts) for task in targets if task.too_long(overlay=False, cutouts=True) is None}
    for folder in folders | cutouts:
        for target in ("", "*-"):
            for left in folder.glob(TEMPORARY_PREFIX + target + "[0-9a-f]" * 32):
                left.unlink(missing_ok=True)


def with_kept_files(outputs: Outputs, there: Collection[str], photograph_of: Callable[[str], str]) -> Outputs:
    """Return the tasks with the file names of earlier runs, even if similarly named photographs were added or removed.

    With new names, a photograph's masks could exist twice, as `x.json` and `x.jpg.json`, or the masks in `x.json` could
    be assigned to the wrong photograph. `there` contains the existing files. `photograph_of` returns the name of the
    photograph that an existing file was made for.
    """
    taken = {task.target for task in outputs.tasks}
    tasks = []
    for task in outputs.tasks:
        name = base_name(task.image.name)
        for file in outputs.candidates(task.image):
            is_free = file in there and file not in taken
            if is_free and task.target in there and photograph_of(task.target) == name:
                break  # both files belong to this photograph
            if is_free and photograph_of(file) == name:
                task = replace(task, target=file)
        tasks.append(task)
    return replace(outputs, tasks=tuple(tasks))


def image_id(place: str) -> int:
    """Return a photograph's image id. The id depends only on `place`, so it doesn't change as the folder grows."""
    digest = hashlib.sha256(place.encode("utf-8", "surrogateescape")).digest()
    return (int.from_bytes(digest[:8], "big") >> (64 - _ID_BITS)) or 1


def _check(outputs: Outputs, images: tuple[Photograph, ...]) -> None:
    taken: dict[str, PhotographTask] = {}
    photographs = {_identity(image.name) for image in images}
    ids: dict[int, PhotographTask] = {}
    for task in outputs.tasks:
        other = taken.setdefault(task.target, task)
        if other is not task:
            raise UsageError(
                f"{other.image.name} and {task.image.name} would both be written to {task.target}. Pass their "
                "common parent folder with --recursive, which keeps the tree, or an output for each."
            )
        same_id = ids.setdefault(task.image_id, task)
        if same_id is not task and outputs.folder is not None:
            raise UsageError(
                f"{same_id.image.name} and {task.image.name} have the same image_id {task.image_id}, because the "
                f"hashes of their paths are equal in {_ID_BITS} bits. Rename one of them."
            )
        for target in (task.target, task.overlay):
            if _identity(target) in photographs:
                raise UsageError(
                    f"the masks of {task.image.name} would overwrite the photograph {target}. Choose another file or "
                    "folder with -o."
                )


def _identity(name: str) -> str:
    return str(Path(absolute(str(local_path(name)))).resolve()) if is_local(name) else name


def digest_of(settings: Mapping[str, Any]) -> str:
    """Return the SHA-256 that identifies a combination of settings and weights."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def open_folder(
    folder: Location, outputs: Outputs, there: Collection[str], settings: Mapping[str, Any], *, overwrite: bool
) -> None:
    """Write the record of an output folder, or check that the existing record contains the same settings.

    `there` contains the folder's existing files. With `overwrite`, the new record replaces the old one. Raises
    `UsageError` if the settings differ, with a list of the differences, or if the folder contains masks but no record.
    """
    record = folder / RECORD
    text = json.dumps({"sha256": digest_of(settings), "settings": settings}, indent=1).encode() + b"\n"
    if overwrite:
        record.put(text)
        return
    try:
        _check_settings(folder, record.read(), settings)
    except NotFoundError:
        unknown = [task.target for task in outputs.tasks if task.target in there]
        if unknown:
            raise UsageError(
                f"{folder} has {some(unknown, 3)} but no {RECORD}, so their settings are unknown. Choose another "
                "folder, or pass --overwrite to make these masks again."
            ) from None
        with TemporaryDirectory() as temporary:
            file = Path(temporary, RECORD)
            file.write_bytes(text)
            is_ours = record.put_file_if_absent(file)  # unlike a put of bytes, this works without hard links
        if not is_ours:
            _check_settings(folder, record.read(), settings)


def _check_settings(folder: Location, recorded: bytes, settings: Mapping[str, Any]) -> None:
    try:
        before = json.loads(recorded)["settings"]
        leaves = dict(_leaves(before))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UsageError(
            f"{folder}/{RECORD} is damaged or wasn't written by this command, so the settings are unknown. Choose "
            "another folder, or pass --overwrite to make all of its masks again."
        ) from None
    now = dict(_leaves(settings))
    keys = [key for key in {**leaves, **now} if leaves.get(key) != now.get(key)]
    if keys:
        lines = [f"{key}: {_said(leaves.get(key))} before, {_said(now.get(key))} now" for key in keys]
        raise UsageError(f"{folder} was started with different settings:\n  " + "\n  ".join(lines) + f"\n{_ADVICE}")


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _said(value: Any) -> str:
    return "nothing" if value is None else json.dumps(value)


_MADE_FROM = "made_from"
CORRECTED = "corrected"
"""Key of a JSON file whose masks a person made or corrected."""


@dataclass(frozen=True)
class MasksOrigin:
    """SHA-256 of the inputs of a masks file: photograph, and settings with the weights."""

    photograph: str
    settings: str


def sa1b_document(
    image_id: int,
    file_name: str,
    size: Size,
    masks: "Sequence[PromptedMask]",
    origin: MasksOrigin | None = None,
) -> bytes:
    """Return the SA-1B JSON of an image of `size` (height, width). An `origin` is in an additional key.

    Raises `RejectedError`, like a build, if the number of masks exceeds the number of annotation ids.
    """
    check_count(len(masks))
    rows = [mask_row(mask.record) | {"point_coords": [[float(x), float(y)] for x, y in mask.points]} for mask in masks]
    document = json.loads(annotations_json(image_id, file_name, size, rows))
    for annotation, mask in zip(document["annotations"], masks, strict=True):
        annotation.update(mask.given)
    if origin is not None:
        document[_MADE_FROM] = {"photograph_sha256": origin.photograph, "settings_sha256": origin.settings}
    return json.dumps(document, separators=(",", ":")).encode("ascii") + b"\n"


@dataclass(frozen=True)
class MasksFile:
    """Contents of an existing JSON file. `origin` is None if `segmint masks` didn't write the file."""

    origin: MasksOrigin | None
    annotations: Sequence[Any] = ()
    photograph: str = ""  # file name of the photograph
    sha256: str = ""
    corrected: bool = False  # by a person, so that no run may replace the masks

    def records(self) -> list[MaskRecord]:
        """Return the masks for drawing, as records with only a segmentation and an area.

        Raises `ValueError`, `LookupError`, `TypeError`, or `AttributeError` if another program damaged a mask.
        """
        checked = [checked_rle(each["segmentation"]) for each in self.annotations]
        masks = [Rle((rle["size"][0], rle["size"][1]), rle["counts"].decode("ascii")) for rle in checked]
        return [MaskRecord(mask, area(mask)) for mask in masks]


def read_document(data: bytes) -> MasksFile:
    """Parse a JSON file. For a file that `sa1b_document` didn't write, `origin` is None."""
    corrected = False
    try:
        document = json.loads(data)
        # Without the key, a mask without a predicted IoU shows that a person corrected the file.
        masks = [each for each in document["annotations"] if isinstance(each, dict)]
        corrected = CORRECTED in document or any(each.get("predicted_iou", 0) is None for each in masks)
        made_from = document[_MADE_FROM]
        origin = MasksOrigin(made_from["photograph_sha256"], made_from["settings_sha256"])
        sha256 = bytes_sha256(data)
        return MasksFile(origin, list(document["annotations"]), document["image"]["file_name"], sha256, corrected)
    except (ValueError, RecursionError, KeyError, TypeError):
        return MasksFile(None, corrected=corrected)
