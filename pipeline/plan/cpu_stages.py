"""The CPU time of the stages besides `segment`, where no sample measures it, and the cores that keep a GPU busy."""

import math
from dataclasses import dataclass

from segmint.operators.prepare.deidentify import DeidentifyConfig

MEGAPIXELS = 16.3
"""Of an original, where nothing is known: SA-1B's average, 3300 x 4950 (SAM paper, Section 5)."""

CPU_S_A_MEGAPIXEL = {"faces": 0.60, "plates": 0.46, "the rest": 0.05}
"""CPU seconds of `prepare` for a megapixel of the original, measured on one core (Intel, 2.5 GHz) on 3300 x 4950 pixels
with the bundled detectors: 9.8 s for faces, 7.5 s for plates, and 0.8 s to decode, to release and for the original."""


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

    A detector that is a file counts as the bundled one: what it takes is not known.
    """
    parts = ["the rest", *config.detectors]
    return megapixels * sum(CPU_S_A_MEGAPIXEL[part] for part in parts)


def compare(seconds: float, segment_seconds: float, *, measured: bool, on_gpu: bool) -> CpuStages:
    """Compare the CPU seconds of an image with those of `segment`: of one GPU, or of a core."""
    if not on_gpu:
        return CpuStages(seconds, measured, None, "prepare" if seconds > segment_seconds else "segment")
    cores = math.ceil(seconds / segment_seconds) if segment_seconds else 1
    return CpuStages(seconds, measured, max(1, cores), "prepare")
