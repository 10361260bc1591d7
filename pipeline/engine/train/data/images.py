"""In-memory table of a run's images and the masks that it may train on.

An image takes about 5 kB, plus 8 bytes per mask. Nearly all of that is a thumbnail, which is only needed for the split
and then dropped.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry
from segmint.catalogs.dataset.manifest import DatasetManifest, dataset_keys, load_manifest
from segmint.catalogs.dataset.reader import Subset
from segmint.catalogs.dataset.subsets import choose_images
from segmint.catalogs.dataset.versions.digest import current_digest
from segmint.catalogs.layout import DamagedDatasetError
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.progress import Progress
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.decoding import JpegDecoder
from segmint.operators.schemas import AUTOMATIC, SOURCES
from segmint.pipeline.engine.train.data.shard_scan import ShardScan, scan_shard
from segmint.pipeline.engine.train.settings import DatasetKeys, MaskChoice, TrainConfig

HUMAN = tuple(source for source in SOURCES if source != AUTOMATIC)
"""Values of `source` that mark annotated masks. Masks from the model have `automatic` or null instead."""

LISTED = 100
"""Maximum number of skipped items to list per reason; the rest are only counted."""

_IMAGES = ["id", "width", "height", "source_sha256"]
_MASKS = ["id", "annotation_id", "area"]


@dataclass(frozen=True)
class TrainingDataset:
    """Dataset in a run, pinned to the version that the run found. `digest` identifies the version.

    `subsets` contains the images of each configured `select`.
    """

    location: Location
    manifest: DatasetManifest
    digest: str
    subsets: Mapping[str, Subset] = field(default_factory=dict)

    @cached_property
    def keys(self) -> tuple[str, ...]:
        """Names of all cache folders that belong to the dataset when the run starts."""
        return dataset_keys(self.location)

    @property
    def key(self) -> str:
        """Name of the folder that the run uses."""
        return self.keys[0]

    def has_changed(self) -> bool:
        """Return whether the dataset's version has changed. Raises the same errors as `current_digest`."""
        return current_digest(self.location) != self.digest


@dataclass(frozen=True)
class Shard:
    """Shard that images are read from."""

    dataset: TrainingDataset
    number: int
    tar: FileEntry

    def __str__(self) -> str:
        return f"shard {self.number} of {self.dataset.location}"


@dataclass
class SkippedImages:
    """Record of the items that a run doesn't train on: counts by reason, and details of the first ones."""

    counts: Counter[str] = field(default_factory=Counter)
    listed: list[dict[str, Any]] = field(default_factory=list)

    def add(self, reason: str, dataset: TrainingDataset, **where: int | str) -> None:
        """Count a skipped item. `where` identifies it, for example `image=7`, `mask=70001`, `detail="..."`."""
        self.add_line({"reason": reason, "dataset": dataset.manifest.name, **where})

    def add_line(self, line: Mapping[str, Any]) -> None:
        """Count a skipped item, and add its `line` to the list while there is room."""
        self.counts[line["reason"]] += 1
        if self.counts[line["reason"]] <= LISTED:
            self.listed.append(dict(line))


@dataclass(frozen=True)
class TrainingImages:
    """Table of the N images with masks to train on. A dataset that is configured twice contributes its images twice.

    `entry` (N,) is the index of an image's dataset in the configuration, and `shard` (N,) its index in `shards`.
    `sizes` (N, 2) are the height and width of the released JPEG in pixels. `places` (N, 4), `jpeg_sha256` (N, 32),
    `hashes`, and `thumbnails` are as in `ShardScan`. `source_sha256` (N, 32) uint8 is the hash of the image's source,
    or of the JPEG if the source's hash is unknown. The annotation ids of image i are `annotations[starts[i] : starts[i
    + 1]]`.
    """

    shards: Sequence[Shard]
    entry: NDArray[np.int64]
    shard: NDArray[np.int64]
    ids: NDArray[np.int64]
    sizes: NDArray[np.int64]
    places: NDArray[np.int64]
    jpeg_sha256: NDArray[np.uint8]
    source_sha256: NDArray[np.uint8]
    hashes: NDArray[np.uint64]
    thumbnails: NDArray[np.uint8]
    annotations: NDArray[np.int64]
    starts: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.ids)

    def masks_of(self, image: int) -> NDArray[np.int64]:
        """Return the annotation ids of an image's masks."""
        return self.annotations[self.starts[image] : self.starts[image + 1]]

    def digest(self) -> str:
        """Return a SHA-256 of the chosen images and masks. It doesn't depend on where their bytes are stored."""
        digest = hashlib.sha256()
        for column in (self.entry, self.ids, self.sizes, self.jpeg_sha256, self.source_sha256, self.annotations):
            digest.update(np.ascontiguousarray(column).tobytes())
        digest.update(self.starts.tobytes())
        return digest.hexdigest()

    def name(self, image: int) -> str:
        """Return an image's name for messages."""
        return f"image {self.ids[image]} of {self.shards[int(self.shard[image])].dataset.location}"


