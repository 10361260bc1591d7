"""Estimate of a build's cost and output before it runs: `segmint plan`.

The catalog contains the number of rows, and `segmint.model.cost` computes the operations per image. Without a sample,
the time of these operations follows from an assumed fraction of the hardware's ceiling. With a sample, the time is
measured on real rows, which is more accurate.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import pyarrow as pa

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest, read_manifest
from segmint.catalogs.dataset.versions.record import VersionName, name_now
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.shard_ranges import ShardPart, choose_shards
from segmint.catalogs.source.check import CatalogFindings, check
from segmint.catalogs.source.readers import catalog_format
from segmint.catalogs.source.rows import NormalizedRows, joined
from segmint.catalogs.source.sampling import COUNTED_BY, count_rows, read_rows_at, spread_evenly
from segmint.infra.assets.cache import sha256_of
from segmint.infra.assets.known import ASSETS
from segmint.infra.assets.resolve import resolve
from segmint.infra.device import Compute, resolve_compute
from segmint.infra.errors import UsageError
from segmint.infra.peak import measure_peak
from segmint.infra.ray_session import cores_here
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.model.cost import image_cost
from segmint.operators.audit.detectors import try_detector_files
from segmint.operators.prepare.detector_process import detector_numerics
from segmint.operators.segment.numerics import resolve_numerics
from segmint.pipeline.building.dataset.cpu_actors import actors_that_fit
from segmint.pipeline.building.dataset.dataset import (
    check_begun_alike,
    ignored_columns,
    name_weights,
    require_catalog,
    require_rows,
)
from segmint.pipeline.building.dataset.first_numerics import compute_here
from segmint.pipeline.building.execution.ceiling import Ceiling, work_of
from segmint.pipeline.building.plan.cpu_stages import (
    MEGAPIXELS,
    compare,
    count_starts,
    price_curation,
    price_nodes,
    recorded_seconds,
)
from segmint.pipeline.building.plan.estimates import Extrapolation, column, exactly
from segmint.pipeline.building.plan.result import BuildPlan
from segmint.pipeline.building.plan.sample import PlanSample, run_sample
from segmint.pipeline.config.advice import detector_advice
from segmint.pipeline.config.config import Config, as_pinned, identity

DEFAULT_SHARE = 0.5
"""Assumed fraction of the ceiling without a measurement or `--share`, suited to MobileSAM with the CPU kernels.

