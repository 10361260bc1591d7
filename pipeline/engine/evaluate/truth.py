"""Ground truth of an evaluation: images with their masks, independent of where they come from.

The ground truth is a segmint dataset, a COCO file, or a folder of label maps. A dataset contains its pixels and has one
part per shard. A COCO file and a folder of label maps come with a separate folder of images.
"""

from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from typing import Any, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.reader import Dataset, MaskAnnotation, Sample
from segmint.catalogs.dataset.subsets import open_selected
from segmint.catalogs.dataset.versions import name_now
from segmint.catalogs.layout import DamagedDatasetError, bytes_sha256, image_name
from segmint.infra.arrays import Ints, Pixels, Size
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError, StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.uris import redact
from segmint.infra.wording import counted, listed
from segmint.model.automatic.rle import CocoRle
from segmint.operators.annotations.coco import parse_coco, read_coco
from segmint.operators.annotations.image import (
    AnnotatedImage,
    AnnotatedMask,
    UnreadableMaskError,
    checked_rle,
    mask_name,
)
from segmint.operators.annotations.label_maps import (
    ENDINGS,
    UnreadableMapError,
    label_masks,
    pair_by_stem,
    read_label_map,
)
from segmint.operators.evaluate.settings import COCO, DATASET, LABEL_MAPS, TruthSelection
from segmint.operators.images import JpegDecoder, UndecodableError, decode_jpeg
from segmint.operators.prepare.ingest import ingest
from segmint.operators.prepare.ingest_config import ANY_SIZE
from segmint.operators.rows import AUTOMATIC, SOURCES


class UnreadableTruthError(ValueError):
    """Raised when an image can't be evaluated. The message gives the reason without the image's name."""


class SkippedTruth(NamedTuple):
    """Image or mask that was skipped, with its location and the reason."""

    truth: str
    where: str
    why: str

    def __str__(self) -> str:
        return f"{self.truth}: {self.where}: {self.why}" if self.where else f"{self.truth}: {self.why}"


@dataclass(frozen=True)
class TruthMask:
    """Ground-truth mask, in the frame of its image.

    `id` is the annotation's id, or its index in the file if it has no id. `source` is one of SOURCES in
    `segmint.operators.rows`, where `label_source` is also defined. Both are None outside datasets. A mask with
    `crowd` covers a group of objects. `category` and `stated_area` come from a COCO file, if present.
    """

    id: int
    rle: CocoRle
    area: int
    label: str | None = None
    source: str | None = None
    crowd: bool = False
    category: int | None = None
    stated_area: float | None = None
    label_source: str | None = None


@dataclass(frozen=True)
class TruthImage:
    """Image with its ground-truth masks, which are nonempty and of the image's size.

    `truth` is the index of the image's dataset or file in the command, and `image_id` is unique within it. `pixels` (H,
    W, 3) uint8 RGB are in the frame of the masks. `columns` contains the image's values by column name, for groups.
    `skipped` contains a line for each skipped mask.

    `label_map` (H, W) int64 exists only if the truth consists of label maps. In it, 0 is the background, and values in
    `ignore` are neither a mask nor background. For an image of an LVIS file, `checked` contains the ids of the
    categories that were checked in the image. `not_exhaustive` contains the ids of the categories for which some
    objects in the image have no mask.
    """

    truth: int
    image_id: str
    name: str
    pixels: Pixels
    masks: Sequence[TruthMask]
    skipped: Sequence[str] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    label_map: Ints | None = None
    ignore: frozenset[int] = frozenset()
    checked: frozenset[int] = frozenset()
    not_exhaustive: frozenset[int] = frozenset()

    @property
    def size(self) -> Size:
        """(height, width) in pixels."""
        return self.pixels.shape[0], self.pixels.shape[1]


class Decoders(NamedTuple):
    """Image decoders: `own` for images that segmint wrote, and `foreign` for untrusted images."""

    own: JpegDecoder
    foreign: JpegDecoder


@dataclass(frozen=True)
class PendingImage:
    """Image that hasn't been read or decoded yet. `load` may run in any thread, and raises `UnreadableTruthError`."""

    image_id: str
    name: str
    load: Callable[[Decoders], TruthImage]


class TruthPart(Protocol):
    """Unit of work for one worker: a shard of a dataset, or some images of a file. Picklable."""

    @property
    def name(self) -> str:
        """Name of the part for messages."""

    @property
    def images(self) -> int:
        """Number of images in the part."""

    def pending(self) -> Iterator[PendingImage]:
        """Yield the images in order. Raises `SegmintError` if the rest of the part can't be read."""