_COLUMNS = [field.name for field in fields(TrainingImages) if field.name != "shards"]


def open_datasets(config: TrainConfig, storage: Storage) -> list[TrainingDataset]:
    """Open each configured dataset once.

    Raises `UsageError` if one has no images or no commits, and the errors of `choose_images`.
    """
    opened = []
    for uri in dict.fromkeys(entry.uri for entry in config.datasets):
        location = Location(storage, uri)
        manifest = load_manifest(location)
        release = manifest.config.get("release", {})
        if release.get("format", "images") != "images":
            raise UsageError(f"{location} has only annotations; training needs a dataset with release.format: images")
        digest = current_digest(location)
        selects = dict.fromkeys(entry.select for entry in config.datasets if entry.uri == uri)
        subsets = {select: choose_images(location, select) for select in selects if select is not None}
        opened.append(TrainingDataset(location, manifest, digest, subsets))
    return opened


@dataclass(frozen=True)
class DatasetContents:
    """Hashes of a dataset's files: hexadecimal SHA-256 of the tars, and SHA-256 of the JPEGs, (J, 32) uint8.

    `whole` is False if some shards couldn't be read.
    """

    tars: frozenset[str]
    jpegs: NDArray[np.uint8]
    whole: bool


def find_images(
    config: TrainConfig, datasets: Sequence[TrainingDataset], kept: Location | None, skipped: SkippedImages
) -> tuple[TrainingImages, dict[str, DatasetContents]]:
    """Scan the images in the datasets' committed shards and choose the masks to train on.

    Returns the images, and each dataset's contents by the dataset's key. `kept` is the folder with the shard scans of
    earlier runs. Unusable items are added to `skipped`. For an unreadable shard, `bad_shards` decides whether to skip
    it or to raise `DamagedDatasetError`. Raises `UsageError` if no image remains.
    """
    shards: list[Shard] = []
    parts: list[tuple[Any, ...]] = []
    held: dict[str, DatasetContents] = {}
    with JpegDecoder(own=True) as decoder, Progress() as progress:
        for dataset in datasets:
            stage = f"look at {dataset.manifest.name}"
            commits = list(CommitLog(dataset.location).read_all())
            progress.stage(stage, len(commits))
            folder = None if kept is None else kept / dataset.key
            jpegs: list[NDArray[np.uint8]] = [np.empty((0, 32), np.uint8)]
            first = len(shards)
            for done, commit in enumerate(commits, start=1):
                shard = Shard(dataset, commit.shard, commit.file("shards"))
                try:
                    looks = scan_shard(dataset.location, shard.tar, folder, decoder)
                    tables = _tables(dataset.location, commit)
                except (DamagedDatasetError, NotFoundError) as error:
                    _refuse_shard(shard, error, config, skipped)
                    continue
                shards.append(shard)
                jpegs.append(looks.sha256)
                for entry, keys in enumerate(config.datasets):
                    if keys.uri == dataset.location.uri:
                        chosen = _choose(tables, looks, shard, keys, config, skipped)
                        count = len(chosen[0])
                        parts.append((np.full(count, entry), np.full(count, len(shards) - 1), *chosen))
                progress.update(stage, done)
            tars = frozenset(commit.file("shards").sha256 for commit in commits)
            held |= {former: DatasetContents(frozenset(), jpegs[0], True) for former in dataset.keys[1:]}
            held[dataset.key] = DatasetContents(tars, np.concatenate(jpegs), len(shards) - first == len(commits))
    if not sum(len(part[0]) for part in parts):
        kinds = ", ".join(f"{entry.uri} ({entry.masks} masks)" for entry in config.datasets)
        reasons = "".join(f"; {count:,} {reason}" for reason, count in sorted(skipped.counts.items()))
        raise UsageError(f"no images with masks to train on in {kinds}{reasons}")
    columns = dict(zip(_COLUMNS, (np.concatenate(column) for column in zip(*parts, strict=True)), strict=True))
    columns["starts"] = np.concatenate([[0], np.cumsum(columns["starts"])])
    return TrainingImages(shards=shards, **columns), held


def _refuse_shard(shard: Shard, error: SegmintError, config: TrainConfig, skipped: SkippedImages) -> None:
    if config.bad_shards == "stop":
        raise DamagedDatasetError(
            f"{shard} can't be read, so nothing was trained: {error}. Repair it with `segmint repair "
            f"{shard.dataset.location}`, or skip such shards with bad_shards: skip"
        ) from error
    skipped.add("shards that cannot be read", shard.dataset, shard=shard.number, detail=str(error))
    get_logger("train").warning(
        "shard_skipped", shard=shard.number, dataset=str(shard.dataset.location), error=str(error)
    )


@dataclass(frozen=True)
class _ShardTables:
    images: pa.Table
    masks: pa.Table


