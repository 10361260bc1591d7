"""A small dataset for tests of the commit protocol, with several contents for each shard, and a check of invariants.

Rows are made up (`described_rows`); all else is real: the catalog's part, the manifest, the writer, the audit.
"""

import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.dataset.manifest import CatalogPart, DatasetHandle, DatasetManifest, ModelWeights
from segmint.catalogs.dataset.sweep import sweep
from segmint.catalogs.dataset.versions import VERSIONS
from segmint.catalogs.layout import DATASET_ID, MANIFEST, fingerprint, json_sha256, part_path
from segmint.catalogs.lineage import StageColumn
from segmint.catalogs.parquet import NORMALIZED, STAGED, table_bytes
from segmint.infra.storage.errors import NotFoundError
from segmint.infra.storage.location import Location
from segmint.infra.storage.retry import RetryPolicy
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import join
from segmint.operators.custom.contract import load_stage
from segmint.operators.describe import describe_table
from segmint.operators.prepare.release import ReleaseConfig
from segmint.operators.redactions import redacted_share
from segmint.operators.rows import PROMPTED, to_table
from segmint.operators.segment.mask_config import MasksConfig
from segmint.operators.segmenter.segmenter import CustomSegmenter
from segmint.operators.shards.write import RetryTask, ShardResult, ShardTask, retry_shard, write_shard
from tests.support.described_rows import accepted_row, described, rejected_row
from tests.support.everything import upload
from tests.support.locations import handle_of
from tests.support.segmenters import Saying

SHARDS = 2
ROWS = 3
"""Rows of a shard."""

VARIANTS = 3
"""Contents that a shard may be written with, as by writers of other numerics or in another state of the world.

0: two images and a refused row. 1: the same with fewer masks, so that its table of refused rows has the same name.
2: three images, as when the refused row is tried again.
"""

GIVEN_UP = VARIANTS
"""Variant of which the refused row had a persistent fault."""

REDACTED = GIVEN_UP + 1
"""Variant with a highly redacted image, of which the refused row was redacted too much to keep."""

NUMERICS = {"device": "cpu"}
CONFIG = {
    "images_per_shard": ROWS,
    "masks": MasksConfig().model_dump(mode="json"),
    "release": ReleaseConfig().model_dump(mode="json"),
}
SAYING = load_stage(f"{Saying.__module__}.{Saying.__name__}", {"threshold": 190})
SEGMENTER_CONFIG = {key: value for key, value in CONFIG.items() if key != "masks"} | {
    "segmenter": {**SAYING.identity, "filters": {}}
}
"""The configuration of a dataset whose masks a segmenter made from prompts of the catalog."""

QUICK = RetryPolicy(attempts=3, first_wait_s=0.01, max_wait_s=0.05, deadline_s=20)


@dataclass(frozen=True)
class DatasetPath:
    """The place of a dataset."""

    uri: str
    options: dict[str, dict[str, Any]] = field(default_factory=dict)
    stages: tuple[StageColumn, ...] = ()
    segmenter: bool = False  # whether a segmenter makes the masks

    @property
    def storage(self) -> Storage:
        return Storage(self.options, QUICK)

    @property
    def location(self) -> Location:
        return Location(self.storage, self.uri)

    @property
    def handle(self) -> DatasetHandle:
        begun = manifest_of((), segmenter=self.segmenter)
        return replace(handle_of(self.location), build_sha256=begun.build_sha256, stages=self.stages)

    @property
    def log(self) -> CommitLog:
        return CommitLog(self.location)


@cache
def rows_of(shard: int, variant: int) -> pa.Table:
    """The described rows of a shard."""
    first, second, third = range(shard * ROWS, (shard + 1) * ROWS)
    last = rejected_row(third)
    if variant == 2:
        last = accepted_row(third)
    elif variant == GIVEN_UP:
        last = rejected_row(third, "persistent_fault", "prepare")
    middle = accepted_row(second)
    if variant == REDACTED:
        last = rejected_row(third, "mostly_redacted", "deidentify")
        region = {"kind": "face", "score": 0.9, "x": 22, "y": 1, "w": 18, "h": 28, "source": "mtcnn"}
        middle |= {"regions": [region], "faces": 1}
        middle["redacted_share"] = redacted_share(middle)
    return described([accepted_row(first, masks=1 if variant == 1 else 2), middle, last])


