"""Collection of photographs that builds don't read: bytes in Parquet columns, and https URLs.

The photographs are copied into tars of about 1 GB: `0001.tar`, `0002.tar`, …. Next to each tar is a file of the new
catalog, `0001.parquet`, with the tar's rows. It is written after its tar, so it also records that the tar is complete.
The output's folder is a catalog in several files, whose URIs name places in the tars. It contains every row of the
source. A row whose photograph wasn't copied keeps its URL, or gets an empty file, and a build rejects it.
"""

import hashlib
import json
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.parquet import table_bytes, together
from segmint.catalogs.schema import SOURCE
from segmint.catalogs.source.conform import refuse, shown
from segmint.catalogs.source.files import catalog_files, catalog_format, require_catalog, source_version
from segmint.catalogs.source.parquet_reader import open_parquet, parquet_batches
from segmint.catalogs.source.readers import in_catalog, read_catalog
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.https import Download, Downloader
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.threads import map_ahead
from segmint.infra.uris import ALONE, TAR_BLOCK, TarMember, is_below, is_catalog_folder
from segmint.infra.wording import counted, size

TAR_BYTES = 10**9
"""Size in bytes at which a tar is complete."""

_TAR_ROWS = 20_000  # at which a tar is complete, too
_KEY = b"segmint.collect"
_NAME_BYTES = 100  # at the start of a tar
_THREADS, _AHEAD = 16, 32
_BATCH = 8  # rows of images that are read from Parquet at a time
_MOST_FAULTS = 20  # downloads that fail one after another before the run stops, because the network may be down

Row = dict[str, Any]
Copied = tuple[Row, Download]


@dataclass
class CollectResult:
    """Result of a collection: all rows of the source, by what happened to them."""

    output: str
    before: int  # rows that earlier runs completed
    rows: int = 0  # of this run
    copied: int = 0
    copied_bytes: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # rows without a copy, by reason

    def lines(self) -> list[str]:
        return [
            f"{self.output}: copied {counted(self.copied, 'photograph')} of {counted(self.rows, 'row')}, "
            f"{size(self.copied_bytes)}; {counted(self.before, 'row')} completed before",
            *(f"  not copied: {count:>8,}  {why}" for why, count in sorted(self.failed.items())),
            f"the tars contain originals, not redacted: restrict who can read {self.output}",
        ]


def collect(
    catalog: Location,
    output: Location,
    downloader: Downloader,
    column: str | None = None,
    *,
    tar_bytes: int = TAR_BYTES,
    tell: Callable[[str], None] = lambda _: None,
) -> CollectResult:
    """Copy the photographs of a catalog into tars in the folder `output`, with a catalog of them.

    With `column`, the photographs are in that binary column of Parquet files, such as `image.bytes`. Otherwise, the
    rows' URIs are https URLs. Rows that the catalog rejects or opts out aren't copied. A run that was stopped resumes
    after its last complete tar. `tell` receives a line for each tar.

    Raises `UsageError` if the catalog is invalid, or if the folder contains something else, and `UnfinishedError` if
    many downloads fail in a row.
    """
    require_catalog(catalog)
    if is_below(catalog.uri, output.uri) or (is_catalog_folder(catalog.uri) and is_below(output.uri, catalog.uri)):
        raise UsageError(f"{output} and the catalog {catalog} are in each other's folder: choose a folder outside")
    if column is not None and catalog_format(catalog.uri) != "Parquet":
        raise UsageError(f"--bytes {column}: {catalog} has no binary columns; expected Parquet")
    source = {"source": source_version(catalog), "column": column}
    parts = _completed(output, source)
    done = CollectResult(str(output), before=sum(parts))

    def copy(job: tuple[Row, bytes | None]) -> Copied:
        row, data = job
        if row["opt_out"] or row["refused_reason"]:
            return row, Download(None, "rejected by the catalog")
        if column is None:
            return row, downloader.get(row["uri"])
        return row, Download(data or None, f"no bytes in {column}")

    jobs = _url_rows(catalog, done.before) if column is None else _byte_rows(catalog, column, done.before)
    copies = map_ahead(copy, jobs, _THREADS, _AHEAD, "collect")
    number = len(parts)
    while (first := next(copies, None)) is not None:
        number += 1
        name = f"{number:04}"
        part = output / f"{name}.parquet"
        with ScratchFolder() as folder:
            path = Path(folder) / f"{name}.tar"
            rows = _write_tar(path, first, copies, done, tar_bytes, is_url=column is None)
            if source_version(catalog) != source["source"]:
                raise UsageError(
                    f"{catalog} changed while it was read: choose another folder, and run the command again"
                )
            if part.exists():  # its tar must stay as it is
                raise _another_run(output)
            (output / path.name).put_file(path)
        schema = SOURCE.with_metadata({_KEY: json.dumps(source).encode()})
        if not part.put_if_absent(table_bytes(pa.Table.from_pylist(rows, schema), schema)):
            raise _another_run(output)
        tell(f"{output / path.name}: {counted(len(rows), 'row')}")
    return done


def _another_run(output: Location) -> UsageError:
    return UsageError(f"another run writes to {output}: run one at a time")


