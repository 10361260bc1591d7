"""`segmint import`: import masks made by people, as the next generation of a dataset's shards.

Readers for the file formats of `segmint import`. Each file is read once, into a `MaskStaging`.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import DatasetHandle, DatasetManifest, load_manifest, manifest_generations
from segmint.catalogs.dataset.submissions import check_name
from segmint.catalogs.dataset.versions import name_now
from segmint.catalogs.layout import bytes_sha256, image_stem
from segmint.infra.arrays import Size
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.wording import counted
from segmint.operators.annotations.coco import parse_coco, read_coco
from segmint.operators.annotations.folder import is_data_file, is_yolo, read_export, read_folder, read_yolo_folder
from segmint.operators.annotations.image import image_number
from segmint.operators.annotations.label_studio import iter_tasks, read_tasks
from segmint.operators.audit.masks import of_people
from segmint.operators.rows import AUTOMATIC, SOURCES, Row
from segmint.operators.shards.revise import read_shard_table, rows_of, with_latest_commit
from segmint.pipeline.corrections.correction import begin
from segmint.pipeline.corrections.import_merge import ImageImport, ImportedRow, ImportMode, ImportSettings, merge
from segmint.pipeline.corrections.import_staging import MaskStaging, MatchMode, StagedMasks
from segmint.pipeline.corrections.mask_revision import (
    RevisionCounts,
    RevisionList,
    RevisionPlan,
    RevisionResult,
    correct_masks,
    look_at_shards,
    planned,
)


class ImportFormat(StrEnum):
    """Formats that can be imported."""

    COCO = "coco"
    LABEL_STUDIO = "label-studio"
    HF = "hf"  # an export for Hugging Face
    YOLO = "yolo"  # segmentation labels with a YAML file
    FOLDER = "folder"
    DATASET = "dataset"  # another dataset, whose annotated masks are carried over


_OF_KEYS = {
    ("", "images"): ImportFormat.COCO,
    ("", "categories"): ImportFormat.COCO,
    ("annotations.item", "image_id"): ImportFormat.COCO,
    ("item", "annotations"): ImportFormat.LABEL_STUDIO,
    ("item", "annotation_id"): ImportFormat.LABEL_STUDIO,  # JSON_MIN
}
"""Formats, keyed by the location and name of the first characteristic key in a JSON document."""

SizeOf = Callable[[str], Size | None]
"""Function that maps an image's name in the file to its (height, width) in the dataset, or to None if unknown."""


def detect_format(where: Location) -> ImportFormat:
    """Detect the format of a file or folder by its content. Reading stops at the first characteristic key.

    Raises `UsageError` if nothing exists at this location or the content is inconclusive.
    """
    if not where.exists():
        if manifest_generations(where):
            return ImportFormat.DATASET
        names = [found.name for found in where.walk()]
        if not names:
            raise UsageError(f"{where} does not exist: expected a file or folder with masks, or another dataset")
        if any(map(is_data_file, names)):
            return ImportFormat.HF
        return ImportFormat.YOLO if is_yolo(names) else ImportFormat.FOLDER
    import ijson  # type: ignore[import-untyped]

    expected = f"Pass its format with --format, one of {', '.join(ImportFormat)}."
    try:
        with where.open() as stream:
            for place, event, key in ijson.parse(stream):
                if event == "map_key" and (place, key) in _OF_KEYS:
                    return _OF_KEYS[place, key]
                if event == "map_key" and (place, key) in (("", "image"), ("", "features"), ("", "shapes")):
                    expected = "To import the SA-1B JSON, GeoJSON, or labelme JSON of an image, pass its folder."
                    break
                if event == "end_map" and place == "item":
                    break  # a list of other items, such as COCO results
    except (ijson.JSONError, ValueError) as error:
        raise UsageError(f"{where} is neither COCO's nor Label Studio's JSON ({error}). {expected}") from error
    raise UsageError(f"{where} is neither COCO's nor Label Studio's JSON. {expected}")


