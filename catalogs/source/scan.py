"""Creation of a catalog from the images below a folder or prefix, with licenses from an argument or sidecar files.

A sidecar file is in the same folder as its image, and its name starts with the image's name. `photo.jpg.json` may
contain any catalog columns except `uri`. `photo.jpg.license` contains either only a license identifier, or the tags
that REUSE defines (`SPDX-License-Identifier`, `SPDX-FileCopyrightText`). Values in sidecars override the arguments, and
values in JSON override those in `.license`.

`photo.json` belongs to an image of that name with any extension, but the other sidecars override it.

The images in an uncompressed tar get rows, too. Their sidecars are in the same tar. There, `photo.json` belongs to all
images whose WebDataset key is `photo`, and sidecars of the tar itself belong to all images in it.

From top to bottom: the index of a tar, the scan and its checks, the rows of images, the sidecars, and the writers of
catalog files.
"""

import csv
import hashlib
import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from tarfile import TarInfo
from typing import Any, BinaryIO

import pyarrow as pa

from segmint.catalogs.layout import IMAGE_ENDINGS, parse_data_path
from segmint.catalogs.licenses import validate_identifier
from segmint.catalogs.parquet import SOURCE, Row, RowGroupWriter
from segmint.catalogs.source.conform import NoJsonObjectError, conform, json_object
from segmint.catalogs.source.files import catalog_format
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.stopping import map_ahead
from segmint.infra.storage.errors import UnreadableObjectError
from segmint.infra.storage.location import Location, put_new_file
from segmint.infra.storage.stores import ObjectInfo, OnSkip, warn_of_skipped
from segmint.infra.tars import BadTarError, TarReader, is_plain_file
from segmint.infra.uris import (
    LOCAL,
    TAR_BLOCK,
    TarMember,
    UriNotAllowedError,
    base_name,
    is_below,
    is_catalog_folder,
    local_path,
    parent,
    plain_forms,
    relative_to,
    scheme,
)

SIDECAR_ENDINGS = (".json", ".license")

JSON_BYTES = 8 << 20  # WebDataset's JSON may contain more than a catalog's columns, such as SA-1B's masks
_PIECE = 4 << 20

Columns = dict[str, Any]
"""Values for columns of a catalog."""

_SIDECAR_BYTES = 1 << 20

_NAMED_ALIKE_BYTES = 64 << 20  # other tools put images into such files

_THREADS = 16

_READ_AHEAD = 64  # images and tars; the index of a tar with 10,000 images takes a few megabytes

_TAR = ".tar"

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst", ".tzst", ".tar.lz4")

_OWN_COLUMNS = ("image_id", "sha256")  # describe one image, so a sidecar of several can't set them

SCANNED = pa.schema([field for field in SOURCE if field.name not in ("download_url", "prompts")])
"""Columns that a scan writes."""

_TAG = re.compile(r"SPDX-(License-Identifier|FileCopyrightText):\s*(.+?)\s*(?:\*/|-->)?\s*$", re.MULTILINE)


@dataclass
class TarIndex:
    """Images and sidecar files of a tar by name, in order. Names have no slash at the start, no `//`, and no `./`.

    An image has a `uri` and, if the index hashes the images, a `sha256`. The extensions of sidecars are in lowercase.
    `skipped` has the reason for each name that isn't listed.
    """

    images: dict[str, Columns] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    _sidecars: dict[str, Columns | UsageError] = field(default_factory=dict)

    def sidecar(self, name: str) -> Columns:
        """Return the columns in a sidecar file, if the tar has it. Raises `UsageError` if the file is invalid."""
        found = self._sidecars.get(name, {})
        if isinstance(found, UsageError):
            raise found
        return found

    def strays(self) -> list[str]:
        """Return the names of sidecars whose names contain an image's name, but without such an image in the tar."""
        owners = ((name, name.rpartition(".")[0]) for name in self._sidecars)
        return [name for name, owner in owners if owner.lower().endswith(IMAGE_ENDINGS) and owner not in self.images]


def sample_json(name: str) -> str:
    """Return the name of the JSON file of an image's WebDataset sample: all files with the same path up to a dot.

    The dot is the first one in the last component of the path.
    """
    folder, slash, last = name.rpartition("/")
    return f"{folder}{slash}{last.partition('.')[0]}.json"


