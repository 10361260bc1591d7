"""Measures a shard of data that segmint did not write: Parquet with a dataset's columns, and the shard's faults."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from segmint.catalogs.dataset.foreign import JPEGS, ForeignShard, ListedImage, LooseFile, kind_of
from segmint.catalogs.dataset.tables import TableFile, scratch_path
from segmint.catalogs.findings import Code, Finding, FindingCollector, FindingLocation
from segmint.catalogs.parquet import RowGroupWriter
from segmint.infra.storage.errors import NotFoundError, ObjectTooLargeError
from segmint.infra.storage.location import Location
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.infra.uris import base_name
from segmint.operators.audit.jpeg_parts import frame_size
from segmint.operators.decoding import JpegDecoder, UndecodableError
from segmint.operators.describe import describe_table
from segmint.operators.foreign.masks import ForeignImage, read_foreign, read_listed
from segmint.operators.foreign.pictures import picture_sizes
from segmint.operators.foreign.yolo import read_labels
from segmint.operators.prepare.ingest_config import ANY_SIZE
from segmint.operators.rows import Row, to_table
from segmint.operators.schemas import IMAGES, MASKS, MASKS_PER_IMAGE_LIMIT, SEGMENTED
from segmint.operators.shards.files import ROW_GROUP_ROWS

IMAGES_PER_SHARD_LIMIT = 10_000_000
"""Upper bound on a shard's images. An ordinal is the shard's number times this, plus the image's index.

