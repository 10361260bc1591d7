"""Reader of a dataset's committed shards, image by image. Masks are decoded on first use."""

import base64
import html
import io
import json
from bisect import bisect_left
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import accumulate, chain, pairwise
from operator import itemgetter
from typing import Any, BinaryIO, Self, overload

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic_core import from_json

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry
from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest
from segmint.catalogs.dataset.mask_labels import MASK_SAID, NO_LABEL, LabelsById, ShardLabels
from segmint.catalogs.dataset.versions import Version, check_readable, find_version, manifest_of, read_commits
from segmint.catalogs.layout import ADDED_COLUMNS, LEVELS, MOST_PIXELS, DamagedDatasetError, check_member
from segmint.infra.arrays import Box, Ints, Size
from segmint.infra.errors import SegmintError
from segmint.infra.storage.errors import ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.tars import BadTarError, TarReader
from segmint.infra.wording import counted

WHOLE_BYTES = 4 << 20
"""Maximum size in bytes of a table that is read in a single request. Larger tables are read in parts."""

HELP = (
    "`segmint audit` lists all such files. Run `segmint repair`, or copy the file again from where the dataset "
    "came from"
)
"""Advice for a damaged file."""

_SHOWN_SIDE = 768  # pixels of the longer side of an image in a notebook


class NoPixelsError(SegmintError):
    """A sample has no pixels, because its dataset was released as annotations without images."""


@dataclass(frozen=True)
class MaskAnnotation:
    """One mask, as SA-1B describes it. Coordinates are in pixels of the released image.

    `bbox` and `crop_box` are (x, y, width, height), and `point_coords` are the (x, y) of the prompt's points. `counts`
    is the mask in COCO's compressed run-length encoding, and `size` is its (height, width). An annotated mask may have
    no scores and no points. `label`, `label_score`, `label_source`, and `prompts` come from the masks table. The first
    three are None if the mask has no label. `prompts` are what an annotator, or a segmenter that isn't SAM's grid, made
    the mask from: dicts with the keys of the table's column that their `kind` uses.

    `output` is the index (0 to 2) of the decoder output that produced the mask, or None if it's unknown. `container` is
    the id of the smallest larger mask in the image that contains at least 95% of this mask's pixels, or None.
    """

    id: int
    size: Size
    counts: str
    area: int
    bbox: Box
    predicted_iou: float | None
    stability_score: float | None
    crop_box: Box
    point_coords: tuple[tuple[float, float], ...]
    output: int | None = None
    container: int | None = None
    label: str | None = None
    label_score: float | None = None
    label_source: str | None = None
    prompts: tuple[Mapping[str, Any], ...] = field(default=(), hash=False)

    @property
    def rle(self) -> dict[str, Any]:
        """The mask for pycocotools: size [height, width] and compressed counts."""
        return {"size": list(self.size), "counts": self.counts}

    @cached_property
    def mask(self) -> np.ndarray[Any, Any]:
        """Pixels of the mask, (height, width) bool, decoded on the first access."""
        from pycocotools import mask as coco

        return np.asarray(coco.decode(self.rle)).astype(bool)

    def __repr__(self) -> str:
        box = ", ".join(f"{number:g}" for number in self.bbox)
        return f"MaskAnnotation(id={self.id}, area={self.area}, bbox=({box}), predicted_iou={self.predicted_iou})"


_VALUES = itemgetter(
    "id", "area", "predicted_iou", "stability_score", "bbox", "crop_box", "point_coords", "segmentation"
)


