"""Export of a dataset for other tools: samples are streamed to the format's writer and images to a folder.

Deterministic random samples of a dataset's images, independent of shard layout, machine, and reading order.

The output folder of an export: its list of files, and checks for leftover files and for changes of the dataset.

Selection of a dataset's images by a condition, pinned in a file that other commands accept: `segmint select`.
"""

import errno
import hashlib
import heapq
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from tempfile import gettempdir
from typing import Protocol, runtime_checkable

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.digest import short_digest
from segmint.catalogs.dataset.manifest import DatasetManifest, read_dataset_id, require_published
from segmint.catalogs.dataset.outputs import FILES_LIST, note_output, refuse_inside
from segmint.catalogs.dataset.reader import Dataset, Sample
from segmint.catalogs.dataset.subsets import Selection, open_selected
from segmint.catalogs.dataset.versions import VersionName, name_now
from segmint.catalogs.layout import ShardPart, canonical_json, choose_shards, image_name
from segmint.infra.assets import sha256_of
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.progress import track
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.uris import is_below
from segmint.infra.wording import counted, listed, some
from segmint.pipeline.export.categories import UNLABELED, Categories, choose_categories, count_labels, has_prompts
from segmint.pipeline.export.coco import CocoWriter
from segmint.pipeline.export.formats import MAIN_FILES, Format, Level
from segmint.pipeline.export.hf import FiftyOneWriter, HuggingFaceWriter
from segmint.pipeline.export.label_studio import MASKS_PER_TASK, TasksWriter
from segmint.pipeline.export.per_image import (
    MOST_FILES,
    GeoJsonWriter,
    LabelMapsWriter,
    PngMasksWriter,
    Sa1bWriter,
    YoloWriter,
)


def draw_key(seed: int, image: int) -> bytes:
    """Return an image's draw key. A sample consists of the images with the lowest keys."""
    return hashlib.sha256(f"{seed}:{image}".encode()).digest()


def draw_images(dataset: Dataset, shards: Collection[int], count: int, seed: int) -> list[int]:
    """Draw `count` images from some shards, or all images if there are fewer. Return the ids in ascending order.

    Memory only grows with the number of images drawn.
    """
    numbers = (number for commit in dataset.commits(shards) for number in dataset.ids(commit))
    return sorted(heapq.nsmallest(count, numbers, key=lambda number: draw_key(seed, number)))


def read_images(dataset: Dataset, shards: Collection[int], images: Sequence[int] | None) -> Iterator[Sample]:
    """Yield the samples of the shards in order: all samples, or only those with an id in `images` (ascending).

    Shards without any of `images` aren't read.
    """
    for commit in track(dataset.commits(shards), "shards", len(shards)):
        if images is None:
            yield from dataset.shard(commit)
            continue
        start, stop = commit.ordinals
        inside = images[bisect_left(images, start + 1) : bisect_left(images, stop + 1)]
        if inside:
            yield from dataset.shard(commit, frozenset(inside))


def without_parts(sample: Sample) -> Sample:
    """Return a sample without masks that lie in a larger mask."""
    return replace(sample, masks=[mask for mask in sample.masks if mask.container is None])


FOLDERS = frozenset({"annotations", "data", "fields", "images", "labels", "masks"})
"""Subfolders that exports write to."""