One thread reached 0.53 to 0.59 (docs/metric.md). The value is lower because concurrent actors slow each other down."""

DRAWN_PER_POINT = 2.0
"""Assumed number of masks per point, out of three, above the predicted-IoU threshold. Used if no sample counts them."""

CHECKED_ROWS = 100_000
"""Maximum number of catalog rows to check, from the start. The limit keeps a plan to a few seconds."""


@dataclass(frozen=True)
class PlanOptions:
    """Options of `segmint plan`. Raises `UsageError` for invalid numbers."""

    shards: tuple[int, int] | ShardPart | None = None
    sample: int | None = None  # rows
    gpus: int | None = None  # None: the GPUs of this machine
    price: float | None = None  # price per GPU-hour, or per core-hour if the device is a CPU
    share: float | None = None  # fraction of the ceiling, 0 to 1; None: DEFAULT_SHARE, or measured by the sample
    flops: float | None = None  # peak of one GPU of another machine, in operations per second
    megapixels: float | None = None  # average size of the originals; None: SA-1B's, or measured by the sample
    core_price: float | None = None  # price per core-hour of CPU nodes that support GPU nodes
    cores: int = 0  # cores per GPU on the GPU nodes

    def __post_init__(self) -> None:
        checks: list[tuple[str, float | None, Callable[[float], bool], str]] = [
            ("--sample", self.sample, lambda value: value >= 1, "a number of rows from 1"),
            ("--gpus", self.gpus, lambda value: value >= 1, "a number of GPUs from 1"),
            ("--price", self.price, lambda value: value >= 0, "the price per hour, 0 or more"),
            ("--share", self.share, lambda value: 0 < value <= 1, "a share above 0 and at most 1"),
            ("--flops", self.flops, lambda value: value > 0, "operations per second, such as 9.9e14"),
            ("--core-price", self.core_price, lambda value: value >= 0, "the price per hour, 0 or more"),
            ("--cores", self.cores, lambda value: value >= 0, "a number of cores, 0 or more"),
            ("--megapixels", self.megapixels, lambda value: value > 0, "the originals' average size, such as 12"),
        ]
        for name, value, fits, expected in checks:
            if value is not None and not (math.isfinite(value) and fits(value)):
                raise UsageError(f"{name} is {value:g}: expected {expected}")
        if self.share is not None and self.sample is not None and self.flops is None:
            raise UsageError("--share assumes what --sample measures: use only one of them")
        if self.megapixels is not None and self.sample is not None:
            raise UsageError("--megapixels assumes the size of the originals that --sample reads: use only one of them")


@dataclass(frozen=True)
class ShardRun:
    """Shards of one part of the catalog. All shards are full except for the last shard of the part."""

    shards: Sequence[int]  # ascending
    rows: int


@dataclass(frozen=True)
class RemainingShards:
    """Shards that a run would build."""

    images_per_shard: int
    pieces: Sequence[ShardRun]  # one per part of the catalog, in order
    committed: int  # committed shards among the requested ones
    pinned_rows: int | None  # rows of the dataset; None if it doesn't exist yet

    @property
    def shards(self) -> int:
        """Number of shards to build."""
        return sum(len(piece.shards) for piece in self.pieces)

    @property
    def rows(self) -> int:
        """Number of rows to build."""
        return sum(piece.rows for piece in self.pieces)

    def ordinal(self, position: int) -> int:
        """Return the ordinal of the row at `position` among the rows to build.

        Raises `IndexError` after the last row.
        """
        for piece in self.pieces:
            if position < piece.rows:
                shard, row = divmod(position, self.images_per_shard)
                return piece.shards[shard] * self.images_per_shard + row
            position -= piece.rows
        raise IndexError("position is beyond the last row to build")


def find_remaining(
    config: Config,
    storage: Storage,
    shards: tuple[int, int] | ShardPart | None,
    catalog_rows: int,
    manifest: DatasetManifest | None,
) -> RemainingShards:
    """Return the requested shards that aren't committed.

    The rows come from the dataset's catalog. If the dataset doesn't exist yet, `manifest` is None, and `catalog_rows`
    is the number of rows.
    """
    size = config.images_per_shard
    parts = [(0, catalog_rows)] if manifest is None else [(part.first_shard, part.rows) for part in manifest.catalog]
    wanted = choose_shards(parts[-1][0] - (-parts[-1][1] // size), shards)
    done = CommitLog(Location(storage, config.output)).committed() if manifest is not None else {}
    pieces = []
    for first, count in parts:
        stop = first - (-count // size)
        inside = range(max(first, wanted.start), min(stop, wanted.stop))
        left: Sequence[int] = [shard for shard in inside if shard not in done] if done else inside
        short = (stop - first) * size - count if left and left[-1] == stop - 1 else 0
        pieces.append(ShardRun(left, len(left) * size - short))
    pinned = None if manifest is None else sum(part.rows for part in manifest.catalog)
    return RemainingShards(size, pieces, len(wanted) - sum(len(piece.shards) for piece in pieces), pinned)


def make_plan(config: Config, options: PlanOptions, tell: Callable[[str], None] = lambda _: None) -> BuildPlan:
    """Plan the build of `config`. Writes nothing except for a sample's shards, in a temporary folder.

    `tell` is called with a line for each step of a sample. Raises `UsageError` for anything that `segmint build` would
    refuse and for options that don't suit this machine. Raises `SegmintError` if a fault leaves a row undecided.
    """
    storage = Storage(config.storage)
    require_catalog(config, storage)
    try_detector_files(config.deidentify, partial(resolve, mirror=config.assets, storage=storage))
    manifest = read_manifest(Location(storage, config.output))
    config = name_weights(config, manifest, partial(_kind_of_device, options))
    if manifest is not None:
        weights = resolve(config.model.weights, mirror=config.assets, storage=storage)
        check_begun_alike(config, storage, manifest, weights)
    if config.detectors_share and options.flops is None:
        detector_numerics(config.deidentify.device)  # raises if this machine has no GPU
    ceiling, compute = find_ceiling(config, options, manifest, storage)
    catalog_rows = count_rows(Location(storage, config.catalog))
    require_rows(config, catalog_rows)
    remaining = find_remaining(config, storage, options.shards, catalog_rows, manifest)
    sample = None
    if options.sample is not None and remaining.rows:
        ordinals = [remaining.ordinal(position) for position in spread_evenly(remaining.rows, options.sample)]
        sample = _measure(config, storage, manifest, ordinals, compute, tell)
    version = None if manifest is None else name_now(Location(storage, config.output))
    checked = None
    if remaining.rows:
        checked = check(
            Location(storage, config.catalog),
            _policy(config, manifest),
            most_rows=CHECKED_ROWS,
            ignored=ignored_columns(identity(config) if manifest is None else manifest.config),
        )
    return _assemble(config, options, catalog_rows, remaining, ceiling, sample, version, checked)


def _kind_of_device(options: PlanOptions, config: Config) -> str:
    return "cuda" if options.flops is not None else resolve_compute(config.model.device).kind


def _measure(
    config: Config,
    storage: Storage,
    manifest: DatasetManifest | None,
    ordinals: Sequence[int],
    compute: Compute | None,
    tell: Callable[[str], None],
) -> PlanSample:
    """Measure the rows with these ordinals on this machine. `compute` is None if the plan is for other machines."""
    config.deidentify.require_packages()
    config.load_stages()
    digest = sha256_of(resolve(config.model.weights, mirror=config.assets, storage=storage))
    here = compute or resolve_compute("auto", "auto", config.model.threads)
    policy = _policy(config, manifest)
    rows = _rows_at(config, storage, manifest, ordinals)
    numerics = resolve_numerics(here, config.model, config.masks, digest)
    return run_sample(config, rows, numerics, policy, manifest, tell)


def _policy(config: Config, manifest: DatasetManifest | None) -> LicensePolicy:
    """Return the license policy of the dataset, or of a dataset that would be created today."""
    if manifest is not None:
        return as_pinned(config, manifest.config).license.policy(manifest.policy_date)
    return config.license.policy(config.license.policy_date or datetime.now(UTC).date())


def _rows_at(config: Config, storage: Storage, manifest: DatasetManifest | None, ordinals: Sequence[int]) -> pa.Table:
    """Return the rows with these ordinals from the dataset's catalog or, without a dataset, from the source catalog."""
    if manifest is None:
        return read_rows_at(Location(storage, config.catalog), ordinals, ignored=ignored_columns(identity(config)))
    tables = []
    for part in manifest.catalog:
        with NormalizedRows(Location(storage, config.output) / part.path) as rows:
            tables.append(rows.take(ordinals))
    return joined(tables)