@dataclass(frozen=True)
class Truth:
    """Dataset or file that an evaluation uses as ground truth.

    `name` is the user's name for it, without credentials. `kind` is one of the kinds in
    `operators/evaluate/settings.py`, and `facts` contains digests and choices. `dataset` is the location of a segmint
    dataset. `categories` are the category ids of a COCO file's masks. `frequencies` maps an LVIS file's category ids
    to their frequency: r, c, or f. With `federated`, the file lists the categories that were checked in each image.
    """

    name: str
    kind: str
    parts: Sequence[TruthPart]
    facts: Mapping[str, Any] = field(default_factory=dict)
    skipped: Sequence[SkippedTruth] = ()
    dataset: Location | None = None
    frequencies: Mapping[int, str] = field(default_factory=dict)
    categories: frozenset[int] = frozenset()
    federated: bool = False

    @property
    def images(self) -> int:
        """Number of images to evaluate."""
        return sum(part.images for part in self.parts)


def empty_lines(masks: Sequence[TruthMask]) -> list[str]:
    """Return a line for each mask without pixels."""
    return [f"{mask_name(mask.id)}: it has no pixels" for mask in masks if not mask.area]


PART_IMAGES = 16
"""Number of images per part of a file."""

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif")
_LARGEST_MAP = 1 << 30  # bytes

_CREDIT = ("attribution", "provider", "license")
"""Columns of the images table that credit an image when it is drawn."""

_THREADS = 16
_AHEAD = 64

SOURCES_OF: Mapping[TruthSelection, tuple[str, ...]] = {
    TruthSelection.HUMAN: tuple(source for source in SOURCES if source != AUTOMATIC),
    TruthSelection.AUTOMATIC: (AUTOMATIC,),
    TruthSelection.ALL: SOURCES,
}
"""Sources of the masks in each selection. A mask without a source counts as automatic."""


def decode_upright(data: bytes) -> Pixels:
    """Decode an untrusted image and turn it upright, (H, W, 3) uint8 RGB, as a build does. Raises `RejectedError`."""
    return ingest(data, ANY_SIZE).image


@dataclass(frozen=True)
class CocoPart:
    """Part of a COCO file: some of its images."""

    folder: Location
    truth: int
    annotated: tuple[AnnotatedImage, ...]

    @property
    def name(self) -> str:
        """Name of the part for messages."""
        return f"images starting at {self.annotated[0].name}"

    @property
    def images(self) -> int:
        """Number of images in the part."""
        return len(self.annotated)

    def pending(self) -> Iterator[PendingImage]:
        """Yield the images in the file's order."""
        for image in self.annotated:
            yield PendingImage(_id_of(image), image.name, partial(self._load, image))

    def _load(self, image: AnnotatedImage, decoders: Decoders) -> TruthImage:
        pixels = _read_pixels(self.folder, image.name, decoders)
        masks, skipped = _masks(image.masks, pixels)
        present = {mask.category for mask in image.masks if mask.category is not None}
        checked = (image.negative or frozenset()) | present
        lines, partly = [*image.unreadable, *skipped], image.not_exhaustive
        return TruthImage(
            self.truth, _id_of(image), image.name, pixels, masks, lines, checked=checked, not_exhaustive=partly
        )


@dataclass(frozen=True)
class LabelMapsPart:
    """Part of a folder of label maps: pairs of an image and a label map, by their names within their folders."""

    folder: Location
    maps: Location
    truth: int
    pairs: tuple[tuple[str, str], ...]
    ignore: frozenset[int]

    @property
    def name(self) -> str:
        """Name of the part for messages."""
        return f"images starting at {self.pairs[0][0]}"

    @property
    def images(self) -> int:
        """Number of images in the part."""
        return len(self.pairs)

    def pending(self) -> Iterator[PendingImage]:
        """Yield the images in the order of their names."""
        for image, labels in self.pairs:
            yield PendingImage(PurePosixPath(image).stem, image, partial(self._load, image, labels))

    def _load(self, image: str, name: str, decoders: Decoders) -> TruthImage:
        try:
            labels = read_label_map((self.maps / name).read(max_bytes=_LARGEST_MAP), name)
            drawn = label_masks(labels, self.ignore)
        except UnreadableMapError as error:
            raise UnreadableTruthError(f"its label map {name}: {error}") from error
        except (NotFoundError, StorageFaultError, OSError) as error:
            raise UnreadableTruthError(f"its label map can't be read: {error}") from error
        pixels = _read_pixels(self.folder, image, decoders)
        masks, skipped = _masks(drawn, pixels, labels)
        stem = PurePosixPath(image).stem
        return TruthImage(self.truth, stem, image, pixels, masks, skipped, label_map=labels, ignore=self.ignore)