def _completed(output: Location, source: dict[str, Any]) -> list[int]:
    """Return the number of rows in each complete tar, in order. Raises `UsageError` for anything else in the folder.

    A run that was stopped may have left one more tar, which the next run replaces.
    """
    rows: list[int] = []
    tars: list[str] = []
    for entry in sorted(output.list(), key=lambda entry: (len(entry.name), entry.name)):  # 9999 before 10000
        file = output / entry.name
        if entry.name == f"{len(rows) + 1:04}.parquet":
            with file.open() as stream:
                metadata = pq.read_metadata(stream)
            if json.loads((metadata.metadata or {}).get(_KEY, b"null")) != source:
                raise UsageError(
                    f"{file} is of another catalog or column, or the catalog changed: choose another folder"
                )
            rows.append(metadata.num_rows)
        elif re.fullmatch(r"\d{4,}\.tar", entry.name):
            tars.append(entry.name)
        else:
            raise _foreign(file)
    complete = [f"{number:04}.tar" for number in range(1, len(rows) + 1)]
    for name in tars:
        if name not in complete and not (name == f"{len(rows) + 1:04}.tar" and _is_own(output / name)):
            raise _foreign(output / name)
    return rows


def _is_own(tar: Location) -> bool:
    """Return whether a tar without a catalog begins as a collection's tars do, and isn't somebody else's."""
    with tar.open() as stream:
        return re.fullmatch(rb"(\d{6,}\.bin)?", stream.read(_NAME_BYTES).rstrip(b"\0")) is not None


def _foreign(file: Location) -> UsageError:
    return UsageError(f"{file} isn't the next file of a collection: choose another folder")


def _url_rows(catalog: Location, skip: int) -> Iterator[tuple[Row, None]]:
    number = 0
    for batch in read_catalog(catalog):
        for row in batch.to_pylist():
            number += 1
            if not re.match(ALONE, row["uri"]):
                raise UsageError(
                    f"{catalog}, row {number}, column uri: found {shown(row['uri'])}; expected an https URL"
                )
            if number > skip:
                yield row, None


def _byte_rows(catalog: Location, column: str, skip: int) -> Iterator[tuple[Row, bytes | None]]:
    before = 0
    for file in catalog_files(catalog):
        with open_parquet(file.location, file.columns) as texts, open_parquet(file.location, file.columns) as images:
            if not _is_binary(images.schema_arrow, column):
                leaves = [images.schema.column(place).path for place in range(min(20, len(images.schema)))]
                raise UsageError(
                    f"{file.location}: the binary column {column!r} is missing; it has: {', '.join(leaves)}"
                )
            first, start, group = before, before, 0
            before += texts.metadata.num_rows
            while start < before and start + texts.metadata.row_group(group).num_rows <= skip:
                start += texts.metadata.row_group(group).num_rows
                group += 1
            groups = range(group, texts.metadata.num_row_groups)
            on_problem = in_catalog(catalog, file, first, refuse)
            row = start - first + 1
            ours = parquet_batches(str(file.location), texts, groups, on_problem, row, constants=file.columns)
            theirs = images.iter_batches(batch_size=_BATCH, row_groups=list(groups), columns=[column])
            for batch, raw in together(ours, theirs):
                values = raw.column(0)
                for name in column.split(".")[1:]:
                    values = values.field(name)
                yield from islice(zip(batch.to_pylist(), values.to_pylist(), strict=True), max(0, skip - start), None)
                start += batch.num_rows


def _is_binary(fields: Iterable[pa.Field], column: str) -> bool:
    """Return whether a column, such as `image.bytes`, is binary. Only structs may contain it."""
    name, *below = column.split(".", 1)
    found = [field.type for field in fields if field.name == name]
    if len(found) != 1:
        return False
    (kind,) = found
    if below:
        return pa.types.is_struct(kind) and _is_binary(kind.fields, below[0])
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _write_tar(
    path: Path, first: Copied, copies: Iterator[Copied], done: CollectResult, tar_bytes: int, *, is_url: bool
) -> list[Row]:
    """Write a tar, and return its rows: those of `copies` up to the tar's size, after `first`."""
    rows: list[Row] = []
    faults = 0  # one after another
    each: Copied | None = first
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        while each is not None:
            row, found = each
            data = found.data
            sha256 = None if data is None else hashlib.sha256(data).hexdigest()
            if data is not None and row["sha256"] not in (None, sha256):
                data, found = None, Download(None, "another SHA-256 than the row's")
            row["image_id"] = row["image_id"] or row["uri"]
            row["opt_out"] = found.opted_out or row["opt_out"]
            if is_url:
                row["source_url"] = row["source_url"] or row["uri"]
            if data is not None:
                done.copied += 1
                done.copied_bytes += len(data)
                row["sha256"] = sha256
            else:
                done.failed[found.why] = done.failed.get(found.why, 0) + 1
            if data is not None or not is_url:
                row["uri"] = _add(tar, path.name, len(rows), data or b"").uri
            rows.append(row)
            done.rows += 1
            faults = faults + 1 if found.passing else 0
            if faults == _MOST_FAULTS:
                break
            each = None
            if tar.offset < tar_bytes and len(rows) < _TAR_ROWS:
                each = next(copies, None)
    if faults in (_MOST_FAULTS, len(rows)):
        raise UnfinishedError(
            f"{counted(faults, 'download')} failed one after another, the last with: {found.why}. All tars before "
            f"{path.name} are complete. Check the network, and run the same command again"
        )
    return rows


def _add(tar: tarfile.TarFile, name: str, number: int, data: bytes) -> TarMember:
    info = tarfile.TarInfo(f"{number:06}.bin")
    info.size = len(data)
    tar.addfile(info, BytesIO(data))
    stored = -(-len(data) // TAR_BLOCK) * TAR_BLOCK
    return TarMember(name, tar.offset - stored, len(data))
