"""Recorded rates, from which a plan without a sample estimates the time: `rates.json`, written by `make tables`.

Every rate names the date and the file of the benchmark result that it comes from. Devices, models, and recipes without
a record get a range that is derived from the closest record, or no estimate at all.

Estimated totals, and their extrapolation from a sample of rows to all rows.

CPU cores that keep a GPU busy, and actor starts.

This file also estimates `segmint catalog curate`, which reads every image once at a reduced scale.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from segmint.infra.arrays import Floats
from segmint.infra.device import DecoderPrecision
from segmint.infra.wording import counted, number, size
from segmint.model.automatic.settings import MaskSettings
from segmint.operators.intervals import mean_intervals, wilson
from segmint.operators.prepare.deidentify import DeidentifyConfig

ENCODERS_UP_TO_VIT_H = ("mobile_sam", "vit_b", "vit_l", "vit_h")
"""Models whose decoder is the same as ViT-H's, and whose image encoder isn't slower."""


MEASURED, DATA_SHEET, GIVEN = "measured", "from its data sheet", "given by --flops"
"""Origins of a GPU's peak."""


@dataclass(frozen=True)
class Card:
    """GPU to plan for, with the limits that set its speed compared with a measured GPU."""

    name: str  # "" if only its peak is known
    flop_per_s: float  # peak in bfloat16
    bytes_per_s: float | None = None  # memory bandwidth; None if unknown
    peak_is: str = MEASURED


DATA_SHEETS = (
    Card("H100 PCIe", 7.56e14, 2.04e12, DATA_SHEET),
    Card("H100", 9.89e14, 3.35e12, DATA_SHEET),
    Card("H200", 9.89e14, 4.8e12, DATA_SHEET),
    Card("B200", 2.25e15, 8e12, DATA_SHEET),
    Card("A100", 3.12e14, 2.04e12, DATA_SHEET),
    Card("L40S", 3.62e14, 8.64e11, DATA_SHEET),
    Card("L4", 1.21e14, 3e11, DATA_SHEET),
)
"""Dense bfloat16 peaks and memory bandwidths by NVIDIA's data sheets, for the SXM or only variant unless named."""


def data_sheet(name: str) -> Card | None:
    """Return the data sheet of a GPU by a name such as `H100` or torch's `NVIDIA H100 80GB HBM3`, or None."""
    words = name.upper().replace("-", " ").split()
    for card in () if "MIG" in words else DATA_SHEETS:
        if all(word in words for word in card.name.upper().split()):
            return card
    return None


def known_cards() -> list[str]:
    """Return the names of the GPUs whose peak is recorded or in `DATA_SHEETS`."""
    return sorted({_plain(rate.device) for rate in read_rates().gpus} | {card.name for card in DATA_SHEETS})


def card_named(name: str, flop_per_s: float | None = None, peak_is: str = MEASURED) -> Card | None:
    """Return a GPU by its name and peak. Without a peak, it's the recorded one or the data sheet's.

    Returns None for an unknown name without a peak.
    """
    sheet = data_sheet(name)
    bytes_per_s = None if sheet is None else sheet.bytes_per_s
    if flop_per_s is not None:
        return Card(name, flop_per_s, bytes_per_s, peak_is)
    for rate in read_rates().gpus:
        if _plain(rate.device) == _plain(name):
            return Card(rate.device, rate.flop_per_s, bytes_per_s)
    return None if sheet is None else replace(sheet, name=name)