class OutputFolder:
    """Folder for files derived from a dataset.

    The dataset records the folder before the first file is written. A takedown therefore lists the folder even if the
    export is still running or was interrupted.

    `segmint-files.jsonl` lists the files with their SHA-256. Until the export is complete, this list only contains its
    first line, which identifies the export. Memory grows with the number of files that an interrupted run left in the
    folder.
    """

    def __init__(
        self,
        dataset: Location,
        command: str,
        output: Location,
        version: VersionName,
        scratch: Path,
        commits: Mapping[int, int] | None = None,
    ) -> None:
        """Record the folder in the dataset and list its existing files. The list is kept in the folder `scratch`.

        `commits` maps each shard to its generation at the start of the export (default: now).

        Raises `UsageError`, before anything is written, if the folder contains files from an export of another dataset
        or version, or from another command.
        """
        self._dataset, self._command, self.location = dataset, command, output
        self._commits = CommitLog(dataset).committed() if commits is None else commits
        about = {
            "command": command,
            "dataset_digest": f"sha256:{version.digest}",
            "dataset_id": read_dataset_id(dataset),
        }
        self._list, self._listed = scratch / FILES_LIST, 0
        self._list.write_bytes(canonical_json(about))
        self._left = {entry.name for entry in output.walk()}
        if FILES_LIST in self._left:
            with (output / FILES_LIST).open() as stream:
                if stream.readline(1 << 16) != self._list.read_bytes():
                    raise UsageError(_of_another(output, version))
        elif left := sorted(name for name in self._left if "/" in name and _top(name) in FOLDERS):
            raise UsageError(self._not_ours(left))
        note_output(dataset, command, output, {}, complete=False)
        if FILES_LIST not in self._left and not (output / FILES_LIST).put_file_if_absent(self._list):
            raise UsageError(_of_another(output, version))
        self._folders: Counter[str] = Counter()  # number of files of this run per subfolder

    def wrote(self, name: str, file: Path) -> None:
        """List a file by its path relative to the folder.

        Call this once for each file that this run writes or finds unchanged.
        """
        self._left.discard(name)
        if "/" in name:
            self._folders[_top(name)] += 1
        row = {"path": name, "bytes": file.stat().st_size, "sha256": sha256_of(file)}
        with self._list.open("ab") as rows:
            rows.write(canonical_json(row))
        self._listed += 1

    def complete(self, name: str, file: Path) -> None:
        """Check the folder before its last file is written, add that file to the list, and write the list.

        Raises `UsageError` if a subfolder that tools read as a whole contains files that this export didn't write,
        because these files may show images that were taken down. Raises `UnfinishedError` if files were added or
        deleted in the meantime, or if a shard was replaced since the start.
        """
        if "/" in name:
            self._folders[_top(name)] += 0  # check this subfolder for foreign files, even if it's otherwise empty
        if left := sorted(each for each in self._left - {name} if _top(each) in self._folders):
            raise UsageError(self._not_ours(left))
        others = (entry.name for entry in self.location.walk() if entry.name != name)
        there = Counter(_top(each) for each in others if _top(each) in self._folders)
        if there != self._folders:
            raise UnfinishedError(
                f"{self.location} has {counted(there.total(), 'file')} in its folders, but this export wrote "
                f"{self._folders.total():,}. Another run is writing there, or files were deleted. Delete it or choose "
                "another folder, then export again."
            )
        if changed := CommitLog(self._dataset).replaced_since(self._commits):
            shards = some(changed)
            raise UnfinishedError(
                f"{self._dataset} was corrected during the export (shards: {shards}), so images may have been "
                f"taken down or redacted. Delete {self.location} or choose another folder, then export again."
            )
        self.wrote(name, file)
        (self.location / FILES_LIST).put_file(self._list)
        files, listed = {name: sha256_of(file)}, sha256_of(self._list)
        note_output(self._dataset, self._command, self.location, files, listed, self._listed)

    def _not_ours(self, names: list[str]) -> str:
        return (
            f"{self.location} contains files that aren't part of this export, from another run or an earlier state of "
            f"the dataset: {some(names)}. Delete them, or choose another folder."
        )


def _of_another(output: Location, version: VersionName) -> str:
    return (
        f"{output} contains an export of another dataset, of another version, or with other options, according to "
        f"{FILES_LIST}. This dataset's digest is {short_digest(version.digest)}. Delete the folder, or choose another."
    )


def _top(name: str) -> str:
    return name.partition("/")[0]


PIXELS = (Format.LABEL_MAPS, Format.PNG_MASKS)
"""Formats that may leave out masks in larger ones."""

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Files = Mapping[str, Path] | Mapping[str, bytes]
"""Contents or local paths of files, keyed by path relative to the export's folder."""


class SampleWriter(Protocol):
    """Writer of a format. It collects samples and creates the files."""

    def add(self, sample: Sample) -> Files | None:
        """Add an image with its masks. Return the files that are now complete, by relative path."""

    def finish(self) -> dict[str, Path]:
        """Return the remaining files by relative path. The last file completes the export."""


@runtime_checkable
class NotesWriter(Protocol):
    """Writer with notes for the user about its output."""

    def notes(self) -> list[str]:
        """Return lines for the user. Call this after `finish`."""


@dataclass(frozen=True)
class ExportOptions:
    """Scope of an export.

    `shards` is a range of shards [A, B), a part of all shards, or None for all. `sample` is the number of images to
    draw, or None for all. `vocabulary` lists the categories in order. `select` is a condition or a file for
    `choose_images`, or None for all images. `level` is the level of the masks in a format of `PIXELS`.
    """

    format: Format
    shards: tuple[int, int] | ShardPart | None = None
    sample: int | None = None
    seed: int = 0
    with_images: bool = True
    vocabulary: tuple[str, ...] | None = None
    select: str | None = None
    level: Level = Level.ALL


@dataclass(frozen=True)
class ExportResult:
    """Result of an export."""

    output: str
    file: str
    images: int
    masks: int
    pictures: int
    version: VersionName
    notes: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """Return the result as lines for the user."""
        counts = (counted(self.images, "image"), counted(self.masks, "mask"), counted(self.pictures, "picture"))
        unread = "the files weren't checked against this digest. To check them, run `segmint verify`"
        return [f"{', '.join(counts)} → {self.file}", *self.notes, self.version.line(), unread]


