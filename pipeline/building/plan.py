"""`segmint plan`: estimate of a build's cost and output before it runs.

The catalog contains the number of rows, and `segmint.model.cost` computes the operations per image. Without a sample,
the time comes from the recorded rates of the device, the model, and the recipe (`plan_rates.py`). With a sample, the
time is measured on real rows, which is more accurate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest, read_manifest
from segmint.catalogs.dataset.versions import name_now
from segmint.catalogs.layout import ShardPart, choose_shards
from segmint.catalogs.licenses import LicensePolicy
from segmint.catalogs.source.check import check
from segmint.catalogs.source.files import NormalizedRows, catalog_format, joined, require_catalog, unchanged
from segmint.catalogs.source.sampling import COUNTED_BY, count_rows, has_prompts, read_rows_at, spread_evenly
from segmint.infra.assets import ASSETS, resolve, sha256_of
from segmint.infra.device import Compute, DecoderPrecision, cores_here, resolve_compute
from segmint.infra.errors import UsageError
from segmint.infra.peak import measure_peak
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.infra.units import FLOPS, OVER_ZERO, check_option
from segmint.model.cost import image_cost
from segmint.model.kernels.cpu.library import usable_kernels
from segmint.model.sam.load import Architecture
from segmint.operators.audit.privacy import try_detector_files
from segmint.operators.prepare.detector_process import detector_numerics
from segmint.operators.segment.numerics import Numerics, resolve_decoder, resolve_numerics
from segmint.pipeline.building.dataset import (
    check_begun_alike,
    ignored_columns,
    name_weights,
    require_prompts,
    require_rows,
    wants_prompts,
)
from segmint.pipeline.building.execution.ceiling import Ceiling, model_of, work_of
from segmint.pipeline.building.first_numerics import actors_that_fit, compute_here
from segmint.pipeline.building.plan_rates import (
    GIVEN,
    MEGAPIXELS,
    Card,
    Estimate,
    Extrapolation,
    SegmentTime,
    card_named,
    column,
    count_starts,
    cpu_stages,
    cpu_time,
    exactly,
    gpu_time,
    known_cards,
    prepare_seconds,
    price_curation,
    read_rates,
)
from segmint.pipeline.building.plan_result import BuildPlan
from segmint.pipeline.building.plan_sample import PlanSample, run_sample
from segmint.pipeline.config.config import Config, as_pinned, detector_advice, identity, stage_notes


@dataclass(frozen=True)
class PlanOptions:
    """Options of `segmint plan`. Raises `UsageError` for invalid numbers."""

    shards: tuple[int, int] | ShardPart | None = None
    sample: int | None = None  # rows
    gpu: str | None = None  # name of another machine's GPU, such as H200
    gpus: int | None = None  # None: the GPUs of this machine
    price: float | None = None  # price per GPU-hour, or per core-hour if the device is a CPU
    share: float | None = None  # fraction of the ceiling, 0 to 1; None: recorded, or measured by the sample
    flops: float | None = None  # peak of one GPU of another machine, in operations per second
    megapixels: float | None = None  # average size of the originals; None: SA-1B's, or measured by the sample
    cores: int | None = None  # cores per GPU on the GPU nodes; None: this machine's, or enough on another machine

    def __post_init__(self) -> None:
        check_option("--sample", self.sample, "a number of rows from 1", 1)
        check_option("--gpus", self.gpus, "a number of GPUs from 1", 1)
        check_option("--cores", self.cores, "a number of cores from 1", 1)
        check_option("--flops", self.flops, "operations per second, such as 9.9e14", *FLOPS)
        check_option("--share", self.share, "a share above 0 and at most 1", OVER_ZERO, 1)
        check_option("--megapixels", self.megapixels, "the originals' average size, such as 12", OVER_ZERO)
        check_option("--price", self.price, "the price per hour, 0 or more", 0)
        if self.share is not None and self.sample is not None and not self.elsewhere:
            raise UsageError("--share assumes what --sample measures: use only one of them")
        if self.megapixels is not None and self.sample is not None:
            raise UsageError("--megapixels assumes the size of the originals that --sample reads: use only one of them")
        if self.elsewhere and self.card is None:
            raise UsageError(
                f"--gpu {self.gpu}: expected one of {', '.join(known_cards())}; for another GPU, also pass its peak, "
                "such as --flops 9.9e14"
            )

    def cost(self, hours: Estimate | None) -> Estimate | None:
        """Return the cost of device-hours, or None if the price or the hours are unknown."""
        if self.price is None or hours is None:
            return None
        return hours.scaled(self.price)

    @property
    def elsewhere(self) -> bool:
        """True if the plan is for another machine's GPUs."""
        return self.gpu is not None or self.flops is not None

    @property
    def card(self) -> Card | None:
        """The other machine's GPU, or None if the plan is for this machine."""
        return card_named(self.gpu or "", self.flops, GIVEN) if self.elsewhere else None


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
    parts, done, pinned = [(0, catalog_rows)], dict[int, int](), None
    if manifest is not None:
        parts = [(part.first_shard, part.rows) for part in manifest.catalog]
        pinned = sum(part.rows for part in manifest.catalog)
        done = CommitLog(Location(storage, config.output)).committed()
    wanted = choose_shards(parts[-1][0] - (-parts[-1][1] // size), shards)
    pieces = []
    for first, count in parts:
        stop = first - (-count // size)
        inside = range(max(first, wanted.start), min(stop, wanted.stop))
        left: Sequence[int] = inside
        if done:
            left = [shard for shard in inside if shard not in done]
        rows = len(left) * size
        if left and left[-1] == stop - 1:
            rows -= (stop - first) * size - count
        pieces.append(ShardRun(left, rows))
    return RemainingShards(size, pieces, len(wanted) - sum(len(piece.shards) for piece in pieces), pinned)


def plan_segmenter(
    config: Config,
    options: PlanOptions,
    remaining: RemainingShards,
    sample: PlanSample | None,
    make: Callable[..., BuildPlan],
    catalog_rows: int,
) -> BuildPlan:
    """Return the plan of a build with a segmenter. `sample` is None if nothing remains to be built.

    `make` returns a plan with the fields that don't depend on the maker of the masks.
    """
    totals: dict[str, Any] = {"images": exactly(0), "masks": None, "bytes_in": None, "bytes_out": None}
    totals["cpu_core_hours"] = exactly(0)
    hours = None
    if sample is not None:
        totals |= sample.totals(remaining.rows, remaining.shards)
        per_row = Extrapolation(remaining.rows, len(sample.rows))
        hours = per_row.total(column([row.segment_s for row in sample.rows]) / 3600)
    seconds = totals["cpu_core_hours"].value * 3600 / max(totals["images"].value, 1)
    return make(
        **totals,
        encodes_per_image=0,
        prompts_per_image=0,
        ceiling=None,
        hardware="",
        measured=True,
        record=None,
        share_of_ceiling=None,
        device_hours=hours,
        days=None,
        cpu_stages=cpu_stages(seconds, None, "segment", measured=True),
        cost=options.cost(hours),
        notes=(*row_notes(catalog_rows, remaining, sample), *stage_notes(config), *detector_advice(config)),
    )


def row_notes(catalog_rows: int, remaining: RemainingShards, sample: PlanSample | None) -> list[str]:
    """Return the notes about the rows that a plan covers and that its sample accepted."""
    notes = []
    if remaining.pinned_rows is not None and catalog_rows > remaining.pinned_rows:
        notes.append(
            f"the plan covers only the {remaining.pinned_rows:,} rows of the dataset; `segmint build --grow` adds "
            "the catalog's new rows"
        )
    if sample is not None:
        notes.append("a sample doesn't look for duplicates: `segmint catalog curate` finds copies of images")
        if sample.accepted == 0:
            notes.append("the sample has no accepted rows: use a larger sample, or fix the catalog or the policy")
    return notes


DRAWN_PER_POINT = 2.0
"""Assumed number of masks per point, out of three, above the predicted-IoU threshold. Used if neither a sample nor a
record counts them."""

CHECKED_ROWS = 100_000
"""Maximum number of catalog rows to check, from the start. The limit keeps a plan to a few seconds."""


def make_plan(config: Config, options: PlanOptions, tell: Callable[[str], None] = lambda _: None) -> BuildPlan:
    """Plan the build of `config`. Writes nothing except for a sample's shards, in a temporary folder.

    `tell` is called with a line for each step of a sample. Raises `UsageError` for anything that `segmint build` would
    refuse and for options that don't suit this machine. Raises `SegmintError` if a fault leaves a row undecided.
    """
    if config.segmenter is not None and (options.sample is None or options.elsewhere or options.share is not None):
        raise UsageError("the time of a segmenter is only known from a sample on this machine: pass --sample N")
    storage = Storage(config.storage)
    catalog = Location(storage, config.catalog)
    require_catalog(catalog)
    try_detector_files(config.deidentify, partial(resolve, mirror=config.assets, storage=storage))
    manifest = read_manifest(Location(storage, config.output))
    if manifest is None and wants_prompts(identity(config)):
        require_prompts(config, there=has_prompts(catalog))
    by_sam = config.segmenter is None
    config = name_weights(config, manifest, partial(kind_of_device, options)) if by_sam else config
    if manifest is not None:
        weights = resolve(config.model.weights, mirror=config.assets, storage=storage) if by_sam else None
        check_begun_alike(config, storage, manifest, weights)
    if config.detectors_share and not options.elsewhere:
        detector_numerics(config.deidentify.device)  # raises if this machine has no GPU
    ceiling, compute = find_ceiling(config, options, manifest, storage) if by_sam else (None, None)
    with unchanged(catalog):
        catalog_rows = count_rows(catalog)
        require_rows(config, catalog_rows)
        remaining = find_remaining(config, storage, options.shards, catalog_rows, manifest)
        sample = None
        if options.sample is not None and remaining.rows:
            ordinals = [remaining.ordinal(position) for position in spread_evenly(remaining.rows, options.sample)]
            sample = _measure(config, storage, manifest, ordinals, ceiling, compute, tell)
        version = None if manifest is None else name_now(Location(storage, config.output))
        checked = None
        if remaining.rows:
            checked = check(
                catalog,
                _policy(config, manifest),
                most_rows=CHECKED_ROWS,
                ignored=ignored_columns(identity(config) if manifest is None else manifest.config),
            )
    curation = None
    if "curate" in config.model_fields_set:
        one_image = None
        if sample is not None:
            one_image = sample.totals(remaining.rows, remaining.shards)["bytes_in"].scaled(1 / remaining.rows)
        scorers = len(config.curate.scorers)
        curation = price_curation(catalog_rows, options.megapixels or MEGAPIXELS, scorers, one_image)
    make = partial(
        BuildPlan,
        catalog=config.catalog,
        catalog_rows=catalog_rows,
        counted_by=COUNTED_BY[catalog_format(config.catalog)],
        committed=remaining.committed,
        rows=remaining.rows,
        shards=remaining.shards,
        price=options.price,
        sample=sample,
        version=version,
        checked=checked,
        curation=curation,
    )
    if ceiling is None:
        return plan_segmenter(config, options, remaining, sample, make, catalog_rows)
    model = model_of(config.model.weights, lambda: resolve(config.model.weights, mirror=config.assets, storage=storage))
    return _assemble(config, options, catalog_rows, remaining, ceiling, model, sample, make)


def kind_of_device(options: PlanOptions, config: Config) -> str:
    """Return the kind of the device that a build would choose, "cpu" or "cuda"."""
    return "cuda" if options.elsewhere else resolve_compute(config.model.device).kind


def _measure(
    config: Config,
    storage: Storage,
    manifest: DatasetManifest | None,
    ordinals: Sequence[int],
    ceiling: Ceiling | None,
    compute: Compute | None,
    tell: Callable[[str], None],
) -> PlanSample:
    """Measure the rows with these ordinals on this machine.

    `ceiling` is that of the planned devices. `compute` is None if the plan is for other machines.
    """
    config.deidentify.require_packages()
    config.load_stages()
    policy = _policy(config, manifest)
    rows = _rows_at(config, storage, manifest, ordinals)
    numerics = None
    if config.segmenter is None:
        digest = sha256_of(resolve(config.model.weights, mirror=config.assets, storage=storage))
        here = compute or resolve_compute("auto", "auto", config.model.threads)
        # The decoder has the planned precision. Other machines' may be impossible here.
        model = config.model.model_copy(update={"decoder_precision": "auto"})
        numerics = resolve_numerics(here, model, config.masks, digest)
        if ceiling is not None and compute is not None:
            numerics = numerics.with_decoder(ceiling.decoder_precision)
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
    model: tuple[Architecture, int],
    sample: PlanSample | None,
    make: Callable[..., BuildPlan],
) -> BuildPlan:
    """Return the plan of a build with SAM. `make` returns a plan with the fields that don't depend on it."""
    rows = sample.rows if sample is not None else ()
    per_row = Extrapolation(remaining.rows, len(rows))
    totals: dict[str, Any] = {"images": exactly(remaining.rows), "masks": None, "bytes_in": None, "bytes_out": None}
    if sample is not None:
        totals = sample.totals(remaining.rows, remaining.shards)
    images = totals["images"]
    per_image = image_cost(config.masks.settings())
    on_gpu = ceiling.device == "cuda"
    measured = sample is not None and not options.elsewhere
    cores = 1 if on_gpu else ceiling.threads  # device-hours are GPU-hours or core-hours

    record = None if measured else _recorded_time(config, options, ceiling, model)
    drawn = per_image.prompts * DRAWN_PER_POINT
    if sample is not None and sample.accepted:
        drawn = sum(row.drawn for row in rows) / sample.accepted
    elif record is not None and record.drawn is not None:
        drawn = record.drawn
    ceiling = ceiling.drawing(drawn)
    one_device = ceiling.images_per_s / ceiling.devices

    # Device-seconds of `segment` for all images. Without a GPU, a sample counts all stages, because they share the CPU.
    busy: Estimate | None = None
    if sample is not None and not sample.accepted:
        pass  # no image was computed
    elif measured:
        busy = per_row.total(column([row.segment_s if on_gpu else row.seconds for row in rows]))
    elif options.share is not None:
        busy = images.scaled(1 / (options.share * one_device))
    elif record is not None:
        busy = Estimate(images.value * record.high_s, images.low * record.low_s, images.high * record.high_s)

    share = options.share
    if share is None and busy is not None:
        share = images.value / (busy.value * one_device) if busy.value else 0.0

    if sample is not None:
        cpu_hours = totals.pop("cpu_core_hours")
    else:
        keeps_original = config.masks.original_crops is not None
        megapixels = options.megapixels or MEGAPIXELS
        seconds_an_image = prepare_seconds(config.deidentify, megapixels, with_original=keeps_original)
        seconds_an_image += read_rates().writing.core_s_per_row
        cpu_hours = images.scaled(seconds_an_image / 3600)
    if record is not None:
        cpu_hours = cpu_hours.plus(images.scaled(record.host_s / 3600))

    hours, limits = None, "segment"
    if busy is not None:
        hours, limits = _device_hours(config, options, ceiling, images, busy, cpu_hours, measured=measured)
        hours = hours.scaled(cores)
    an_image = 3600 / max(images.value or remaining.rows, 1)
    segment_s = None
    if on_gpu and record is not None and options.share is None:
        segment_s = record.low_s
    elif on_gpu and busy is not None and images.value:
        segment_s = busy.value / images.value
    stages = cpu_stages(cpu_hours.value * an_image, segment_s, limits, measured=sample is not None)
    days = None if hours is None else hours.scaled(1 / (24 * ceiling.devices * cores))
    starts = None
    if days is not None and sample is not None and measured:
        hours_in_all, size = days.value * 24, config.window_shards
        starts = count_starts(remaining.shards, size, hours_in_all, ceiling.devices, cores, sample.start_s)
    return make(
        **totals,
        encodes_per_image=per_image.encodes,
        prompts_per_image=per_image.prompts,
        ceiling=ceiling,
        hardware=ceiling.hardware if options.card is None else f"{ceiling.hardware}; peak {options.card.peak_is}",
        measured=measured,
        elsewhere=options.elsewhere,
        record=record if options.share is None else None,
        share_of_ceiling=share,
        device_hours=hours,
        days=days,
        cpu_core_hours=cpu_hours,
        cpu_stages=stages,
        cost=options.cost(hours),
        notes=tuple(_notes(config, options, catalog_rows, remaining, ceiling, sample, record, hours, limits)),
        starts=starts,
    )


def _recorded_time(
    config: Config, options: PlanOptions, ceiling: Ceiling, model: tuple[Architecture, int]
) -> SegmentTime | None:
    """Return the recorded time of `segment` on the planned device, or None if this model or recipe has no record."""
    architecture, decoder_layers = model
    if decoder_layers != 2:
        return None
    masks = config.masks.settings()
    if ceiling.device == "cuda":
        card = options.card or card_named(ceiling.device_kind, ceiling.flop_per_s)
        precisions = (ceiling.precision, ceiling.decoder_precision)
        return None if card is None else gpu_time(card, architecture, precisions, masks)
    if usable_kernels() is None or config.model.kernels == "torch":
        return None
    drawn = masks.points * DRAWN_PER_POINT
    images_per_s = ceiling.drawing(drawn).images_per_s / ceiling.devices
    return cpu_time(ceiling.device_kind, architecture, ceiling.precision, images_per_s)


def _device_hours(
    config: Config,
    options: PlanOptions,
    ceiling: Ceiling,
    images: Estimate,
    busy: Estimate,
    cpu_hours: Estimate,
    *,
    measured: bool,
) -> tuple[Estimate, str]:
    """Return the hours of all devices, which the slowest of prepare, segment, and writing determines, and its name.

    On GPUs, the three run at the same time. The cores limit `prepare` only if their number is known. On a CPU, the
    stages share the cores, so their times add up.
    """
    segment = busy.scaled(1 / 3600)
    if ceiling.device == "cpu":
        others = cpu_hours.scaled(1 / ceiling.threads)
        if measured:  # a sample's time includes the other stages
            slower = "prepare" if 2 * others.value > segment.value else "segment"
            return segment, slower
        slower = "prepare" if others.value > segment.value else "segment"
        return segment.plus(others), slower
    writers = config.resources.writers_for(ceiling.devices)
    rows_per_s = read_rates().writing.rows_per_s(writers, config.most_rows_per_block(on_gpu=True))
    limits = {"segment": segment, "writing": images.scaled(ceiling.devices / rows_per_s / 3600)}
    cores = _cores_a_gpu(options, ceiling)
    if cores is not None:
        limits["prepare"] = cpu_hours.scaled(1 / cores)
    hours = segment
    for limit in limits.values():
        hours = hours.at_least(limit)
    slowest = {
        max(limits, key=lambda stage: limits[stage].low): None,
        max(limits, key=lambda stage: limits[stage].value): None,
    }
    return hours, " or ".join(slowest)


def _cores_a_gpu(options: PlanOptions, ceiling: Ceiling) -> int | None:
    """Return the CPU cores per GPU, or None if they are unknown: on another machine without `--cores`."""
    if options.cores is not None:
        return options.cores
    if ceiling.device == "cpu" or options.elsewhere:
        return None
    return max(1, cores_here() // ceiling.devices)


def _notes(
    config: Config,
    options: PlanOptions,
    catalog_rows: int,
    remaining: RemainingShards,
    ceiling: Ceiling,
    sample: PlanSample | None,
    record: SegmentTime | None,
    hours: Estimate | None,
    limits: str,
) -> list[str]:
    notes = row_notes(catalog_rows, remaining, sample)
    if not remaining.rows:
        return notes
    if sample is None:
        size = "--megapixels" if options.megapixels else "SA-1B's average; override it with --megapixels"
        notes.append(
            f"only the catalog was read; --sample N measures N of its rows. Originals are assumed to have "
            f"{options.megapixels or MEGAPIXELS:g} megapixels ({size})"
        )
    elif sample.device != ceiling.device:
        notes.append(f"the sample ran on this machine's {sample.device}, so it doesn't measure the GPUs' time")
    elif sample.device == "cuda":
        notes.append(
            "the sample computed one image after another, so the GPU-hours are an upper bound: an actor decodes "
            "and finishes images while the GPU computes others"
        )
    if sample is None and (record is None or record.drawn is None):
        notes.append(f"{DRAWN_PER_POINT:g} masks of each point are assumed to pass the threshold of predicted IoU")
    if record is not None:
        notes += record.unmeasured
    if hours is None and (sample is None or sample.accepted):
        device = "GPU" if ceiling.device == "cuda" else "CPU"
        settings = "these settings"
        if ceiling.decoder_precision:
            settings = f"the decoder in {ceiling.decoder_precision}"
        notes.append(
            f"the time is unknown: {config.model.weights} with {settings} has no recorded rate on a {device}. To "
            "measure it, run `segmint plan --sample 20` on a machine with this device"
        )
    if "writing" in limits:
        notes.append("the speed of writing was recorded on two cores that all processes shared, so it's a lower bound")
    if sample is None and config.detectors_share:
        notes.append(
            "detectors run on the GPU (deidentify.device); the time they take there and on the CPUs has not been "
            "measured and is not included"
        )
    return [*notes, *stage_notes(config), *detector_advice(config)]


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
    card = options.card
    if card is not None:
        if device == "cpu":
            given = "--gpu names" if options.gpu is not None else "--flops is the peak of"
            other = "model.device is cpu" if manifest is None else "the dataset was created on a CPU"
            raise UsageError(f"{given} a GPU, but {other}")
        precision = "bf16" if precision == "auto" else precision
        if precision != "bf16" and options.flops is None:
            raise UsageError(f"the known peaks of GPUs are in bf16, but model.precision is {precision}: pass --flops")
        decoder = _decoder_precision(config, manifest, precision)
        gpus = options.gpus or 1
        name = card.name or "GPU"
        ceiling = Ceiling("cuda", name, precision, 1, gpus, card.flop_per_s, *work, decoder_precision=decoder)
        return ceiling, None
    model = config.model.model_copy(update={"device": device, "precision": precision})
    if "threads" in pinned:
        model = model.model_copy(update={"threads": pinned["threads"]})
    weights_bytes = _weights_bytes(config, storage)
    compute = compute_here(model, weights_bytes)
    decoder = _decoder_precision(config, manifest, compute.precision)
    kind, devices = _devices_here(config, options, compute, weights_bytes)
    peak = measure_peak(compute)
    here = compute.kind, kind, compute.precision, compute.threads, devices, peak
    return Ceiling(*here, *work, decoder_precision=decoder), compute


def _decoder_precision(config: Config, manifest: DatasetManifest | None, precision: str) -> DecoderPrecision:
    """Return the decoder's own precision in the dataset, or in a new dataset with this precision."""
    if manifest is None:
        return resolve_decoder(config.model, precision)
    return Numerics.recorded(manifest.numerics).decoder_precision


def _devices_here(config: Config, options: PlanOptions, compute: Compute, weights_bytes: int) -> tuple[str, int]:
    """Return the name and number of this machine's devices. On a CPU, each segment actor counts as a device."""
    import torch

    if compute.kind == "cuda":
        return torch.cuda.get_device_name(compute.device), options.gpus or torch.cuda.device_count()
    if options.gpus is not None:
        raise UsageError(
            "--gpus was given, but the plan is for a CPU (torch sees no GPU here, or model.device is cpu): to plan for "
            "another machine's GPUs, name them, such as --gpu H200"
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
