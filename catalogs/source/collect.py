"""Collection of photographs that builds don't read in place: bytes in Parquet columns, https URLs, and the demo's.

The photographs are copied into tars of about 1 GB: `0001-<hash>.tar`, `0002-<hash>.tar`, …. Next to each tar is a file
of the new catalog, `0001.parquet`, with the tar's rows. It is written after its tar, so it also records that the tar is
complete. Because of the hash, a run can't overwrite another run's tar.
The output's folder is a catalog in several files, whose URIs name places in the tars. It contains every row of the
source. A row whose photograph can't be copied keeps its URL, or gets an empty file, and a build rejects it. Only the
rows whose servers gave no answer about the photograph are left for another run. So each file states which rows of the
source it contains.

Small demo catalog of photographs from scikit-image and scikit-learn, with their real licenses.

A build accepts four of its rows, and rejects four others, each for a different reason. The photographs are exact copies
of files in the installed packages, except for one that is deliberately corrupted.
"""

import json
import re
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from segmint.catalogs.layout import bytes_sha256
from segmint.catalogs.parquet import SOURCE, Row, table_bytes, together
from segmint.catalogs.source.conform import shown
from segmint.catalogs.source.files import catalog_format, require_catalog, source_version
from segmint.catalogs.source.readers import read_catalog, row_groups
from segmint.infra.assets import PackageFile, sha256_of
from segmint.infra.errors import UnfinishedError, UsageError
from segmint.infra.https import Download, Downloader
from segmint.infra.scratch import ScratchFolder
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.location import Location
from segmint.infra.uris import ALONE, TAR_BLOCK, TarMember, is_below, is_catalog_folder
from segmint.infra.wording import counted, size

TAR_BYTES = 10**9
"""Size in bytes at which a tar is complete."""

_TAR_ROWS = 20_000  # at which a tar is complete, too
_KEY = b"segmint.collect"
_NAME_BYTES = 100  # at the start of a tar
_TAR = re.compile(r"(\d{4,})-[0-9a-f]{12}\.tar")
_THREADS, _AHEAD = 16, 32
_BATCH = 8  # rows of images that are read from Parquet at a time

Job = tuple[int, Row, bytes | None]  # number of a row in the source, from 1, with its bytes if the source has them
Copied = tuple[int, Row, Download]


