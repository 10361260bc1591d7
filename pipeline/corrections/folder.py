"""Working dataset of a folder of photographs: imports their JSON files, and writes corrected masks back into them.

The JSON files are authoritative. The dataset is only a working copy, which you can delete at any time. Each photograph
is a shard, so if an import is killed, the next import resumes after the last finished photograph.

For each photograph, a small state file records the JSON content that segmint last read or wrote. segmint updates the
state file before it replaces the JSON. If a JSON's content isn't in the state file, another program must have changed
the JSON, even if segmint was killed at any point.

Photographs of a folder with the JSON files of their masks, as `segmint masks` names them.
"""

import io
import json
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow.parquet as pq
from pydantic import TypeAdapter

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.manifest import (
    CatalogPart,
    DatasetHandle,
    DatasetManifest,
    ModelWeights,
    is_dataset,
    put_dataset_id,
    put_manifest,
    put_with_parts,
    read_latest_manifest,
)
from segmint.catalogs.dataset.submissions import SubmissionError, read_assignment, submissions_of
from segmint.catalogs.findings import Reason, RejectedError
from segmint.catalogs.layout import bytes_sha256, json_sha256, part_path
from segmint.catalogs.parquet import NORMALIZED, RowGroupWriter
from segmint.infra.assets import ASSETS, default_weights, sha256_of
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.progress import track
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import base_name, local_path
from segmint.infra.version import VERSION
from segmint.operators.describe import describe_table
from segmint.operators.prepare.ingest import decode_photograph, pixels_sha256
from segmint.operators.prepare.ingest_config import ANY_SIZE
from segmint.operators.prepare.release import ReleaseConfig, release, released_size, resized
from segmint.operators.rows import ANNOTATION_STAGE, DESCRIBED, FUNNEL_STEPS, SEGMENTED, Row, rejected, to_table
from segmint.operators.shards.put import counts_of, remove_replaced
from segmint.operators.shards.revise import Change, finish_dead_writers, revise_shard, rows_of
from segmint.operators.shards.write import ShardTask, write_shard
from segmint.operators.similar.near import jpeg_hashes
from segmint.pipeline.config.config import Config, identity
from segmint.pipeline.corrections.folder_documents import (
    BadFileError,
    MasksDocument,
    edit_document,
    new_document,
    photograph_of,
    read_masks,
)
from segmint.pipeline.corrections.merge import SubmissionRow, merge_submission, submission_to_merge
from segmint.pipeline.masks.images import find_photographs, is_local
from segmint.pipeline.masks.outputs import (
    PhotographTask,
    existing_files,
    plan_outputs,
    sweep_temporary,
    with_kept_files,
)

WORKING = ".segmint"
"""Name of the hidden folder next to the photographs. It contains the working dataset and the state of the files."""

_SHORT_SIDE = ReleaseConfig().short_side
_OF_WORK = ("source", "annotator", "seconds", "prompts", "model", "origin")
_OF_ANNOTATION = ("submission", "annotator", ANNOTATION_STAGE, "seconds", "complete")


class FolderInUseError(UsageError):
    """Error if another process is correcting or importing the folder's masks."""


@dataclass(frozen=True)
class _FileState:
    """State of a photograph's files, as segmint last read or wrote them.

    `photograph` is the photograph's size in bytes and its modification time. `sums` contains the SHA-256 of each JSON
    content that segmint read or wrote, or an empty string for a missing file. `submissions` is the number of merged
    submissions. `problem` is the reason why the photograph can't be used.
    """

    photograph: tuple[int, int] | None
    sums: tuple[str, ...]
    submissions: int = 0
    problem: str | None = None


_STATE = TypeAdapter(_FileState)


@contextmanager
def locked(root: Path) -> Iterator[None]:
    """Lock the working folder `root`, which is created if needed.

    Raises `FolderInUseError` if another process has the lock.
    """
    import fcntl

    root.mkdir(exist_ok=True)
    lock = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FolderInUseError(
                f"another `segmint annotate` or `segmint view` is using {root.parent}. Stop it, or wait until it has "
                "read the folder."
            ) from error
        yield
    finally:
        os.close(lock)