def open_coco_truth(file: Location, folder: Location, number: int, empty: bool = False) -> Truth:
    """Plan the evaluation of a COCO file with its images in `folder`. `number` is its index among the truths.

    An image without masks is evaluated only if `empty` is set, which is meant for measures that count every detection
    in it as wrong. Raises `UsageError` if the file isn't COCO or has no masks.
    """
    try:
        data = file.read()
    except NotFoundError as error:
        raise UsageError(f"{file}: no such file or dataset") from error
    found = read_coco(parse_coco(data, str(file)))
    names = [image.name for image in found.images]
    twice = {name for name, count in Counter(names).items() if count > 1}
    skipped = [SkippedTruth(redact(str(file)), "", why) for why in found.unreadable]
    annotated = []
    for image in found.images:
        if image.name in twice:
            skipped.append(SkippedTruth(redact(str(file)), image.name, "several images in the file have this name"))
        elif image.masks or (empty and not image.unreadable):
            annotated.append(image)
        else:
            skipped += [SkippedTruth(redact(str(file)), image.name, why) for why in image.unreadable]
    if not any(image.masks for image in annotated):
        raise UsageError(
            f"{file} has no masks to evaluate on in {counted(len(names), 'image')}"
            + "".join(f"\n  {each}" for each in skipped[:5])
        )
    parts = [
        CocoPart(folder, number, tuple(annotated[start : start + PART_IMAGES]))
        for start in range(0, len(annotated), PART_IMAGES)
    ]
    facts = {"sha256": bytes_sha256(data), "image_folder": redact(str(folder))}
    categories = frozenset(mask.category for image in annotated for mask in image.masks if mask.category is not None)
    federated = any(image.negative is not None for image in annotated)
    return Truth(redact(str(file)), COCO, parts, facts, skipped, None, found.frequencies, categories, federated)


def open_label_maps_truth(maps: Location, folder: Location, number: int, ignore: Sequence[int] = ()) -> Truth:
    """Plan the evaluation of the label maps in `maps`. A map belongs to the image in `folder` with the same stem.

    `ignore` contains values other than 0 that aren't masks. Raises `UsageError` if no map matches an image.
    """
    labels = _names(maps, ENDINGS)
    if not labels:
        raise UsageError(
            f"{maps} is neither a dataset, nor a COCO file (.json), nor a folder of label maps ({', '.join(ENDINGS)})"
        )
    paired = pair_by_stem(_names(folder, _PICTURES), labels)
    skipped = [
        SkippedTruth(redact(str(maps)), name, f"no image with this name in {folder}") for name in paired.maps_alone
    ]
    skipped += [SkippedTruth(redact(str(maps)), "", f"several files named alike: {line}") for line in paired.ambiguous]
    if not paired.pairs:
        raise UsageError(
            f"no label map in {maps} matches an image name in {folder}: expected pairs such as {labels[0]} and "
            f"{PurePosixPath(labels[0]).stem}.jpg"
        )
    parts = [
        LabelMapsPart(folder, maps, number, tuple(paired.pairs[start : start + PART_IMAGES]), frozenset(ignore))
        for start in range(0, len(paired.pairs), PART_IMAGES)
    ]
    facts = {"image_folder": redact(str(folder)), "ignore": sorted(ignore)}
    return Truth(redact(str(maps)), LABEL_MAPS, parts, facts, skipped)


def _names(folder: Location, endings: Sequence[str]) -> list[str]:
    return [entry.name for entry in folder.list() if PurePosixPath(entry.name).suffix.lower() in endings]


def _read_pixels(folder: Location, name: str, decoders: Decoders) -> Pixels:
    try:
        data = (folder / name).read(max_bytes=ANY_SIZE.max_bytes)
    except NotFoundError:
        raise UnreadableTruthError(f"no such image in {folder}") from None
    except (SegmintError, OSError, ValueError) as error:
        raise UnreadableTruthError(f"the image can't be read: {error}") from error
    try:
        return decoders.foreign.run(decode_upright, data)
    except UndecodableError as error:
        raise UnreadableTruthError(f"the image can't be decoded: {error}") from error