def stage_file(
    where: Location, format: ImportFormat, stage: MaskStaging, size_of: SizeOf, ignore: Collection[int] = ()
) -> str:
    """Read a file or folder into a stage and return its SHA-256.

    A folder and Label Studio tasks are read image by image. A COCO document is held in memory as a whole. In label
    maps, the numbers in `ignore` aren't masks. Raises `UsageError` if there is nothing in this format.
    """
    try:
        if format is ImportFormat.FOLDER:
            return _stage_folder(where, stage, lambda add: read_folder(where, add, size_of, ignore))
        if format is ImportFormat.YOLO:
            return _stage_folder(where, stage, lambda add: read_yolo_folder(where, add, size_of))
        if format is ImportFormat.HF:
            by_image_id = stage.match is MatchMode.IMAGE_ID
            return _stage_folder(where, stage, lambda add: read_export(where, add, by_image_id))
        if format is ImportFormat.LABEL_STUDIO:
            return _stage_tasks(where, stage, size_of)
        return _stage_coco(where, stage, size_of)
    except NotFoundError as error:
        raise UsageError(f"{where} does not exist: expected a file with masks") from error


def _stage_coco(where: Location, stage: MaskStaging, size_of: SizeOf) -> str:
    data = where.read()
    digest = bytes_sha256(data)
    found = read_coco(parse_coco(data, str(where)), size_of)
    del data
    for problem in found.unreadable:
        stage.leave_out(problem)
    stage.homeless = found.homeless
    for image in found.images:
        stage.add(image)
    return digest


def _stage_tasks(where: Location, stage: MaskStaging, size_of: SizeOf) -> str:
    try:
        with where.unchanged(), where.open() as stream:
            for task in read_tasks(iter_tasks(stream), size_of):
                stage.superseded += task.superseded
                stage.add(task.image)
            return where.sha256()
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"{where} can't be read as Label Studio tasks ({type(error).__name__}: {error}): expected its JSON or "
            "JSON_MIN format"
        ) from error


def _stage_folder(where: Location, stage: MaskStaging, read: Callable[[Callable[[bytes], Any]], Any]) -> str:
    """Stage the images that `read` yields. It calls its argument with what it read."""
    hashed = hashlib.sha256()
    image = None
    for image in read(hashed.update):
        stage.add(image)
    if image is None:
        raise UsageError(
            f"{where} has no masks: expected a folder with one file per image, JSON of SA-1B or labelme (.json), "
            "GeoJSON (.geojson), or label maps (.png, .tif, .npy), or YOLO's data.yaml and folders `labels`"
        )
    return hashed.hexdigest()


PEOPLE = tuple(source for source in SOURCES if source != AUTOMATIC)
"""Valid values of `--mask-source`. If an imported mask replaces an existing mask, its source may become `corrected`."""

COUNTED = ("same", "corrected", "added", "deleted", "empty", "repeated")
"""Outcomes of masks, as `ImportedRow` counts them."""


@dataclass(frozen=True)
class ImportRequest:
    """Source and mode of an import. The source is a file in some format, or the annotated masks of another dataset.

    `ignore` contains the numbers in label maps that aren't masks, besides 0.
    """

    where: Location
    format: ImportFormat
    mode: ImportMode
    source: str = "imported"
    license: str | None = None
    annotator: str | None = None
    match: MatchMode = MatchMode.NUMBER
    ignore: tuple[int, ...] = ()


class ImportCounts(RevisionCounts):
    """Counts of a file's images, and of its masks by outcome."""

    def count(self, row: Row, merged: ImportedRow) -> None:
        """Count an image."""
        name = image_stem(row["id"])
        if merged.left is not None:
            self.leave(name, merged.left.value)
            return
        self.masks.update({each: getattr(merged, each) for each in COUNTED})
        if merged.row is not row:
            self.images += 1
            changes = [f"{getattr(merged, each)} {each}" for each in COUNTED[1:4] if getattr(merged, each)]
            self.example(f"{name}: {', '.join(changes) or 'only its columns'}")