class MaskSequence(Sequence[MaskAnnotation]):
    """Masks of one image. They are stored in columns, and compare equal to a list of the same masks.

    Each access creates a new annotation, so keep an annotation that you need twice. A list of annotations would instead
    add a thousand objects per image. Python's garbage collector would then take half of the reading time. A
    `MaskSequence` is also faster to send to another process.
    """

    def __init__(
        self,
        annotations: Sequence[Mapping[str, Any]],
        size: Size,
        labels: LabelsById,
        outputs: Sequence[int | None],
        containers: Sequence[int | None],
    ) -> None:
        """Read the `annotations` of an image of `size` (height, width).

        `labels` maps annotation ids to labels. `outputs` and `containers` contain one value per mask. Raises
        `KeyError`, `TypeError`, or `ValueError` if the annotations aren't valid.
        """
        self._size = size
        self._labels = labels
        columns = zip(*map(_VALUES, annotations), strict=True) if annotations else [()] * 8
        ids, areas, ious, stability, boxes, crops, points, shapes = columns
        self._plain = ids, [shape["counts"] for shape in shapes], areas, ious, stability, outputs, containers
        self._boxes = _flat(boxes, 4)
        self._crops = _flat(crops, 4)
        self._points = _flat(list(chain.from_iterable(points)), 2)
        self._starts = list(accumulate(map(len, points), initial=0))

    def __len__(self) -> int:
        return len(self._starts) - 1

    @overload
    def __getitem__(self, index: int) -> MaskAnnotation: ...
    @overload
    def __getitem__(self, index: slice) -> list[MaskAnnotation]: ...
    def __getitem__(self, index: int | slice) -> MaskAnnotation | list[MaskAnnotation]:
        if isinstance(index, slice):
            return list(self)[index]
        place = range(len(self))[index]
        points = tuple(_tuples(self._points, 2))[self._starts[place] : self._starts[place + 1]]
        box, crop = (tuple(values[4 * place : 4 * place + 4]) for values in (self._boxes, self._crops))
        return self._annotation((*(column[place] for column in self._plain), box, crop, points))

    def __iter__(self) -> Iterator[MaskAnnotation]:
        points = tuple(_tuples(self._points, 2))
        of_each = [points[start:stop] for start, stop in pairwise(self._starts)]
        boxes, crops = _tuples(self._boxes, 4), _tuples(self._crops, 4)
        return map(self._annotation, zip(*self._plain, boxes, crops, of_each, strict=True))

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if isinstance(other, MaskSequence | list) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # as a list

    def __repr__(self) -> str:
        return f"<{len(self)} masks>"

    def _annotation(self, values: tuple[Any, ...]) -> MaskAnnotation:
        mask = object.__new__(MaskAnnotation)
        own = mask.__dict__  # five times as fast as the constructor
        own["size"] = self._size
        (
            own["id"],
            own["counts"],
            own["area"],
            own["predicted_iou"],
            own["stability_score"],
            own["output"],
            own["container"],
            own["bbox"],
            own["crop_box"],
            own["point_coords"],
        ) = values
        if self._labels:
            own.update(zip(MASK_SAID, self._labels.get(own["id"], NO_LABEL), strict=True))
        return mask


def _tuples(values: Sequence[Any], length: int) -> Iterator[tuple[Any, ...]]:
    """Split a flat list into tuples of `length` values each."""
    each = iter(values)
    return zip(*[each] * length, strict=True)


def _flat(values: Sequence[Sequence[Any]], length: int) -> list[Any]:
    """Concatenate lists that have exactly `length` items each. Raises `ValueError` for any other length."""
    if not set(map(len, values)) <= {length}:
        raise ValueError(f"expected lists of {length} numbers")
    return list(chain.from_iterable(values))


@dataclass(frozen=True)
class Sample:
    """One image of a dataset with its masks.

    `row` is the image's row in `images/*.parquet`. `masks` are in the same order as in the image's JSON.
    """

    row: Mapping[str, Any]
    masks: Sequence[MaskAnnotation]
    jpeg: bytes | None  # as released; None in an annotations-only dataset

    def __repr__(self) -> str:
        size = f"{self.row.get('width')} x {self.row.get('height')}"
        return f"Sample(id={self.id}, image_id={self.row.get('image_id')!r}, {size}, {len(self.masks)} masks)"

    def _repr_html_(self) -> str:
        """Return HTML for notebooks: the released image, if any, and the `repr`.

        `segmint.show` also draws the masks.
        """
        words = f"<code>{html.escape(repr(self))}</code>"
        try:
            pixels = self.image
        except (NoPixelsError, DamagedDatasetError):
            return words
        from PIL import Image

        picture, buffer = Image.fromarray(pixels), io.BytesIO()
        picture.thumbnail((_SHOWN_SIDE, _SHOWN_SIDE))
        picture.save(buffer, format="JPEG", quality=85)
        data = base64.b64encode(buffer.getvalue()).decode("ascii")
        return f'<img src="data:image/jpeg;base64,{data}" alt=""><br>{words}'

    @property
    def id(self) -> int:
        """The image's number in the dataset: its ordinal + 1."""
        return int(self.row["id"])

    @cached_property
    def image(self) -> np.ndarray[Any, Any]:
        """Pixels of the released image, (height, width, 3) uint8 RGB.

        Raises `NoPixelsError` if the dataset contains no images. Raises `DamagedDatasetError` if the JPEG can't be
        decoded, or has more than `MOST_PIXELS` pixels.
        """
        if self.jpeg is None:
            raise NoPixelsError(
                f"image {self.id}: this dataset contains only annotations; the image is at {self.row['uri']}"
            )
        import simplejpeg

        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(self.jpeg)
            if height * width > MOST_PIXELS:
                raise ValueError(
                    f"{width} x {height} is {width * height:,} pixels; at most {MOST_PIXELS:,} are decoded"
                )
            return np.asarray(simplejpeg.decode_jpeg(self.jpeg, colorspace="RGB"))
        except ValueError as error:
            raise DamagedDatasetError(f"image {self.id}: its JPEG cannot be decoded: {error}") from error