def export_dataset(location: Location, options: ExportOptions, output: Location) -> ExportResult:
    """Write the committed images of the dataset at `location` to the folder `output`, local or in a bucket.

    The JSON stays in the system's temporary folder until it is complete, so memory doesn't grow with the number of
    images.

    Raises `UsageError` if the dataset or a shard doesn't exist, if the selection is invalid, if `output` already
    contains an export, or if the format or the vocabulary doesn't allow a label. For Hugging Face, also raises
    `UsageError` if the dataset isn't for publication. Raises `UnfinishedError` if the temporary folder is full.
    """
    if options.level is not Level.ALL and options.format not in PIXELS:
        raise UsageError(f"--level only applies to the formats {listed(PIXELS)}. Remove the option.")
    dataset = open_selected(location, options.select)
    if options.format is Format.HF:
        require_published(dataset.manifest, location, "exported for Hugging Face")
    file = output / MAIN_FILES[options.format]
    refuse_existing(location, output, file)
    commits = dataset.log.committed()  # read first, because `OutputFolder` compares them with the commits at the end
    shards = frozenset(choose_shards(dataset.manifest.shards, options.shards)) & commits.keys()
    if options.format is Format.PNG_MASKS and options.select is None and options.sample is None:
        _check_files(dataset, shards)
    version = name_now(location)
    categories = choose_categories(options.format, count_labels(dataset), options.vocabulary)
    if options.format in (Format.HF, Format.FIFTYONE):  # their schemas depend on it
        categories = replace(categories, has_prompts=has_prompts(dataset))
    try:
        with ScratchFolder() as scratch:
            command = f"export --format {options.format}{'' if options.with_images else ' --no-images'}"
            if options.level is not Level.ALL:
                command = f"{command} --level {options.level}"
            if dataset.subset is not None:  # the condition stays out of the dataset's notes, because it may name people
                command = f"{command} --select {dataset.subset.sha256[:12]}"
            folder = OutputFolder(location, command, output, version, Path(scratch), commits)
            writer = make_writer(
                options.format,
                Path(scratch),
                dataset.manifest,
                version,
                output.uri,
                categories,
                options.with_images,
                MASKS_PER_TASK,
            )
            drawn = None if options.sample is None else draw_images(dataset, shards, options.sample, options.seed)
            samples = read_images(dataset, shards, drawn)
            if options.level is Level.WHOLE:
                samples = map(without_parts, samples)
            apart = options.format is not Format.HF
            exported = write_samples(samples, [writer], folder, file, version, options.with_images, apart)
            if dataset.subset is None:
                return exported
            return replace(exported, notes=(dataset.subset.line, *exported.notes))
    except OSError as error:
        if error.errno not in _NO_SPACE:
            raise
        raise UnfinishedError(
            f"the temporary folder {gettempdir()} is too small for the files of the export ({error.strerror}). Free "
            "space or set TMPDIR to another folder, then run the same command again."
        ) from error


def make_writer(
    format: Format,
    scratch: Path,
    manifest: DatasetManifest,
    version: VersionName,
    output: str,
    categories: Categories = UNLABELED,
    with_images: bool = True,
    most: int | None = None,
) -> SampleWriter:
    """Return the writer of a format. It keeps the files for `output` in the folder `scratch` until they are complete.

    Without `categories`, the writer ignores labels. `most` is the maximum number of masks per Label Studio task.
    """
    if format is Format.LABEL_STUDIO:
        return TasksWriter(scratch, manifest, version, output, categories, most)
    if format is Format.HF:
        return HuggingFaceWriter(scratch, manifest, version, with_images, categories)
    if format in (Format.COCO, Format.LVIS, Format.CVAT):
        is_compressed, is_lvis = format is not Format.CVAT, format is Format.LVIS
        return CocoWriter(scratch, manifest, version, MAIN_FILES[format], is_compressed, categories, is_lvis)
    return _WRITERS[format](scratch, manifest, version, categories)


_WRITERS: Mapping[Format, Callable[[Path, DatasetManifest, VersionName, Categories], SampleWriter]] = {
    Format.FIFTYONE: FiftyOneWriter,
    Format.YOLO: YoloWriter,
    Format.GEOJSON: GeoJsonWriter,
    Format.SA_1B: Sa1bWriter,
    Format.LABEL_MAPS: LabelMapsWriter,
    Format.PNG_MASKS: PngMasksWriter,
}


def _check_files(dataset: Dataset, shards: Collection[int]) -> None:
    masks = sum(commit.counts.get("masks", 0) for commit in dataset.commits(shards))
    if masks > MOST_FILES:
        raise UsageError(
            f"{Format.PNG_MASKS} writes a file for each of {counted(masks, 'mask')}, which is over {MOST_FILES:,}. "
            f"Choose images with --select, --sample, or --shards, or use {Format.LABEL_MAPS}, with one file per image."
        )


