"""Images of a training run: a table in memory, the ranges of their files, and the draws of each step.

In-memory table of a run's images and the masks that it may train on.

An image takes about 5 kB, plus 8 bytes per mask. Nearly all of that is a thumbnail, which is only needed for the split
and then dropped.

Scan of a shard's images: their byte ranges in the tar, their hashes, and whether they can be decoded.

A scan is cached in a file that is named by the tar's hash. A correction replaces the tar, so the shard is then scanned
again. The files contain thumbnails, so they follow the same rules as cached embeddings; see `reading.py`.

Draws of images and masks for each step, which depend only on keys.

A step's draws depend only on the seed, the step, the images, and the settings. Any process can therefore compute a
step's draws without computing the earlier steps. A dataset's images are drawn in the order of a random permutation,
which changes with each pass through the dataset. A dataset that is configured twice is treated as two datasets.
"""

import hashlib
import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property, lru_cache
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import simplejpeg
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry
from segmint.catalogs.dataset.digest import current_digest
from segmint.catalogs.dataset.manifest import DatasetManifest, dataset_keys, load_manifest
from segmint.catalogs.dataset.reader import Subset
from segmint.catalogs.dataset.subsets import choose_images
from segmint.catalogs.layout import MOST_MEMBER_BYTES, DamagedDatasetError
from segmint.infra.arrays import Bools, Bytes, Ints
from segmint.infra.errors import SegmintError, UsageError
from segmint.infra.log import get_logger
from segmint.infra.progress import Progress
from segmint.infra.storage.errors import NotFoundError, StorageFaultError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.model.training.sampling import random_bits, uniforms
from segmint.operators.images import JpegDecoder, OverLimitError, UndecodableError
from segmint.operators.rows import AUTOMATIC, SOURCES
from segmint.operators.similar.near import THUMBNAIL, VIEWS, image_hashes
from segmint.pipeline.engine.train.settings import BatchKeys, DatasetKeys, MaskChoice, TrainConfig

_SIDE = 256  # images are decoded at the smallest scale at which both sides have this many pixels
_NAME = re.compile(r"sa_([1-9]\d{0,17})\.(jpg|json)", re.ASCII)


@dataclass(frozen=True)
class ShardScan:
    """Scan of a tar's J JPEGs, sorted by image number.

    `ids` is (J,) int64. `places` (J, 4) int64 contains two ranges of bytes in the tar: start and stop of the JPEG, and
    start and stop of the JSON with its masks (0, 0 without a JSON). `sha256` (J, 32) uint8 is the JPEG's hash. `hashes`
    (J, 6) uint64 and `thumbnails` (J, 64, 64) uint8 are as in `ImageHashes`. `damage` (J,) explains why a JPEG can't be
    decoded, or is empty.
    """

    ids: Ints
    places: Ints
    sha256: Bytes
    hashes: NDArray[np.uint64]
    thumbnails: Bytes
    damage: NDArray[np.str_]


def scan_shard(dataset: Location, tar: FileEntry, kept: Location | None, decoder: JpegDecoder) -> ShardScan:
    """Read a tar's scan from the folder `kept`, or scan the tar and store the result there.

    If decoding a JPEG exceeds the limits of memory or time, the result isn't stored, so that the next run tries again.
    Raises `DamagedDatasetError` if the tar is unreadable.
    """
    file = None if kept is None else kept / f"{tar.sha256}.npz"
    known = None if file is None else _read(file)
    if known is not None:
        return known
    transient: list[str] = []
    looks = _collect(list(_scan_image(dataset / tar.path, decoder, transient)))
    if file is not None and not transient:
        buffer = io.BytesIO()
        np.savez(buffer, **{field.name: getattr(looks, field.name) for field in fields(looks)})
        try:
            file.put(buffer.getvalue())
        except StorageFaultError as error:
            get_logger("train").warning("not_kept", file=str(file), error=str(error), note="the next run scans again")
    return looks