def index_tar(tar: Location, parse: Callable[[str, bytes], Columns], *, hashed: bool) -> TarIndex:
    """Index a tar in one pass. `parse` returns the columns in a sidecar, given its place for messages and its bytes.

    If the tar has several files of one name, only the last one counts, as if the tar were unpacked. But a sidecar can't
    take back the opt-out of an earlier one. Raises `BadTarError` unless the tar is uncompressed and whole. A damaged
    tar isn't listed in part, because its missing part may contain sidecars with other licenses.
    """
    index = TarIndex()
    with tar.open() as stream:
        reader = TarReader(stream)
        for member in reader:
            name = _plain_name(member.name)
            owner, _, ending = name.rpartition(".")
            is_image = name.lower().endswith(IMAGE_ENDINGS)
            if member.isdir() or not (is_image or name.lower().endswith(SIDECAR_ENDINGS)):
                continue
            if index.images.pop(name, None) is not None:
                index.skipped[name] = "a later file in the tar has the same name, so only that one is listed"
            if not is_image:
                sidecar = f"{owner}.{ending.lower()}"
                before = index._sidecars.get(sidecar)
                found = _sidecar(f"{tar}, {name}", reader, member, parse)
                if isinstance(before, dict) and isinstance(found, dict) and before.get("opt_out"):
                    found = {**found, "opt_out": True}  # a later file can't take it back
                index._sidecars[sidecar] = found
            elif _is_in_one_piece(member):
                uri = TarMember(str(tar), member.offset_data, member.size).uri
                index.images[name] = {"uri": uri, "sha256": _sha256(stream, member) if hashed else None}
            else:
                index.skipped[name] = "it's a link or a sparse file, so the tar doesn't contain its bytes in one piece"
        _check_end(stream, reader.end)
    return index


def _plain_name(name: str) -> str:
    """Return the name of a member as it would be unpacked, so that a sidecar and its image have the same folder."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def _is_in_one_piece(member: TarInfo) -> bool:
    """Return whether the tar contains the file as it is, and the header right before the file says its size."""
    resized = any(key == "size" or key.startswith("GNU.sparse.") for key in member.pax_headers)
    return is_plain_file(member) and not resized


def _sidecar(
    where: str, reader: TarReader, member: TarInfo, parse: Callable[[str, bytes], Columns]
) -> Columns | UsageError:
    """Return the columns in a sidecar, or the error that occurs if it belongs to an image.

    A tar may contain other JSON files.
    """
    if not is_plain_file(member) or member.size > JSON_BYTES:
        return UsageError(f"{where}: a link, a sparse file, or over {JSON_BYTES:,} bytes; expected a plain file")
    data = reader.read(member)
    try:
        return parse(where, data)
    except UsageError as error:
        return error


def _sha256(stream: BinaryIO, member: TarInfo) -> str:
    stream.seek(member.offset_data)
    digest, left = hashlib.sha256(), member.size
    while left and (piece := stream.read(min(left, _PIECE))):
        digest.update(piece)
        left -= len(piece)
    return digest.hexdigest()


def _check_end(stream: BinaryIO, end: int) -> None:
    """Raise `BadTarError` unless only zeros follow a tar's last file, at least one block of them."""
    stream.seek(end)
    if stream.read(TAR_BLOCK) != bytes(TAR_BLOCK):
        raise BadTarError(f"at byte {end:,}, neither a file nor the end marker follows, so it's cut off or damaged")
    while piece := stream.read(_PIECE):
        if piece.strip(b"\0"):
            raise BadTarError(f"bytes follow its end marker at byte {end:,}, so it's several tars in one file")


@dataclass
class _ScannedImage:
    name: str
    sidecars: list[str] = field(default_factory=list)
    named_alike: list[str] = field(default_factory=list)  # `photo.json` for `photo.jpg`


def scan(
    folder: Location,
    license: str | None = None,
    provider: str | None = None,
    attribution: str | None = None,
    on_skip: OnSkip = warn_of_skipped,
    *,
    hashed: bool = False,
) -> Iterator[dict[str, Any]]:
    """Yield a row of `SCANNED` for each image below `folder`, ordered by name, as a dictionary without missing values.

    `uri` is absolute, and `image_id` is the image's name relative to `folder`. The images in a tar follow in the tar's
    order, and their names begin with the tar's. `folder` may also be a single tar. Tars of segmint's datasets are left
    out. With `hashed`, images are read whole, and rows get their `sha256`. A row may have no license.

    `on_skip` is called for each sidecar without an image, for each compressed or damaged tar, and for each entry that a
    catalog can't name: a link in a tar, a circular link, or a name that isn't UTF-8 or isn't allowed in a URI. Raises
    `UsageError` if a license is not an identifier, if a sidecar is invalid, or if the store lists a sidecar away from
    its image.
    """
    base = _absolute(folder)
    links = base.storage.links(base.uri)
    entries = base.walk(on_skip=on_skip)
    if base.uri.lower().endswith(_TAR) and base.exists():
        tar, base = base.name, Location(base.storage, parent(base.uri))
        endings = ("", *SIDECAR_ENDINGS)
        entries = (entry for entry in base.list(beginning=tar) if entry.name[len(tar) :].lower() in endings)
        links = {tar + ending for ending in SIDECAR_ENDINGS if base.storage.link_target(f"{base}/{tar}{ending}")}
    _refuse_broken_links(base, links)
    common = {
        "license": validate_identifier(license) if license else None,
        "provider": provider,
        "attribution": attribution,
    }
    images = _images(base, entries, on_skip)
    scanned = map_ahead(lambda image: _rows(base, image, common, hashed), images, _THREADS, _READ_AHEAD, "scan")
    for rows, skipped in scanned:
        for name, why in skipped.items():
            on_skip(name, why)
        yield from rows


