"""Selection of the catalog rows that a takedown removes, with all other rows of the same images."""

import io
import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.tombstones import RemovedImage, RemovedNames, TakedownRequest, is_taken_down
from segmint.catalogs.layout import DamagedDatasetError
from segmint.catalogs.licenses import canonical_identifier
from segmint.catalogs.parquet import Row
from segmint.catalogs.source.files import NormalizedRows
from segmint.infra.errors import UsageError
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location

_ROWS = 65_536
_THREADS = 16
_READ_AHEAD = 512
_NUMBER = re.compile(r"(?:sa_)?([1-9]\d{0,17})", re.ASCII)
_COLUMNS = ["ordinal", "image_id", "uri", "license", "provider", "sha256"]
_PICTURES = ("source_sha256", "pixels_sha256", "release_sha256")
_DIGESTS = pa.schema([("ordinal", pa.int64()), *((name, pa.string()) for name in _PICTURES)])


Measured = Mapping[int, frozenset[str]]
"""SHA-256 hashes that a build measured, keyed by ordinal: of the source's bytes, the pixels, and the released JPEG."""


@dataclass
class NamedRows:
    """Rows to take down by ordinal, names that match no row, and ambiguous names, each with an explanation."""

    rows: dict[int, RemovedImage] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    ambiguous: dict[str, str] = field(default_factory=dict)


def read_ids(file: Location) -> dict[str, int]:
    """Read the names in a text file, one per line, and return them with their line numbers.

    Raises `UsageError` if the file doesn't exist, isn't UTF-8 text, or contains no names.
    """
    try:
        text = file.read().decode("utf-8-sig")
    except NotFoundError as error:
        raise UsageError(f"{file}: no such ids file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text: expected one image_id or id per line") from error
    found: dict[str, int] = {}
    for number, line in enumerate(io.StringIO(text, newline=None), 1):  # `splitlines` also splits inside of names
        if line.strip():
            found.setdefault(line.strip(), number)
    if not found:
        raise UsageError(f"{file} names no images: expected one image_id or id per line")
    return found


def exact_id(name: str) -> str | None:
    """Return the image_id that a JSON string such as `"sa_2"` contains, or None if the name is not a JSON string."""
    try:
        return str(json.loads(name)).encode().decode() if name.startswith('"') else None
    except ValueError:
        return None


def number_of(name: str) -> int | None:
    """Return the number of the image in `17` or `sa_17`, or None for any other name."""
    match = _NUMBER.fullmatch(name)
    return int(match[1]) if match else None


def possible_ids(name: str) -> set[str | int | None]:
    """Return both meanings of a name: an image_id, and an image number, or None if the name can't be a number."""
    return {exact_id(name) or name, number_of(name)}


def select_row(dataset: Location, manifest: DatasetManifest, name: str) -> RemovedImage:
    """Return the row with this image_id or number. Raises `UsageError` unless exactly one image has this name."""
    selection = select_rows(dataset, manifest, TakedownRequest(ids=(name,)))
    if len(selection.rows) != 1:
        raise UsageError(selection.ambiguous.get(name, f"{name!r} isn't the image_id or id of one image of {dataset}"))
    return next(iter(selection.rows.values()))


def select_rows(dataset: Location, manifest: DatasetManifest, asked: TakedownRequest) -> NamedRows:
    """Return exactly the requested rows, except rows that were already taken down.

    A name in a request can be an image_id of the catalog, as written or as a JSON string, or the number of an image in
    the dataset. If a name is the image_id of one image and the number of another, it is ambiguous. A license matches
    regardless of how its identifier is spelled. This streams the catalog.
    """
    if asked.ids is None:
        chosen = {}
        for batch in _batches(dataset, manifest):
            for image in _images(batch, _of_license_or_provider(batch, asked)):
                chosen[image.ordinal] = image
        return NamedRows(chosen)
    exact = {name: exact_id(name) or name for name in asked.ids}
    names = pa.array(exact.values(), pa.string())
    numbers = {name: number for name in asked.ids if (number := number_of(name)) is not None}
    ordinals = pa.array([number - 1 for number in numbers.values()], pa.int64())
    by_name: dict[str, list[RemovedImage]] = {}
    by_ordinal: dict[int, RemovedImage] = {}
    for batch in _batches(dataset, manifest):
        for image in _images(batch, pc.is_in(batch.column("image_id"), value_set=names)):
            by_name.setdefault(image.image_id, []).append(image)
        for image in _images(batch, pc.is_in(batch.column("ordinal"), value_set=ordinals)):
            by_ordinal[image.ordinal] = image
    result = NamedRows()
    for name in asked.ids:
        named = by_name.get(exact[name], [])
        numbered = None
        if name in numbers:
            numbered = by_ordinal.get(numbers[name] - 1)
        if named and numbered is not None and numbered.image_id != name:
            result.ambiguous[name] = (
                f"{name!r} is both the image_id of image {named[0].id} and the number of another image. For the "
                f"image_id, write {json.dumps(name)}, with the quotes. For the number, write the other image's "
                f"image_id, {json.dumps(numbered.image_id)}"
            )
        elif named:
            for image in named:
                result.rows[image.ordinal] = image
        elif numbered is not None:
            result.rows[numbered.ordinal] = numbered
        else:
            result.unknown.append(name)
    return result


def rows_at(dataset: Location, manifest: DatasetManifest, ordinals: Collection[int]) -> Iterator[Row]:
    """Yield the catalog's rows at these ordinals with the columns `_COLUMNS`, except rows that were taken down."""
    wanted = pa.array(sorted(ordinals), pa.int64())
    for batch in _batches(dataset, manifest) if ordinals else ():
        rows = batch.filter(pc.is_in(batch.column("ordinal"), value_set=wanted)).to_pylist()
        yield from (row for row in rows if not is_taken_down(row))