def _read(file: Location) -> ShardScan | None:
    """Read a stored scan. Return None if it is missing or damaged."""
    try:
        data = file.read()
    except NotFoundError:
        return None
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            looks = ShardScan(**{field.name: arrays[field.name] for field in fields(ShardScan)})
    except (ValueError, KeyError, OSError, EOFError, SyntaxError, zipfile.BadZipFile):  # raised for a damaged file
        return None
    count = len(looks.ids)
    shapes = [getattr(looks, field.name).shape for field in fields(looks)]
    expected = [(count,), (count, 4), (count, 32), (count, VIEWS), (count, THUMBNAIL, THUMBNAIL), (count,)]
    return looks if shapes == expected else None


def _scan_image(tar: Location, decoder: JpegDecoder, transient: list[str]) -> Iterator[tuple[Any, ...]]:
    """Yield a row of `ShardScan` for each JPEG. Add the names of JPEGs with transient damage to `transient`."""
    rows: dict[int, tuple[Any, ...]] = {}
    documents: dict[int, tuple[int, int]] = {}
    try:
        with tar.open() as stream:
            archive = TarReader(stream)
            for member in archive:
                match = _NAME.fullmatch(member.name)
                if match is None:
                    continue
                if not is_plain_file(member) or member.size > MOST_MEMBER_BYTES:
                    raise DamagedDatasetError(f"{tar} is not a shard: {member.name} doesn't belong to an image")
                number, place = int(match[1]), (member.offset_data, member.offset_data + member.size)
                if match[2] == "json":
                    documents[number] = place
                else:
                    *seen, error = _see(archive.read(member), decoder)
                    rows[number] = (place, *seen, "" if error is None else f"its JPEG can't be decoded: {error}")
                    if isinstance(error, OverLimitError):
                        transient.append(member.name)
    except BadTarError as error:
        raise DamagedDatasetError(f"{tar} is not a readable shard: {error}") from error
    for number, (place, *seen) in sorted(rows.items()):
        yield number, (*place, *documents.get(number, (0, 0))), *seen


def _see(jpeg: bytes, decoder: JpegDecoder) -> tuple[Any, ...]:
    """Hash a JPEG's bytes and its views. The last value is the error if it can't be decoded, or None."""
    digest = np.frombuffer(hashlib.sha256(jpeg).digest(), np.uint8)
    try:
        return digest, *decoder.run(_views, jpeg), None
    except UndecodableError as error:
        nothing = np.zeros(VIEWS, np.uint64), np.zeros((THUMBNAIL, THUMBNAIL), np.uint8)
        return digest, *nothing, error


def _views(jpeg: bytes) -> tuple[NDArray[np.uint64], Bytes]:
    """Decode a JPEG at reduced scale and hash it."""
    gray = simplejpeg.decode_jpeg(jpeg, colorspace="GRAY", min_height=_SIDE, min_width=_SIDE, min_factor=1)
    hashes = image_hashes(np.asarray(gray)[..., 0], mirror=True)
    return hashes.views, hashes.thumbnail


def _collect(rows: list[tuple[Any, ...]]) -> ShardScan:
    columns = list(zip(*rows, strict=True)) or [()] * 6
    ids, places, sha256, hashes, thumbnails, damage = columns
    return ShardScan(
        np.array(ids, np.int64),
        np.array(places, np.int64).reshape(-1, 4),
        np.array(sha256, np.uint8).reshape(-1, 32),
        np.array(hashes, np.uint64).reshape(-1, VIEWS),
        np.array(thumbnails, np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL),
        np.array(damage, np.str_),
    )


HUMAN = tuple(source for source in SOURCES if source != AUTOMATIC)
"""Values of `source` that mark annotated masks. Masks from the model have `automatic` or null instead."""

LISTED = 100
"""Maximum number of skipped items to list per reason; the rest are only counted."""

_IMAGES = ["id", "width", "height", "source_sha256"]
_MASK_COLUMNS = ["id", "annotation_id", "area"]


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
    entry: Ints
    shard: Ints
    ids: Ints
    sizes: Ints
    places: Ints
    jpeg_sha256: Bytes
    source_sha256: Bytes
    hashes: NDArray[np.uint64]
    thumbnails: Bytes
    annotations: Ints
    starts: Ints

    def __len__(self) -> int:
        return len(self.ids)

    def masks_of(self, image: int) -> Ints:
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
        return f"image {self.ids[image]} of {self.shard_of(image).dataset.location}"

    def shard_of(self, image: int) -> Shard:
        """Return an image's shard."""
        return self.shards[int(self.shard[image])]


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
    jpegs: Bytes
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
            jpegs: list[Bytes] = [np.empty((0, 32), np.uint8)]
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
    return _ShardTables(images, _read_columns(dataset / commit.file("masks").path, _MASK_COLUMNS, "source"))


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


