"""The CPU time of the stages besides `segment`, where no sample measures it, and the cores that keep a GPU busy.

Also that of `segmint catalog curate`, which reads every image of the catalog once, at a reduced scale.
"""

import math
from dataclasses import dataclass

import numpy as np

from segmint.infra.wording import counted, number, size
from segmint.operators.prepare.deidentify import DeidentifyConfig
from segmint.pipeline.building.plan.estimates import Estimate

MEGAPIXELS = 16.3
"""Of an original, where nothing is known: SA-1B's average, 3300 x 4950 (SAM paper, Section 5)."""

SIZES = (0.5, 2.0, 8.0, 16.0, 50.0)
"""Megapixels of the originals that `CPU_S` was recorded with."""

CPU_S = {
    "faces": (0.15, 0.42, 0.81, 0.78, 0.84),
    "plates": (0.28, 0.67, 0.83, 0.81, 0.88),
    "the rest": (0.01, 0.02, 0.34, 0.45, 0.86),
}
"""CPU seconds of `prepare`, with the bundled detectors and the original for crops.

One core of an AMD EPYC, by `make bench-prepare`; another CPU took twice as long."""

CURATION_CPU_S = (0.015, 0.018, 0.028, 0.037, 0.056)
"""CPU seconds of a curated image of `SIZES` megapixels, without scorers: JPEGs on one core of an AMD EPYC."""


@dataclass(frozen=True)
class CpuStages:
    """CPU seconds of an image in all stages but `segment`, and how they compare with a GPU's."""

    seconds_an_image: float
    measured: bool  # by a sample; else from recorded figures
    cores_a_gpu: int | None  # that keep one GPU busy; None where the device is a CPU
    limits: str  # the stage that takes most: of the cores, or of a node with fewer cores a GPU than `cores_a_gpu`

    @property
    def source(self) -> str:
        """Where the seconds come from, in words."""
        return "measured in the sample" if self.measured else "recorded on another CPU, not measured here"


def recorded_seconds(config: DeidentifyConfig, megapixels: float) -> float:
    """Return the recorded CPU seconds of `prepare` for an original of so many megapixels.

    A detector that is a file counts as the bundled one: what it takes is not known. Detectors on a GPU do not count.
    """
    counted = ("the rest", *(config.detectors if config.device == "cpu" else ()))
    seconds = sum(float(np.interp(megapixels, (0.0, *SIZES), (0.0, *CPU_S[part]))) for part in counted)
    return seconds * max(1.0, megapixels / SIZES[-1])


def compare(seconds: float, segment_seconds: float, *, measured: bool, on_gpu: bool) -> CpuStages:
    """Compare the CPU seconds of an image with those of `segment`: of one GPU, or of a core."""
    if not on_gpu:
        return CpuStages(seconds, measured, None, "prepare" if seconds > segment_seconds else "segment")
    cores = math.ceil(seconds / segment_seconds) if segment_seconds else 1
    return CpuStages(seconds, measured, max(1, cores), "prepare")


@dataclass(frozen=True)
class Curation:
    """The cost of looking at all images of a catalog."""

    rows: int
    seconds_an_image: float  # of one core, recorded on another machine
    core_hours: float
    bytes_in: Estimate | None  # None: unknown without a sample
    scorers: int  # whose time is not known

    def line(self) -> str:
        """The cost as a line of a plan."""
        read = "" if self.bytes_in is None else f", reading {size(self.bytes_in.value)}"
        more = f", and {counted(self.scorers, 'scorer')} of unknown cost" if self.scorers else ""
        return (
            f"{'curate':<10}{number(self.core_hours):>16} core-hours once, of all {self.rows:,} rows{read}: "
            f"{self.seconds_an_image:.2g} s an image{more}, recorded on another CPU, not measured here"
        )


def price_curation(rows: int, megapixels: float, scorers: int, an_image: Estimate | None) -> Curation:
    """Price a curation of so many rows; `an_image` is how many bytes an image has, where a sample says it."""
    seconds = float(np.interp(megapixels, SIZES, CURATION_CPU_S)) * max(1.0, megapixels / SIZES[-1])
    return Curation(rows, seconds, rows * seconds / 3600, None if an_image is None else an_image.scaled(rows), scorers)
