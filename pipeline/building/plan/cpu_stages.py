"""Estimates of the CPU time outside `segment` if no sample measures it, and of the cores that keep a GPU busy.

This file also estimates `segmint catalog curate`, which reads every image once at a reduced scale.
"""

import math
from dataclasses import dataclass

import numpy as np

from segmint.infra.wording import counted, number, size
from segmint.operators.prepare.deidentify import DeidentifyConfig
from segmint.pipeline.building.plan.estimates import Estimate

MEGAPIXELS = 16.3
"""Default size of an original: SA-1B's average, 3300 x 4950 (SAM paper, Section 5)."""

SIZES = (0.5, 2.0, 8.0, 16.0, 50.0)
"""Sizes in megapixels of the originals with which `CPU_S` was measured."""

CPU_S = {
    "faces": (0.19, 0.51, 1.25, 1.22, 1.17),
    "turned": (0.11, 0.25, 0.59, 0.82, 0.60),
    "plates": (0.55, 1.11, 1.55, 1.54, 1.57),
    "the rest": (0.01, 0.04, 0.39, 0.51, 0.90),
}
"""CPU seconds of `prepare` per image, with the bundled detectors, one last look, and the original kept for crops.

`turned` is the search for faces in three more orientations. `make bench-prepare` measured the values on one core of an
AMD EPYC. Another CPU took twice as long."""

CURATION_CPU_S = (0.015, 0.018, 0.028, 0.037, 0.056)
"""CPU seconds to curate one JPEG of each size in `SIZES`, without scorers, on one core of an AMD EPYC."""


@dataclass(frozen=True)
class CpuStages:
    """CPU seconds per image in all stages except `segment`, and the number of cores that these stages need per GPU."""

    seconds_an_image: float
    measured: bool  # True: measured by a sample; False: recorded figures
    cores_a_gpu: int | None  # cores that keep one GPU busy; None if the device is a CPU
    limits: str  # slowest stage; on a GPU, it's only slowest with fewer cores per GPU than `cores_a_gpu`

    @property
    def source(self) -> str:
        """Origin of the CPU seconds, as text."""
        return "measured in the sample" if self.measured else "recorded on another CPU, not measured here"


def recorded_seconds(config: DeidentifyConfig, megapixels: float) -> float:
    """Return the recorded CPU seconds of `prepare` for an original of `megapixels` megapixels.

    The cost of a custom detector file is unknown, so it counts like the bundled detector. Detectors on a GPU don't
    count.
    """
    shares = dict.fromkeys(("the rest", *(config.detectors if config.device == "cpu" else ())), 1.0)
    if "faces" in shares:
        shares["turned"] = (len(config.orientations) - 1) / 3
    each = {part: float(np.interp(megapixels, (0.0, *SIZES), (0.0, *CPU_S[part]))) for part in shares}
    seconds = sum(share * each[part] for part, share in shares.items())
    return seconds * max(1.0, megapixels / SIZES[-1])


def compare(seconds: float, segment_seconds: float, *, measured: bool, on_gpu: bool) -> CpuStages:
    """Compare the CPU seconds per image of the other stages with the seconds of `segment` on one GPU or one core."""
    if not on_gpu:
        return CpuStages(seconds, measured, None, "prepare" if seconds > segment_seconds else "segment")
    cores = math.ceil(seconds / segment_seconds) if segment_seconds else 1
    return CpuStages(seconds, measured, max(1, cores), "prepare")


@dataclass(frozen=True)
class CpuNodes:
    """CPU nodes that support GPU nodes with too few cores, and the cost of a build with and without them."""

    own_cores: int  # cores per GPU on the GPU nodes
    more_cores: int  # additional cores per GPU on CPU nodes
    core_hours: float  # core-hours of the CPU nodes while the GPUs compute
    price: float  # per core-hour
    cost: float
    starved_hours: float | None  # GPU-hours if the GPUs wait for their own cores; None if they have none

    def lines(self) -> list[str]:
        """Return the cost as lines of a plan."""
        found = [
            f"{'CPU nodes':<10}{number(self.cost):>16} at {self.price:g} per core-hour, for {self.more_cores:,} more "
            f"cores per GPU than the {self.own_cores:,} of the GPU nodes: {number(self.core_hours)} core-hours"
        ]
        if self.more_cores and self.starved_hours is not None:
            found.append(f"{'without':<10}{number(self.starved_hours):>16} GPU-hours, because the GPUs wait for CPUs")
        return found


def price_nodes(stages: CpuStages, gpu_hours: float, own_cores: int, price: float | None) -> CpuNodes | None:
    """Price the CPU nodes that GPU nodes with `own_cores` cores per GPU need. Returns None on a CPU or without a price.

    `gpu_hours` is the time of GPUs that never wait. The CPU nodes run as long as the GPUs compute. `price` is per
    core-hour.
    """
    if stages.cores_a_gpu is None or price is None:
        return None
    more = max(0, stages.cores_a_gpu - own_cores)
    starved = gpu_hours * max(1.0, stages.cores_a_gpu / own_cores) if own_cores else None
    return CpuNodes(own_cores, more, more * gpu_hours, price, more * gpu_hours * price, starved)


GPU_START_S = 60.0
"""Assumed seconds for an actor on a GPU to load its model, compile, and capture graphs. This value wasn't measured."""


@dataclass(frozen=True)
class ActorStarts:
    """Starts of segment actors. Each window of a build starts all actors again."""

    windows: int
    starts: int
    seconds: float  # duration of one start
    measured: bool  # True: measured in the sample; False: assumed
    device_hours: float  # not included in the plan's other figures

    def line(self, hours_of: str) -> str:
        """Return the starts as a line of a plan."""
        source = "measured in the sample" if self.measured else "assumed, not measured"
        return (
            f"{'starts':<10}{self.starts:>16,} of segment actors, in {counted(self.windows, 'window')}: "
            f"{number(self.device_hours)} {hours_of}-hours more at {self.seconds:.3g} s each, {source}"
        )


def count_starts(shards: int, window_shards: object, hours: float, devices: int, seconds: float | None) -> ActorStarts:
    """Count the actor starts on all GPUs or cores, over the windows of a build that takes `hours` without the starts.

    `window_shards` is a number, or auto for windows of an hour. `seconds` is the time of one start, or None if it
    wasn't measured.
    """
    windows = min(shards, math.ceil(shards / window_shards if isinstance(window_shards, int) else max(1.0, hours)))
    each = GPU_START_S if seconds is None else seconds
    return ActorStarts(windows, windows * devices, each, seconds is not None, windows * devices * each / 3600)


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