def _refuse_broken_links(base: Location, links: Collection[str]) -> None:
    """Raise `UsageError` if one of these local links is a sidecar, but doesn't lead to a file."""
    for name in sorted(links):
        owner, _, ending = name.lower().rpartition(".")
        is_sidecar = f".{ending}" in SIDECAR_ENDINGS and owner.endswith((*IMAGE_ENDINGS, _TAR))
        if is_sidecar and not (local_path(base.uri) / name).is_file():
            raise UsageError(
                f"{base / name} is a link to a folder or to nothing, or not a file. Without its sidecar, the image "
                "could get a wrong license: restore the file, or delete the link"
            )


def _absolute(folder: Location) -> Location:
    if scheme(folder.uri) != LOCAL:
        return folder
    return Location(folder.storage, str(local_path(folder.uri).resolve()))


def relative_rows(rows: Iterator[Row], catalog: Location) -> Iterator[Row]:
    """Yield the rows of a scan, and make URIs relative if they are below the catalog's folder or prefix.

    A relative URI can't express some keys in a store, such as a key with `//`. Their URIs stay absolute.
    """
    folder = f"{_folder(catalog).rstrip('/')}/"
    for row in rows:
        uri = row["uri"]
        below = uri.removeprefix(folder)
        if below != uri and (scheme(uri) == LOCAL or uri in plain_forms(below, catalog.uri)):
            row = {**row, "uri": below}
        yield row


def check_relative(folder: Location, catalog: Location, *, absolute: bool) -> None:
    """Before a scan of `folder`, check that the catalog can name local images without revealing where they are.

    A dataset publishes its catalog, and a local path often contains a person's name. Raises `UsageError` if the images
    are local but the catalog is in a store. Without `absolute`, also raises it if the images are not below the
    catalog's folder.
    """
    if scheme(folder.uri) != LOCAL:
        return
    images = _absolute(folder).uri
    if scheme(catalog.uri) != LOCAL:
        raise UsageError(
            f"the images in {images} are local files, which a catalog in a store, {catalog}, cannot name: "
            "write the catalog to a local file, or copy the images to the store"
        )
    if not absolute and not is_below(images, _folder(catalog)):
        name = base_name(catalog.uri)
        raise UsageError(
            f"the images in {images} are outside {_folder(catalog)}, the catalog's folder, so their paths cannot "
            f"be relative to the catalog, and a dataset publishes its paths: write the catalog next to the images or "
            f"above them, such as -o {Path(images).parent / name}, or pass --absolute"
        )


def _folder(catalog: Location) -> str:
    """Return the folder or prefix of the catalog's file.

    For a local file, links are resolved, as in the names of a scan.
    """
    if scheme(catalog.uri) != LOCAL:
        return parent(catalog.uri)
    return str(local_path(catalog.uri).absolute().parent.resolve())


def write_catalog(rows: Iterator[Row], file: Location) -> int:
    """Write rows (keys of `SCANNED`) as a catalog, and return the number of rows.

    The extension of `file` determines the format. Raises `UsageError` if another process has put a different file there
    in the meantime.
    """
    kind = catalog_format(file.uri)
    if is_catalog_folder(file.uri):
        raise UsageError(f"{file}: a catalog is written as one file; expected a name such as {file}catalog.parquet")
    if file.uri.lower().endswith(".gz"):
        raise UsageError(f"{file}: catalogs are written uncompressed; remove .gz")
    with ScratchFolder() as folder:
        path = Path(folder) / "catalog"
        count = {"Parquet": _write_parquet, "JSON Lines": _write_json_lines, "CSV": _write_csv}[kind](rows, path)
        put_new_file(file, path)
    return count