@dataclass(frozen=True, kw_only=True)
class ImportList(RevisionList):
    """Changes that an import would make.

    `masks` counts the file's masks by outcome: already in the image (`same`), replacing a mask (`corrected`), new
    (`added`), without pixels (`empty`), or `repeated`. Existing masks that would be removed count as `deleted`.
    `skipped_images` counts the file's skipped images by reason. For an import from another dataset, `skipped_masks`
    counts the masks that fit no image of this dataset.
    """

    nothing = "nothing to import into {}"
    also = ("the previous files were deleted, including older versions",)
    file: str
    sha256: str  # SHA-256 of the file, or the version digest of another dataset
    mode: str
    named: int  # images of the dataset that the file names
    skipped_masks: Mapping[str, int]
    unknown: int  # images of the file that are not in the dataset
    first_unknown: str | None
    ambiguous: int  # images of the file whose name matches several images of the dataset
    first_ambiguous: str | None
    superseded: int  # repeated entries for an image in the file
    prompts: int  # results beside masks that aren't masks, such as keypoints
    unreadable: int  # masks and entries of the file that can't be read
    problems: tuple[str, ...]  # the first unreadable masks and entries

    def lines(self) -> list[str]:
        return [*super().lines(), *self.example_lines()]

    def found(self) -> list[str]:
        """Return lines on the file's contents."""
        lines = [f"{self.file} has masks for {counted(self.named, 'image')}: {self.counted_masks() or 'none'}"]
        lines += self.skipped_lines()
        lines += [f"not carried over: {counted(n, 'mask')}: {why}" for why, n in self.skipped_masks.items()]
        for count, what, first in (
            (self.unknown, "not in the dataset", self.first_unknown),
            (self.superseded, "more than once in the file; the one saved last is used, or the first", None),
        ):
            if count:
                lines.append(f"skipped: {counted(count, 'image')} {what}{f', such as {first}' if first else ''}")
        if self.prompts:
            lines.append(f"ignored: {counted(self.prompts, 'prompt')} beside masks, such as keypoints")
        return [*lines, *(f"  {problem}" for problem in self.problems)]

    @property
    def not_checked(self) -> list[str]:
        """Images and masks that couldn't be imported, as text."""
        several = f"{counted(self.ambiguous, 'image')} with several matches, such as {self.first_ambiguous}"
        unreadable = f"unreadable: {counted(self.unreadable, 'mask or entry')}".replace("entrys", "entries")
        return [*super().not_checked, *[several] * bool(self.ambiguous), *[unreadable] * bool(self.unreadable)]

    def reason(self) -> str:
        """Return the reason that the version records."""
        name = self.file.rstrip("/").rpartition("/")[2]
        said = self.counted_masks("corrected", "added", "deleted") or "no mask"
        return f"{name}, SHA-256 {self.sha256[:12]}, {self.mode}: {said} in {counted(self.images, 'image')}"


def list_import(dataset: Location, asked: ImportRequest) -> ImportList:
    """List the changes that `import_masks` would make. Raises the same errors before any change."""
    with ScratchFolder() as folder:
        return _plan(DatasetHandle.open(dataset), asked, Path(folder)).listed


def import_masks(
    dataset: Location,
    asked: ImportRequest,
    confirm: Callable[[ImportList], None] | None = None,
    now: datetime | None = None,
) -> RevisionResult[ImportList]:
    """Merge masks into the images of a dataset. `confirm` is as in `correct_masks`.

    Raises `UsageError` before any change if the file can't be read or the store's older versions can't be removed.
    """
    with ScratchFolder() as folder:
        handle = begin(dataset)
        plan = _plan(handle, asked, Path(folder))
        # The staged masks are on this machine's disk, so other machines can't help, even if there are many shards.
        return correct_masks(handle, "import", plan, confirm, now)


def _plan(dataset: DatasetHandle, asked: ImportRequest, folder: Path) -> RevisionPlan[ImportList]:
    """Stage the file's masks in `folder`, and return the plan."""
    location = dataset.location
    _check(asked)
    manifest = dataset.manifest()
    with MaskStaging(folder, manifest, asked.match) as stage:
        if asked.format is ImportFormat.DATASET:
            begun = load_manifest(asked.where)
            if asked.where.uri == location.uri:
                raise UsageError(f"{asked.where} is the dataset itself. Pass the dataset that contains the masks.")
            left = carry_masks(asked.where, begun, location, stage)
            digest, origin = name_now(asked.where).digest, None
        else:
            left = {}
            sizes = sizes_of(location, manifest, asked.match)
            digest = stage_file(asked.where, asked.format, stage, sizes, asked.ignore)
            origin = {"sha256": digest, "license": asked.license}
        staged = stage.finish(location, left)
    if asked.format is not ImportFormat.DATASET and not staged.images:
        raise UsageError(_nothing_found(location, asked, staged))
    settings = ImportSettings(mode=asked.mode, source=asked.source, origin=origin, annotator=asked.annotator)
    shards = zip(staged.shards, (staged.answers(*span) for span in staged.ordinals), strict=True)
    tally = look_at_shards(location, shards, ImportCounts(), partial(_count, location, settings))
    listed = planned(
        ImportList,
        dataset,
        tally,
        COUNTED,
        file=str(asked.where),
        sha256=digest,
        mode=str(asked.mode),
        named=staged.images,
        skipped_masks=staged.left,
        unknown=staged.unknown,
        first_unknown=staged.first_unknown,
        ambiguous=staged.ambiguous,
        first_ambiguous=staged.first_ambiguous,
        superseded=staged.superseded,
        prompts=staged.prompts,
        unreadable=staged.all_unreadable,
        problems=staged.unreadable,
    )
    change = partial(_merged_rows, staged, settings)
    return RevisionPlan(listed, frozenset(staged.shards), change, dict(tally.inspected))