def _tables(dataset: Location, commit: Commit) -> _ShardTables:
    images = _read_columns(dataset / commit.file("images").path, _IMAGES)
    return _ShardTables(images, _read_columns(dataset / commit.file("masks").path, _MASKS, "source"))


def _read_columns(file: Location, columns: Sequence[str], added: str | None = None) -> pa.Table:
    """Read columns of a table. If the table's format predates the column `added`, fill this column with nulls."""
    try:
        with file.open() as stream:
            table = pq.ParquetFile(stream)
            missing = [name for name in columns if name not in table.schema_arrow.names]
            if missing:
                raise DamagedDatasetError(f"{file} has no column {missing[0]}")
            known = added is not None and added in table.schema_arrow.names
            read = table.read([*columns, *([added] if known and added else [])])
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise DamagedDatasetError(f"{file} is not a readable Parquet file: {error}") from error
    if added is not None and not known:
        read = read.append_column(added, pa.nulls(len(read), pa.string()))
    return read


def _choose(
    tables: _ShardTables,
    looks: ShardScan,
    shard: Shard,
    keys: DatasetKeys,
    config: TrainConfig,
    skipped: SkippedImages,
) -> tuple[NDArray[Any], ...]:
    """Choose a shard's images and masks.

    Returns the columns of `TrainingImages` from `ids` on, followed by the number of masks per image.
    """
    ids = tables.images["id"].to_numpy()
    heights, widths = (tables.images[name].cast(pa.int64()).to_numpy() for name in ("height", "width"))
    sources = tables.images["source_sha256"].to_pylist()
    order = np.argsort(ids, kind="stable")
    owner, areas = tables.masks["id"].to_numpy(), tables.masks["area"].to_numpy()
    annotation = tables.masks["annotation_id"].to_numpy()
    image = order[np.clip(np.searchsorted(ids[order], owner), 0, max(0, len(ids) - 1))] if len(ids) else owner
    wanted = _of_choice(tables.masks["source"], keys.masks)
    wanted &= (ids[image] == owner) if len(ids) else False
    if keys.select is not None:
        wanted &= np.isin(owner, shard.dataset.subsets[keys.select].ids)
    empty = wanted & (areas <= 0)
    large = wanted & (areas > config.max_mask_area_ratio * heights[image] * widths[image]) if len(ids) else empty
    for which, reason in ((empty, "empty masks"), (large, "masks over max_mask_area_ratio")):
        for row in np.flatnonzero(which):
            skipped.add(reason, shard.dataset, image=int(owner[row]), mask=int(annotation[row]))
    usable = wanted & ~empty & ~large
    rows = np.flatnonzero(usable)
    rows = rows[np.argsort(image[rows], kind="stable")]
    counts = np.bincount(image[rows], minlength=len(ids))
    seen = {int(number): place for place, number in enumerate(looks.ids)}
    chosen = []
    for number in np.flatnonzero(counts):
        place = seen.get(int(ids[number]))
        damage = "its JPEG is not in the tar" if place is None else str(looks.damage[place])
        if not damage and looks.places[place, 3] == 0:
            damage = "its JSON is not in the tar"
        if damage:
            skipped.add("damaged images", shard.dataset, image=int(ids[number]), detail=damage)
        else:
            chosen.append((int(number), place))
    picked, places = (np.array([pair[side] for pair in chosen], np.int64) for side in (0, 1))
    source = [_digest(sources[number]) for number in picked]
    digests = np.array(
        [looks.sha256[place] if own is None else own for own, place in zip(source, places, strict=True)], np.uint8
    )
    begins = np.concatenate([[0], np.cumsum(counts)])
    taken = [annotation[rows[begins[number] : begins[number + 1]]] for number in picked]
    return (
        ids[picked].astype(np.int64),
        np.stack([heights[picked], widths[picked]], axis=1),
        looks.places[places],
        looks.sha256[places],
        digests.reshape(-1, 32),
        looks.hashes[places],
        looks.thumbnails[places],
        np.concatenate([np.empty(0, np.int64), *taken]),
        counts[picked],
    )


def _of_choice(source: pa.ChunkedArray, masks: MaskChoice) -> NDArray[np.bool_]:
    human = np.asarray(pc.fill_null(pc.is_in(source, value_set=pa.array(HUMAN)), False))
    return np.ones(len(human), bool) if masks == "all" else human if masks == "human" else ~human


def _digest(text: str | None) -> NDArray[np.uint8] | None:
    """Convert a hexadecimal SHA-256 to bytes, or return None if the text isn't one."""
    try:
        data = bytes.fromhex(text or "")
    except ValueError:
        return None
    return np.frombuffer(data, np.uint8) if len(data) == 32 else None


def read_range(file: Location, start: int, stop: int) -> bytes:
    """Read the bytes [start, stop) of a file in one request."""
    with file.open_ranges(stop) as stream:
        stream.seek(start)
        return stream.read(stop - start)