def _of_choice(source: pa.ChunkedArray, masks: MaskChoice) -> Bools:
    human = np.asarray(pc.fill_null(pc.is_in(source, value_set=pa.array(HUMAN)), False))
    return np.ones(len(human), bool) if masks == "all" else human if masks == "human" else ~human


def _digest(text: str | None) -> Bytes | None:
    """Convert a hexadecimal SHA-256 to bytes, or return None if the text isn't one."""
    try:
        data = bytes.fromhex(text or "")
    except ValueError:
        return None
    return np.frombuffer(data, np.uint8) if len(data) == 32 else None


_PREFERRED: tuple[MaskChoice, ...] = ("human", "all", "automatic")

_BLOCK = 4096
"""Number of draws per block. The entries of a block are drawn together."""

_ENTRY, _ORDER, _MASKS, _FIXED, _JITTER = 1, 2, 3, 4, 5  # what a random number is for


@dataclass(frozen=True)
class StepDraw:
    """Image that is drawn for a step, with the masks to train on.

    `slot` is the image's number in the step, from 0, and `image` its row in `TrainingImages`. `masks` contains
    annotation ids, and `numbers` the masks' numbers in the step. `jitter` is None if the whole image is used.
    Otherwise, it contains the image's scale and the position of the crop: its distances from the top and from the left,
    as shares of what is cropped away.
    """

    slot: int
    image: int
    masks: Ints
    numbers: Sequence[int]
    jitter: tuple[float, float, float] | None = None


class DrawSequence:
    """Sequence of a run's draws. `trained`, (N,) bool, marks the images to draw from."""

    def __init__(
        self,
        images: TrainingImages,
        trained: Bools,
        weights: Sequence[float],
        batch: BatchKeys,
        seed: int,
        jitter: tuple[float, float] | None = None,
    ) -> None:
        """Set up the draws.

        `weights` contains each dataset's weight, and `jitter` is the range of scales. Raises ValueError if there are no
        images to train on.
        """
        self._images = images
        self._batch = batch
        self._seed = seed
        self._scales = jitter
        entries = np.unique(images.entry[trained]).tolist()  # only the entries with images to train on
        self._rows = {entry: np.flatnonzero(trained & (images.entry == entry)) for entry in entries}
        if not self._rows:
            raise ValueError("no images to train on")
        shares = np.array([weights[entry] * len(rows) for entry, rows in self._rows.items()])
        self._borders = np.cumsum(shares) / shares.sum()
        self._lock = Lock()
        # For each block, the number of earlier draws by entry.
        self._counts: list[Ints] = [np.zeros(len(self._rows), np.int64)]
        self._entries = lru_cache(maxsize=4)(self._draw_entries)
        self._permutation = lru_cache(maxsize=2 * len(self._rows))(self._permute)

    def step(self, step: int) -> list[StepDraw]:
        """Draw the images of a step, counted from 1, for all workers. Each image keeps at least one mask."""
        chosen = [self._image(place) for place in range((step - 1) * self._batch.images, step * self._batch.images)]
        wanted = [min(len(self._images.masks_of(image)), self._batch.masks_per_image) for image in chosen]
        draws = []
        for slot, (image, count) in enumerate(zip(chosen, capped(wanted, self._batch.masks), strict=True)):
            place = (step - 1) * self._batch.images + slot
            first = slot * self._batch.masks_per_image
            masks = self._masks(image, place, count)
            draws.append(StepDraw(slot, image, masks, range(first, first + count), self._jitter(place)))
        return draws

    def _image(self, place: int) -> int:
        """Return the image at index `place` of the run's whole sequence of draws."""
        block, offset = divmod(place, _BLOCK)
        chosen = self._entries(block)
        which = int(chosen[offset])
        before = int(self._before(block)[which] + (chosen[:offset] == which).sum())
        entry, rows = list(self._rows.items())[which]
        turn, index = divmod(before, len(rows))
        return int(rows[self._permutation(entry, turn)[index]])

    def _draw_entries(self, block: int) -> Ints:
        """Draw a configuration entry for each draw of a block. The draw then takes an image of this entry's dataset."""
        places = torch.arange(block * _BLOCK, (block + 1) * _BLOCK)
        drawn = uniforms(random_bits(_key(self._seed, _ENTRY), places), 1)[:, 0].numpy()
        return np.minimum(np.searchsorted(self._borders, drawn, "right"), len(self._borders) - 1)

    def _before(self, block: int) -> Ints:
        """Count the draws from each entry in all blocks before this one."""
        with self._lock:  # a prefetch thread calls this, too
            while len(self._counts) <= block:
                chosen = self._draw_entries(len(self._counts) - 1)
                self._counts.append(self._counts[-1] + np.bincount(chosen, minlength=len(self._rows)))
        return self._counts[block]

    def _permute(self, entry: int, turn: int) -> Ints:
        bits = random_bits(_key(self._seed, _ORDER, entry, turn), torch.arange(len(self._rows[entry])))
        return np.argsort(bits.numpy(), kind="stable")

    def _jitter(self, place: int) -> tuple[float, float, float] | None:
        if self._scales is None:
            return None
        low, high = self._scales
        scale, top, left = uniforms(_key(self._seed, _JITTER, place), 3)[0].tolist()
        return low + (high - low) * scale, top, left

    def _masks(self, image: int, place: int, count: int) -> Ints:
        return choose_masks(self._images.masks_of(image), count, _key(self._seed, _MASKS, place))