def _images(base: Location, entries: Iterable[ObjectInfo], on_skip: OnSkip) -> Iterator[_ScannedImage]:
    """Yield the images and tars, each with its sidecars."""
    # Names are sorted, so all names that start with an image's name without its extension are next to the image. It is
    # enough to keep the few images and JSON files with such names in memory.
    open_images: deque[_ScannedImage] = deque()
    jsons: deque[str] = deque()  # JSON files that may belong to the images after them, as `photo.json` to `photo.png`
    last, alone, in_order = "", "", True
    owners = (*IMAGE_ENDINGS, _TAR)
    for entry in entries:
        in_order &= last < entry.name
        last = entry.name
        if entry.name.lower().endswith(_COMPRESSED):
            on_skip(entry.name, "a compressed tar, from which no single image can be read: decompress it to a .tar")
        if not entry.name.lower().endswith(owners + SIDECAR_ENDINGS) or _is_shard(base, entry.name):
            continue
        unfit = _unfit(base, entry.name)
        if unfit is not None:
            on_skip(entry.name, unfit)
            continue
        while open_images and not entry.name.startswith(_stem(open_images[0].name)):
            yield open_images.popleft()
        while jsons and not entry.name.startswith(_stem(jsons[0])):
            jsons.popleft()
        owner = entry.name.rpartition(".")[0]
        if entry.name.lower().endswith(owners):
            named_alike = [name for name in jsons if _is_json_of(name, entry.name)]
            open_images.append(_ScannedImage(entry.name, named_alike=named_alike))
        elif owner.lower().endswith(owners):
            for image in open_images:
                if image.name == owner:
                    image.sidecars.append(entry.name)
                    break
            else:
                alone = entry.name
                on_skip(alone, f"no image is named exactly {base_name(owner)}")
        elif entry.name.lower().endswith(".json"):
            jsons.append(entry.name)
            for image in open_images:
                if _is_json_of(entry.name, image.name):
                    image.named_alike.append(entry.name)
        if alone and not in_order:
            raise UsageError(
                f"{base / alone} is not listed after its image, because the store doesn't list names in order. Without "
                "its sidecar, the image could get a wrong license: copy the images to a store with ordered listings"
            )
    yield from open_images


def _stem(name: str) -> str:
    """Return a name without its extension, but with the dot before it."""
    return name[: name.rindex(".") + 1]


def _is_json_of(name: str, image: str) -> bool:
    """Return whether a JSON file has an image's name with another extension, such as `photo.json` for `photo.jpg`."""
    return _stem(name) == _stem(image) and not image.lower().endswith(_TAR)


def _is_shard(base: Location, name: str) -> bool:
    """Return whether a file has the name of a dataset's tar, whose images are released ones."""
    return parse_data_path("/".join(f"{base.uri}/{name}".split("/")[-2:])) is not None


def _unfit(base: Location, name: str) -> str | None:
    """Return the reason why a catalog can't name a file, or None if it can."""
    try:
        (base / name).uri.encode()
        relative_to(base.uri, (base / name).uri)
    except UnicodeEncodeError:
        return "its name is not UTF-8"
    except UriNotAllowedError as error:
        return str(error)
    return None


def _rows(
    base: Location, image: _ScannedImage, common: Mapping[str, Any], hashed: bool
) -> tuple[Iterable[dict[str, Any]], Mapping[str, str]]:
    """Return the rows of an image or a tar, and the reason for each name that isn't listed."""
    file = base / image.name
    if not image.name.lower().endswith(_TAR):
        row = {**common, "uri": str(file), "image_id": image.name, "sha256": file.sha256() if hashed else None}
        for columns in (_named_alike(base, image), *_sidecars(base, image)):
            _apply(columns, row)
        return [_without_missing(row)], {}
    shared = dict(common)
    for columns in _sidecars(base, image):
        _apply(columns, shared, _OWN_COLUMNS)
    try:
        index = index_tar(file, _parse, hashed=hashed)
    except (BadTarError, UnreadableObjectError) as error:
        return [], {image.name: f"not a whole, uncompressed tar, so none of its images are listed: {error}"}
    skipped = dict(index.skipped)
    for name in list(index.images):
        unfit = _unfit(base, f"{image.name}/{name}")
        if unfit is not None:
            skipped[name] = unfit
            del index.images[name]
    for name in index.strays():
        skipped[name] = f"no image is named exactly {base_name(name.rpartition('.')[0])}"
    return _tar_rows(image.name, index, shared), {f"{image.name}/{name}": why for name, why in skipped.items()}