class WorkingDataset:
    """Working dataset in the folder `root`, for photographs and the JSON files of their masks. Thread-safe.

    `images` maps names in the dataset to photographs. Only one process at a time may call the methods; see `locked`.
    """

    def __init__(self, root: Path, images: Mapping[str, PhotographTask], storage: Storage) -> None:
        self.location = Location(storage, str(root / "dataset"))
        self._files = Location(storage, str(root / "files"))
        self._storage = storage
        self._images = images
        self._names: dict[int, str] = {}  # by ordinal
        self._replaced: set[int] = set()  # ordinals with files of older generations
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._images)

    def update(self, name: str) -> list[str]:
        """Import all changed photographs and JSON files, and finish the writes of a killed run.

        If the dataset doesn't exist, it is created with the name `name`. Returns a line with the reason for each
        photograph that can't be imported.
        """
        numbers = self._numbers()
        new = [image for image in self._images if image not in numbers]
        if new or not numbers:
            self._grow(name, new, len(numbers))
            numbers |= {image: ordinal for ordinal, image in enumerate(new, len(numbers))}
        handle = DatasetHandle.open(self.location)
        finish_dead_writers(handle, range(len(numbers)))
        committed = handle.commits.committed()
        self._names = {numbers[name]: name for name in self._images}
        for image, ordinal in numbers.items():
            if image not in self._images and ordinal in committed:
                self._leave_out(handle, ordinal, image)
        problems = []
        for ordinal in track(self._names, "photographs", len(self._names)):
            problem = self._import(handle, ordinal, is_new=ordinal not in committed)
            problems += [] if problem is None else [problem]
        self._remove_replaced()
        return problems

    def refresh(self, image: int) -> None:
        """Import an image's JSON again if another program changed it.

        Raises `BadFileError` if the JSON can't be used.
        """
        ordinal = image - 1
        with self._lock:
            if ordinal not in self._names:  # a page may request an image that never existed or was removed
                return
            state = self._state(ordinal)
            if state is None or self._read(ordinal)[1] not in state.sums:
                problem = self._import(DatasetHandle.open(self.location), ordinal, is_strict=True)
                if problem is not None:
                    raise BadFileError(problem)
                self._remove_replaced()

    def write(self, image: int) -> None:
        """Write an image's masks, with all submissions, to its JSON file.

        Raises `BadFileError` if the file has changed since `refresh`, and the errors of the storage.
        """
        with self._lock:
            self._write(DatasetHandle.open(self.location), image - 1)

    def _numbers(self) -> dict[str, int]:
        """Return the ordinals of all current and former photographs of the dataset, by name."""
        latest = read_latest_manifest(self.location)
        numbers: dict[str, int] = {}
        for part in () if latest is None else latest.manifest.catalog:
            columns = pq.read_table(io.BytesIO((self.location / part.path).read())).select(["image_id", "ordinal"])
            numbers |= dict(zip(*(column.to_pylist() for column in columns), strict=True))
        return numbers

    def _grow(self, name: str, images: Sequence[str], first: int) -> None:
        """Add photographs to the dataset's catalog, starting at the ordinal `first`."""
        rows = [
            {"ordinal": ordinal, "id": ordinal + 1, "image_id": image, "uri": self._images[image].image.name}
            for ordinal, image in enumerate(images, first)
        ]
        with ScratchFolder() as folder:
            path = Path(folder) / "part.parquet"
            with RowGroupWriter(path, NORMALIZED) as writer:
                writer.add(to_table(rows, NORMALIZED).to_batches())
            digest = sha256_of(path)
            latest = read_latest_manifest(self.location)
            before = _manifest(name) if latest is None else latest.manifest
            place = part_path(len(before.catalog), digest)
            part = CatalogPart(path=place, rows=len(rows), sha256=digest, source_sha256=digest, first_shard=first)
            grown = before.model_copy(
                update={"catalog": (*before.catalog, part), "licenses": {"missing": first + len(rows)}}
            )
            if latest is None:
                (self.location / place).put_file(path)
                put_manifest(self.location, grown, 1)
                put_dataset_id(self.location)
            else:
                put_with_parts(self.location, grown, latest.generation + 1, {place: path})

    def _import(
        self, handle: DatasetHandle, ordinal: int, *, is_new: bool = False, is_strict: bool = False
    ) -> str | None:
        """Import a photograph and its JSON if they have changed. Otherwise, write and merge its new submissions.

        Returns None, or the reason why the photograph can't be used. In the latter case, the photograph is rejected,
        unless `is_strict` is set or the file can't be read.
        """
        image = self._image(ordinal)
        try:
            state, photograph = self._state(ordinal), _status(image.image.name)
            data, sha256 = self._read(ordinal)
            names = submissions_of(self.location, ordinal)
            known = state is not None and photograph is not None and state.photograph == photograph
            if not is_new and state is not None and known and sha256 in state.sums:
                if state.problem is None and len(names) > state.submissions:
                    self._settle(handle, ordinal, len(names))
                return state.problem
        except BadFileError as error:
            return str(error)
        except (SegmintError, OSError) as error:
            return f"{image.target}: {error}"
        problem = None
        try:
            row = self._row(ordinal, data, sha256)
        except BadFileError as error:
            problem = str(error)
        except (RejectedError, ObjectTooLargeError) as error:
            problem = f"{image.image.name}: {error}"
        except (SegmintError, OSError) as error:  # the file may be readable next time
            return f"{image.image.name}: {error}"
        if problem is not None:
            if is_strict:
                return problem
            row = rejected(self._identity(ordinal), "prepare", RejectedError(Reason.CORRUPT, problem))
        self._commit(handle, ordinal, row, is_new=is_new)
        self._put_state(ordinal, _FileState(photograph, (sha256,), len(names), problem))
        return problem

    def _leave_out(self, handle: DatasetHandle, ordinal: int, name: str) -> None:
        """Reject a photograph that is no longer in the folder. Its JSON file isn't touched."""
        state = self._state(ordinal)
        if state is not None and state.photograph is None:
            return
        gone = RejectedError(Reason.NOT_FOUND, "the photograph is no longer in the folder")
        row = {"ordinal": ordinal, "id": ordinal + 1, "image_id": name, "uri": name}
        self._commit(handle, ordinal, rejected(row, "prepare", gone))
        self._put_state(ordinal, _FileState(None, ()))

    def _row(self, ordinal: int, data: bytes | None, sha256: str) -> Row:
        """Return the described row of a photograph with the masks in its JSON.

        Raises `RejectedError` or `BadFileError` if the photograph can't be used, and the errors of the storage.
        """
        image = self._image(ordinal)
        document = None if data is None else read_masks(data, image.target, sha256)
        source = self._storage.read(image.image.name, max_bytes=ANY_SIZE.max_bytes)
        pixels = decode_photograph(source)
        height, width = pixels.shape[:2]
        frame = released_size(width, height, _SHORT_SIDE)
        if document is not None:
            frame = _frame_of(document, (width, height), image)
        released = release(resized(pixels, frame), ReleaseConfig(short_side=max(frame)))
        masks = () if document is None else document.masks
        row: Row = {
            **self._identity(ordinal),
            "source_sha256": bytes_sha256(source),
            "pixels_sha256": pixels_sha256(pixels),
            "release_sha256": bytes_sha256(released.jpeg),
            "hashes": jpeg_hashes(released.jpeg).tolist(),
            "source_width": width,
            "source_height": height,
            "width": frame[0],
            "height": frame[1],
            "faces": 0,
            "plates": 0,
            "regions": [],
            "residual_detections": [],
            "unconfirmed_detections": [],
            "left_alone": [],
            "redacted_share": 0.0,
            "release": released.jpeg,
            "masks": masks,
            "funnel": {**dict.fromkeys(FUNNEL_STEPS), "written": len(masks)},
        }
        (described,) = describe_table(to_table([row], SEGMENTED)).to_pylist()
        if described["fault"] is not None:
            raise BadFileError(f"{image.target}: {described['fault']}")
        columns = ("label", "label_source", "source", "origin")
        described["masks"] = [
            {**mask, **{column: given[column] for column in columns}}
            for mask, given in zip(described["masks"], masks, strict=True)
        ]
        return dict(described)

    def _commit(self, handle: DatasetHandle, ordinal: int, row: Row, *, is_new: bool = False) -> None:
        """Commit a row as the first or next generation of its shard.

        A later generation keeps the record of the merged submission. Its masks come from the JSON, so all submissions
        to earlier masks count as merged. If an annotator made a mask, the mask keeps its record of the annotator and
        their work.
        """
        row = {**dict.fromkeys(DESCRIBED.names), **row}
        if is_new:
            task = ShardTask(ordinal, ordinal, ordinal + 1, handle, handle.manifest().numerics_fingerprint, 1.0)
            write_shard(task, [(0, 1)], to_table([row], DESCRIBED))
            return

        def change(_: Commit, rows: Sequence[Row]) -> list[Row]:
            if row["reason"] is not None:
                return [row]
            before = rows[0] if rows[0]["reason"] is None else row  # a rejected row loses the record
            before = self._merged(before).row
            drawn = {counts_of(mask): mask for mask in before["masks"] if mask["annotator"] is not None}
            masks = [
                {**mask, **{column: drawn[counts_of(mask)][column] for column in _OF_WORK}}
                if counts_of(mask) in drawn
                else mask
                for mask in row["masks"]
            ]
            return [{**row, "masks": masks, **{column: before[column] for column in _OF_ANNOTATION}}]

        self._revise(handle, ordinal, change)

    def _revise(self, handle: DatasetHandle, ordinal: int, change: Change) -> None:
        revise_shard(handle, ordinal, change, purge=False)
        self._replaced.add(ordinal)

    def _remove_replaced(self) -> None:
        """Delete the files of older generations.

        All shards are cleaned together, because this lists every file of the dataset.
        """
        if self._replaced:
            remove_replaced(self.location, self._replaced)
            self._replaced.clear()

    def _settle(self, handle: DatasetHandle, ordinal: int, submissions: int) -> None:
        """Write an image's submissions to its JSON, unless an earlier run did so, and merge them into the dataset."""
        state = self._write(handle, ordinal)
        self._revise(handle, ordinal, lambda _, rows: [self._merged(rows[0]).row])
        self._put_state(ordinal, replace(state, submissions=submissions))

    def _image(self, ordinal: int) -> PhotographTask:
        return self._images[self._names[ordinal]]

    def _identity(self, ordinal: int) -> Row:
        name = self._names[ordinal]
        return {"ordinal": ordinal, "id": ordinal + 1, "image_id": name, "uri": self._images[name].image.name}

    def _merged(self, row: Row) -> SubmissionRow:
        """Merge the assignment's submissions into a row, unless all are merged or they can't be read."""
        names = submissions_of(self.location, row["ordinal"])
        last = submission_to_merge(row, names)
        if last is None:
            return SubmissionRow(row)
        try:
            submissions = read_assignment(self.location, [name for name in names if name.assignment == last.assignment])
        except SubmissionError:
            return SubmissionRow(row)
        return merge_submission(row, submissions)

    def _write(self, handle: DatasetHandle, ordinal: int) -> _FileState:
        """Write an image's masks, with all submissions, to its JSON. Returns the new state of the files.

        If the content differs, the JSON is replaced by renaming a complete file.
        """
        image, state = self._image(ordinal), self._state(ordinal)
        commit = handle.commits.latest(ordinal)
        rows = [] if commit is None else rows_of(self.location, commit, [ordinal])
        if not rows or rows[0]["reason"] is not None:
            raise BadFileError(f"{image.image.name}: no longer in the working dataset")
        merged = self._merged(rows[0])
        if merged.left is not None:
            raise BadFileError(f"{image.target}: can't hold the saved masks: {merged.left}")
        for line in merged.not_merged:
            get_logger("annotate").warning("not_saved", file=image.target, part=line)
        row = merged.row
        data, sha256 = self._read(ordinal)
        if state is None or sha256 not in state.sums:
            raise BadFileError(f"{image.target} was changed by another program, so it isn't overwritten. Save again.")
        if data is None and not row["masks"]:
            return state
        size = row["height"], row["width"]
        before = new_document(image, size) if data is None else json.loads(data)
        edited = edit_document(before, row["masks"])
        if data is not None and json.loads(edited) == before:  # the white space may differ
            edited = data
        state = replace(state, sums=(bytes_sha256(edited),))
        if edited != data:
            self._put_state(ordinal, replace(state, sums=(sha256, *state.sums)))
            self._storage.put(image.target, edited)  # replaces a link, which could lead to any file
        self._put_state(ordinal, state)
        return state

    def _read(self, ordinal: int) -> tuple[bytes | None, str]:
        """Return the bytes of an image's JSON and their SHA-256, or None and "" if the file doesn't exist."""
        try:
            data = self._storage.read(self._image(ordinal).target, max_bytes=ANY_SIZE.max_bytes)
        except NotFoundError:
            return None, ""
        return data, bytes_sha256(data)

    def _state(self, ordinal: int) -> _FileState | None:
        """Return the recorded state of a photograph's files, or None if the record is missing or damaged."""
        try:
            return _STATE.validate_json((self._files / f"{ordinal}.json").read())
        except (NotFoundError, ValueError):
            return None

    def _put_state(self, ordinal: int, state: _FileState) -> None:
        (self._files / f"{ordinal}.json").put(json.dumps(asdict(state)).encode())