def refuse_existing(dataset: Location, output: Location, file: Location) -> None:
    """Raise `UsageError` if `file` exists, or if `output` is inside the dataset."""
    if is_below(output.uri, dataset.uri):
        raise UsageError(f"{output} is inside the dataset {dataset}. Choose another folder.")
    if file.exists():
        raise UsageError(_taken(file))


def _taken(*files: Location) -> str:
    if len(files) == 1:
        return f"{files[0]} already exists. Choose another folder, or delete it."
    return f"{listed(files)} already exist. Choose another folder, or delete them."


def write_samples(
    samples: Iterable[Sample],
    writers: Sequence[SampleWriter],
    folder: OutputFolder,
    file: Location,
    version: VersionName,
    with_images: bool = True,
    pictures_apart: bool = True,
) -> ExportResult:
    """Write each sample's image when it arrives, and then the writers' files in order. `file` is the main file.

    `version` is the dataset version of the samples. With `pictures_apart=False`, the writers store the images
    themselves. Each file only appears when it is complete, so an interrupted export has no main file. A rerun keeps
    files with the same bytes.

    Raises `UsageError` at the first per-image file that exists with different bytes. Before any of the writers' other
    files is written, all of them are compared with existing files, and the error lists the files that differ. Raises
    the errors of `OutputFolder.complete` before the last file is written.
    """
    output = folder.location
    images = masks = pictures = 0
    with ScratchFolder() as scratch:
        for sample in samples:
            if with_images and sample.jpeg is not None:
                if pictures_apart:
                    _put_part(sample.jpeg, Path(scratch), folder, f"images/{image_name(sample.id)}")
                pictures += 1
            for writer in writers:
                for name, content in (writer.add(sample) or {}).items():
                    _put_part(content, Path(scratch), folder, name)
            images += 1
            masks += len(sample.masks)
    files = [pair for writer in writers for pair in writer.finish().items()]
    there = [(output / name, path) for name, path in files if (output / name).exists()]
    if others := [found for found, path in there if found.sha256() != sha256_of(path)]:
        raise UsageError(_taken(*others))
    for number, (name, path) in enumerate(files, 1):
        if number == len(files):
            folder.complete(name, path)
        else:
            folder.wrote(name, path)
        if not (output / name).put_file_if_absent(path):
            raise UsageError(_taken(output / name))
    notes = tuple(line for writer in writers if isinstance(writer, NotesWriter) for line in writer.notes())
    return ExportResult(str(output), str(file), images, masks, pictures, version, notes)


def _put_part(content: bytes | Path, scratch: Path, folder: OutputFolder, name: str) -> None:
    """Write an image, or another file that is complete before all samples are read.

    A scratch file is moved, not copied.
    """
    if isinstance(content, Path):
        local = content
    else:
        local = scratch / "part"
        local.write_bytes(content)  # as a file, because more stores support put-if-absent for files than for bytes
    file = folder.location / name
    folder.wrote(name, local)
    if not file.put_file_if_absent(local):
        raise UsageError(
            f"{file} already exists with other content, from another run or an earlier state of the dataset. "
            "Choose another folder, or delete this one."
        )
    local.unlink()


@dataclass(frozen=True)
class SelectResult:
    """Result of `segmint select`: the file, the number of selected images, and the version that they belong to.

    `sha256` identifies the selection: the version's digest, the condition, and the images' ids.
    """

    file: str
    images: int
    of: int
    sha256: str
    version: VersionName

    def lines(self) -> list[str]:
        """Return the result as lines for the user."""
        counts = f"{self.images:,} of {counted(self.of, 'image')} → {self.file}"
        return [counts, f"selection: sha256:{self.sha256}", self.version.line()]


def select_images(dataset: Location, condition: str, output: Location) -> SelectResult:
    """Select the images of a dataset's current state that meet `condition`, and write the file `output`.

    The dataset notes the file, so that takedowns list it. Raises `UsageError` if the condition is invalid or selects no
    image, and if `output` is inside the dataset, doesn't end with .json, or exists with other content.
    """
    refuse_inside(dataset, output, "--output")
    if not output.name.endswith(".json"):
        raise UsageError(f"--output {output}: expected a file that ends with .json, so that --select recognizes it")
    selection = Selection.of(dataset, condition)
    data = selection.to_json()
    note_output(dataset, "select", output, {output.name: sha256(data).hexdigest()})
    if not output.put_if_absent(data):
        raise UsageError(f"{output} already exists with other content. Choose another file, or delete it")
    version = VersionName(selection.dataset_digest.removeprefix("sha256:"), selection.dataset_version)
    return SelectResult(str(output), len(selection.ids), len(Dataset.open(dataset)), selection.sha256, version)
