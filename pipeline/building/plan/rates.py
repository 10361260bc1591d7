"""Recorded rates, from which a plan without a sample estimates the time: `rates.json`, written by `make tables`.

Every rate names the date and the file of the benchmark result that it comes from. Devices, models, and recipes without
a record get a range that is derived from the closest record, or no estimate at all.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import Any

import numpy as np

from segmint.model.automatic.settings import MaskSettings
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

    def fits(self, masks: MaskSettings, precision: str) -> bool:
        """Return whether these are the record's settings."""
        recipe = MaskSettings.sa1b(
            points_per_side=self.points_per_side,
            crop_n_layers=self.crop_n_layers,
            crop_n_points_downscale_factor=self.crop_n_points_downscale_factor,
            points_per_chunk=masks.points_per_chunk,
        )
        return masks == recipe and precision == self.precision


@dataclass(frozen=True)
class SegmentTime:
    """Device-seconds of `segment` per image, from a record. The two ends differ unless the record is end to end."""

    low_s: float
    high_s: float
    host_s: float  # core-seconds per image of a GPU's actor; 0 on a CPU
    drawn: float | None  # masks per image; None if the record is a share of the ceiling
    source: str  # device, date, and file of the record
    unmeasured: tuple[str, ...]  # what differs from the record, as notes


def gpu_time(card: Card, model: str, precision: str, masks: MaskSettings) -> SegmentTime | None:
    """Return the time per image on `card`. Returns None if no GPU was measured with this recipe.

    - On a measured GPU with a measured model, the time is the record's. Without an end-to-end measurement, the ends of
      the range are finding masks alone, and finding, then finishing.
    - A model with a smaller encoder than the measured one takes at most as long, and at least as long without encoder.
    - On other GPUs, the time to find masks is scaled by the ratios of the peaks and, if known, the memory bandwidths.
    """
    fitting = [rate for rate in read_rates().gpus if rate.fits(masks, precision)]
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
    found = json.loads(files("segmint.pipeline.building.plan").joinpath("rates.json").read_text(encoding="utf-8"))
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