def _assemble(
    config: Config,
    options: PlanOptions,
    catalog_rows: int,
    remaining: RemainingShards,
    ceiling: Ceiling,
    sample: PlanSample | None,
    version: VersionName | None,
    checked: CatalogFindings | None,
) -> BuildPlan:
    rows = sample.rows if sample is not None else ()
    accepted = column([row.reason is None for row in rows])
    per_row = Extrapolation(remaining.rows, len(rows))
    per_image = image_cost(config.masks.settings())
    drawn = per_image.prompts * DRAWN_PER_POINT
    if sample is not None and sample.accepted:
        drawn = sum(row.drawn for row in rows) / sample.accepted
    ceiling = ceiling.drawing(drawn)
    measured = sample is not None and options.flops is None
    on_gpu = ceiling.device == "cuda"
    cores = 1 if on_gpu else ceiling.threads  # device-hours are GPU-hours or core-hours
    images = per_row.count(accepted) if sample is not None else exactly(remaining.rows)
    # Without a GPU, the same CPU runs all stages. With a GPU, the other stages run on CPUs at the same time.
    busy = column([row.segment_s if on_gpu else row.seconds for row in rows])
    if measured:
        hours = per_row.total(busy * cores / 3600)
        one = ceiling.images_per_s / ceiling.devices  # the sample ran on one device
        reached = float(accepted.sum()) / (float(busy.sum()) * one) if busy.any() else 0.0
    else:
        reached = DEFAULT_SHARE if options.share is None else options.share
        hours = images.scaled(ceiling.devices * cores / (reached * ceiling.images_per_s * 3600))
    if sample is not None:
        cpu_hours = per_row.total(column([row.seconds - row.segment_s for row in rows]) / 3600)
    else:
        cpu_hours = images.scaled(recorded_seconds(config.deidentify, options.megapixels or MEGAPIXELS) / 3600)
    an_image = 3600 / max(images.value, 1)
    segment_s = (hours.value - (cpu_hours.value if measured and not on_gpu else 0)) * an_image
    if not on_gpu and not measured:
        hours = hours.plus(cpu_hours)
    bytes_out = None
    if sample is not None:
        each = column([row.released_bytes + row.annotation_bytes + row.table_bytes for row in rows])
        bytes_out = per_row.total(each).shifted(sample.shard_bytes * remaining.shards)
    bytes_in = None if sample is None else per_row.total(column([row.bytes_in for row in rows]))
    curation = None
    if "curate" in config.model_fields_set:
        one_image = None if bytes_in is None else bytes_in.scaled(1 / remaining.rows)
        scorers = len(config.curate.scorers)
        curation = price_curation(catalog_rows, options.megapixels or MEGAPIXELS, scorers, one_image)
    stages = compare(cpu_hours.value * an_image, segment_s, measured=sample is not None, on_gpu=on_gpu)
    days = hours.scaled(1 / (24 * ceiling.devices * cores))
    starts = None
    if on_gpu or (sample is not None and measured):
        start_s = sample.start_s if sample is not None and measured else None
        starts = count_starts(remaining.shards, config.window_shards, days.value * 24, ceiling.devices * cores, start_s)
    return BuildPlan(
        catalog=config.catalog,
        catalog_rows=catalog_rows,
        counted_by=COUNTED_BY[catalog_format(config.catalog)],
        committed=remaining.committed,
        rows=remaining.rows,
        shards=remaining.shards,
        encodes_per_image=per_image.encodes,
        prompts_per_image=per_image.prompts,
        images=images,
        bytes_in=bytes_in,
        bytes_out=bytes_out,
        masks=per_row.total(column([row.masks for row in rows])) if sample is not None else None,
        ceiling=ceiling,
        hardware=ceiling.hardware
        if options.flops is None
        else f"{ceiling.devices} x GPU (not measured: --flops {options.flops:.4g})",
        measured=measured,
        share_of_ceiling=reached,
        device_hours=hours,
        days=days,
        cpu_core_hours=cpu_hours,
        cpu_stages=stages,
        price=options.price,
        cost=None if options.price is None else hours.scaled(options.price),
        sample=sample,
        notes=tuple(_notes(config, options, catalog_rows, remaining, ceiling, sample)),
        version=version,
        checked=checked,
        starts=starts,
        cpu_nodes=price_nodes(stages, hours.value, options.cores, options.core_price),
        curation=curation,
    )