def fixed_draws(
    images: TrainingImages, chosen: Bools, most: int, masks: int, choices: Sequence[MaskChoice]
) -> list[StepDraw]:
    """Draw up to `most` of the `chosen` images, (N,) bool, with up to `masks` masks each.

    The draw is the same in every run: it depends on the images' sources, but not on the seed or the order of the
    datasets. `choices` contains each dataset's mask choice. If several images have the same source, an image from a
    dataset with only annotated masks takes precedence.
    """
    rank = np.array([_PREFERRED.index(choice) for choice in choices])
    keys = [shard.dataset.key for shard in images.shards]

    def preferred(row: int) -> tuple[int, str, int]:
        return int(rank[images.entry[row]]), keys[int(images.shard[row])], int(images.ids[row])

    rows = np.array(sorted(np.flatnonzero(chosen).tolist(), key=preferred), np.int64)
    _, first = np.unique(images.source_sha256[rows], axis=0, return_index=True)
    rows = rows[first]  # in random order, because `np.unique` sorts by the sources' hashes
    found = []
    for slot, row in enumerate(rows[:most].tolist()):
        chosen_masks = choose_masks(images.masks_of(row), masks, _key(0, _FIXED))
        found.append(StepDraw(slot, row, chosen_masks, range(len(chosen_masks))))
    return found


def choose_masks(annotations: Ints, count: int, key: Tensor) -> Ints:
    """Choose up to `count` annotation ids at random by a key (1,) int64, and return them in ascending order."""
    order = np.argsort(random_bits(key, torch.from_numpy(annotations)).numpy(), kind="stable")
    return np.sort(annotations[order[:count]])


def capped(wanted: Sequence[int], most: int) -> list[int]:
    """Lower the largest counts until their sum is at most `most`. Each count stays at least 1."""
    counts = sorted(wanted)
    left, level = most, max(wanted, default=0)
    for place, count in enumerate(counts):
        share = left // (len(counts) - place)
        if count > share:
            level = max(1, share)
            break
        left -= count
    lowered = [min(count, level) for count in wanted]
    spare = most - sum(lowered)
    for place, count in enumerate(wanted):
        if spare > 0 and count > lowered[place]:
            lowered[place] += 1
            spare -= 1
    return lowered


def _key(*numbers: int) -> Tensor:
    """Derive a key (1,) int64 from several numbers."""
    key = torch.zeros(1, dtype=torch.int64)
    for number in numbers:
        key = random_bits(key, number)
    return key
