"""Reader of a dataset: its committed shards, image by image; masks are decoded on first use."""

import base64
import html
import io
import json
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic_core import from_json

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry
from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest
from segmint.catalogs.dataset.mask_labels import MASK_LABEL, NO_LABEL, LabelsById, ShardLabels
from segmint.catalogs.dataset.versions.record import Version, check_readable, find_version, manifest_of, read_commits
from segmint.catalogs.layout import LEVELS, MOST_MEMBER_BYTES, MOST_PIXELS, DamagedDatasetError
from segmint.infra.errors import SegmintError
from segmint.infra.storage.errors import ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.tars import BadTarError, TarReader, is_plain_file

_WHOLE_BYTES = 4 << 20
"""Maximum size in bytes of a table that is read in a single request. A larger one is opened and read in parts."""

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
    """One mask in SA-1B's terms; coordinates are pixels of the released image.

    `bbox` and `crop_box` are (x, y, width, height), and `point_coords` are the prompt's points (x, y). `counts` is the
    mask in COCO's compressed run-length encoding, and `size` is its (height, width). A mask that a person annotated may
    have no scores and no points. `label`, `label_score`, and `label_source` come from the masks table and are None
    without a label.

    `output` is the index (0 to 2) of the decoder output that produced the mask, or None if it's unknown. `container` is
    the id of the smallest larger mask in the image that contains at least 95 % of this mask's pixels, or None.
    """

    id: int
    size: tuple[int, int]
    counts: str
    area: int
    bbox: tuple[float, float, float, float]
    predicted_iou: float | None
    stability_score: float | None
    crop_box: tuple[float, float, float, float]
    point_coords: tuple[tuple[float, float], ...]
    output: int | None = None
    container: int | None = None
    label: str | None = None
    label_score: float | None = None
    label_source: str | None = None

    @classmethod
    def from_json(
        cls, value: Mapping[str, Any], output: int | None = None, container: int | None = None
    ) -> "MaskAnnotation":
        """Convert an entry of `annotations` in an image's JSON, plus the mask's values in `outputs` and `containers`.

        The JSON contains no labels.
        """
        height, width = value["segmentation"]["size"]
        x, y, w, h = value["bbox"]
        crop_x, crop_y, crop_w, crop_h = value["crop_box"]
        mask = object.__new__(cls)
        # Twice as fast as a frozen dataclass's constructor, which matters for images with 100 masks and more.
        mask.__dict__.update(
            id=value["id"],
            size=(height, width),
            counts=value["segmentation"]["counts"],
            area=value["area"],
            bbox=(x, y, w, h),
            predicted_iou=value["predicted_iou"],
            stability_score=value["stability_score"],
            crop_box=(crop_x, crop_y, crop_w, crop_h),
            point_coords=tuple([(x, y) for x, y in value["point_coords"]]),
            output=output,
            container=container,
        )
        return mask

    @property
    def rle(self) -> dict[str, Any]:
        """The mask for pycocotools: size [height, width] and compressed counts."""
        return {"size": list(self.size), "counts": self.counts}

    @cached_property
    def mask(self) -> np.ndarray[Any, Any]:
        """Pixels of the mask, (height, width) bool."""
        from pycocotools import mask as coco

        return np.asarray(coco.decode(self.rle)).astype(bool)

    def __repr__(self) -> str:
        box = ", ".join(f"{number:g}" for number in self.bbox)
        return f"MaskAnnotation(id={self.id}, area={self.area}, bbox=({box}), predicted_iou={self.predicted_iou})"


@dataclass(frozen=True)
class Sample:
    """One image of a dataset. `row` is its row in `images/*.parquet`; `masks` have the same order as in its JSON."""

    row: Mapping[str, Any]
    masks: Sequence[MaskAnnotation]
    jpeg: bytes | None  # as released; None in an annotations-only dataset

    def __repr__(self) -> str:
        size = f"{self.row.get('width')} x {self.row.get('height')}"
        return f"Sample(id={self.id}, image_id={self.row.get('image_id')!r}, {size}, {len(self.masks)} masks)"

    def _repr_html_(self) -> str:
        """Return HTML for notebooks: the released image, if any, and the `repr`. `segmint.show` also draws masks."""
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

        Raises `NoPixelsError` if there are none, `DamagedDatasetError` for a JPEG that can't be decoded or exceeds
        `MOST_PIXELS`.
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