With these ordinals, shards can be measured independently.
"""

_SCHEMAS = {"images": IMAGES, "masks": MASKS, "jpegs": JPEGS}
_JSON_BYTES = 256 << 20
_HEAD = 64 << 10
"""Number of bytes to read first. In most JPEGs, the frame header begins within these bytes."""
_AT_ONCE = 16


@dataclass
class MeasuredShard:
    """Result of measuring a shard: its Parquet files, keyed by table, its number of images, and its findings."""

    shard: int
    files: dict[str, TableFile] = field(default_factory=dict)
    images: int = 0
    boxes_alone: int = 0  # boxes without a mask
    without_labels: int = 0  # images of a YOLO dataset without a label file
    findings: FindingCollector = field(default_factory=FindingCollector)


class _ForeignFile(NamedTuple):
    """A JPEG or JSON file, possibly inside a tar.

    `open` returns a stream to read it from. Closing the stream of a file inside a tar leaves the tar open.
    """

    stem: str
    kind: str
    place: FindingLocation
    uri: str
    offset: int
    size: int
    open: Callable[[], AbstractContextManager[BinaryIO]]

    def read(self, size: int) -> bytes:
        with self.open() as stream:
            stream.seek(self.offset)
            return stream.read(min(size, self.size))


@dataclass
class _ImageState:
    """Facts found so far about the image with a certain name."""

    jpeg: _ForeignFile | None = None
    jpeg_size: tuple[int, int] | None = None  # (height, width)
    jpeg_fault: ValueError | None = None  # reported when the JSON has been measured, or at the end
    json_size: tuple[int, int] | None = None
    ordinal: int | None = None  # set when the JSON has been measured
    number: int | None = None  # the image's id, set along with `ordinal`
    reported: bool = False  # true if a finding already says that the JSON can't be read


def measure_shard(data: Location, shard: ForeignShard, folder: Path) -> MeasuredShard:
    """Measure a shard and write its tables into `folder`.

    Memory holds the masks of a few images, one row group, and the names of images whose JPEG or JSON hasn't been read
    yet.
    """
    measured = MeasuredShard(shard.shard)
    with ExitStack() as stack:
        writers = {}
        for kind, schema in _SCHEMAS.items():
            path = folder / scratch_path(kind, shard.shard)
            path.parent.mkdir(exist_ok=True)
            writers[kind] = stack.enter_context(RowGroupWriter(path, schema, ROW_GROUP_ROWS))
        if shard.listed:
            with JpegDecoder(own=False, processes=1) as decoder:
                _measure_listed(data, shard, measured, writers, decoder)
        else:
            _measure(data, shard, measured, writers)
    for kind in _SCHEMAS:
        path = folder / scratch_path(kind, shard.shard)
        measured.files[kind] = TableFile(str(path), path.stat().st_size)
    return measured


def _measure_listed(
    data: Location,
    shard: ForeignShard,
    measured: MeasuredShard,
    writers: dict[str, RowGroupWriter],
    decoder: JpegDecoder,
) -> None:
    waiting: list[tuple[Row, list[int | None]]] = []
    for index, listed in enumerate(shard.listed):
        ordinal = shard.shard * IMAGES_PER_SHARD_LIMIT + index
        place = FindingLocation(_text(listed.file), image=ordinal + 1, part=_text(listed.name))
        image = ForeignImage(ordinal + 1, listed.size)
        measured.images += 1
        try:
            picture = _listed_picture(Location(data.storage, listed.folder), listed, image, place, decoder)
            contours = shard.classes is not None and shard.classes.through_centers
            read_listed(_annotations(data, shard, listed, image, place), image, place, contours=contours)
        except (NotFoundError, ObjectTooLargeError) as error:
            image.findings.add(place.finding(Code.MISSING_FILE, "a file that can be read", error))
            picture = None
        if picture is not None and not listed.repeats:
            row = {"ordinal": ordinal, "uri": _text(picture.uri), "offset": 0, "size": picture.size}
            writers["jpegs"].add(to_table([{**row, "split": listed.split}], JPEGS).to_batches())
        measured.findings.extend(image.findings)
        measured.boxes_alone += image.boxes_alone
        measured.without_labels += shard.classes is not None and listed.labels is None
        row = {"license": listed.license, "source_url": listed.source_url}
        waiting.append(({**_row(image, ordinal, _text(listed.name)), **row}, _ids(image)))
        if len(waiting) >= _AT_ONCE:
            _write(waiting, writers)
            waiting = []
    _write(waiting, writers)


def _annotations(
    data: Location, shard: ForeignShard, listed: ListedImage, image: ForeignImage, place: FindingLocation
) -> Sequence[Mapping[str, Any]]:
    if shard.classes is None or listed.labels is None:
        return listed.annotations
    labels = Location(data.storage, listed.folder) / listed.labels.name
    return read_labels(labels.read(max_bytes=_JSON_BYTES), image, shard.classes, place)


def _listed_picture(
    folder: Location, listed: ListedImage, image: ForeignImage, place: FindingLocation, decoder: JpegDecoder
) -> _ForeignFile | None:
    """Return the picture of a listed image, or None if it is missing. Compare its size with the stated one.

    Sets the size of `image` if the file doesn't state it. A picture that can't be read has no size, and the audit of
    pictures reports it.
    """
    if listed.picture is None:
        image.findings.add(place.finding(Code.MISSING_FILE, f"a file below {folder}", "none"))
        return None
    picture = _loose_file("jpeg", place, folder, listed.picture)
    size, _ = _jpeg_size(picture)
    sizes: Sequence[tuple[int, int]] = [] if size is None else [size]
    if size is None or (listed.size is not None and size != listed.size):
        try:
            sizes = decoder.run(picture_sizes, picture.read(ANY_SIZE.max_bytes))
        except UndecodableError:
            return picture
    image.size = listed.size or sizes[0]
    if image.size not in sizes:
        (height, width), found = image.size, " or ".join(f"{w} x {h} pixels" for h, w in dict.fromkeys(sizes))
        image.findings.add(place.finding(Code.JPEG_SIZE, f"{width} x {height} pixels, as {place.file} says", found))
    return picture


def _measure(data: Location, shard: ForeignShard, measured: MeasuredShard, writers: dict[str, RowGroupWriter]) -> None:
    images: dict[str, _ImageState] = {}
    waiting: list[tuple[Row, list[int | None]]] = []
    for file in _files(data, shard, measured.findings):
        image = images.setdefault(file.stem, _ImageState())
        try:
            if file.kind == "jpeg":
                image.jpeg = file
                image.jpeg_size, image.jpeg_fault = _jpeg_size(file)
            else:
                row = _read_json(file, image, measured)
                if row is not None:
                    waiting.append(row)
        except NotFoundError as error:
            image.reported = True
            expected = f"{file.size} bytes, as it was listed"
            measured.findings.add(file.place.finding(Code.MISSING_FILE, expected, error))
        if image.jpeg is not None and image.ordinal is not None:
            _pair(image.ordinal, image, image.jpeg, measured.findings, writers)
            del images[file.stem]
        if len(waiting) >= _AT_ONCE:
            _write(waiting, writers)
            waiting = []
    _write(waiting, writers)
    for stem, image in images.items():
        if image.jpeg is None and image.ordinal is not None:
            place = FindingLocation(
                f"{shard.tar}/{stem}.json" if shard.tar else f"{stem}.json", shard.shard, image.number
            )
            measured.findings.add(place.finding(Code.MISSING_PAIR, f"a JPEG {base_name(stem)}.jpg", "none"))
        elif image.jpeg is not None:
            measured.findings.extend(_jpeg_fault(image, image.jpeg.place))
            if not image.reported:
                expected, found = f"a JSON {base_name(stem)}.json", "none that can be read"
                measured.findings.add(image.jpeg.place.finding(Code.MISSING_PAIR, expected, found))


def _read_json(file: _ForeignFile, image: _ImageState, measured: MeasuredShard) -> tuple[Row, list[int | None]] | None:
    """Return an image's row for `describe` and the ids in its JSON, or None if the JSON can't be read."""
    try:
        if file.size > _JSON_BYTES:
            raise ValueError(f"{file.size} bytes, over {_JSON_BYTES}")
        ordinal = measured.shard * IMAGES_PER_SHARD_LIMIT + measured.images
        found = read_foreign(json.loads(file.read(file.size)), image.jpeg_size, file.place, ordinal + 1)
        if found.size is None:
            raise ValueError("no size of its image")
    except (ValueError, RecursionError) as error:
        if image.jpeg is not None or base_name(file.stem).startswith("sa_"):
            measured.findings.add(file.place.finding(Code.BAD_JSON, "the JSON of an image with annotations", error))
            image.reported = True
        return None
    measured.findings.extend(found.findings)
    image.ordinal, image.number = ordinal, found.number
    image.json_size = found.size
    measured.images += 1
    return _row(found, ordinal, file.stem), _ids(found)


def _ids(image: ForeignImage) -> list[int | None]:
    return [mask["annotation_id"] for mask in image.masks]


def _row(found: ForeignImage, ordinal: int, name: str) -> Row:
    height, width = found.size or (0, 0)
    row: dict[str, Any] = {"ordinal": ordinal, "id": found.number, "image_id": name, "width": width, "height": height}
    return {**row, "masks": found.masks}


def _write(waiting: list[tuple[Row, list[int | None]]], writers: dict[str, RowGroupWriter]) -> None:
    """Describe images and masks as a build would, and write their rows."""
    if not waiting:
        return
    described = describe_table(to_table([row for row, _ in waiting], SEGMENTED)).to_pylist()
    images, masks = [], []
    for row, (_, ids) in zip(described, waiting, strict=True):
        images.append({**row, "masks": len(row["masks"]), "funnel": None, "next_mask": None})
        identity = {name: row[name] for name in ("ordinal", "id", "image_id")}
        first = row["ordinal"] * MASKS_PER_IMAGE_LIMIT
        numbers = [first + index if own is None else own for index, own in enumerate(ids)]
        for number, mask in zip(numbers, row["masks"], strict=True):
            container = mask["container"]  # the id that a build would assign
            known = {"container": None if container is None else numbers[container - first - MASKS_PER_IMAGE_LIMIT]}
            masks.append({**identity, "annotation_id": number, **mask, "source": None, **known})
    writers["images"].add(to_table(images, IMAGES).to_batches())
    writers["masks"].add(to_table(masks, MASKS).to_batches())


def _pair(
    ordinal: int, image: _ImageState, jpeg: _ForeignFile, findings: FindingCollector, writers: dict[str, RowGroupWriter]
) -> None:
    row = {"ordinal": ordinal, "uri": _text(jpeg.uri), "offset": jpeg.offset, "size": jpeg.size}
    writers["jpegs"].add(to_table([row], JPEGS).to_batches())
    place = replace(jpeg.place, image=image.number)
    findings.extend(_jpeg_fault(image, place))
    if image.jpeg_size is not None and image.json_size is not None and image.jpeg_size != image.json_size:
        (height, width), found = image.json_size, image.jpeg_size
        expected = f"{width} x {height} pixels, as its JSON says"
        findings.add(place.finding(Code.JPEG_SIZE, expected, f"{found[1]} x {found[0]} pixels"))


def _jpeg_fault(image: _ImageState, place: FindingLocation) -> Iterator[Finding]:
    if image.jpeg_fault is not None:
        yield place.finding(Code.BAD_JPEG, "a JPEG", image.jpeg_fault)


def _jpeg_size(file: _ForeignFile) -> tuple[tuple[int, int] | None, ValueError | None]:
    """Return the (height, width) of a JPEG or the error. Read no more bytes than needed."""
    try:
        size = frame_size(file.read(_HEAD)) or frame_size(file.read(file.size))
        if size is None:
            raise ValueError("it ends before the picture begins")
    except ValueError as error:
        return None, error
    return (size[1], size[0]), None


def _files(data: Location, shard: ForeignShard, findings: FindingCollector) -> Iterator[_ForeignFile]:
    """Yield a shard's JPEG and JSON files in order. Report parts that can't be read as findings."""
    if shard.tar is not None:
        yield from _tar_files(data / shard.tar, shard.tar, shard.shard, findings)
        return
    for pair in shard.pairs:
        for kind, file in (("jpeg", pair.jpeg), ("json", pair.json)):
            if file is None:
                continue
            yield _loose_file(kind, FindingLocation(_text(file.name), shard.shard), data, file, pair.stem)


def _loose_file(kind: str, place: FindingLocation, folder: Location, file: LooseFile, stem: str = "") -> _ForeignFile:
    found = folder / file.name
    return _ForeignFile(_text(stem), kind, place, found.uri, 0, file.size, partial(found.open_ranges, file.size))


def _tar_files(tar: Location, name: str, shard: int, findings: FindingCollector) -> Iterator[_ForeignFile]:
    try:
        with tar.open() as stream:
            opened: AbstractContextManager[BinaryIO] = nullcontext(stream)
            for member in TarReader(stream):
                kind = kind_of(member.name)
                if kind is None or not is_plain_file(member):
                    continue
                path = _text(member.name)
                stem, place = path.rpartition(".")[0], FindingLocation(f"{name}/{path}", shard)
                yield _ForeignFile(stem, kind, place, tar.uri, member.offset_data, member.size, lambda: opened)
    except BadTarError as error:
        findings.add(FindingLocation(name, shard).finding(Code.BAD_TAR, "a tar of plain files", error))


def _text(name: str) -> str:
    """Replace invalid UTF-8 in a name, which file systems and tars allow, so that tables and reports can store it."""
    return name.encode(errors="replace").decode()