def _manifest(name: str) -> DatasetManifest:
    """Return the manifest of a new working dataset, without a catalog.

    Its numerics are unknown, so no build can grow it.
    """
    weights = default_weights("cpu")
    settings: Any = {"name": "folder", "license": {"allow": ["LicenseRef-unpublished"]}, "images_per_shard": 1}
    tree = identity(Config(catalog="catalog", output="dataset", **settings))
    return DatasetManifest(
        name=name.encode(errors="replace").decode(),
        config=tree,
        config_sha256=json_sha256(tree),
        numerics={"segmint": VERSION},
        code_version=VERSION,
        weights=ModelWeights(name=weights, sha256=ASSETS[weights].sha256),
        catalog=(),
        images_per_shard=1,
        policy_date=datetime.now(UTC).date(),
        published=False,
    )


def _frame_of(document: MasksDocument, photograph: tuple[int, int], image: PhotographTask) -> tuple[int, int]:
    """Return (width, height) of the masks.

    Raises `BadFileError` unless this is the photograph's size, possibly scaled down.
    """
    height, width = document.size
    scaled = released_size(*photograph, min(document.size))
    if abs(scaled[0] - width) > 1 or abs(scaled[1] - height) > 1:
        raise BadFileError(
            f"{image.target}: its masks have {width} x {height} pixels, but {image.image.name} has "
            f"{photograph[0]} x {photograph[1]}"
        )
    return width, height