class Dataset:
    """The committed images of a dataset, ordered by ordinal.

    Each iteration reads the commits again when it starts, and doesn't include shards that are committed later. If
    `version` is set, it yields the images of that recorded version. With `verify`, a process hashes each file before it
    reads it for the first time.
    """

    def __init__(
        self, location: Location, manifest: DatasetManifest, version: Version | None = None, verify: bool = False
    ) -> None:
        self.location = location
        self.manifest = manifest
        self.version = version
        self.verify = verify
        self.log = CommitLog(location)
        self._verified: set[str] = set()

    @classmethod
    def open(cls, location: Location, version: int | str | None = None) -> Self:
        """Open the dataset at `location` in its current state, or as of the version with this number or digest.

        Raises `UsageError` if there is no dataset or no such version, and `RemovedVersionError` if a correction
        replaced files of the version.
        """
        return cls(location, *cls.find(location, version))

    @staticmethod
    def find(location: Location, version: int | str | None) -> tuple[DatasetManifest, Version | None]:
        """Return a dataset's manifest and the requested version. Raises the errors of `open`."""
        if version is None:
            return load_manifest(location), None
        found = find_version(location, version)
        check_readable(location, found)
        return manifest_of(location, found), found

    @property
    def uri(self) -> str:
        """Location of the dataset, as it was opened."""
        return self.location.uri

    def commits(self, only: Container[int] | None = None) -> Iterator[Commit]:
        """Return the commits of the dataset, or of its `version` if set, in shard order. `only` limits the shards."""
        if self.version is not None:
            return read_commits(self.location, self.version, only)
        return self.log.read_all(only=only)

    def committed(self) -> list[int]:
        """Return the committed shards, in order."""
        return list(self.log.committed()) if self.version is None else [shard for shard, *_ in self.version.commits]

    def __iter__(self) -> Iterator[Sample]:
        for commit in self.commits():
            yield from self.shard(commit)

    def __len__(self) -> int:
        """Return the number of images in the committed shards, from their commits."""
        return sum(commit.counts.get("images", 0) for commit in self.commits())

    def table(
        self, commit: Commit, kind: str, columns: list[str] | None = None, rows: pc.Expression | None = None
    ) -> pa.Table:
        """Read a table of the shard (`kind` is images, masks, or rejects), or only the given columns and rows of it.

        A row group isn't read if its statistics show that it contains none of the rows.
        """
        entry = commit.file(kind)
        file = self.location / entry.path
        self._check(entry)
        try:
            with _open(file, entry.size) as stream:
                return pq.read_table(stream, columns=columns, filters=rows)
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # raised by the stream; Arrow's errors, such as for a corrupt footer, have no errno
            raise DamagedDatasetError(f"{file} is not a readable Parquet file: {error}") from error

    def labels(self, commit: Commit) -> ShardLabels:
        """Read the labels of a shard's masks. Without labels, only the table's footer is read."""
        with self._damage_named(commit, "masks"):
            labeled = pc.field("label").is_valid()
            return ShardLabels(self.table(commit, "masks", ["annotation_id", *MASK_LABEL], labeled))

    def count_labels(self, commit: Commit) -> dict[str, int]:
        """Return the number of a shard's masks with each label."""
        with self._damage_named(commit, "masks"):
            column = self.table(commit, "masks", ["label"]).column("label").drop_null()
            return {each["values"].as_py(): each["counts"].as_py() for each in column.value_counts()}

    def shard(self, commit: Commit, ids: Container[int] | None = None) -> Iterator[Sample]:
        """Yield the samples of one committed shard, or only those with `ids`, in order by streaming its tar.

        The tar is read up to the last requested sample.
        """
        table = self.table(commit, "images")
        missing = [name for name in ("id", "width", "height") if name not in table.column_names]
        if missing:
            file = self.location / commit.file("images").path
            raise DamagedDatasetError(f"{file} does not have the columns of images: no {missing[0]}")
        with self._damage_named(commit, "images"):
            rows = table.to_pylist()
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
                yield make_sample(self.location / path, rows[index], jpeg, document, labels)

    @contextmanager
    def _damage_named(self, commit: Commit, kind: str) -> Iterator[None]:
        """Raise `DamagedDatasetError` for a missing column, and for invalid text, which Arrow decodes on access."""
        try:
            yield
        except (KeyError, UnicodeDecodeError) as error:
            file = self.location / commit.file(kind).path
            raise DamagedDatasetError(f"{file} is not a readable Parquet file: {error}") from error

    def _pairs(self, entry: FileEntry) -> Iterator[tuple[bytes | None, bytes]]:
        """Yield the JPEG (None if there is none) and JSON of each image of a tar, in its order."""
        tar = self.location / entry.path
        jpeg: bytes | None = None
        try:
            with self._open_tar(entry) as stream:
                archive = TarReader(stream)
                for member in archive:
                    if not is_plain_file(member):
                        raise DamagedDatasetError(f"{tar} is not a shard: {member.name} is not a regular file")
                    if member.size > MOST_MEMBER_BYTES:
                        raise DamagedDatasetError(
                            f"{tar} is not a shard: {member.name} has {member.size:,} bytes; at most "
                            f"{MOST_MEMBER_BYTES:,} are read"
                        )
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
        """With `verify`, hash a file on its first use; raise `DamagedDatasetError` if it doesn't match its commit."""
        if self.verify and entry.path not in self._verified:
            check_file(self.location / entry.path, entry)
            self._verified.add(entry.path)