@dataclass
class CollectResult:
    """Result of a collection: all rows of the source, by what happened to them."""

    output: str
    before: int  # rows that earlier runs completed
    rows: int = 0  # of this run
    copied: int = 0
    copied_bytes: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # rows without a copy, by reason
    left: int = 0  # those of them that another run tries again

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
    nothing was copied yet and no server answers.
    """
    require_catalog(catalog)
    if is_below(catalog.uri, output.uri) or (is_catalog_folder(catalog.uri) and is_below(output.uri, catalog.uri)):
        raise UsageError(f"{output} and the catalog {catalog} are in each other's folder: choose a folder outside")
    if column is not None and catalog_format(catalog.uri) != "Parquet":
        raise UsageError(f"--bytes {column}: {catalog} has no binary columns; expected Parquet")
    source = {"source": source_version(catalog), "column": column}
    parts = _completed(output, source)
    done = CollectResult(str(output), before=sum(map(len, parts)))

    def copy(job: Job) -> Copied:
        number, row, data = job
        if row["opt_out"] or row["refused_reason"]:
            found = Download(None, "rejected by the catalog")
        elif column is not None:
            found = Download(data or None, f"no bytes in {column}")
        else:
            found = downloader.get(row["uri"])
            if not done.before and downloader.is_offline():
                raise UnfinishedError(
                    f"no server responds, the last download failed with: {found.why}. Check the network, and run the "
                    "same command again"
                )
        return number, row, found

    jobs = _url_rows(catalog, parts) if column is None else _byte_rows(catalog, column, done.before)
    copies = map_ahead(copy, jobs, _THREADS, _AHEAD, "collect")
    name = len(parts)
    while True:
        name += 1
        part = output / f"{name:04}.parquet"
        with ScratchFolder() as folder:
            path = Path(folder) / f"{name:04}.tar"
            rows, tar = _write_tar(path, copies, done, tar_bytes, is_url=column is None)
            if not rows:
                return done
            if source_version(catalog) != source["source"]:
                raise UsageError(
                    f"{catalog} changed while it was read: choose another folder, and run the command again"
                )
            if part.exists():
                raise _another_run(output)
            (output / tar).put_file(path)
        schema = SOURCE.with_metadata({_KEY: json.dumps({**source, "rows": list(rows), "tar": tar}).encode()})
        table = pa.Table.from_pylist(list(rows.values()), schema)
        if not part.put_if_absent(table_bytes(table, schema)):
            if _recorded(part)["tar"] != tar:
                (output / tar).delete()
            raise _another_run(output)
        for entry in output.list(beginning=f"{name:04}-"):
            if entry.name != tar:  # of a run that was stopped, or that will find the part
                (output / entry.name).delete()
        tell(f"{output / tar}: {counted(len(rows), 'row')}")


def _another_run(output: Location) -> UsageError:
    return UsageError(f"another run writes to {output}: run one at a time")


def _completed(output: Location, source: dict[str, Any]) -> list[list[int]]:
    """Return the numbers of the rows in each complete tar, in order. Raises `UsageError` for anything else in `output`.

    A run that was stopped may have left tars. They are deleted if their number is complete, or when it is.
    """
    names = {entry.name for entry in output.list()}
    parts: list[list[int]] = []
    name = "0001"
    while f"{name}.parquet" in names:
        file = output / f"{name}.parquet"
        found = _recorded(file)
        parts.append(found.pop("rows", []))
        names -= {f"{name}.parquet", found.pop("tar", "")}
        if found != source:
            raise UsageError(f"{file} is of another catalog or column, or the catalog changed: choose another folder")
        name = f"{len(parts) + 1:04}"
    for left in sorted(names):
        match = _TAR.fullmatch(left)
        if match is not None and int(match[1]) <= len(parts) + 1 and _is_own(output / left):
            names.remove(left)
            if int(match[1]) <= len(parts):
                (output / left).delete()
    if names:
        raise UsageError(f"{output / min(names)} isn't the next file of a collection: choose another folder")
    return parts


def _recorded(file: Location) -> dict[str, Any]:
    """Return what a file of the new catalog records about itself, or nothing if it isn't such a file."""
    with file.open() as stream:
        metadata = pq.read_metadata(stream).metadata or {}
    found: dict[str, Any] = json.loads(metadata.get(_KEY, b"{}"))
    return found


def _is_own(tar: Location) -> bool:
    """Return whether a tar without a catalog begins as a collection's tars do, and isn't somebody else's."""
    with tar.open() as stream:
        return re.fullmatch(rb"(\d{6,}\.bin)?", stream.read(_NAME_BYTES).rstrip(b"\0")) is not None


def _url_rows(catalog: Location, parts: list[list[int]]) -> Iterator[Job]:
    """Yield the rows that aren't in a complete tar."""
    done = np.zeros(1 + max(map(max, parts), default=0), bool)
    for numbers in parts:
        done[numbers] = True
    number = 0
    for batch in read_catalog(catalog):
        for row in batch.to_pylist():
            number += 1
            if not re.match(ALONE, row["uri"]):
                raise UsageError(
                    f"{catalog}, row {number}, column uri: found {shown(row['uri'])}; expected an https URL"
                )
            if number >= len(done) or not done[number]:
                yield number, row, None