def _check(asked: ImportRequest) -> None:
    if asked.source not in PEOPLE:
        raise UsageError(f"--mask-source {asked.source!r}: expected one of {', '.join(PEOPLE)}")
    if asked.ignore and asked.format is not ImportFormat.FOLDER:
        raise UsageError("--ignore only applies to label maps, and a folder contains them. Remove the option.")
    for option, value in (("--license", asked.license), ("--annotator", asked.annotator)):
        if value is not None and not value.strip():
            raise UsageError(f"{option} is empty. Pass a value, or omit the option.")
    if asked.annotator is not None:
        check_name(asked.annotator)


def _nothing_found(dataset: Location, asked: ImportRequest, staged: StagedMasks) -> str:
    expected = {
        MatchMode.NUMBER: "expected image names such as sa_17.jpg (--match can match by image_id or uri instead)",
        MatchMode.IMAGE_ID: "expected image names that are an image_id, with or without an extension",
        MatchMode.URI: "expected image names that are the last part of a uri",
    }[asked.match]
    first = staged.first_unknown or staged.first_ambiguous
    problems = [f"the first is {first}"] if first else []
    problems += [f"unreadable: {problem}" for problem in staged.unreadable[:3]]
    why = f" ({'; '.join(problems)})" if problems else ""
    return f"no image of {asked.where} is in {dataset}{why}: {expected}. Nothing was changed."


def _merged_rows(staged: StagedMasks, settings: ImportSettings, commit: Commit, rows: Sequence[Row]) -> Sequence[Row]:
    """Merge a file's masks into the rows of a shard's images. Rows that don't change are the same objects.

    This only runs in processes on this machine, because the staged masks are on its disk.
    """
    answers = staged.answers(*commit.ordinals)
    return [merge(row, answers[row["ordinal"]], settings).row if row["ordinal"] in answers else row for row in rows]


def _count(
    dataset: Location, settings: ImportSettings, commit: Commit, answers: Mapping[int, ImageImport]
) -> ImportCounts:
    """Count the changes that the import would make in a shard."""
    tally = ImportCounts()
    for row in rows_of(dataset, commit, answers):
        tally.count(row, merge(row, answers[row["ordinal"]], settings))
    return tally


def sizes_of(dataset: Location, manifest: DatasetManifest, match: MatchMode) -> Callable[[str], Size | None]:
    """Return a function that maps an image's name to its (height, width) in the dataset, or to None if it's unknown.

    The function only looks up names that contain a number. It accepts names in any order, reads each shard's table
    once, and keeps the sizes of the shard's images in memory, 8 bytes per image.
    """
    per_shard = manifest.images_per_shard

    @cache
    def of_shard(shard: int) -> NDArray[np.int32]:
        """Return the height and width of each row in a shard, int32 (images_per_shard, 2).

        Rows without an image are 0.
        """

        def read(commit: Commit) -> NDArray[np.int32]:
            table = read_shard_table(dataset, commit, "images")
            sizes = np.zeros((per_shard, 2), np.int32)
            sizes[np.asarray(table.column("ordinal")) - shard * per_shard] = np.stack(
                [np.asarray(table.column(name)) for name in ("height", "width")], axis=1
            )
            return sizes

        found = with_latest_commit(dataset, shard, read)
        return np.zeros((per_shard, 2), np.int32) if found is None else found

    def size(name: str) -> Size | None:
        number = image_number(name) if match is MatchMode.NUMBER else None
        if number is None or not 0 < number <= manifest.shards * per_shard:
            return None
        shard, place = divmod(number - 1, per_shard)
        height, width = of_shard(shard)[place].tolist()
        return (height, width) if height else None

    return size