@cache
def segmented_rows(shard: int) -> pa.Table:
    """The described rows of a shard whose masks a segmenter made: an image, and two rows that were refused.

    Its prompts were for another frame, or the segmenter failed.
    """
    first, second, third = range(shard * ROWS, (shard + 1) * ROWS)
    refused = [rejected_row(second, "prompts_misfit", "catalog"), rejected_row(third, "stage_failed", SAYING.label)]
    return described_by_segmenter([accepted_row(first), *refused])


def described_by_segmenter(rows: list[dict[str, Any]]) -> pa.Table:
    """Rows after the stages that follow `prepare` if a segmenter makes the masks."""
    segmenter = CustomSegmenter(SAYING)
    table = describe_table(segmenter(to_table(rows, PROMPTED)))
    end_threads(segmenter)
    return table


def end_threads(actor: Any) -> None:
    """End the threads of a segmenter, because the crash matrix forks only processes without threads."""
    encoders = getattr(actor, "_encoders", None)
    if encoders is not None:
        encoders.shutdown()


def catalog_rows(first: int, rows: int) -> list[dict[str, Any]]:
    """Rows of the catalog, with ordinals from `first` on."""
    return [
        {"ordinal": n, "id": n + 1, "image_id": f"image-{n}", "uri": f"photo_{n}.jpg", "license": "CC0-1.0"}
        for n in range(first, first + rows)
    ]


def prompts_of(ordinal: int) -> dict[str, Any]:
    """Prompts of a row of the catalog, which name its image."""
    box = {"box": [1.0, 2.0, 30.0, 20.0], "label": f"wanted in image-{ordinal}", "score": 0.5}
    return {"width": 40.0, "height": 30.0, "prompts": [box]}


def manifest_of(
    catalog: tuple[CatalogPart, ...], stages: tuple[StageColumn, ...] = (), *, segmenter: bool = False
) -> DatasetManifest:
    """The manifest of the first generation."""
    config = SEGMENTER_CONFIG if segmenter else CONFIG
    return DatasetManifest(
        name="protocol",
        config=config,
        config_sha256=json_sha256(config),
        numerics=NUMERICS,
        code_version="0",
        weights=ModelWeights(name="none", sha256="0" * 64),
        catalog=catalog,
        images_per_shard=ROWS,
        policy_date=date(2026, 1, 1),
        stages=stages,
    )


def begin(place: DatasetPath) -> None:
    """Put the catalog's part and `dataset.json`."""
    rows, schema = catalog_rows(0, SHARDS * ROWS), NORMALIZED
    if place.segmenter:
        rows = [{**row, "prompts": prompts_of(row["ordinal"])} for row in rows]
        schema = NORMALIZED.append(STAGED.field("prompts"))
    part = table_bytes(to_table(rows, schema), schema)
    digest = hashlib.sha256(part).hexdigest()
    path = part_path(0, digest)
    parts = (CatalogPart(path=path, rows=len(rows), sha256=digest, source_sha256=digest, first_shard=0),)
    manifest = manifest_of(parts, place.stages, segmenter=place.segmenter)
    place.storage.put(join(place.uri, path), part)
    place.storage.put(join(place.uri, MANIFEST), manifest.to_json())


def write(
    place: DatasetPath,
    shard: int,
    variant: int = 0,
    generation: int = 1,
    rows: pa.Table | None = None,
) -> ShardResult:
    """Write and commit a shard, as a build's task does: these described rows, or those of a variant."""
    task = ShardTask(
        shard=shard,
        start=shard * ROWS,
        stop=(shard + 1) * ROWS,
        dataset=place.handle,
        numerics=fingerprint(NUMERICS),
        max_reject_ratio=1.0,
        max_faults=1,
        generation=generation,
    )
    if rows is None:
        rows = segmented_rows(shard) if place.segmenter else rows_of(shard, variant)
    return write_shard(task, [(0, ROWS)], rows)