@dataclass(frozen=True)
class GpuRate:
    """Seconds per image on one GPU, measured with the generator alone, in one recipe."""

    device: str  # torch's name of the GPU
    model: str
    precision: str
    flop_per_s: float  # the GPU's peak, measured as a build measures it
    encode_s: float  # seconds of one pass through the image encoder
    points_per_side: int
    crop_n_layers: int
    crop_n_points_downscale_factor: int
    find_s: float  # until the GPU has found the masks
    finish_s: float  # until they are finished on the CPU afterward; an actor overlaps this with the next image
    host_s: float  # seconds of CPU cores in the actor, to decode images, drive the GPU, and finish masks
    drawn: float  # masks above the threshold of predicted IoU
    end_to_end: Mapping[str, Any] | None  # measurement that includes the host's stages, or None
    date: str
    file: str
    decoder_precision: DecoderPrecision = ""  # "": like `precision`

    def fits(self, masks: MaskSettings, precisions: tuple[str, DecoderPrecision]) -> bool:
        """Return whether these are the record's settings. `precisions` are `precision` and `decoder_precision`."""
        recipe = MaskSettings.sa1b(
            points_per_side=self.points_per_side,
            crop_n_layers=self.crop_n_layers,
            crop_n_points_downscale_factor=self.crop_n_points_downscale_factor,
            points_per_chunk=masks.points_per_chunk,
        )
        return masks == recipe and precisions == (self.precision, self.decoder_precision)


@dataclass(frozen=True)
class SegmentTime:
    """Device-seconds of `segment` per image, from a record. The two ends differ unless the record is end to end."""

    low_s: float
    high_s: float
    host_s: float  # core-seconds per image of a GPU's actor; 0 on a CPU
    drawn: float | None  # masks per image; None if the record is a share of the ceiling
    source: str  # device, date, and file of the record
    unmeasured: tuple[str, ...]  # what differs from the record, as notes


def gpu_time(
    card: Card, model: str, precisions: tuple[str, DecoderPrecision], masks: MaskSettings
) -> SegmentTime | None:
    """Return the time per image on `card`. Returns None if no GPU was measured with this recipe and these precisions.

    - On a measured GPU with a measured model, the time is the record's. Without an end-to-end measurement, the ends of
      the range are finding masks alone, and finding, then finishing.
    - A model with a smaller encoder than the measured one takes at most as long, and at least as long without encoder.
    - On other GPUs, the time to find masks is scaled by the ratios of the peaks and, if known, the memory bandwidths.
    """
    fitting = [rate for rate in read_rates().gpus if rate.fits(masks, precisions)]
    if model not in ENCODERS_UP_TO_VIT_H or not fitting:
        return None
    rate = min(fitting, key=lambda rate: _plain(rate.device) != _plain(card.name))
    known = card.peak_is == MEASURED and _plain(card.name) == _plain(rate.device)
    ratios = [1.0] if known else _slowdowns(card, rate)
    unmeasured = []
    low, high = rate.find_s * min(ratios), rate.find_s * max(ratios)
    if rate.end_to_end is None or not known:
        high += rate.finish_s
    elif rate.end_to_end["ray"]:
        low = high = 1 / rate.end_to_end["images_per_s"]
    if model != rate.model:
        low -= masks.encodes * rate.encode_s * min(ratios)
        unmeasured.append(
            f"{model} has not been measured on a GPU: the range is from {rate.model}'s time without the encoder to its "
            "whole time"
        )
    if not known:
        unmeasured.append(
            f"not measured on this device: the range is scaled from {rate.device} by the GPUs' peaks"
            f"{' and memory bandwidths' if card.bytes_per_s else ''}. To measure it, run `segmint plan --sample 20` on "
            "a machine with this GPU"
        )
    if rate.end_to_end is None:
        unmeasured.append(
            "no end-to-end measurement of full images on a GPU: the range is from finding masks alone to finding, then "
            "finishing them"
        )
    elif not rate.end_to_end["ray"]:
        unmeasured.append(
            f"no build with Ray has been timed with this recipe on {rate.device}, where "
            f"{rate.end_to_end['what']} reached {rate.end_to_end['images_per_s']:.3g} images/s "
            f"({rate.end_to_end['file']})"
        )
    source = f"{'recorded' if known else 'scaled from a record'} on {rate.device} on {rate.date} ({rate.file})"
    return SegmentTime(max(low, 0.0), high, rate.host_s, rate.drawn, source, tuple(unmeasured))