@dataclass(frozen=True)
class Subset:
    """Images that a reader is limited to.

    `ids` (N,) are their numbers, ascending. `sha256` identifies the selection: two readers with the same value read the
    same images of the same state, except for those that were taken down since. `removed` is the number of such images
    in a pinned selection.
    """

    condition: str
    ids: Ints
    sha256: str
    removed: int = 0

    def __len__(self) -> int:
        return len(self.ids)

    def inside(self, ordinals: tuple[int, int]) -> Ints:
        """Return the ids of images whose ordinals are in [start, stop)."""
        start, stop = (bisect_left(self.ids, ordinal + 1) for ordinal in ordinals)
        return self.ids[start:stop]

    def part(self, part: int, parts: int) -> frozenset[int]:
        """Return the ids of one of `parts` contiguous shares, counted from 0, whose sizes differ by at most one."""
        start, stop = (len(self) * each // parts for each in (part, part + 1))
        return frozenset(self.ids[start:stop].tolist())

    @property
    def line(self) -> str:
        """Text about the subset for the user."""
        gone = f"; {counted(self.removed, 'selected image')} taken down since" if self.removed else ""
        return f"selected by {self.condition!r}: {counted(len(self), 'image')}{gone} (selection {self.sha256[:12]})"


class Dataset:
    """The committed images of a dataset, ordered by ordinal.

    Each iteration lists the commits when it starts, and ignores shards that are committed later. If `version` is set,
    iterations yield the images of that recorded version. If `subset` is set, iterations yield only its images. With
    `verify`, a process hashes each file before it reads the file for the first time.
    """

    def __init__(
        self,
        location: Location,
        manifest: DatasetManifest,
        version: Version | None = None,
        verify: bool = False,
        subset: Subset | None = None,
    ) -> None:
        self.location = location
        self.manifest = manifest
        self.version = version
        self.verify = verify
        self.subset = subset
        self.log = CommitLog(location)
        self._verified: set[str] = set()

    @classmethod
    def open(cls, location: Location, version: int | str | None = None) -> Self:
        """Open the dataset at `location` in its current state, or as of the version with this number or digest.

        Raises `UsageError` if the dataset or the version doesn't exist, and `RemovedVersionError` if a correction
        replaced files of the version.
        """
        return cls(location, *cls.find(location, version))

    @staticmethod
    def find(location: Location, version: int | str | None) -> tuple[DatasetManifest, Version | None]:
        """Return the manifest of a dataset, and the requested version, if any. Raises the errors of `open`."""
        if version is None:
            return load_manifest(location), None
        found = find_version(location, version)
        check_readable(location, found)
        return manifest_of(location, found), found

    @property
    def uri(self) -> str:
        """Location of the dataset, as given when it was opened."""
        return self.location.uri

    def commits(self, only: Container[int] | None = None) -> Iterator[Commit]:
        """Return the latest commits, or those of `version` if it is set, in shard order.

        `only` restricts the shards.
        """
        if self.version is not None:
            return read_commits(self.location, self.version, only)
        return self.log.read_all(only=only)

    def committed(self) -> list[int]:
        """Return the numbers of the committed shards, ascending."""
        return list(self.log.committed()) if self.version is None else [shard for shard, *_ in self.version.commits]

    def __iter__(self) -> Iterator[Sample]:
        for commit in self.commits():
            yield from self.shard(commit)

    def __len__(self) -> int:
        """Return the number of images in the committed shards, by their commits' counts, or in the subset."""
        if self.subset is not None:
            return len(self.subset)
        return sum(map(self.count, self.commits()))

    def count(self, commit: Commit) -> int:
        """Return the number of a shard's images by its commit, or of those in the subset."""
        if self.subset is not None:
            return len(self.subset.inside(commit.ordinals))
        return commit.counts.get("images", 0)

    def ids(self, commit: Commit) -> list[int]:
        """Return the ids of a shard's images in ascending order, or only those of the subset."""
        if self.subset is not None:
            chosen: list[int] = self.subset.inside(commit.ordinals).tolist()
            return chosen
        ids: list[int] = self.table(commit, "images", ["id"])["id"].to_pylist()
        return ids

    def table(
        self, commit: Commit, kind: str, columns: list[str] | None = None, rows: pc.Expression | None = None
    ) -> pa.Table:
        """Read a shard's table of this `kind` (images, masks, or rejects), or only some of its columns and rows.

        `rows` selects rows by a condition. A row group is skipped if its statistics show that none of its rows meet the
        condition. Raises `DamagedDatasetError` if the file can't be read.
        """
        with self._table_file(commit, kind) as stream:
            return pq.read_table(stream, columns=columns, filters=rows)

    @contextmanager
    def _table_file(self, commit: Commit, kind: str) -> Iterator[BinaryIO]:
        """Open a shard's table. Raises `DamagedDatasetError` if it can't be read."""
        entry = commit.file(kind)
        file = self.location / entry.path
        self._check(entry)
        try:
            with _open(file, entry.size) as stream:
                yield stream
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # raised by the stream; Arrow's errors, such as for a corrupt footer, have no errno
            raise DamagedDatasetError(f"{file} is not a readable Parquet file: {error}") from error

    def labels(self, commit: Commit) -> ShardLabels:
        """Read the labels and prompts of a shard's masks. If no mask has any, this reads only the table's footer."""
        with self._damage_named(commit, "masks"), self._table_file(commit, "masks") as stream:
            file = pq.ParquetFile(stream, pre_buffer=True)
            groups = _groups_with(file.metadata, ("label", "prompts"))
            table = file.read_row_groups(groups, ["annotation_id", *MASK_SAID])
            said = pc.or_(table.column("label").is_valid(), table.column("prompts").is_valid())
            return ShardLabels(table.filter(said))

    def has_prompts(self, commit: Commit) -> bool:
        """Return whether a mask of a shard has prompts. If none has any, this reads only the table's footer.

        In files that pyarrow 20 wrote, the footer counts null lists as values, so it doesn't show that there are none.
        """
        with self._damage_named(commit, "masks"), self._table_file(commit, "masks") as stream:
            file = pq.ParquetFile(stream)
            column = file.read_row_groups(_groups_with(file.metadata, ("prompts",)), ["prompts"]).column("prompts")
            return bool(column.null_count < len(column))

    def count_labels(self, commit: Commit) -> dict[str, int]:
        """Count the masks of a shard by label."""
        with self._damage_named(commit, "masks"):
            column = self.table(commit, "masks", ["label"]).column("label").drop_null()
            return {each["values"].as_py(): each["counts"].as_py() for each in column.value_counts()}

    def shard(self, commit: Commit, ids: Container[int] | None = None) -> Iterator[Sample]:
        """Yield the samples of a committed shard in order, or only the samples whose id is in `ids` and in the subset.

        This streams the shard's tar up to the last requested sample.
        """
        if self.subset is not None:
            chosen = self.subset.inside(commit.ordinals).tolist()
            ids = frozenset(number for number in chosen if ids is None or number in ids)
            if not ids:
                return
        table = self.table(commit, "images")
        missing = [name for name in ("id", "width", "height") if name not in table.column_names]
        if missing:
            file = self.location / commit.file("images").path
            raise DamagedDatasetError(f"{file} does not have the columns of images: no {missing[0]}")
        with self._damage_named(commit, "images"):
            rows = [{**dict.fromkeys(ADDED_COLUMNS), **row} for row in table.to_pylist()]
        wanted = [ids is None or row["id"] in ids for row in rows]
        labels = self.labels(commit)
        entry = commit.file("shards")
        path = entry.path
        pairs = self._pairs(entry)
        for index in range(len(rows) - wanted[::-1].index(True) if any(wanted) else 0):
            jpeg, document = next(pairs, (None, None))
            if wanted[index]:
                if document is None:
                    raise not_where_it_should_be(self.location / path, rows[index]["id"])
                sample = make_sample(self.location / path, rows[index], jpeg, document, labels)
                yield replace(sample, masks=list(sample.masks))  # so that each mask decodes its pixels once

    @contextmanager
    def _damage_named(self, commit: Commit, kind: str) -> Iterator[None]:
        """Convert errors from a table to `DamagedDatasetError`.

        A `KeyError` means a missing column. A `UnicodeDecodeError` means invalid text, which Arrow decodes only on
        access.
        """
        try:
            yield
        except (KeyError, UnicodeDecodeError) as error:
            file = self.location / commit.file(kind).path
            raise DamagedDatasetError(f"{file} is not a readable Parquet file: {error}") from error

    def _pairs(self, entry: FileEntry) -> Iterator[tuple[bytes | None, bytes]]:
        """Yield each image's JPEG and JSON, in the tar's order. Without released images, each JPEG is None."""
        tar = self.location / entry.path
        jpeg: bytes | None = None
        try:
            with self._open_tar(entry) as stream:
                archive = TarReader(stream)
                for member in archive:
                    check_member(tar, member)
                    data = archive.read(member)
                    if member.name.endswith(".jpg"):
                        jpeg = data
                    elif member.name.endswith(".json"):
                        yield jpeg, data
                        jpeg = None
        except BadTarError as error:
            raise DamagedDatasetError(f"{tar} is not a readable shard: {error}") from error

    def _open_tar(self, entry: FileEntry) -> BinaryIO:
        self._check(entry)
        return (self.location / entry.path).open()

    def _check(self, entry: FileEntry) -> None:
        """Hash a file before its first use, if `verify` is set.

        Raises `DamagedDatasetError` if the file doesn't match its commit.
        """
        if self.verify and entry.path not in self._verified:
            check_file(self.location / entry.path, entry)
            self._verified.add(entry.path)


def check_file(file: Location, entry: FileEntry) -> None:
    """Hash a file of a dataset, and raise `DamagedDatasetError` if its size or hash differs from its commit."""
    found = file.size_and_sha256()
    if found != (entry.size, entry.sha256):
        raise damaged_file(file, entry, *found)


def damaged_file(file: Location, entry: FileEntry, size: int, sha256: str) -> DamagedDatasetError:
    """Return the error for a file whose size or hash differs from its commit."""
    return DamagedDatasetError(
        f"{file} is damaged: it has {size:,} bytes and SHA-256 {sha256}, but its commit says {entry.size:,} and "
        f"{entry.sha256}. {HELP}"
    )


def make_sample(
    tar: Location, row: Mapping[str, Any], jpeg: bytes | None, document: bytes, labels: ShardLabels
) -> Sample:
    """Create a sample from an image's row and its files in the tar.

    Raises `DamagedDatasetError` if the JSON is malformed or doesn't match the row.
    """
    expected, of_image = (row["height"], row["width"]), labels.of_image(row["id"])
    try:
        content = _parsed(document)
        number, annotations = content["image"]["image_id"], content["annotations"]
        sizes = [tuple(value["segmentation"]["size"]) for value in annotations]
        levels = [content.get(key) or [None] * len(annotations) for key in LEVELS.values()]
        if any(len(values) != len(annotations) for values in levels):
            raise ValueError(f"expected {len(annotations)} {' and '.join(LEVELS.values())}")
        masks = MaskSequence(annotations, expected, of_image, *levels)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError, OverflowError) as error:
        what = f"the JSON of image {row['id']}: {type(error).__name__}: {str(error)[:200]}"
        raise DamagedDatasetError(f"{tar} is not a readable shard: {what}") from error
    if number != row["id"]:
        raise not_where_it_should_be(tar, row["id"])
    other = [place for place, size in enumerate(sizes) if size != expected]
    if other:
        raise DamagedDatasetError(
            f"{tar} is not a readable shard: mask {masks[other[0]].id} has the size {sizes[other[0]]}; "
            f"image {row['id']} has {expected}"
        )
    return Sample(row, masks, jpeg)