def _status(photograph: str) -> tuple[int, int] | None:
    """Return the size in bytes and the modification time of a photograph, or None if it's missing or isn't local."""
    try:
        status = local_path(photograph).stat() if is_local(photograph) else None
    except OSError:
        return None
    return None if status is None else (status.st_size, status.st_mtime_ns)


_JSON = ".json"
_UNREADABLE = "/"  # no photograph has this name


def is_photograph_folder(name: str, *, pairs: bool = True) -> bool:
    """Return whether a path is a local folder that directly contains photographs and isn't a dataset.

    A folder of SA-1B-style pairs (`a.jpg` and `a.json`) only counts if `pairs` is True or the folder contains a working
    dataset.
    """
    # Unlike `os.path`, methods of `Path` raise errors for long paths and unreadable folders.
    if not is_local(name) or not os.path.isdir(local_path(name)) or is_dataset(Location(Storage(), name)):  # noqa: PTH112
        return False
    if os.path.isdir(local_path(name) / WORKING):  # noqa: PTH112
        return True
    try:
        photographs = find_photographs(Storage(), [name], recursive=False).images
    except SegmintError:
        return False
    return pairs or not any(local_path(each.name).with_suffix(_JSON).exists() for each in photographs)


def find_images(folder: str) -> tuple[dict[str, PhotographTask], list[str]]:
    """Return the photographs directly in a local folder, by name, and a line for each skipped file.

    A photograph's JSON is the output of `segmint masks` (`a.masks.json`) or, if that doesn't exist, SA-1B's (`a.json`).
    Temporary files of killed runs are deleted. Raises `UsageError` if there are no photographs.
    """
    storage = Storage()
    found = find_photographs(storage, [folder], recursive=False)
    outputs = plan_outputs(found, None)
    there = existing_files(storage, outputs)
    outputs = with_kept_files(outputs, there, lambda file: _photograph_in(storage, file) or "")
    sweep_temporary(outputs)
    names = {base_name(task.image.name) for task in outputs.tasks}
    stems = Counter(PurePosixPath(name).stem for name in names)
    skipped = [line.partition("; pass --recursive")[0] for line in (*found.passed_over, *found.unreadable)]
    images = {}
    for task in outputs.tasks:
        try:
            task.image.place.encode()
        except UnicodeEncodeError:
            skipped.append(f"{task.image.name}: a name that isn't UTF-8. Rename the photograph.")
            continue
        target = task.target if task.target in there else _other_document(storage, task, names, stems)
        images[task.image.place] = replace(task, target=target)
    return images, skipped


def _other_document(storage: Storage, task: PhotographTask, names: set[str], stems: Mapping[str, int]) -> str:
    """Return the path of a photograph's SA-1B JSON.

    If the file is missing or may belong to another photograph, this returns the path that `segmint masks` would use.
    """
    own = base_name(task.image.name)
    is_alone = stems[PurePosixPath(own).stem] == 1
    path = str(local_path(task.image.name))
    for file in (path.removesuffix(PurePosixPath(path).suffix) + _JSON, path + _JSON):
        found = _photograph_in(storage, file) if Path(file).is_file() else None
        if found in (own, _UNREADABLE) or (found is not None and found not in names and is_alone):
            return file
    return task.target


def _photograph_in(storage: Storage, file: str) -> str | None:
    """Call `photograph_of` for a JSON file, but return `_UNREADABLE` if the file can't be read."""
    try:
        return photograph_of(storage.read(file))
    except SegmintError:
        return _UNREADABLE
