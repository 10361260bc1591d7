"""A committed shard taken apart, so that a test can change it and commit it again as a writer with a fault would."""

import hashlib
import io
import tarfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry, write_shards_index
from segmint.catalogs.dataset.manifest import DatasetManifest, load_manifest
from segmint.catalogs.layout import COMMITS, MANIFEST, SHARDS_INDEX, DamagedDatasetError, commit_name, data_path
from segmint.catalogs.parquet import table_bytes
from segmint.operators.rows import SCHEMAS, Row, to_table
from segmint.operators.shards.put import annotations_json
from segmint.operators.similar.near import jpeg_hashes
from tests.support.locations import location_of


class CommittedShard:
    """The rows of a shard's tables and the members of its tar; `write` commits them under right names and digests."""

    def __init__(self, dataset: Path, shard: int) -> None:
        commit = CommitLog(location_of(dataset)).latest(shard)
        assert commit is not None
        self.dataset = dataset
        self.commit = commit
        self.rows: dict[str, list[Row]] = {
            kind: pq.read_table(dataset / commit.file(kind).path).to_pylist() for kind in SCHEMAS
        }
        self.raw: dict[str, bytes] = {}  # files written as they are, by folder
        self.members: list[tuple[str, bytes]] = []
        with tarfile.open(dataset / commit.file("shards").path) as archive:
            for member in archive:
                stream = archive.extractfile(member)
                assert stream is not None
                self.members.append((member.name, stream.read()))
        self._releases = [row["release_sha256"] for row in self.rows["images"]]

    def edit_member(self, index: int, edit: Callable[[bytes], bytes]) -> None:
        """Change the bytes of a member of the tar."""
        name, data = self.members[index]
        self.members[index] = name, edit(data)

    def write_json(self) -> None:
        """Make the JSONs what the rows say."""
        by_name = {f"sa_{row['id']}.json": row for row in self.rows["images"]}
        for index, (name, _) in enumerate(self.members):
            if name in by_name:
                row = by_name[name]
                masks = [mask for mask in self.rows["masks"] if mask["ordinal"] == row["ordinal"]]
                size = row["height"], row["width"]
                self.members[index] = name, annotations_json(row["id"], f"sa_{row['id']}.jpg", size, masks)

    def files(self) -> dict[str, bytes]:
        """The files as the rows and members make them, by folder; rows follow a JPEG that was changed."""
        members = dict(self.members)
        for row, before in zip(self.rows["images"], self._releases, strict=False):
            jpeg = members.get(f"sa_{row['id']}.jpg")
            digest = hashlib.sha256(jpeg or b"").hexdigest()
            if jpeg is not None and row["release_sha256"] == before != digest:
                row["release_sha256"] = digest
                with suppress(ValueError):  # the audit compares no hashes of a JPEG that it can't decode
                    row["hashes"] = jpeg_hashes(jpeg).tolist()
        files = {kind: table_bytes(to_table(self.rows[kind], SCHEMAS[kind]), SCHEMAS[kind]) for kind in SCHEMAS}
        return files | {"shards": self.tar(), **self.raw}

    def write(self) -> None:
        """Replace the old files and the commit."""
        files = self.files()
        for entry in self.commit.files:
            (self.dataset / entry.path).unlink()
        entries = []
        for kind, data in files.items():
            digest = hashlib.sha256(data).hexdigest()
            entries.append(FileEntry(data_path(kind, self.commit.shard, digest), len(data), digest))
            (self.dataset / entries[-1].path).write_bytes(data)
        reasons = [f"rejected:{row['reason']}" for row in self.rows["rejects"]]
        counts = {
            "rows": len(self.rows["images"]) + len(self.rows["rejects"]),
            "images": len(self.rows["images"]),
            "masks": len(self.rows["masks"]),
            "rejected": len(self.rows["rejects"]),
            **{reason: reasons.count(reason) for reason in reasons},
        }
        write_commit(self.dataset, replace(self.commit, files=tuple(entries), counts=counts))

    def tar(self) -> bytes:
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for name, data in self.members:
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
        return tar.getvalue()


def write_commit(dataset: Path, commit: Commit) -> None:
    """Put a commit over any that has its name, and the index that a build then writes."""
    (dataset / COMMITS / commit_name(commit.shard, commit.generation)).write_bytes(commit.to_json())
    if (dataset / SHARDS_INDEX).exists():
        with suppress(DamagedDatasetError):  # the audit compares no index with a commit that cannot be used
            write_shards_index(location_of(dataset), load_manifest(location_of(dataset)).name)


def change_manifest(dataset: Path, **changes: Any) -> None:
    """Rewrite `dataset.json` with other values of these fields; with a configuration and its hash, the commits too."""
    path = dataset / MANIFEST
    manifest = DatasetManifest.from_json(path.read_bytes()).model_copy(update=changes)
    for commit in CommitLog(location_of(dataset)).read_all() if {"config", "config_sha256"} <= changes.keys() else ():
        write_commit(dataset, replace(commit, build_sha256=manifest.build_sha256))
    path.write_bytes(manifest.to_json())