def _byte_rows(catalog: Location, column: str, skip: int) -> Iterator[Job]:
    """Yield the rows after the first `skip`, without reading the photographs of earlier row groups."""
    for group in row_groups(catalog):
        _require_binary(group.file.location, group.opened.schema, column)
        if group.stop <= skip:
            continue
        photographs = group.opened.iter_batches(batch_size=_BATCH, row_groups=[group.number], columns=[column])
        number = group.start
        for batch, raw in together(group.batches, photographs):
            values = raw.column(0)
            while pa.types.is_struct(values.type):
                values = values.field(0)
            for row, data in zip(batch.to_pylist(), values.to_pylist(), strict=True):
                number += 1
                if number > skip:
                    yield number, row, data


def _require_binary(file: Location, schema: pq.ParquetSchema, column: str) -> None:
    """Raise `UsageError` unless a column, such as `image.bytes`, is binary. Only structs may contain it."""
    leaves = [schema.column(place) for place in range(len(schema))]
    kinds = [
        (leaf.physical_type, leaf.logical_type.type, leaf.max_repetition_level)
        for leaf in leaves
        if leaf.path == column
    ]
    if kinds != [("BYTE_ARRAY", "NONE", 0)]:
        there = ", ".join(leaf.path for leaf in leaves[:20])
        raise UsageError(f"{file}: the binary column {column!r} is missing; it has: {there}")


def _write_tar(
    path: Path, copies: Iterator[Copied], done: CollectResult, tar_bytes: int, *, is_url: bool
) -> tuple[dict[int, Row], str]:
    """Write a tar from `copies`, up to the tar's size. Return its rows by their numbers in the source, and its name."""
    rows: dict[int, Row] = {}
    members: dict[int, TarMember] = {}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for number, row, found in copies:
            data = found.data
            sha256 = None if data is None else bytes_sha256(data)
            if data is not None and row["sha256"] not in (None, sha256):
                data, found = None, Download(None, "another SHA-256 than the row's")
            done.rows += 1
            if data is not None:
                done.copied += 1
                done.copied_bytes += len(data)
                row["sha256"] = sha256
            else:
                done.failed[found.why] = done.failed.get(found.why, 0) + 1
            if found.passing:
                done.left += 1
                continue
            row["image_id"] = row["image_id"] or row["uri"]
            row["opt_out"] = found.opted_out or row["opt_out"]
            if is_url and row["source_url"]:
                row["download_url"] = row["uri"]
            elif is_url:
                row["source_url"] = row["uri"]
            if data is not None or not is_url:
                members[number] = _add(tar, len(rows), data or b"")
            rows[number] = row
            if tar.offset >= tar_bytes or len(rows) == _TAR_ROWS:
                break
    name = f"{path.stem}-{sha256_of(path)[:12]}.tar"
    for number, member in members.items():
        rows[number]["uri"] = member._replace(tar=name).uri
    return rows, name


def _add(tar: tarfile.TarFile, number: int, data: bytes) -> TarMember:
    info = tarfile.TarInfo(f"{number:06}.bin")
    info.size = len(data)
    member = TarMember("", tar.offset + TAR_BLOCK, len(data))
    tar.addfile(info, BytesIO(data))
    return member


DEMO_LICENSES = ("CC0-1.0", "CC-BY-2.0", "LicenseRef-public-domain")
"""Licenses that the demo's configuration allows."""

_SKIMAGE = "skimage/data"
_SKLEARN = "sklearn/datasets/images"


@dataclass(frozen=True)
class _Photograph:
    package_path: str  # below site-packages, starting with the package's name
    license: str
    attribution: str
    provider: str
    source_url: str
    country: str | None
    caption: str