def _plain(device: str) -> str:
    """Return the name of a GPU without its vendor, in upper case."""
    return device.upper().removeprefix("NVIDIA ").strip()


def _slowdowns(card: Card, rate: GpuRate) -> list[float]:
    """Return how many times slower a card may be than the recorded one: by peaks, and by memory bandwidths."""
    recorded = data_sheet(rate.device)
    ratios = []
    if card.peak_is != DATA_SHEET:
        ratios.append(rate.flop_per_s / card.flop_per_s)
    if card.peak_is != MEASURED and recorded is not None:
        ratios.append(recorded.flop_per_s / card.flop_per_s)
    if card.bytes_per_s is not None and recorded is not None and recorded.bytes_per_s is not None:
        ratios.append(recorded.bytes_per_s / card.bytes_per_s)
    return ratios


@dataclass(frozen=True)
class CpuRate:
    """Lowest and highest share of the ceiling that whole images reached on one kind of CPU, over several recipes."""

    device: str  # instruction set that torch uses
    cpu: str
    model: str
    precision: str
    least_share: float
    most_share: float
    date: str
    file: str


def cpu_time(capability: str, model: str, precision: str, images_per_s: float) -> SegmentTime | None:
    """Return the time per image on a CPU whose ceiling is `images_per_s`. Returns None if the model has no record."""
    known = [rate for rate in read_rates().cpus if (rate.model, rate.precision) == (model, precision)]
    fitting = [rate for rate in known if rate.device == capability] or known
    if not fitting:
        return None
    least, most = min(rate.least_share for rate in fitting), max(rate.most_share for rate in fitting)
    source = "recorded on " + "; ".join(f"{rate.cpu}, {rate.device} on {rate.date} ({rate.file})" for rate in fitting)
    note = (
        "not measured on this device: the share of the ceiling was recorded on another CPU. To measure it, pass "
        "--sample 20"
    )
    return SegmentTime(1 / (most * images_per_s), 1 / (least * images_per_s), 0.0, None, source, (note,))


@dataclass(frozen=True)
class PrepareRate:
    """CPU seconds of `prepare` per image by size of the original, with the bundled detectors and one last look.

    The lists are parallel to `megapixels`. `turned` is the search for faces in three more orientations.
    """

    cpu: str
    megapixels: Sequence[float]
    with_original: Mapping[str, Sequence[float]]
    without_original: Mapping[str, Sequence[float]]
    date: str
    file: str


@dataclass(frozen=True)
class WritingRate:
    """Speed of a build's shard writers, and CPU seconds of the processes of which a build has only one."""

    cpu: str
    rows_per_s_of_a_writer: float
    core_s_per_row: float  # all processes except `prepare` and `segment`
    rows_per_block: Sequence[int]
    driver_s_per_block: Sequence[float]  # by `rows_per_block`
    ledger_s_per_row: float
    date: str
    file: str

    def rows_per_s(self, writers: int, rows_per_block: int) -> float:
        """Return the maximum rows per second of a build with this number of shard writers."""
        block_s = float(np.interp(rows_per_block, self.rows_per_block, self.driver_s_per_block))
        return min(writers * self.rows_per_s_of_a_writer, rows_per_block / block_s, 1 / self.ledger_s_per_row)


@dataclass(frozen=True)
class Rates:
    """All recorded rates."""

    gpus: tuple[GpuRate, ...]
    cpus: tuple[CpuRate, ...]
    prepare: PrepareRate
    writing: WritingRate


@cache
def read_rates() -> Rates:
    """Read the recorded rates, which are a file of the package."""
    found = json.loads(files("segmint.pipeline.building").joinpath("rates.json").read_text(encoding="utf-8"))
    return Rates(
        tuple(GpuRate(**rate) for rate in found["gpus"]),
        tuple(CpuRate(**rate) for rate in found["cpus"]),
        PrepareRate(**found["prepare"]),
        WritingRate(**found["writing"]),
    )


