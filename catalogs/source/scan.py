"""Creation of a catalog from the images below a folder or prefix, with licenses from an argument or sidecar files.

A sidecar file is in the same folder as its image, and its name starts with the image's name. `photo.jpg.json` may
contain any catalog columns except `uri`. `photo.jpg.license` contains either only a license identifier, or the tags
that REUSE defines (`SPDX-License-Identifier`, `SPDX-FileCopyrightText`). Values in sidecars override the arguments, and
values in JSON override those in `.license`.
"""

import base64
import csv
import json
import re
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa

from segmint.catalogs.endings import IMAGE_ENDINGS
from segmint.catalogs.licenses import validate_identifier
from segmint.catalogs.parquet import RowGroupWriter
from segmint.catalogs.schema import JSON_TEXT, SOURCE
from segmint.catalogs.source.conform import conform, json_object
from segmint.catalogs.source.files import catalog_format
from segmint.infra.errors import UsageError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location, put_new_file
from segmint.infra.storage.stores import OnSkip, warn_of_skipped
from segmint.infra.threads import map_ahead
from segmint.infra.uris import (
    LOCAL,
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

_SIDECAR_ENDINGS = (".json", ".license")
_SIDECAR_BYTES = 1 << 20
_READ_AHEAD = 256
_TAG = re.compile(r"SPDX-(License-Identifier|FileCopyrightText):\s*(.+?)\s*(?:\*/|-->)?\s*$", re.MULTILINE)


@dataclass
class _ScannedImage:
    name: str
    sidecars: list[str] = field(default_factory=list)


def scan(
    folder: Location,
    license: str | None = None,
    provider: str | None = None,
    attribution: str | None = None,
    threads: int = 16,
    on_skip: OnSkip = warn_of_skipped,
) -> Iterator[dict[str, Any]]:
    """Yield a row of `SOURCE` for each image below `folder`, ordered by name, as a dictionary without missing values.

    `uri` is absolute, and `image_id` is the image's name relative to `folder`. A row may have no license. `on_skip` is
    called for each sidecar without an image, and for each entry that a catalog can't name: a circular link, or a name
    that isn't UTF-8 or isn't allowed in a URI. Raises `UsageError` if a license is not an identifier, if a sidecar is
    invalid, or if the store lists a sidecar away from its image.
    """
    base = _absolute(folder)
    common = {
        "license": validate_identifier(license) if license else None,
        "provider": provider,
        "attribution": attribution,
    }
    images = _images(base, on_skip)
    yield from map_ahead(lambda image: _row(base, image, common), images, threads, _READ_AHEAD, "scan")


def _absolute(folder: Location) -> Location:
    if scheme(folder.uri) != LOCAL:
        return folder
    return Location(folder.storage, str(local_path(folder.uri).resolve()))


def relative_rows(rows: Iterator[dict[str, Any]], catalog: Location) -> Iterator[dict[str, Any]]:
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


def write_catalog(rows: Iterator[Mapping[str, Any]], file: Location, schema: pa.Schema = SOURCE) -> int:
    """Write rows of `schema` as a catalog, and return the number of rows.

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
        count = {"Parquet": _write_parquet, "JSON Lines": _write_json_lines, "CSV": _write_csv}[kind](
            rows, path, schema
        )
        put_new_file(file, path)
    return count


def _images(base: Location, on_skip: OnSkip) -> Iterator[_ScannedImage]:
    # Names are sorted, so all names that start with an image's name follow that image directly. To find its sidecars,
    # it is enough to keep these few images in memory.
    open_images: deque[_ScannedImage] = deque()
    last, alone, in_order = "", "", True
    for entry in base.walk(on_skip=on_skip):
        in_order &= last < entry.name
        last = entry.name
        if not entry.name.lower().endswith(IMAGE_ENDINGS + _SIDECAR_ENDINGS):
            continue
        unfit = _unfit(base, entry.name)
        if unfit is not None:
            on_skip(entry.name, unfit)
            continue
        while open_images and not entry.name.startswith(open_images[0].name):
            yield open_images.popleft()
        if entry.name.lower().endswith(IMAGE_ENDINGS):
            open_images.append(_ScannedImage(entry.name))
        elif entry.name.lower().endswith(_SIDECAR_ENDINGS):
            owner = entry.name.rpartition(".")[0]
            for image in open_images:
                if image.name == owner:
                    image.sidecars.append(entry.name)
                    break
            else:
                if owner.lower().endswith(IMAGE_ENDINGS):
                    alone = entry.name
                    on_skip(alone, f"no image is named exactly {base_name(owner)}")
        if alone and not in_order:
            raise UsageError(
                f"{base / alone} is not listed after its image, because the store doesn't list names in order. Without "
                "its sidecar, the image could get a wrong license: copy the images to a store with ordered listings"
            )
    yield from open_images


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


def _row(base: Location, image: _ScannedImage, common: Mapping[str, Any]) -> dict[str, Any]:
    row = {**common, "uri": str(base / image.name), "image_id": image.name}
    for name in sorted(image.sidecars, key=str.lower, reverse=True):  # .license, then .json
        file = base / name
        where, data = str(file), file.read(max_bytes=_SIDECAR_BYTES)
        row.update(_from_json(where, data) if name.lower().endswith(".json") else _from_license(where, data))
    return {key: value for key, value in row.items() if value is not None}


def _from_json(where: str, data: bytes) -> dict[str, Any]:
    value = json_object(data, where, "a JSON object with columns of a catalog")
    ours = {key: value[key] for key in SOURCE.names if key != "uri" and value.get(key) is not None}
    for key, item in ours.items():
        kind = bool if pa.types.is_boolean(SOURCE.field(key).type) else str
        if not isinstance(item, kind):
            raise UsageError(
                f"{where}, key {key}: found {item!r}; expected {'true or false' if kind is bool else 'text'}"
            )
    columns = {key: pa.array([item]) for key, item in ours.items()}
    conformed = conform(where, {"uri": pa.array([where]), **columns}, 1, 1).to_pylist()[0]
    if conformed["license"] is not None:
        _check_license(where, conformed["license"])
    return {key: conformed[key] for key in ours}


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


def _plain(row: Mapping[str, Any], schema: pa.Schema) -> dict[str, Any]:
    ordered = {name: row[name] for name in schema.names if row.get(name) is not None}
    if "valid_until" in ordered:
        ordered["valid_until"] = str(ordered["valid_until"])
    # Required columns are written even if they are empty.
    return {"uri": ordered.pop("uri"), "license": ordered.pop("license", None), **ordered}


def _json_value(value: Any) -> Any:
    """Convert a value of a Parquet column to JSON: times to ISO 8601, durations to seconds, and bytes to Base64."""
    if isinstance(value, date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


def _write_json_lines(rows: Iterator[Mapping[str, Any]], path: Path, schema: pa.Schema) -> int:
    count, as_json = 0, [field.name for field in schema if JSON_TEXT.items() <= (field.metadata or {}).items()]
    with path.open("w", encoding="utf-8") as file:
        for row in rows:
            plain = _plain(row, schema)
            plain |= {name: json.loads(plain[name]) for name in as_json if name in plain}
            file.write(json.dumps(plain, ensure_ascii=False, default=_json_value) + "\n")
            count += 1
    return count


def _csv_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _write_csv(rows: Iterator[Mapping[str, Any]], path: Path, schema: pa.Schema) -> int:
    count = 0
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, schema.names, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            values = json.loads(json.dumps(_plain(row, schema), default=_json_value))
            writer.writerow({name: _csv_text(value) for name, value in values.items()})
            count += 1
    return count


def _write_parquet(rows: Iterator[Mapping[str, Any]], path: Path, schema: pa.Schema) -> int:
    with RowGroupWriter(path, schema) as writer:
        while batch := list(islice(rows, 4096)):
            writer.add([pa.RecordBatch.from_pylist([dict(row) for row in batch], schema=schema)])
    return writer.rows