# Licenses and credits as given by the packages: skimage.data's docstrings, sklearn's datasets/images/README.txt. That
# README credits both of its photographs to danielbuechele, but links the flower to vultilion's page.
_ASTRONAUT = _Photograph(
    f"{_SKIMAGE}/astronaut.png",
    "LicenseRef-public-domain",
    "NASA",
    "scikit-image",
    "https://flic.kr/p/r9qvLn",
    "US",
    "Eileen Collins, astronaut. No known copyright restrictions, released into the public domain by NASA.",
)
_COFFEE = _Photograph(
    f"{_SKIMAGE}/coffee.png",
    "CC0-1.0",
    "Rachel Michetti, courtesy of Pikolo Espresso Bar",
    "scikit-image",
    "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.coffee",
    None,
    "A coffee cup.",
)
_CHELSEA = _Photograph(
    f"{_SKIMAGE}/chelsea.png",
    "CC0-1.0",
    "Stefan van der Walt",
    "scikit-image",
    "https://scikit-image.org/docs/stable/api/skimage.data.html#skimage.data.chelsea",
    None,
    "Chelsea the cat.",
)
_CHINA = _Photograph(
    f"{_SKLEARN}/china.jpg",
    "CC-BY-2.0",
    "danielbuechele",
    "scikit-learn",
    "https://www.flickr.com/photos/danielbuechele/6061409035/",
    "CN",
    "A building in China.",
)
_FLOWER = _Photograph(
    f"{_SKLEARN}/flower.jpg",
    "CC-BY-2.0",
    "vultilion",
    "scikit-learn",
    "https://www.flickr.com/photos/vultilion/6056698931/",
    None,
    "A flower.",
)
_MOTORCYCLE = _Photograph(
    f"{_SKIMAGE}/motorcycle_left.png",
    "LicenseRef-middlebury-2014-stereo",
    "Nera Nesic, Porter Westling, Xi Wang, York Kitajima, Greg Krathwohl, Daniel Scharstein (Middlebury)",
    "scikit-image",
    "https://vision.middlebury.edu/stereo/data/scenes2014/",
    "US",
    "A motorcycle, from the Middlebury 2014 stereo benchmark.",
)


def write_demo(folder: Path) -> Path:
    """Write the demo's photographs and its catalog, `catalog.jsonl`, into `folder`, and return the catalog's path.

    Each call writes the same bytes. Raises `UsageError` if scikit-image or scikit-learn is not installed.
    """
    photos = folder / "photos"
    photos.mkdir(parents=True, exist_ok=True)
    rows = list(_rows(photos))
    catalog = folder / "catalog.jsonl"
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    catalog.write_text(text, encoding="utf-8")
    return catalog


def _rows(photos: Path) -> Iterator[Row]:
    for photograph in (_ASTRONAUT, _COFFEE):
        yield _copied(photos, photograph)
    yield _copied(photos, _MOTORCYCLE) | {
        "caption": f"{_MOTORCYCLE.caption} Refused: its license is not among those allowed."
    }
    yield _copied(photos, _CHELSEA)
    yield _copied(photos, _FLOWER) | {
        "valid_until": "2020-12-31",
        "caption": f"{_FLOWER.caption} Refused as expired: the date is made up, the true license has no end.",
    }
    china = _copied(photos, _CHINA)
    yield china
    whole = (photos / Path(_CHINA.package_path).name).read_bytes()
    (photos / "china-broken.jpg").write_bytes(whole[: len(whole) // 2])
    yield china | {
        "uri": "photos/china-broken.jpg",
        "image_id": "china-broken",
        "caption": "The same file cut in half. Refused as broken.",
    }
    yield _copied(photos, _COFFEE) | {"caption": "The cup once more. Refused: its image_id stood there before."}


def _copied(photos: Path, photograph: _Photograph) -> dict[str, Any]:
    """Copy a photograph's file, and return its catalog row with the keys in the order of `SOURCE`."""
    source = _installed(photograph.package_path)
    (photos / source.name).write_bytes(source.read_bytes())
    row: Row = {
        **vars(photograph),
        "uri": f"photos/{source.name}",
        "image_id": source.stem,
        "redistributable": photograph.license in DEMO_LICENSES,
    }
    return {name: row[name] for name in SOURCE.names if row.get(name) is not None}


def _installed(package_path: str) -> Path:
    package, _, inside = package_path.partition("/")
    path = PackageFile("segmint[demo]", package, inside).find()
    if path is None:
        raise UsageError(f"the demo needs {package_path}, which is not installed: pip install 'segmint[demo]'")
    return path
