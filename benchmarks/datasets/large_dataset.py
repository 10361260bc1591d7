"""Large valid dataset made from the rows of a small one, optionally without images.

Images are repeated in turn. Each image gets the requested number of its masks, which are repeated in turn as well, and
all ids are new. The numbers that describe masks are changed by up to a thousandth, so that they don't compress like
copies. Each image has a different source hash. Tables, catalog, commits, and manifest are the same as from a build, so
the audit has no findings. Without images, `release.format` is `annotations`, and the tars contain each image's JSON but
no JPEG.
"""

import hashlib
import io
import multiprocessing
import os
import tarfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from segmint.catalogs.dataset.commits import Commit, CommitLog, FileEntry
from segmint.catalogs.dataset.manifest import DatasetManifest
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.catalogs.layout import MANIFEST, annotation_name, data_path, image_name, json_sha256, part_path
from segmint.catalogs.parquet import NORMALIZED, table_bytes
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.audit.masks import MaskColumns
from segmint.operators.rows import MASKS_PER_IMAGE_LIMIT, SCHEMAS
from segmint.operators.shards.put import ROW_GROUP_ROWS, annotations_json

MOVED = ("relative_size", "concavity", "center_x", "center_y", "aspect_ratio")


class MadeShard(NamedTuple):
    """Seconds that it took to write shards, and their size in bytes."""

    seconds: float
    bytes: int


