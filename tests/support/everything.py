"""All that a dataset says, decoded, and all that its bucket still holds: for tests of what must be gone."""

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from segmint.infra.storage.location import Location
from tests.support.s3_server import S3Server


def mentions(folder: Path, words: list[str]) -> list[str]:
    """Paths below `folder` whose decoded tables or JSON say one of these words, tombstones left out."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and "tombstones" not in path.relative_to(folder).parts:
            said = set(_values(path))
            if any(word in value for word in words for value in said):
                found.append(str(path.relative_to(folder)))
    return found


def upload(folder: Path, target: Location) -> None:
    """Put every file of a folder below `target`."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            (target / str(path.relative_to(folder))).put(path.read_bytes())


def download(source: Location, folder: Path) -> Path:
    """Copy every object below `source` into a folder."""
    for entry in source.walk(include_temporary=True):
        target = folder / entry.name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((source / entry.name).read())
    return folder


def download_versions(server: S3Server, bucket: str, folder: Path) -> Path:
    """Copy every version of every object of a bucket into a folder, each as a separate file."""
    client = server.client()
    folder.mkdir(parents=True, exist_ok=True)
    pages = client.get_paginator("list_object_versions").paginate(Bucket=bucket)
    for number, entry in enumerate(version for page in pages for version in page.get("Versions", [])):
        body = client.get_object(Bucket=bucket, Key=entry["Key"], VersionId=entry["VersionId"])["Body"]
        (folder / f"{number:05}-{entry['Key'].rpartition('/')[2]}").write_bytes(body.read())
    return folder


def jpegs(dataset: Path) -> dict[str, bytes]:
    """The JPEGs of all tars in a dataset, by name."""
    found = {}
    for path in sorted((dataset / "shards").glob("*.tar")):
        with tarfile.open(path) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                if stream is not None and member.name.endswith(".jpg"):
                    found[member.name] = stream.read()
    return found


def _values(path: Path) -> Iterator[str]:
    """Every text in a table or JSON, and in the JSON of a tar; its name too."""
    yield path.name
    if path.suffix == ".parquet":
        yield from _flat(pq.read_table(path).to_pylist())
    elif path.suffix == ".json":
        yield from _flat(json.loads(path.read_bytes()))
    elif path.suffix == ".tar":
        with tarfile.open(path) as archive:
            for member in archive:
                yield member.name
                stream = archive.extractfile(member)
                if stream is not None and member.name.endswith(".json"):
                    yield from _flat(json.loads(stream.read()))


def _flat(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield str(key)
            yield from _flat(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _flat(inner)
    elif isinstance(value, str):
        yield value