def _masks(
    masks: Sequence[AnnotatedMask], pixels: Pixels, labels: Ints | None = None
) -> tuple[list[TruthMask], list[str]]:
    """Separate the nonempty masks from the empty ones, and return a line for each empty one.

    Raises `UnreadableTruthError` if a mask's size isn't the image's.
    """
    height, width = pixels.shape[:2]
    sizes = {(mask.rle["size"][0], mask.rle["size"][1]) for mask in masks}
    if labels is not None:
        sizes.add((labels.shape[0], labels.shape[1]))
    for other in sorted(sizes - {(height, width)}):
        raise UnreadableTruthError(
            f"its masks are {other[1]} x {other[0]} pixels, but the upright image is {width} x {height}"
        )
    found = [
        TruthMask(
            place if mask.id is None else mask.id,
            mask.rle,
            mask.area,
            mask.label,
            None,
            mask.crowd,
            mask.category,
            mask.stated_area,
        )
        for place, mask in enumerate(masks)
    ]
    return [mask for mask in found if mask.area], empty_lines(found)


def _id_of(image: AnnotatedImage) -> str:
    return image.name if image.id is None else str(image.id)


@dataclass(frozen=True)
class _MaskColumns:
    """Values of a mask in the masks table."""

    source: str
    label: str | None


@dataclass(frozen=True)
class ShardTruthPart:
    """Part of a dataset: a shard's images, with masks from the chosen sources."""

    dataset: Location
    truth: int
    shard: int
    images: int
    sources: tuple[str, ...]
    columns: tuple[str, ...]
    ids: frozenset[int] | None = None  # of the selected images; None for all

    @property
    def name(self) -> str:
        """Name of the part for messages."""
        return f"shard {self.shard}"

    def pending(self) -> Iterator[PendingImage]:
        """Yield the shard's images in order. Raises `SegmintError` if one of its files can't be read."""
        dataset = Dataset.open(self.dataset)
        commit = next(iter(dataset.commits(only=[self.shard])), None)
        if commit is None:
            raise DamagedDatasetError(f"shard {self.shard} is no longer committed")
        told = _told(dataset, commit, self.sources, self.ids)
        for sample in dataset.shard(commit, ids=told.keys()):
            yield PendingImage(
                str(sample.row.get("image_id", sample.id)),
                image_name(sample.id),
                partial(self._load, sample, told[sample.id]),
            )

    def _load(self, sample: Sample, told: Mapping[int, _MaskColumns], decoders: Decoders) -> TruthImage:
        if sample.jpeg is None:
            raise UnreadableTruthError("the dataset contains only annotations, no pixels")
        try:
            pixels = decoders.own.run(decode_jpeg, sample.jpeg)
            masks = [_mask(mask, told[mask.id]) for mask in sample.masks if mask.id in told]
        except (UndecodableError, UnreadableMaskError) as error:
            raise UnreadableTruthError(str(error)) from error
        size = (sample.row["height"], sample.row["width"])
        if pixels.shape[:2] != size:
            raise UnreadableTruthError(
                f"its JPEG is {pixels.shape[1]} x {pixels.shape[0]}, but its row says {size[1]} x {size[0]}"
            )
        return TruthImage(
            self.truth,
            str(sample.row.get("image_id", sample.id)),
            image_name(sample.id),
            pixels,
            [mask for mask in masks if mask.area],
            empty_lines(masks),
            {name: _value(sample.row, name) for name in (*_CREDIT, *self.columns)},
        )


def open_dataset_truth(
    location: Location,
    number: int,
    chosen: TruthSelection = TruthSelection.HUMAN,
    columns: Sequence[str] = (),
    select: str | None = None,
) -> Truth:
    """Plan the evaluation of a dataset. `number` is its index among the truths.

    Only shards with chosen masks become parts. To find them, this reads the masks tables, but no images. `columns` are
    the image columns to keep, and `select` limits the images; see `choose_images`. Raises `UsageError` if there is no
    dataset, no such image, no such mask, no pixels, or no such column.
    """
    dataset = open_selected(location, select)
    if dataset.manifest.config.get("release", {}).get("format") == "annotations":
        raise UsageError(f"{location} contains only annotations, but an evaluation needs pixels")
    sources = SOURCES_OF[chosen]
    parts: list[ShardTruthPart] = []
    skipped: list[SkippedTruth] = []
    for commit, found in map_ahead(partial(_plan, dataset, sources), dataset.commits(), _THREADS, _AHEAD, "truth"):
        if isinstance(found, str):
            skipped.append(SkippedTruth(redact(str(location)), f"shard {commit.shard}", found))
        elif found:
            ids = _selected(dataset, commit)
            parts.append(ShardTruthPart(location, number, commit.shard, found, sources, tuple(columns), ids))
    if not parts and not skipped:
        raise UsageError(_no_masks(location, chosen))
    if parts and columns:
        _check_columns(dataset, [part.shard for part in parts], columns)
    version = name_now(location)
    facts: dict[str, Any] = {
        "truth": chosen.value,
        "digest": version.digest,
        "version": version.number,
        "dataset": dataset.manifest.name,
    }
    if dataset.subset is not None:
        facts |= {"select": dataset.subset.condition, "selection": dataset.subset.sha256}
    return Truth(redact(str(location)), DATASET, parts, facts, skipped, location)