@dataclass(frozen=True)
class LargeDataset:
    """Dataset to create, with `images` images of `masks` masks each, in shards of `images_per_shard`."""

    source: Path
    folder: Path
    images: int
    masks: int
    images_per_shard: int
    with_images: bool = False

    @property
    def shards(self) -> int:
        """Number of shards of the whole dataset."""
        return -(-self.images // self.images_per_shard)

    def begin(self) -> None:
        """Write the manifest and the catalog, but commit no shard."""
        manifest = open_dataset(str(self.source)).manifest
        catalog = table_bytes(RowPool(self.source).catalog(np.arange(self.images)), NORMALIZED)
        digest = hashlib.sha256(catalog).hexdigest()
        path = part_path(0, digest)
        (self.folder / path).parent.mkdir(parents=True)
        (self.folder / path).write_bytes(catalog)
        part = {"path": path, "sha256": digest, "rows": self.images, "first_shard": 0}
        release = {**manifest.config["release"], "format": "images" if self.with_images else "annotations"}
        config = {**manifest.config, "release": release, "images_per_shard": self.images_per_shard}
        changes = {
            "catalog": (manifest.catalog[0].model_copy(update=part),),
            "images_per_shard": self.images_per_shard,
            "config": config,
            "config_sha256": json_sha256(config),
        }
        (self.folder / MANIFEST).write_bytes(manifest.model_copy(update=changes).to_json())

    def commit(self, first: int, end: int) -> "MadeShard":
        """Write and commit the shards [first, end) with one process per core. Return the bytes and the time."""
        started = time.perf_counter()
        workers = min(os.cpu_count() or 1, end - first)
        with multiprocessing.get_context("spawn").Pool(workers, _prepare, (self,)) as pool:
            written = sum(pool.imap_unordered(_commit_shard, range(first, end)))
        return MadeShard(time.perf_counter() - started, written)


class RowPool:
    """Pool of a small dataset's rows, which it turns into rows with any ordinals."""

    def __init__(self, source: Path) -> None:
        """Read the dataset. Raises SystemExit if no image has masks."""
        dataset = open_dataset(str(source))
        images, self._masks = (
            pa.concat_tables([dataset.table(commit, kind) for commit in dataset.commits()]).combine_chunks()
            for kind in ("images", "masks")
        )
        self._images = images.filter(pc.greater(images.column("masks"), 0))
        if not self._images.num_rows:
            raise SystemExit(f"{source} has no image with masks: expected a dataset with some")
        parts = [pq.read_table(source / part.path) for part in dataset.manifest.catalog]
        rows, known = pa.concat_tables(parts), self._images.column("ordinal")
        self._catalog = rows.take(pc.index_in(known, rows.column("ordinal")))
        owners = self._masks.column("ordinal").to_numpy()
        self._of_image = [np.flatnonzero(owners == ordinal) for ordinal in known.to_pylist()]
        wanted = set(self._images.column("id").to_pylist())
        jpegs = {sample.id: sample.jpeg for sample in dataset if sample.id in wanted}
        self._jpegs = [jpegs[number] for number in self._images.column("id").to_pylist()]

    def jpeg(self, ordinal: int) -> bytes:
        """Return the released JPEG of an image."""
        return self._jpegs[ordinal % len(self._jpegs)] or b""

    def catalog(self, ordinals: Any) -> pa.Table:
        """Create rows of the catalog."""
        rows = self._catalog.take(pa.array(ordinals % len(self._of_image)))
        return _replaced(rows, ordinals, sha256=_digests(ordinals))

    def tables(self, ordinals: Any, masks: int) -> dict[str, pa.Table]:
        """Create a shard's three tables, with `masks` masks per image."""
        draws = np.random.default_rng(int(ordinals[0]))
        sources = ordinals % len(self._of_image)
        images = self._images.take(pa.array(sources)).combine_chunks()
        chosen = np.concatenate([np.resize(self._of_image[source], masks) for source in sources])
        rows = self._masks.take(pa.array(chosen))
        owners = np.repeat(ordinals, masks)
        numbers = (owners + 1) * MASKS_PER_IMAGE_LIMIT + np.tile(np.arange(masks), len(ordinals))
        counted = {
            "source_sha256": _digests(ordinals),
            "masks": pa.array(np.full(len(ordinals), masks), pa.int32()),
            "statistics": _with_count(images.column("statistics"), "mask_count", masks),
            "funnel": _with_count(images.column("funnel"), "written", masks),
            "next_mask": pa.array(np.full(len(ordinals), masks), pa.int64()),
        }
        mask_columns = {
            "annotation_id": pa.array(numbers),
            "container": pa.nulls(len(rows), pa.int64()),  # the values are ids of masks in the small dataset
            **_moved(rows, draws),
        }
        return {
            "images": _replaced(images, ordinals, **counted),
            "masks": _replaced(rows, owners, **mask_columns),
            "rejects": SCHEMAS["rejects"].empty_table(),
        }


class Maker:
    """Writer of shards. Each process has one."""

    def __init__(self, dataset: LargeDataset) -> None:
        self._dataset = dataset
        self._pool = RowPool(dataset.source)
        manifest = DatasetManifest.from_json((dataset.folder / MANIFEST).read_bytes())
        self._numerics, self._build = manifest.numerics_fingerprint, manifest.build_sha256
        self._log = CommitLog(Location(Storage(), str(dataset.folder)))

    def commit(self, shard: int) -> int:
        """Write and commit a shard, and return its size in bytes."""
        dataset = self._dataset
        start, stop = shard * dataset.images_per_shard, min((shard + 1) * dataset.images_per_shard, dataset.images)
        tables = self._pool.tables(np.arange(start, stop), dataset.masks)
        files = {kind: table_bytes(table, SCHEMAS[kind], ROW_GROUP_ROWS) for kind, table in tables.items()}
        files["shards"] = _tar(tables, dataset.masks, self._pool.jpeg if dataset.with_images else None)
        entries = []
        for kind, data in files.items():
            digest = hashlib.sha256(data).hexdigest()
            entries.append(FileEntry(data_path(kind, shard, digest), len(data), digest))
            (dataset.folder / kind).mkdir(exist_ok=True)
            (dataset.folder / entries[-1].path).write_bytes(data)
        rows = stop - start
        counts = {"rows": rows, "images": rows, "masks": rows * dataset.masks, "rejected": 0}
        self._log.put(Commit(shard, 1, (start, stop), self._numerics, self._build, counts, tuple(entries)))
        return sum(len(data) for data in files.values())


_maker: Maker


def _prepare(dataset: LargeDataset) -> None:
    global _maker
    _maker = Maker(dataset)


def _commit_shard(shard: int) -> int:
    return _maker.commit(shard)


def _tar(tables: dict[str, pa.Table], masks: int, jpeg: Callable[[int], bytes] | None) -> bytes:
    """Create the tar of a shard, with each image's JSON and, unless `jpeg` is None, the JPEG that it returns."""
    columns = MaskColumns.of(tables["masks"])
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for index, row in enumerate(tables["images"].select(["id", "height", "width"]).to_pylist()):
            rows = list(columns.rows(index * masks, (index + 1) * masks))
            data = annotations_json(row["id"], image_name(row["id"]), (row["height"], row["width"]), rows)
            files = {image_name(row["id"]): jpeg(row["id"] - 1)} if jpeg is not None else {}
            for name, content in (files | {annotation_name(row["id"]): data}).items():
                member = tarfile.TarInfo(name)
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def _digests(ordinals: Any) -> pa.Array:
    return pa.array([hashlib.sha256(f"image-{ordinal}".encode()).hexdigest() for ordinal in ordinals.tolist()])


def _replaced(table: pa.Table, ordinals: Any, **columns: Any) -> pa.Table:
    """Give a table's rows the identity of other ordinals, and replace the values of these columns."""
    names = pa.array([f"image-{ordinal}" for ordinal in ordinals.tolist()])
    columns = {"ordinal": pa.array(ordinals), "id": pa.array(ordinals + 1), "image_id": names, **columns}
    arrays = [columns.get(name, table.column(name)) for name in table.column_names]
    return pa.table(arrays, schema=table.schema)


def _with_count(column: Any, name: str, count: int) -> pa.Array:
    """Set one field of a column of structs to `count`."""
    struct = pa.concat_arrays(column.chunks)
    fields = list(struct.type)
    values = [pa.array(np.full(len(struct), count), each.type) if each.name == name else None for each in fields]
    arrays = [struct.field(i) if value is None else value for i, value in enumerate(values)]
    return pa.StructArray.from_arrays(arrays, fields=fields)


def _moved(rows: pa.Table, draws: Any) -> dict[str, pa.Array]:
    """Change the masks' numbers by up to a thousandth. Shares go down and scores go up, so thresholds still hold."""
    values = {name: rows.column(name).to_numpy() for name in (*MOVED, "predicted_iou", "stability_score")}
    moved = {name: values[name] * draws.uniform(0.999, 1, rows.num_rows) for name in MOVED}
    moved["predicted_iou"] = values["predicted_iou"] * draws.uniform(1, 1.001, rows.num_rows)
    stability = values["stability_score"]
    moved["stability_score"] = stability + (1 - stability) * draws.uniform(0, 0.001, rows.num_rows)
    return {name: pa.array(found) for name, found in moved.items()}