def _notes(
    config: Config,
    options: PlanOptions,
    catalog_rows: int,
    remaining: RemainingShards,
    ceiling: Ceiling,
    sample: PlanSample | None,
) -> list[str]:
    notes = []
    if remaining.pinned_rows is not None and catalog_rows > remaining.pinned_rows:
        notes.append(
            f"the plan covers only the {remaining.pinned_rows:,} rows of the dataset; `segmint build --grow` adds "
            "the catalog's new rows"
        )
    if not remaining.rows:
        return notes
    if sample is None:
        size = "--megapixels" if options.megapixels else "SA-1B's average; override it with --megapixels"
        notes.append(
            f"only the catalog was read; --sample N measures N of its rows. Originals are assumed to have "
            f"{options.megapixels or MEGAPIXELS:g} megapixels ({size}), and {DRAWN_PER_POINT:g} masks of each point to "
            "pass the threshold of predicted IoU"
        )
    else:
        notes.append("a sample doesn't look for duplicates: `segmint catalog curate` finds copies of images")
        if sample.accepted == 0:
            notes.append("the sample has no accepted rows: use a larger sample, or fix the catalog or the policy")
        if sample.device != ceiling.device:
            notes.append(f"the sample ran on this machine's {sample.device}, so it doesn't measure the GPUs' time")
    if sample is None and config.detectors_share:
        notes.append(
            "detectors run on the GPU (deidentify.device); the time they take there and on the CPUs has not been "
            "measured and is not included"
        )
    return [*notes, *detector_advice(config)]


