"""What a build would take and give, before anything is spent: `segmint plan`.

Rows are counted in the catalog; work comes from the plain algebra of `segmint.model.cost`; time from that work at
an assumed share of the hardware's ceiling, or, better, from a sample of real rows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from segmint.catalogs.dataset.commits import CommitLog
from segmint.catalogs.dataset.manifest import DatasetManifest, read_manifest
from segmint.catalogs.source.readers import catalog_format
from segmint.catalogs.source.rows import NormalizedRows
from segmint.catalogs.source.sampling import COUNTED_BY, count_rows, read_rows_at, spread_evenly
from segmint.infra.assets.hashes import sha256_of
from segmint.infra.assets.known import ASSETS
from segmint.infra.assets.resolve import resolve
from segmint.infra.device import Compute, resolve_compute
from segmint.infra.errors import UsageError
from segmint.infra.peak import measure_peak
from segmint.infra.ray_session import cores_here
from segmint.infra.storage.storage import Storage
from segmint.infra.uris import join
from segmint.model.cost import image_cost
from segmint.operators.segment.numerics import resolve_numerics
from segmint.pipeline.config.config import Config
from segmint.pipeline.dataset.cpu_actors import actors_that_fit
from segmint.pipeline.dataset.dataset import check_begun_alike, require_catalog, require_rows
from segmint.pipeline.dataset.first_numerics import compute_here
from segmint.pipeline.execution.ceiling import Ceiling, flop_per_image
from segmint.pipeline.plan.sample import STAGES, Sample, run_sample
from segmint.pipeline.shard_ranges import ShardPart, choose_shards

DEFAULT_SHARE = 0.3
"""Share of the ceiling that is assumed where nothing is measured and no `--share` given."""

DETECTORS_WARNING_ROWS = 10_000
"""A plan for more rows than this says what the bundled detectors are for."""

RESAMPLES = 1000
"""How often a sample's rows are drawn again, with repetition, for the spread of an estimate."""

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PlanOptions:
    """What a plan is asked for beside the configuration. Raises `UsageError` for numbers that make no sense."""

    shards: tuple[int, int] | ShardPart | None = None
    sample: int | None = None  # rows
    gpus: int | None = None  # None: those of this machine
    price: float | None = None  # of a GPU-hour; of a core-hour where the device is a CPU
    share: float | None = None  # of the ceiling, 0 to 1; None: DEFAULT_SHARE, or measured by the sample
    flops: float | None = None  # peak of one GPU that is not here, operations a second

    def __post_init__(self) -> None:
        checks: list[tuple[str, float | None, Callable[[float], bool], str]] = [
            ("--sample", self.sample, lambda value: value >= 1, "a number of rows from 1"),
            ("--gpus", self.gpus, lambda value: value >= 1, "a number of GPUs from 1"),
            ("--price", self.price, lambda value: value >= 0, "the price of an hour, 0 or more"),
            ("--share", self.share, lambda value: 0 < value <= 1, "a share over 0, and at most 1"),
            ("--flops", self.flops, lambda value: value > 0, "operations a second, as in 9.9e14"),
        ]
        for name, value, fits, expected in checks:
            if value is not None and not (math.isfinite(value) and fits(value)):
                raise UsageError(f"{name} is {value:g}: expected {expected}")
        if self.share is not None and self.sample is not None and self.flops is None:
            raise UsageError("--share is an assumption about what --sample measures: give one of them")