@contextmanager
def two_shards(committed: int = 2, *, segmenter: bool = False) -> Iterator[DatasetPath]:
    """A dataset of two shards for a while, so many committed: images 1, 2, 4 and 5, rows 3 and 6 refused.

    With `segmenter`, the only images are 1 and 4, whose masks a segmenter made.
    """
    with quick_folder() as folder:
        place = DatasetPath(str(folder / "dataset"), segmenter=segmenter)
        begin(place)
        for shard in range(committed):
            write(place, shard)
        yield place


def retry(place: DatasetPath, shard: int) -> str:
    """Try the refused row of a shard again, as `--retry-rejected` does: this time there is an image."""
    commit = place.log.latest(shard)
    last = shard * ROWS + ROWS - 1
    retried = {f"rejected:{reason}" for reason in ("not_found", "persistent_fault", "stage_failed")}
    if commit is None or not commit.counts.keys() & retried:
        return "unchanged"
    row = accepted_row(last)
    table: pa.Table = described_by_segmenter([row]) if place.segmenter else described([row])
    task = RetryTask(shard, commit.generation, [last], place.handle)
    return retry_shard(task, [(0, 1)], table).status


def sweep_all(place: DatasetPath) -> list[str]:
    """The sweep, for which every file is old."""
    later = datetime.now(UTC) + timedelta(days=1000)
    return sweep(place.location, grace=timedelta(0), now=later, threads=1)


def everything(place: DatasetPath) -> Iterator[tuple[str, bytes]]:
    """Every object of a dataset, temporary ones too, by path."""
    storage = place.storage
    for entry in storage.walk(place.uri, include_temporary=True):
        yield entry.name, storage.read(join(place.uri, entry.name))


def contents(place: DatasetPath) -> dict[str, str]:
    """SHA-256 of every object of a dataset, temporary ones too, by path; without versions and id, as in `digests`."""
    return {
        name: hashlib.sha256(data).hexdigest()
        for name, data in everything(place)
        if not name.startswith(f"{VERSIONS}/") and name != DATASET_ID
    }


@contextmanager
def quick_folder() -> Iterator[Path]:
    """A folder in memory if the machine has one: tests make thousands of syncs in it, and need no durability."""
    memory = Path("/dev/shm")
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(prefix="protocol-", dir=memory if usable else None) as folder:
        yield Path(folder)


def copy_folder(folder: Path, place: DatasetPath) -> None:
    """Put the files below a folder at a dataset's place."""
    upload(folder, place.location)


def latest(place: DatasetPath) -> Iterator[tuple[Commit, bytes]]:
    """The commit that holds for each shard, with the bytes of its file."""
    for shard, generation in place.log.committed().items():
        data = place.log.location(shard, generation).read()
        yield Commit.from_json(data), data


def broken_promises(place: DatasetPath) -> list[str]:
    """What is wrong with the commits that hold: files that are not there, whole, with the bytes they are named by."""
    found = []
    for commit, data in latest(place):
        name = f"shard {commit.shard}, generation {commit.generation}"
        if data != commit.to_json():
            found.append(f"{name}: its commit is not canonical")
        if commit.ordinals != (commit.shard * ROWS, (commit.shard + 1) * ROWS):
            found.append(f"{name}: has the ordinals {commit.ordinals}")
        if commit.counts["rows"] != ROWS or commit.counts["images"] + commit.counts["rejected"] != ROWS:
            found.append(f"{name}: counts {commit.counts}")
        for entry in commit.files:
            try:
                file = place.storage.read(join(place.uri, entry.path))
            except NotFoundError:
                found.append(f"{name}: {entry.path} is not there")
                continue
            if (len(file), hashlib.sha256(file).hexdigest()) != (entry.size, entry.sha256):
                found.append(f"{name}: {entry.path} has other bytes")
    return found