def _no_masks(location: Location, chosen: TruthSelection) -> str:
    if chosen is not TruthSelection.HUMAN:
        return f"{location} has no committed mask with source {listed(SOURCES_OF[chosen])}: nothing to evaluate on"
    return (
        f"{location} has no annotated masks (source {', '.join(SOURCES_OF[chosen])}). Import some with "
        "`segmint import`, make some with `segmint annotate` and `segmint merge`, or use the model's own masks as "
        "ground truth with --truth automatic, which shows how two sets of weights differ, but not how good they are"
    )


def _check_columns(dataset: Dataset, shards: Container[int], columns: Sequence[str]) -> None:
    """Raise `UsageError` unless a shard has these columns, or fields of columns, each with a single value per image.

    Not all shards have a column that was added later.
    """
    known: dict[str, None] = {}
    for commit in dataset.commits(only=shards):
        flat = dataset.table(commit, "images").schema.empty_table().flatten().schema
        known |= dict.fromkeys(field.name for field in flat if not pa.types.is_nested(field.type))
        if known.keys() >= set(columns):
            return
    missing = next(name for name in columns if name not in known)
    raise UsageError(
        f"the images of {dataset.location} have no column {missing!r} with one value each: expected one of "
        f"{', '.join(known)}, label or source of a mask, or a file of groups"
    )


def _value(row: Mapping[str, Any], name: str) -> Any:
    """Return the value of a column, or of a field such as `stage_blur.variance`, in an image's row."""
    column, _, field = name.partition(".")
    value = row.get(column)
    return value if not field or value is None else value[field]


def _plan(dataset: Dataset, sources: tuple[str, ...], commit: Commit) -> tuple[Commit, int | str]:
    """Count a shard's images with chosen masks. Returns the reason instead if the shard can't be read."""
    try:
        return commit, len(_told(dataset, commit, sources, _selected(dataset, commit)))
    except DamagedDatasetError as error:
        return commit, str(error)


def _selected(dataset: Dataset, commit: Commit) -> frozenset[int] | None:
    """Return the ids of a shard's selected images, or None if all images are selected."""
    return None if dataset.subset is None else frozenset(dataset.subset.inside(commit.ordinals).tolist())


def _told(
    dataset: Dataset, commit: Commit, sources: tuple[str, ...], ids: frozenset[int] | None
) -> dict[int, dict[int, _MaskColumns]]:
    """Read the masks from these sources in the images with these ids, or in all, by image id and annotation id."""
    if not commit.counts.get("masks", 1) or (ids is not None and not ids):
        return {}
    table = dataset.table(commit, "masks")
    missing = [name for name in ("id", "annotation_id", "source", "label") if name not in table.column_names]
    if missing:
        raise DamagedDatasetError(f"the mask table of shard {commit.shard} has no column {missing[0]}")
    flat = table.select(["id", "annotation_id", "source", "label"])
    flat = flat.filter(pc.is_in(flat["source"], value_set=pa.array(sources)))
    if ids is not None:
        flat = flat.filter(pc.is_in(flat["id"], value_set=pa.array(ids, pa.int64())))
    told: dict[int, dict[int, _MaskColumns]] = {}
    for row in flat.to_pylist():
        told.setdefault(row["id"], {})[row["annotation_id"]] = _MaskColumns(row["source"], row["label"])
    return told


def _mask(mask: MaskAnnotation, told: _MaskColumns) -> TruthMask:
    rle = checked_rle({"size": list(mask.size), "counts": mask.counts})
    return TruthMask(mask.id, rle, mask.area, told.label, told.source, label_source=mask.label_source)