@dataclass(frozen=True)
class Estimate:
    """A total with the 95 % interval that a sample gives it; both ends are `value` where nothing was extrapolated."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Plan:
    """What is to be built, and what that takes."""

    catalog: str
    catalog_rows: int
    counted_by: str
    committed: int  # shards, of those asked for, that stand already
    rows: int  # left to build
    shards: int
    encodes_per_image: int
    prompts_per_image: int
    images: Estimate  # every row, where no sample says how many are refused
    bytes_in: Estimate | None  # None: unknown without a sample
    bytes_out: Estimate | None
    masks: Estimate | None
    ceiling: Ceiling
    hardware: str
    measured: bool  # whether time comes from the sample; else from the ceiling and an assumption
    share_of_ceiling: float  # assumed, or what the sample reached
    device_hours: Estimate  # GPU-hours, or core-hours where the device is a CPU
    days: Estimate
    cpu_core_hours: Estimate | None  # of the stages beside the GPUs, measured on this machine's CPU
    price: float | None
    cost: Estimate | None
    sample: Sample | None
    notes: tuple[str, ...]

    @property
    def hours_of(self) -> str:
        """What an hour of `device_hours` is of."""
        return "GPU" if self.ceiling.device == "cuda" else "core"

    def to_dict(self) -> dict[str, Any]:
        """The plan as JSON has it: all fields, what an hour is of, and the totals of encodes and prompts."""
        return {
            **asdict(self),
            "hours_of": self.hours_of,
            "encodes": asdict(_scaled(self.images, self.encodes_per_image)),
            "prompts": asdict(_scaled(self.images, self.prompts_per_image)),
            "ceiling_images_per_s": self.ceiling.images_per_s,
            "rejected": {} if self.sample is None else {k: len(rows) for k, rows in self.sample.rejected.items()},
        }

    def lines(self) -> list[str]:
        """The plan as a person reads it."""
        standing = f", beside {self.committed:,} that are committed" if self.committed else ""
        most = "" if self.sample else "at the most, "
        each = f"{most}at {{:,}} an image"
        lines = [
            _line("catalog", f"{self.catalog_rows:,}", f"rows, by {self.counted_by}"),
            _line("to build", f"{self.rows:,}", f"rows in {self.shards:,} shards{standing}"),
        ]
        if not self.rows:
            return [*lines, "nothing is left to do"]
        if self.sample is not None:
            lines += self._sample_lines(self.sample)
        lines += [
            _line("images", *_shown(self.images, most or "of these rows")),
            _line(
                "encodes", *_shown(_scaled(self.images, self.encodes_per_image), each.format(self.encodes_per_image))
            ),
            _line(
                "prompts", *_shown(_scaled(self.images, self.prompts_per_image), each.format(self.prompts_per_image))
            ),
            _line("masks", *_shown(self.masks, "")),
            _line("bytes in", *_shown_bytes(self.bytes_in)),
            _line("bytes out", *_shown_bytes(self.bytes_out)),
            _line("ceiling", f"{self.ceiling.images_per_s:,.3g}", f"images/s by plain algebra on {self.hardware}"),
            self._share_line(),
            _line("time", *_shown(self.device_hours, f"{self.hours_of}-hours")),
            _line("days", *_shown(self.days, f"on {self._devices()}")),
        ]
        if self.cpu_core_hours is not None:
            beside = "core-hours beside the GPUs: all stages but segment, at this machine's speed"
            lines.append(_line("CPUs", *_shown(self.cpu_core_hours, beside)))
        if self.cost is not None:
            lines.append(_line("cost", *_shown(self.cost, f"at {self.price:g} a {self.hours_of}-hour")))
        return lines + [f"note: {note}" for note in self.notes]

    def _devices(self) -> str:
        ceiling = self.ceiling
        if ceiling.device == "cuda":
            return f"{ceiling.devices:,} GPU{'s' * (ceiling.devices > 1)}"
        cores = ceiling.devices * ceiling.threads
        return f"this machine's CPU, {cores} core{'s' * (cores > 1)}"

    def _share_line(self) -> str:
        share = f"{100 * self.share_of_ceiling:.3g} %"
        if self.measured:
            return _line("reached", share, "of the ceiling by the sample, all that the device waits for included")
        return _line("assumed", share, "of the ceiling: an assumption (--share), not a measurement")

    def _sample_lines(self, sample: Sample) -> list[str]:
        lines = [
            _line(
                "sample",
                f"{len(sample.rows):,}",
                f"rows in {sample.seconds:,.1f} s, {sample.start_s:,.1f} s of it to start; {sample.device}, "
                f"{sample.threads} thread{'s' * (sample.threads > 1)}",
            )
        ]
        for stage in STAGES:
            seconds = [getattr(row, f"{stage}_s") for row in sample.rows if row.reason is None]
            if seconds:
                spread = f"s an image, {min(seconds):.3g} to {max(seconds):.3g}"
                lines.append(_line(f"  {stage}", f"{sum(seconds) / len(seconds):.3g}", spread))
        for name, title in (("bytes_in", "read"), ("released_bytes", "JPEG"), ("annotation_bytes", "JSON")):
            sizes = [getattr(row, name) for row in sample.rows if row.reason is None]
            if sizes:
                spread = f"an image, {_size(min(sizes))} to {_size(max(sizes))}"
                lines.append(_line(f"  {title}", _size(sum(sizes) / len(sizes)), spread))
        refused = len(sample.rows) - sample.accepted
        lines.append(_line("rejected", f"{refused:,}", f"of the sample's {len(sample.rows):,} rows"))
        for reason, rows in sample.rejected.items():
            first = rows[0]
            lines.append(f"  {reason:<24} {len(rows):>8,}  row {first.ordinal + 1}: {first.detail}")
        return lines


def make_plan(config: Config, options: PlanOptions, tell: Callable[[str], None] = lambda _: None) -> Plan:
    """Plans the build of `config`; reads, and writes nothing but a sample's shards into a temporary folder.

    `tell` hears how a sample goes on. Raises `UsageError` for what `segmint build` would refuse, and for options that
    do not fit this machine; `SegmintError` where a row of the sample cannot be judged.
    """
    storage = Storage(config.storage)
    require_catalog(config, storage)
    for file in config.deidentify.detector_files.values():
        resolve(file, mirror=config.assets, storage=storage)
    standing = read_manifest(storage, config.output)
    if standing is not None:
        weights = resolve(config.model.weights, mirror=config.assets, storage=storage)
        check_begun_alike(config, storage, standing, weights)
    ceiling, compute = _ceiling(config, options, standing, storage)
    catalog_rows = count_rows(config.catalog, storage)
    require_rows(config, catalog_rows)
    work = _Work.of(config, storage, options, catalog_rows, standing)

    sample = None
    if options.sample is not None and work.rows:
        ordinals = [work.ordinal(position) for position in spread_evenly(work.rows, options.sample)]
        digest = sha256_of(resolve(config.model.weights, mirror=config.assets, storage=storage))
        here = compute or _compute_for_sample(config)
        pinned = standing.policy_date if standing is not None else config.license.policy_date
        policy = config.license.policy(pinned or datetime.now(UTC).date())
        rows = _sample_rows(config, storage, standing, ordinals)
        sample = run_sample(config, rows, resolve_numerics(here, config.model, config.masks, digest), policy, tell)
    return _assemble(config, options, catalog_rows, work, ceiling, sample)


@dataclass(frozen=True)
class _Piece:
    """Shards of one part of the catalog: all are full but the last of the part."""

    shards: Sequence[int]  # ascending
    rows: int


@dataclass(frozen=True)
class _Work:
    """The shards that a run would build."""

    images_per_shard: int
    pieces: Sequence[_Piece]  # a part of the catalog each, in order
    committed: int
    pinned_rows: int | None  # that the dataset holds; None where it was not begun

    @classmethod
    def of(
        cls, config: Config, storage: Storage, options: PlanOptions, rows: int, standing: DatasetManifest | None
    ) -> "_Work":
        """All shards asked for, without those that are committed; of a catalog of so many rows, or of a dataset's."""
        size = config.images_per_shard
        parts = [(0, rows)] if standing is None else [(part.first_shard, part.rows) for part in standing.catalog]
        wanted = choose_shards(parts[-1][0] - (-parts[-1][1] // size), options.shards)
        done = CommitLog(storage, config.output).committed() if standing is not None else {}
        pieces = []
        for first, count in parts:
            stop = first - (-count // size)
            inside = range(max(first, wanted.start), min(stop, wanted.stop))
            shards: Sequence[int] = [shard for shard in inside if shard not in done] if done else inside
            short = (stop - first) * size - count if shards and shards[-1] == stop - 1 else 0
            pieces.append(_Piece(shards, len(shards) * size - short))
        pinned = None if standing is None else sum(part.rows for part in standing.catalog)
        return cls(size, pieces, len(wanted) - sum(len(piece.shards) for piece in pieces), pinned)

    @property
    def shards(self) -> int:
        """How many shards are left."""
        return sum(len(piece.shards) for piece in self.pieces)

    @property
    def rows(self) -> int:
        """How many rows they take."""
        return sum(piece.rows for piece in self.pieces)

    def ordinal(self, position: int) -> int:
        """The ordinal of the row at a position among those to build; raises `IndexError` where there is none."""
        for piece in self.pieces:
            if position < piece.rows:
                shard, row = divmod(position, self.images_per_shard)
                return piece.shards[shard] * self.images_per_shard + row
            position -= piece.rows
        raise IndexError("there are not so many rows")


def _sample_rows(
    config: Config, storage: Storage, standing: DatasetManifest | None, ordinals: Sequence[int]
) -> pa.Table:
    """The rows with these ordinals: of the catalog, or of the dataset's own copy where it was begun."""
    if standing is None:
        return read_rows_at(config.catalog, storage, ordinals)
    tables = []
    for part in standing.catalog:
        with NormalizedRows(storage, join(config.output, part.path)) as rows:
            tables.append(rows.take(ordinals))
    return pa.concat_tables(tables)


def _ceiling(
    config: Config, options: PlanOptions, standing: DatasetManifest | None, storage: Storage
) -> tuple[Ceiling, Compute | None]:
    """The ceiling of the devices planned for, and this machine's own where it is one of them."""
    work = flop_per_image(config, lambda: resolve(config.model.weights, mirror=config.assets, storage=storage))
    pinned = standing.numerics if standing is not None else {}
    device = str(pinned.get("device", config.model.device))
    precision = str(pinned.get("precision", config.model.precision))
    if options.flops is not None:
        if device == "cpu":
            raise UsageError("--flops is the peak of a GPU, and model.device is cpu: leave one of them out")
        return Ceiling("cuda", "", precision, 1, options.gpus or 1, options.flops, work), None
    model = config.model.model_copy(update={"device": device, "precision": precision})
    if "threads" in pinned:
        model = model.model_copy(update={"threads": pinned["threads"]})
    weights_bytes = _weights_bytes(config, storage)
    compute = compute_here(model, weights_bytes)
    if compute.kind == "cuda":
        import torch

        devices = options.gpus or torch.cuda.device_count()
        kind = torch.cuda.get_device_name(compute.device)
    else:
        import torch

        if options.gpus is not None:
            raise UsageError(
                "--gpus was given, and the plan is for a CPU (torch sees no GPU here, or model.device is cpu): for "
                "GPUs that are not here give the peak of one, as in --flops 9.9e14, from its data sheet or a build"
            )
        actors = config.resources.segment.actors
        devices = max(1, cores_here() // compute.threads)
        if actors == "auto":
            devices = actors_that_fit(devices, weights_bytes)
        else:
            devices = min(devices, actors if isinstance(actors, int) else actors[1])
        kind = torch.backends.cpu.get_cpu_capability()
    peak = measure_peak(compute)
    return Ceiling(compute.kind, kind, compute.precision, compute.threads, devices, peak, work), compute


def _weights_bytes(config: Config, storage: Storage) -> int:
    """The checkpoint's size; of a known name it is known without the file."""
    name = config.model.weights
    if name in ASSETS:
        return ASSETS[name].size
    return resolve(name, mirror=config.assets, storage=storage).stat().st_size


def _compute_for_sample(config: Config) -> Compute:
    """What this machine computes a sample with, when the plan is for GPUs that are not here."""
    return resolve_compute("auto", "auto", config.model.threads)


def _assemble(
    config: Config, options: PlanOptions, catalog_rows: int, work: _Work, ceiling: Ceiling, sample: Sample | None
) -> Plan:
    rows = sample.rows if sample is not None else ()
    accepted = _column([row.reason is None for row in rows])
    per_row = _Extrapolation(work.rows, len(rows))
    measured = sample is not None and options.flops is None
    on_gpu = ceiling.device == "cuda"
    cores = 1 if on_gpu else ceiling.threads  # units of an hour in one device
    images = per_row.count(accepted) if sample is not None else _exactly(work.rows)
    # On a CPU one device does everything; on a GPU the other stages run beside it.
    busy = _column([row.segment_s if on_gpu else row.seconds for row in rows])
    if measured:
        hours = per_row.total(busy * cores / 3600)
        one = ceiling.images_per_s / ceiling.devices  # the sample ran on one device
        reached = float(accepted.sum()) / (float(busy.sum()) * one) if busy.any() else 0.0
    else:
        reached = DEFAULT_SHARE if options.share is None else options.share
        hours = _scaled(images, ceiling.devices * cores / (reached * ceiling.images_per_s * 3600))
    bytes_out = None
    if sample is not None:
        each = _column([row.released_bytes + row.annotation_bytes + row.table_bytes for row in rows])
        bytes_out = _shifted(per_row.total(each), sample.shard_bytes * work.shards)
    beside = _column([row.seconds - row.segment_s for row in rows])
    cost = None if options.price is None else _scaled(hours, options.price)
    per_image = image_cost(config.masks.settings())
    kind = catalog_format(config.catalog)
    return Plan(
        catalog=config.catalog,
        catalog_rows=catalog_rows,
        counted_by=COUNTED_BY[kind],
        committed=work.committed,
        rows=work.rows,
        shards=work.shards,
        encodes_per_image=per_image.encodes,
        prompts_per_image=per_image.prompts,
        images=images,
        bytes_in=per_row.total(_column([row.bytes_in for row in rows])) if sample is not None else None,
        bytes_out=bytes_out,
        masks=per_row.total(_column([row.masks for row in rows])) if sample is not None else None,
        ceiling=ceiling,
        hardware=_hardware(ceiling, options),
        measured=measured,
        share_of_ceiling=reached,
        device_hours=hours,
        days=_scaled(hours, 1 / (24 * ceiling.devices * cores)),
        cpu_core_hours=per_row.total(beside / 3600) if sample is not None and on_gpu else None,
        price=options.price,
        cost=cost,
        sample=sample,
        notes=tuple(_notes(config, catalog_rows, work, ceiling, sample)),
    )


def _notes(config: Config, catalog_rows: int, work: _Work, ceiling: Ceiling, sample: Sample | None) -> list[str]:
    notes = []
    if work.pinned_rows is not None and catalog_rows > work.pinned_rows:
        notes.append(
            f"the dataset holds {work.pinned_rows:,} rows of this catalog, and they are planned; what is new comes "
            "with `segmint build --grow`"
        )
    if sample is None:
        notes.append("nothing was read but the catalog; --sample N measures N of its rows")
    else:
        notes.append("duplicates are not looked for in a sample: `segmint catalog check` reads all rows")
        if sample.accepted == 0:
            notes.append("no row of the sample was accepted: take a larger sample, or mend the catalog or the policy")
        if sample.device != ceiling.device:
            notes.append(f"the sample ran on this machine's {sample.device}: the GPUs' time is not from it")
    bundled = len(config.deidentify.detectors) > len(config.deidentify.detector_files)
    if work.rows > DETECTORS_WARNING_ROWS and bundled:
        notes.append("the bundled detectors of faces and plates are for trials; their training data may restrict use")
    return notes


def _hardware(ceiling: Ceiling, options: PlanOptions) -> str:
    if options.flops is None:
        return ceiling.hardware
    return f"{ceiling.devices} x GPU (not measured: --flops {options.flops:.4g})"


class _Extrapolation:
    """From the rows of a sample to all rows: the mean, and its spread when the sample is drawn again and again.

    Each interval is one of 95 %. Where every row was sampled there is nothing to extrapolate.
    """

    def __init__(self, rows: int, sampled: int) -> None:
        self._rows = rows
        self._sampled = sampled

    def total(self, values: Floats) -> Estimate:
        """The total over all rows of a quantity, given for each sampled row.

        The spread is the bootstrap's percentile interval (Efron 1979): of two rows the lesser and the greater. It says
        nothing about rows like none of the sample's.
        """
        total = float(values.mean()) * self._rows
        if self._sampled >= self._rows:
            return _exactly(total)
        random = np.random.default_rng(0)  # the same sample gives the same interval
        means = [values[random.integers(0, len(values), len(values))].mean() for _ in range(RESAMPLES)]
        low, high = np.percentile(means, [2.5, 97.5])
        return Estimate(total, float(low) * self._rows, float(high) * self._rows)

    def count(self, fits: Floats) -> Estimate:
        """How many of all rows fit, from 1 or 0 for each sampled row.

        Wilson's score interval (1927), which knows that rows may be refused though none of the sample's was.
        """
        total = float(fits.mean()) * self._rows
        if self._sampled >= self._rows:
            return _exactly(total)
        sampled, share, square = self._sampled, float(fits.mean()), 1.96**2
        middle = (share + square / (2 * sampled)) / (1 + square / sampled)
        half = math.sqrt(share * (1 - share) * square / sampled + (square / (2 * sampled)) ** 2) / (
            1 + square / sampled
        )
        return Estimate(total, max(0.0, middle - half) * self._rows, min(1.0, middle + half) * self._rows)


def _column(values: Sequence[float]) -> Floats:
    return np.asarray(values, np.float64)


def _exactly(value: float) -> Estimate:
    return Estimate(value, value, value)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(estimate.value * factor, estimate.low * factor, estimate.high * factor)


def _shifted(estimate: Estimate, more: float) -> Estimate:
    return Estimate(estimate.value + more, estimate.low + more, estimate.high + more)


def _line(label: str, value: str, rest: str) -> str:
    return f"{label:<10}{value:>16} {rest}".rstrip()


def _shown(estimate: Estimate | None, rest: str) -> tuple[str, str]:
    if estimate is None:
        return "unknown", "without --sample"
    return _number(estimate.value), _with_range(estimate, rest, _number)


def _shown_bytes(estimate: Estimate | None) -> tuple[str, str]:
    if estimate is None:
        return "unknown", "without --sample"
    return _size(estimate.value), _with_range(estimate, "", _size)


def _with_range(estimate: Estimate, rest: str, shown: Callable[[float], str]) -> str:
    rest = rest.rstrip(", ")
    if estimate.low == estimate.high:
        return rest
    return f"{rest} ({shown(estimate.low)} to {shown(estimate.high)})".lstrip()


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _size(size: float) -> str:
    """Bytes in decimal units, three digits: 1.23 GB."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:,.3g} PB"