def prepare_seconds(config: DeidentifyConfig, megapixels: float, *, with_original: bool) -> float:
    """Return the recorded CPU seconds of `prepare` for an original of `megapixels` megapixels.

    The cost of a custom detector file is unknown, so it counts like the bundled detector. Detectors on a GPU don't
    count. `with_original` is true if crops are cut from the original.
    """
    rate = read_rates().prepare
    cpu_s = rate.with_original if with_original else rate.without_original
    shares = {"rest": 1.0}
    if config.device == "cpu":
        shares |= dict.fromkeys(config.detectors, 1.0)
    if "faces" in shares:
        shares["turned"] = (len(config.orientations) - 1) / 3
    sizes = (0.0, *rate.megapixels)
    seconds = 0.0
    for part, share in shares.items():
        seconds += share * float(np.interp(megapixels, sizes, (0.0, *cpu_s[part])))
    return seconds * max(1.0, megapixels / sizes[-1])


@dataclass(frozen=True)
class Estimate:
    """Estimated total with its 95% confidence interval. If nothing was extrapolated, both ends equal `value`.

    For a time that wasn't measured, the ends are those of the possible range, and `value` is the slow one.
    """

    value: float
    low: float
    high: float

    def scaled(self, factor: float) -> "Estimate":
        """Return the estimate multiplied by a factor."""
        return Estimate(self.value * factor, self.low * factor, self.high * factor)

    def plus(self, other: "Estimate") -> "Estimate":
        """Return the sum of two estimates. At most one of them may have an interval."""
        return Estimate(self.value + other.value, self.low + other.low, self.high + other.high)

    def at_least(self, other: "Estimate") -> "Estimate":
        """Return the larger of two estimates at each end, for stages that run at the same time."""
        return Estimate(max(self.value, other.value), max(self.low, other.low), max(self.high, other.high))


def exactly(value: float) -> Estimate:
    """Return a total that is known exactly."""
    return Estimate(value, value, value)


def column(values: Sequence[float]) -> Floats:
    """Convert one number per sampled row to an array of shape (rows,)."""
    return np.asarray(values, np.float64)


class Extrapolation:
    """Extrapolation from sampled rows to all rows, with 95% confidence intervals.

    If every row was sampled, the totals are exact.
    """

    def __init__(self, rows: int, sampled: int) -> None:
        self._rows = rows
        self._sampled = sampled

    def total(self, values: Floats) -> Estimate:
        """Estimate the total of a quantity over all rows. `values` contains the quantity for each sampled row.

        If there are too few rows for an interval, or all values are equal, the ends are extrapolated from the lowest
        and the highest value. The interval doesn't account for rows that are unlike all sampled rows.
        """
        total = float(values.mean()) * self._rows
        if self._sampled >= self._rows:
            return exactly(total)
        (interval,) = mean_intervals(values[:, None], np.ones(len(values)), limits=(0.0, np.inf))
        low, high = interval or (float(values.min()), float(values.max()))
        return Estimate(total, low * self._rows, high * self._rows)

    def count(self, fits: Floats) -> Estimate:
        """Estimate the number of rows with a property. `fits` contains 1 or 0 for each sampled row.

        The interval is Wilson's (1927). Even if the sample contains no rejected row, this interval allows for some.
        """
        total = float(fits.mean()) * self._rows
        if self._sampled >= self._rows:
            return exactly(total)
        low, high = wilson(float(fits.mean()), self._sampled)
        return Estimate(total, low * self._rows, high * self._rows)


MEGAPIXELS = 16.3
"""Default size of an original: SA-1B's average, 3300 x 4950 (SAM paper, Section 5)."""

SIZES = (0.5, 2.0, 8.0, 16.0, 50.0)
"""Sizes in megapixels of the originals with which `CURATION_CPU_S` was measured."""

CURATION_CPU_S = (0.015, 0.018, 0.028, 0.037, 0.056)
"""CPU seconds to curate one JPEG of each size in `SIZES`, without scorers, on one core of an AMD EPYC."""