def check_file(file: Location, entry: FileEntry) -> None:
    """Raise `DamagedDatasetError` if a file of a dataset doesn't match its commit."""
    found = file.size_and_sha256()
    if found != (entry.size, entry.sha256):
        raise damaged_file(file, entry, *found)


def damaged_file(file: Location, entry: FileEntry, size: int, sha256: str) -> DamagedDatasetError:
    """Return the error for a file whose size or hash differs from its commit's."""
    return DamagedDatasetError(
        f"{file} is damaged: it has {size:,} bytes and SHA-256 {sha256}, but its commit says {entry.size:,} and "
        f"{entry.sha256}. {HELP}"
    )


Numbers = Sequence[int | None]

MasksOf = Callable[
    [Sequence[Mapping[str, Any]], tuple[int, int], LabelsById, Numbers, Numbers], Sequence[MaskAnnotation]
]
"""Converter of an image's `annotations`, (height, width), labels, `outputs`, and `containers` to masks. Raises
`KeyError`, `TypeError`, or `ValueError` for malformed annotations.
"""


def make_sample(
    tar: Location,
    row: Mapping[str, Any],
    jpeg: bytes | None,
    document: bytes,
    labels: ShardLabels,
    masks_of: MasksOf | None = None,
) -> Sample:
    """Return a sample from an image's row and its files in a tar; raises `DamagedDatasetError` if they disagree."""
    expected, of_image = (row["height"], row["width"]), labels.of_image(row["id"])
    try:
        content = _parsed(document)
        number, annotations = content["image"]["image_id"], content["annotations"]
        sizes = [tuple(value["segmentation"]["size"]) for value in annotations]
        levels = [content.get(key) or [None] * len(annotations) for key in LEVELS.values()]
        if any(len(values) != len(annotations) for values in levels):
            raise ValueError(f"expected {len(annotations)} {' and '.join(LEVELS.values())}")
        if masks_of:
            masks = masks_of(annotations, expected, of_image, *levels)
        else:
            masks = _labeled([*map(MaskAnnotation.from_json, annotations, *levels)], of_image)
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


def _labeled(masks: list[MaskAnnotation], labels: LabelsById) -> list[MaskAnnotation]:
    for mask in masks if labels else ():
        mask.__dict__.update(zip(MASK_LABEL, labels.get(mask.id, NO_LABEL), strict=True))  # they were made here
    return masks


def _parsed(document: bytes) -> Any:
    try:
        return from_json(document, cache_strings="keys")  # three times as fast as `json`
    except ValueError:
        return json.loads(document)  # accepts more, and reports what is wrong


def not_where_it_should_be(tar: Location, number: int) -> DamagedDatasetError:
    """Return the error for a tar that lacks an image of the table of images, or has it in another position."""
    return DamagedDatasetError(f"{tar} does not contain image {number} where it should be")


def _open(file: Location, size: int) -> BinaryIO:
    """Open a file that has `size` bytes according to its commit."""
    if size <= _WHOLE_BYTES:
        try:
            return io.BytesIO(file.read(max_bytes=_WHOLE_BYTES))
        except ObjectTooLargeError:
            pass  # it doesn't match its commit, but may still be readable
    return file.open()
