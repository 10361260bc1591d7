"""CPU cores that keep a GPU busy, and actor starts.

This file also estimates `segmint catalog curate`, which reads every image once at a reduced scale.
"""

import math
from dataclasses import dataclass

import numpy as np

from segmint.infra.wording import counted, number, size
from segmint.pipeline.building.plan.estimates import Estimate

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


def count_starts(shards: int, window_shards: object, hours: float, devices: int, seconds: float) -> ActorStarts:
    """Count the actor starts on all GPUs or cores, over the windows of a build that takes `hours` without the starts.

    `window_shards` is a number, or auto for windows of an hour. `seconds` is the time of one start.
    """
    windows = min(shards, math.ceil(shards / window_shards if isinstance(window_shards, int) else max(1.0, hours)))
    return ActorStarts(windows, windows * devices, seconds, windows * devices * seconds / 3600)


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