@dataclass(frozen=True)
class CpuStages:
    """CPU seconds per image beside the device that runs `segment`, and the cores that keep a GPU busy."""

    seconds_an_image: float  # of all stages except `segment`, and of a GPU actor's threads that decode and finish
    measured: bool  # True: measured by a sample; False: recorded figures
    cores_a_gpu: int | None  # cores that keep one GPU busy; None if the device is a CPU, or its time is unknown
    fewer_cores: int | None  # half as many, at least 1, for comparison
    fewer_images_per_s: float | None  # images per second of one GPU with `fewer_cores` cores
    limits: str  # slowest of prepare, segment, and writing

    @property
    def source(self) -> str:
        """Origin of the CPU seconds, as text."""
        return "measured in the sample" if self.measured else "recorded on other CPUs, not measured here"


def cpu_stages(seconds: float, segment_s: float | None, limits: str, *, measured: bool) -> CpuStages:
    """Return the cores that keep one GPU busy that takes `segment_s` per image, and what half as many cores reach.

    `seconds` is the CPU seconds per image. `segment_s` is the fast end if the GPU's time is a range, and None if it's
    unknown or if the device is a CPU.
    """
    if not segment_s:
        return CpuStages(seconds, measured, None, None, None, limits)
    cores = max(1, math.ceil(seconds / segment_s))
    fewer = max(1, cores // 2)
    return CpuStages(seconds, measured, cores, fewer, min(fewer / seconds, 1 / segment_s), limits)


@dataclass(frozen=True)
class ActorStarts:
    """Starts of segment actors. Each window of a build starts all actors again."""

    windows: int
    starts: int
    seconds: float  # duration of one start, measured in a sample
    device_hours: float  # not included in the plan's other figures

    def line(self, hours_of: str) -> str:
        """Return the starts as a line of a plan."""
        return (
            f"{'starts':<10}{self.starts:>16,} of segment actors, in {counted(self.windows, 'window')}: "
            f"{number(self.device_hours)} {hours_of}-hours more at {self.seconds:.3g} s each, measured in the sample"
        )


def count_starts(
    shards: int, window_shards: object, hours: float, actors: int, threads: int, seconds: float
) -> ActorStarts:
    """Count the starts of all actors, over the windows of a build that takes `hours` without the starts.

    `window_shards` is a number, or auto for windows of an hour. Each actor has a GPU or, on a CPU, `threads` cores.
    `seconds` is the time of one start.
    """
    windows = min(shards, math.ceil(shards / window_shards if isinstance(window_shards, int) else max(1.0, hours)))
    return ActorStarts(windows, windows * actors, seconds, windows * actors * threads * seconds / 3600)


@dataclass(frozen=True)
class Curation:
    """Estimated cost of inspecting all images of a catalog."""

    rows: int
    seconds_an_image: float  # seconds of one core, recorded on another machine
    core_hours: float
    bytes_in: Estimate | None  # None (unknown) without a sample
    scorers: int  # number of scorers, whose cost is unknown

    def line(self) -> str:
        """Return the cost as a line of a plan."""
        read = "" if self.bytes_in is None else f", reading {size(self.bytes_in.value)}"
        more = f", and {counted(self.scorers, 'scorer')} of unknown cost" if self.scorers else ""
        return (
            f"{'curate':<10}{number(self.core_hours):>16} core-hours once, for all {self.rows:,} rows{read}: "
            f"{self.seconds_an_image:.2g} s per image{more}, recorded on another CPU, not measured here"
        )


def price_curation(rows: int, megapixels: float, scorers: int, an_image: Estimate | None) -> Curation:
    """Estimate the cost of curating `rows` rows. `an_image` is the bytes per image, or None without a sample."""
    seconds = float(np.interp(megapixels, SIZES, CURATION_CPU_S)) * max(1.0, megapixels / SIZES[-1])
    return Curation(rows, seconds, rows * seconds / 3600, None if an_image is None else an_image.scaled(rows), scorers)