def rows_named(dataset: Location, manifest: DatasetManifest, names: RemovedNames) -> dict[int, RemovedImage]:
    """Return the catalog's rows that have any of these names, keyed by ordinal."""
    batches = _batches(dataset, manifest)
    return {image.ordinal: image for batch in batches for image in _images(batch, names.marks(batch))}


def same_request(one: TakedownRequest, other: TakedownRequest) -> bool:
    """Return whether two requests select the same rows by name.

    The spelling of a license and other options don't matter.
    """
    if one.license is None or other.license is None:
        return (one.ids, one.license, one.provider) == (other.ids, other.license, other.provider)
    return _license_key(one.license) == _license_key(other.license)


def _of_license_or_provider(batch: pa.RecordBatch, asked: TakedownRequest) -> pa.BooleanArray:
    if asked.license is None:
        return pc.equal(batch.column("provider"), asked.provider)
    wanted = _license_key(asked.license)
    spelled = [text for text in batch.column("license").unique().to_pylist() if text is not None]
    return pc.is_in(
        batch.column("license"),
        value_set=pa.array([text for text in spelled if _license_key(text) == wanted], pa.string()),
    )


def _license_key(text: str) -> str:
    """Return a license as the policy reads it: identifiers in SPDX's spelling, and any other text unchanged."""
    return canonical_identifier(text.strip()) or text.strip()


def with_copies(
    dataset: Location,
    manifest: DatasetManifest,
    rows: Mapping[int, RemovedImage],
    tables: Sequence[str],
    catalog_uri: str | None = None,
    *,
    by_name: bool = True,
    measured: Measured = MappingProxyType({}),
) -> "SameImages":
    """Find all rows of the same images. Returns them and the given rows in order, with the SHA-256 of their bytes.

    Two rows belong to the same image if a build read the same bytes, decoded the same pixels, or released the same JPEG
    for both. With `by_name`, two rows with the same image_id or uri also belong to the same image. The search continues
    from each row that it finds. With `by_name`, the result also includes rows that match only by the SHA-256 in the
    catalog, which no build has checked. The search doesn't continue from these rows.

    The hashes come from `tables`, the paths of the committed images tables, and from `measured` for earlier rows. If
    you pass the source catalog's URI as `catalog_uri`, a relative URI matches the absolute URI of the same file. This
    function reads the catalog and the tables again until it finds no more rows, usually three times.
    """
    found = dict(rows)
    stating: dict[int, RemovedImage] = {}
    sources: dict[int, str] = {}
    digests = dict(measured)
    before = None
    while before != (len(found), len(digests)):
        before = len(found), len(digests)
        names = RemovedNames.of(found.values() if by_name else (), catalog_uri)
        names = replace(names, sha256=frozenset())
        same_bytes = pa.array(sorted(frozenset[str]().union(*digests.values())), pa.string())
        with_digest = pa.array(sorted(digests), pa.int64())
        for batch in _batches(dataset, manifest):
            hits = pc.or_(names.marks(batch), pc.is_in(batch.column("ordinal"), value_set=with_digest))
            found |= {image.ordinal: image for image in _images(batch, hits)}
            if by_name:
                stated = pc.is_in(batch.column("sha256"), value_set=same_bytes)
                stating |= {image.ordinal: image for image in _images(batch, stated)}
        ordinals = pa.array(sorted(found), pa.int64())
        for table in _digest_tables(dataset, tables):
            hits = pc.is_in(table.column("ordinal"), value_set=ordinals)
            for name in _PICTURES:
                hits = pc.or_(hits, pc.is_in(table.column(name), value_set=same_bytes))
            for row in table.filter(hits).to_pylist():
                sources[row["ordinal"]] = row["source_sha256"]
                own = frozenset(row[name] for name in _PICTURES if row[name] is not None)
                digests[row["ordinal"]] = digests.get(row["ordinal"], frozenset()) | own
    images = {
        ordinal: image.model_copy(update={"sha256": sources.get(ordinal)})
        for ordinal, image in sorted({**stating, **found}.items())
    }
    return SameImages(images, digests)


class SameImages(NamedTuple):
    """Result of `with_copies`: the rows by ordinal, and the SHA-256 hashes measured for these and earlier rows."""

    images: dict[int, RemovedImage]
    digests: Measured


def _batches(dataset: Location, manifest: DatasetManifest) -> Iterator[pa.RecordBatch]:
    """Yield the catalog's rows in order, with only the columns that identify an image."""
    for part in manifest.catalog:
        with NormalizedRows(dataset / part.path) as rows:
            yield from rows.batches(_COLUMNS, _ROWS)


def _images(batch: pa.RecordBatch, chosen: pa.BooleanArray) -> Iterator[RemovedImage]:
    """Return the chosen rows as images, except rows that were already taken down."""
    return (image_of(row) for row in batch.filter(chosen).to_pylist() if not is_taken_down(row))


def image_of(row: Row) -> RemovedImage:
    """Convert a row of the catalog to an image."""
    return RemovedImage(id=row["ordinal"] + 1, **{name: row[name] for name in ("ordinal", "image_id", "uri", "sha256")})


def _digest_tables(dataset: Location, tables: Sequence[str]) -> Iterator[pa.Table]:
    def read(path: str) -> pa.Table:
        file = dataset / path
        try:
            with file.open() as stream:
                return pq.read_table(stream, columns=_DIGESTS.names).cast(_DIGESTS)
        except (pa.ArrowException, ValueError, OSError, NotFoundError) as error:
            raise DamagedDatasetError(f"{file} cannot be read: {error}; `segmint repair` may restore it") from error

    yield from map_ahead(read, tables, _THREADS, _READ_AHEAD, "digests")