def _parsed(document: bytes) -> Any:
    try:
        return from_json(document, cache_strings="keys")  # three times as fast as `json`
    except ValueError:
        return json.loads(document)  # accepts more input, and has better error messages


def not_where_it_should_be(tar: Location, number: int) -> DamagedDatasetError:
    """Return the error for an image that its tar doesn't contain at the position given by the images table."""
    return DamagedDatasetError(f"{tar} does not contain image {number} where it should be")


def _groups_with(metadata: pq.FileMetaData, names: Sequence[str]) -> list[int]:
    """Return the row groups in which one of these columns, or a column inside them, has a value by its statistics.

    Arrow's filters don't use the statistics of columns inside others.
    """
    found = []
    for group in range(metadata.num_row_groups):
        columns = [metadata.row_group(group).column(index) for index in range(metadata.num_columns)]
        own = [column for column in columns if column.path_in_schema.split(".")[0] in names]
        if any(column.statistics is None or column.statistics.null_count < column.num_values for column in own):
            found.append(group)
    return found


def _open(file: Location, size: int) -> BinaryIO:
    """Open a file that has `size` bytes according to its commit."""
    if size <= WHOLE_BYTES:
        try:
            return io.BytesIO(file.read(max_bytes=WHOLE_BYTES))
        except ObjectTooLargeError:
            pass  # it doesn't match its commit, but may still be readable
    return file.open()