def find_ceiling(
    config: Config, options: PlanOptions, manifest: DatasetManifest | None, storage: Storage
) -> tuple[Ceiling, Compute | None]:
    """Return the ceiling of the planned devices and, if this machine is one of them, its `Compute`.

    Pinned values take precedence over the configuration. Raises `UsageError` for options that don't suit the device.
    """
    work = work_of(config, lambda: resolve(config.model.weights, mirror=config.assets, storage=storage))
    pinned = manifest.numerics if manifest is not None else {}
    device = str(pinned.get("device", config.model.device))
    precision = str(pinned.get("precision", config.model.precision))
    if options.flops is not None:
        if device == "cpu":
            raise UsageError("--flops is the peak of a GPU, but model.device is cpu: remove one of them")
        return Ceiling("cuda", "", precision, 1, options.gpus or 1, options.flops, *work), None
    model = config.model.model_copy(update={"device": device, "precision": precision})
    if "threads" in pinned:
        model = model.model_copy(update={"threads": pinned["threads"]})
    weights_bytes = _weights_bytes(config, storage)
    compute = compute_here(model, weights_bytes)
    kind, devices = _devices_here(config, options, compute, weights_bytes)
    peak = measure_peak(compute)
    return Ceiling(compute.kind, kind, compute.precision, compute.threads, devices, peak, *work), compute


def _devices_here(config: Config, options: PlanOptions, compute: Compute, weights_bytes: int) -> tuple[str, int]:
    """Return the name and number of this machine's devices. On a CPU, each segment actor counts as a device."""
    import torch

    if compute.kind == "cuda":
        return torch.cuda.get_device_name(compute.device), options.gpus or torch.cuda.device_count()
    if options.gpus is not None:
        raise UsageError(
            "--gpus was given, but the plan is for a CPU (torch sees no GPU here, or model.device is cpu): to plan for "
            "another machine's GPUs, pass the peak of one from its data sheet or a build, such as --flops 9.9e14"
        )
    actors = config.resources.segment.actors
    devices = max(1, cores_here() // compute.threads)
    if actors == "auto":
        devices = actors_that_fit(devices, weights_bytes)
    else:
        devices = min(devices, actors if isinstance(actors, int) else actors[1])
    return torch.backends.cpu.get_cpu_capability(), devices


def _weights_bytes(config: Config, storage: Storage) -> int:
    """Return the size of the checkpoint in bytes. For a known name, the file isn't needed."""
    name = config.model.weights
    if name in ASSETS:
        return ASSETS[name].size
    return resolve(name, mirror=config.assets, storage=storage).stat().st_size