NOT_THERE = "no image of the same source"
OTHER_RELEASE = "released in another size"
OTHER_REDACTIONS = "other redactions"

_PROMPTED = ("assisted", "corrected")
"""Sources of masks that are based on a model's prediction."""


class _ReleaseKey(NamedTuple):
    """Properties of a released image that must match, in addition to the source, before masks are carried over."""

    size: Size  # (height, width)
    regions: tuple[tuple[Any, ...], ...]


class _AnnotatedImage(NamedTuple):
    """Image with annotated masks."""

    release: _ReleaseKey
    row: Row  # of `IMAGES`
    masks: list[Row]  # rows of `MASKS`, only annotated masks


def carry_masks(source: Location, begun: DatasetManifest, into: Location, stage: MaskStaging) -> dict[str, int]:
    """Stage the annotated masks of `source` for `into`, and return the number of omitted masks by reason.

    `begun` is the manifest of `source`. An image's masks are staged for every image of `into` with the same source
    bytes. If a prompted mask doesn't name its model, the model of `source` is recorded. Otherwise, `into` would
    attribute the mask to its own model.

    The function reads `source` twice and the images of `into` once, shard by shard. Its memory only grows with the
    number of distinct source images that have annotated masks.
    """
    homes = _homes(into, frozenset(found.row["source_sha256"] for found in _annotated(source)))
    left: Counter[str] = Counter()
    for found in _annotated(source):
        reasons = []
        carried = False
        for ordinal, release in homes.get(found.row["source_sha256"], ()):
            if release.size != found.release.size:
                reasons.append(OTHER_RELEASE)
            elif release.regions != found.release.regions:
                reasons.append(OTHER_REDACTIONS)
            else:
                stage.carry(
                    ordinal, release.size, _elsewhere(found.row), [_with_model(mask, begun) for mask in found.masks]
                )
                carried = True
        if not carried:
            left[reasons[0] if reasons else NOT_THERE] += len(found.masks)
    return dict(left.most_common())


def _elsewhere(row: Row) -> Row:
    """Return an image's row for use in another dataset, without its assignment and submission number."""
    said = row["submission"]
    return row if said is None else {**row, "submission": {**said, "assignment": None, "n": None}}


def _with_model(mask: Row, begun: DatasetManifest) -> Row:
    return mask if mask["model"] or mask["source"] not in _PROMPTED else {**mask, "model": begun.weights.sha256}


def _annotated(dataset: Location) -> Iterator[_AnnotatedImage]:
    for shard in sorted(CommitLog(dataset).committed()):
        yield from with_latest_commit(dataset, shard, lambda commit: _annotated_in(dataset, commit)) or ()


def _annotated_in(dataset: Location, commit: Commit) -> list[_AnnotatedImage]:
    masks = read_shard_table(dataset, commit, "masks")
    masks = masks.filter(of_people(masks))
    by_image: dict[int, list[Row]] = {}
    for mask in masks.to_pylist():
        by_image.setdefault(mask["ordinal"], []).append(mask)
    if not by_image:
        return []
    images = read_shard_table(dataset, commit, "images")
    images = images.filter(pc.is_in(images.column("ordinal"), value_set=masks.column("ordinal").combine_chunks()))
    return [_AnnotatedImage(_release(row), row, by_image[row["ordinal"]]) for row in images.to_pylist()]


def _homes(dataset: Location, sources: Set[str]) -> Mapping[str, list[tuple[int, _ReleaseKey]]]:
    """Return the images of a dataset whose source has one of these SHA-256 hashes, grouped by hash."""
    homes: dict[str, list[tuple[int, _ReleaseKey]]] = {}

    def read(commit: Commit) -> list[Row]:
        table = read_shard_table(dataset, commit, "images")
        rows: list[Row] = table.select(["ordinal", "source_sha256", "height", "width", "regions"]).to_pylist()
        return rows

    for shard in sorted(CommitLog(dataset).committed()):
        for row in with_latest_commit(dataset, shard, read) or ():
            if row["source_sha256"] in sources:
                homes.setdefault(row["source_sha256"], []).append((row["ordinal"], _release(row)))
    return homes


def _release(row: Row) -> _ReleaseKey:
    names = ("kind", "x", "y", "w", "h", "source")
    regions = sorted(tuple(region[name] for name in names) for region in row["regions"] or ())
    return _ReleaseKey((row["height"], row["width"]), tuple(regions))
