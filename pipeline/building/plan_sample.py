"""Sample for a plan: a few catalog rows go through the real stages, one after another, without Ray.

The sample calls the same stage callables as a build. As in a build, originals exist only in this process and in the
child process that decodes them. The sample writes its shards to a temporary folder, which is deleted afterward.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import DatasetHandle, DatasetManifest
from segmint.catalogs.layout import image_name
from segmint.catalogs.licenses import LicensePolicy
from segmint.infra.errors import SegmintError
from segmint.infra.scratch import ScratchFolder
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import MeteredStorage, Storage
from segmint.model.automatic.generator import MaskGenerator
from segmint.operators.describe import describe_table
from segmint.operators.prepare.prepare import Prepare
from segmint.operators.rows import is_live
from segmint.operators.segment.numerics import Numerics
from segmint.operators.segment.segment import Segment
from segmint.operators.segmenter.segmenter import CustomSegmenter
from segmint.operators.shards.put import annotations_json, build_shard_files
from segmint.operators.shards.write import ShardTask, write_shard
from segmint.pipeline.building.plan_rates import Estimate, Extrapolation, column, exactly
from segmint.pipeline.config.config import Config, prepare_config, read_refused, segment_settings, segmenter_settings

STAGES = ("prepare", "segment", "describe", "write")
"""Stages to time. `prepare` includes reading."""


@dataclass(frozen=True)
class SampledRow:
    """Cost and output of one catalog row. A rejected row's only output is its entry in `rejects`."""

    ordinal: int  # from 0
    image_id: str
    prepare_s: float  # includes reading
    read_s: float
    segment_s: float
    describe_s: float
    write_s: float  # equal share of the time for the row's shard
    bytes_in: int  # read from storage
    released_bytes: int  # the released JPEG
    annotation_bytes: int  # its JSON
    table_bytes: float  # equal share of the shard's tables, tar headers, and commit
    masks: int
    drawn: int = 0  # masks above the predicted-IoU threshold
    stage: str | None = None  # set with reason and detail if the row was rejected
    reason: str | None = None
    detail: str | None = None

    @property
    def seconds(self) -> float:
        """Total seconds of all stages."""
        return self.prepare_s + self.segment_s + self.describe_s + self.write_s


@dataclass(frozen=True)
class PlanSample:
    """Rows of a sample, and the figures that don't depend on the number of rows."""

    rows: tuple[SampledRow, ...]
    start_s: float  # seconds until model and detectors were ready
    seconds: float  # duration of the whole sample, including startup
    shard_bytes: int  # size of a shard's files without any rows
    device: str  # "cpu" or "cuda"; "" with a segmenter
    threads: int  # torch threads in `segment`; 0 with a segmenter

    @property
    def accepted(self) -> int:
        """Number of rows that became images."""
        return sum(row.reason is None for row in self.rows)

    @property
    def rejected(self) -> Mapping[str, list[SampledRow]]:
        """Rejected rows by reason."""
        found: dict[str, list[SampledRow]] = {}
        for row in self.rows:
            if row.reason is not None:
                found.setdefault(row.reason, []).append(row)
        return dict(sorted(found.items()))

    def totals(self, rows: int, shards: int) -> dict[str, Estimate]:
        """Return the fields of a plan for this number of rows and shards that only depend on the sample."""
        per_row = Extrapolation(rows, len(self.rows))
        written = column([row.released_bytes + row.annotation_bytes + row.table_bytes for row in self.rows])
        return {
            "images": per_row.count(column([row.reason is None for row in self.rows])),
            "masks": per_row.total(column([row.masks for row in self.rows])),
            "bytes_in": per_row.total(column([row.bytes_in for row in self.rows])),
            "bytes_out": per_row.total(written).plus(exactly(self.shard_bytes * shards)),
            "cpu_core_hours": per_row.total(column([row.seconds - row.segment_s for row in self.rows]) / 3600),
        }