def _tar_rows(tar: str, index: TarIndex, shared: Columns) -> Iterator[Columns]:
    for name, columns in index.images.items():
        row = {**shared, **columns, "image_id": f"{tar}/{name}"}
        _apply(index.sidecar(f"{name}.license"), row)
        _apply(index.sidecar(sample_json(name)), row, _OWN_COLUMNS)
        _apply(index.sidecar(f"{name}.json"), row)
        yield _without_missing(row)


def _apply(columns: Columns, row: Row, except_for: Collection[str] = ()) -> None:
    """Set a row's columns from a sidecar. A later sidecar can't take back an opt-out."""
    opted_out = row.get("opt_out")
    row.update((name, value) for name, value in columns.items() if name not in except_for)
    row["opt_out"] = opted_out or row.get("opt_out")


def _without_missing(row: Row) -> dict[str, Any]:
    return {key: value for key, value in row.items() if value is not None}


def _sidecars(base: Location, image: _ScannedImage) -> Iterator[Columns]:
    """Yield the columns in the sidecars that begin with the image's whole name; later ones override earlier ones."""
    for name in sorted(image.sidecars, key=str.lower, reverse=True):  # .license, then .json
        yield _parse(str(base / name), (base / name).read(max_bytes=_SIDECAR_BYTES))


def _named_alike(base: Location, image: _ScannedImage) -> Columns:
    """Return the columns in `photo.json` for `photo.jpg`.

    Other tools give annotations such names, so a file that isn't a JSON object isn't a sidecar.
    """
    columns: dict[str, Any] = {}
    for name in image.named_alike:
        data = (base / name).read(max_bytes=_NAMED_ALIKE_BYTES)
        with suppress(NoJsonObjectError):
            _apply(_parse(str(base / name), data), columns, _OWN_COLUMNS)
    return columns


def _parse(where: str, data: bytes) -> Columns:
    """Return the columns in a sidecar, whose place ends with its name."""
    return _from_json(where, data) if where.lower().endswith(".json") else _from_license(where, data)


def _from_json(where: str, data: bytes) -> dict[str, Any]:
    value = json_object(data, where, "a JSON object with columns of a catalog")
    ours = {key: value[key] for key in SCANNED.names if key != "uri" and value.get(key) is not None}
    if not ours:
        return {}
    for key, item in ours.items():
        kind = bool if pa.types.is_boolean(SCANNED.field(key).type) else str
        if not isinstance(item, kind):
            raise UsageError(
                f"{where}, key {key}: found {item!r}; expected {'true or false' if kind is bool else 'text'}"
            )
    columns = {key: pa.array([item]) for key, item in ours.items()}
    conformed = conform(where, {"uri": pa.array([where]), **columns}, 1, 1).to_pylist()[0]
    if conformed["license"] is not None:
        _check_license(where, conformed["license"])
    return {key: conformed[key] for key in ours if conformed[key] is not None}


def _from_license(where: str, data: bytes) -> dict[str, Any]:
    try:
        text = data.decode("utf-8-sig").strip()
    except UnicodeDecodeError as error:
        raise UsageError(f"{where} is not UTF-8 text: {error}") from error
    tags: dict[str, str] = {}
    for name, value in _TAG.findall(text):
        if tags.setdefault(name, value) != value:
            tags[name] += f"{'; ' if name == 'FileCopyrightText' else ' AND '}{value}"
    license = tags.get("License-Identifier", text if not tags else "")
    if not license:
        raise UsageError(f"{where} has no license: expected an identifier, or SPDX-License-Identifier: …")
    _check_license(where, license)
    credit = {"attribution": tags["FileCopyrightText"]} if "FileCopyrightText" in tags else {}
    return {"license": license, **credit}


def _check_license(where: str, license: str) -> None:
    try:
        validate_identifier(license)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from error


def _plain(row: Row) -> dict[str, Any]:
    ordered = {name: row[name] for name in SCANNED.names if row.get(name) is not None}
    if "valid_until" in ordered:
        ordered["valid_until"] = str(ordered["valid_until"])
    # Required columns are written even if they are empty.
    return {"uri": ordered.pop("uri"), "license": ordered.pop("license", None), **ordered}


def _write_json_lines(rows: Iterator[Row], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(_plain(row), ensure_ascii=False) + "\n")
            count += 1
    return count


def _csv_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value)


def _write_csv(rows: Iterator[Row], path: Path) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, SCANNED.names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: _csv_text(value) for name, value in _plain(row).items()})
            count += 1
    return count


def _write_parquet(rows: Iterator[Row], path: Path) -> int:
    with RowGroupWriter(path, SCANNED) as writer:
        while batch := list(islice(rows, 4096)):
            writer.add([pa.RecordBatch.from_pylist([dict(row) for row in batch], schema=SCANNED)])
    return writer.rows