def run_sample(
    config: Config,
    rows: pa.Table,
    numerics: Numerics | None,
    policy: LicensePolicy,
    manifest: DatasetManifest | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> PlanSample:
    """Process `rows` (`NORMALIZED`, ascending) in all stages on this machine, and measure the stages.

    `numerics` describes this machine; it is None if a segmenter makes the masks. `manifest` belongs to the existing
    dataset, if any. `tell` is called with a line for each row. Raises `SegmintError` if an outage or a bug leaves a row
    undecided, and any error from loading the model.
    """
    started = time.perf_counter()
    storage = MeteredStorage(config.storage)
    arguments = prepare_config(config, manifest), storage, policy, config.catalog, config.assets
    prepare = Prepare(*arguments, refused=read_refused(config))
    try:
        segment = _maker_of_masks(config, numerics, manifest)
        prepare.wait_until_ready()
        start_s = time.perf_counter() - started
        tell(f"ready after {start_s:.1f} s")
        sampled: list[SampledRow] = []
        with_images = config.release.format == "images"
        for begin in range(0, len(rows), config.images_per_shard):
            described, measured = [], []
            for index in range(begin, min(begin + config.images_per_shard, len(rows))):
                one = rows.slice(index, 1)
                table, row = _take_row(one, prepare, segment, storage, with_images=with_images)
                described.append(table)
                measured.append(row)
                tell(f"row {row.ordinal + 1}: {row.reason or f'{row.masks} masks'} in {row.seconds:.1f} s")
            sampled += _write(pa.concat_tables(described), measured, with_images=with_images)
    finally:
        prepare.close()
    return PlanSample(
        rows=tuple(sampled),
        start_s=start_s,
        seconds=time.perf_counter() - started,
        shard_bytes=_shard_bytes(with_images=with_images),
        device="" if numerics is None else numerics.device,
        threads=0 if numerics is None else numerics.threads,
    )


def _maker_of_masks(
    config: Config, numerics: Numerics | None, manifest: DatasetManifest | None
) -> Callable[[pa.Table], pa.Table]:
    """Return the stage that makes the masks, after it has processed a small image."""
    if numerics is None:
        from segmint.operators.segment.segment_alone import control_table  # imports Ray

        assert config.segmenter is not None
        segmenter = CustomSegmenter(config.segmenter.load(), settings=segmenter_settings(config.segmenter))
        segmenter(control_table())
        return segmenter
    segment = Segment(segment_settings(config, numerics, manifest))
    _warm_up(segment.generator)
    return segment


class _StopWatch:
    seconds = 0.0


@contextmanager
def _timed() -> Iterator[_StopWatch]:
    clock, started = _StopWatch(), time.perf_counter()
    yield clock
    clock.seconds = time.perf_counter() - started


def _warm_up(generator: MaskGenerator) -> None:
    """Segment a small image.

    The first image sets up kernels and memory, which happens only once per actor in a build.
    """
    small = replace(generator.settings, points_per_side=2, crop_n_layers=0)
    MaskGenerator(generator.predictor, small, generator.crops_per_batch).generate(np.full((64, 64, 3), 128, np.uint8))


def _take_row(
    source: pa.Table,
    prepare: Prepare,
    segment: Callable[[pa.Table], pa.Table],
    storage: MeteredStorage,
    *,
    with_images: bool,
) -> tuple[pa.Table, SampledRow]:
    """Process one row in all stages except for writing. Return the described row and its measurements."""
    storage.reset()
    with _timed() as preparing:
        prepared = prepare(source)
    with _timed() as segmenting:
        segmented = segment(prepared)
    with _timed() as describing:
        described = describe_table(segmented)
    row = described.to_pylist()[0]
    if row["fault"] is not None:
        raise SegmintError(
            f"row {row['ordinal'] + 1} of the sample ({row['image_id']}) can be neither accepted nor rejected: "
            f"{row['fault']}. A build would put its shard on hold. Fix the cause and plan again"
        )
    live = is_live(row)
    size = (row["height"], row["width"])
    name = image_name(row["id"])
    sampled = SampledRow(
        ordinal=row["ordinal"],
        image_id=row["image_id"],
        prepare_s=preparing.seconds,
        read_s=storage.read_s,
        segment_s=segmenting.seconds if live else 0.0,
        describe_s=describing.seconds,
        write_s=0.0,
        bytes_in=storage.bytes_read,
        released_bytes=len(row["release"]) if live and with_images else 0,
        annotation_bytes=len(annotations_json(row["id"], name, size, row["masks"])) if live else 0,
        table_bytes=0.0,
        masks=len(row["masks"]) if live else 0,
        drawn=row["funnel"]["over_iou"] if live else 0,
        stage=row["stage"],
        reason=row["reason"],
        detail=row["detail"],
    )
    return described, sampled


def _write(described: pa.Table, rows: list[SampledRow], *, with_images: bool) -> list[SampledRow]:
    """Write and commit the rows as a shard in a temporary folder.

    Return the rows with their share of time and bytes.
    """
    ordinals = list(range(len(rows)))  # the ordinals of a shard are consecutive
    for name, values in (("ordinal", ordinals), ("id", [ordinal + 1 for ordinal in ordinals])):
        index = described.schema.get_field_index(name)
        described = described.set_column(index, described.schema.field(index), pa.array(values, pa.int64()))
    with ScratchFolder() as folder:
        location = Location(Storage(), folder)
        task = ShardTask(
            shard=0,
            start=0,
            stop=len(rows),
            dataset=DatasetHandle(location=location, with_images=with_images),
            numerics="",
            max_reject_ratio=1.0,
        )
        with _timed() as writing:
            write_shard(task, [(0, len(rows))], described)
        commit = CommitLog(location).read(0, 1)
        if commit is None:
            raise SegmintError(f"the sample's shard could not be read back from {folder}")
        written = sum(file.size for file in commit.files)
    known = sum(row.released_bytes + row.annotation_bytes for row in rows)
    rest = max(0, written - known - _shard_bytes(with_images=with_images)) / len(rows)
    return [replace(row, write_s=writing.seconds / len(rows), table_bytes=rest) for row in rows]


def _shard_bytes(*, with_images: bool) -> int:
    """Return the size in bytes of a shard without rows: schemas, footers, and the end of the tar."""
    files = build_shard_files([], with_images=with_images)
    return sum(map(len, (files.tar, files.images, files.masks, files.rejects)))
