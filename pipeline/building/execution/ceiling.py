"""Ceiling of a run: the images per second that its devices would produce if they spent time only on matrix products.

The ceiling is the measured peak (`segmint.infra.peak`) divided by the number of operations that the model's algebra
needs per image (`segmint.model.cost`). A run is rated by its images per second, averaged over the whole run, as a
fraction of the ceiling. Slow code affects neither the peak nor the number of operations, so the fraction never exceeds
1. See docs/metric.md for the formula.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segmint.infra.device import DecoderPrecision, describe_precision
from segmint.infra.errors import UsageError
from segmint.infra.peak import measure_peak
from segmint.infra.ray_session import Cluster
from segmint.model.cost import image_cost, mask_flop, tokens_of
from segmint.model.sam.load import VIT_SHAPES, Architecture, SamWeightsError, inspect_checkpoint
from segmint.pipeline.building.dataset import BuildDataset
from segmint.pipeline.config.config import Config, as_pinned

if TYPE_CHECKING:  # this module imports Ray, which a plan doesn't need
    from segmint.pipeline.building.execution.stages import ActorPool

GPU_FLOP_PER_S = 3e14
"""Assumed peak of a GPU in FLOP/s, until its actors measure it. The value lies between an L4 and an H100."""

REACHED = 0.5
"""Assumed fraction of the ceiling that a run reaches."""


@dataclass(frozen=True)
class Ceiling:
    """Maximum throughput of a run's devices for the model's arithmetic, and the numbers that determine it."""

    device: str  # "cpu" or "cuda"
    device_kind: str  # instruction set that torch uses on the CPU, or name of the GPU
    precision: str
    threads: int  # torch threads per device
    devices: int
    flop_per_s: float  # measured peak of one device
    flop_per_image: int  # operations of the network for all crops and prompts of one image, before masks are drawn
    flop_per_mask: int  # minimum number of operations per drawn mask
    drawn_per_image: float = 0.0  # masks above the predicted-IoU threshold; only known after decoding
    decoder_precision: DecoderPrecision = ""  # "": like `precision`

    @property
    def images_per_s(self) -> float:
        """Images per second for all devices together."""
        return self.devices * self.flop_per_s / (self.flop_per_image + self.drawn_per_image * self.flop_per_mask)

    def drawing(self, masks: float) -> "Ceiling":
        """Return the ceiling for an average of `masks` drawn masks per image."""
        return replace(self, drawn_per_image=masks)

    @property
    def hardware(self) -> str:
        """Description of the devices: `1 x cpu (AVX512, fp32, 2 threads, 214 GFLOP/s)`."""
        threads = [f"{self.threads} thread{'s' * (self.threads > 1)}"] if self.device == "cpu" else []
        size, unit = (1e12, "TFLOP/s") if self.flop_per_s >= 1e12 else (1e9, "GFLOP/s")
        precision = describe_precision(self.precision, self.decoder_precision)
        parts = [self.device_kind, precision, *threads, f"{self.flop_per_s / size:.3g} {unit}"]
        return f"{self.devices} x {self.device} ({', '.join(parts)})"


class CeilingMeter:
    """Meter that measures the devices' peak once per run, at the time when the measurement disturbs the run least.

    With a local Ray instance on a CPU, the driver measures the peak in the constructor, before Ray's processes start
    and interfere. Otherwise, each segment actor measures its device when it starts.
    """

    def __init__(self, config: Config, dataset: BuildDataset) -> None:
        """Measure the peak of a CPU. Raises `UsageError` if the weights aren't SAM weights.

        A segmenter's work per image is unknown, so such a run has no ceiling.
        """
        self._numerics = dataset.numerics
        self._flop_per_image = self._flop_per_mask = 0
        if config.segmenter is None:
            pinned = as_pinned(config, dataset.manifest.config)
            self._flop_per_image, self._flop_per_mask = work_of(pinned, dataset.sam_weights)
        self._here = measure_peak(self._numerics.compute) if self._numerics.device == "cpu" else None
        self._peaks: list[float] = []
        self._most_actors = 0

    def note_window(self, peaks: Sequence[float], pool: "ActorPool") -> None:
        """Record the peaks that a window's segment actors measured. Each window starts new actors on the same devices.

        `peaks` can contain more entries than the pool has actors, because a pool may replace actors. In a cluster
        without an autoscaler, later windows may run on more nodes.
        """
        self._peaks += peaks
        self._most_actors = max(self._most_actors, min(len(peaks), pool.largest))

    def expected_rate(self, pool: "ActorPool") -> float | None:
        """Return a rough estimate, before the run, of the images per second that a pool's devices will process.

        Returns None if the work per image is unknown.
        """
        if not self._flop_per_image:
            return None
        peak = self._here if self._here is not None else GPU_FLOP_PER_S
        return REACHED * pool.largest * peak / self._flop_per_image

    def read(self, cluster: Cluster, pool: "ActorPool") -> Ceiling | None:
        """Return the ceiling of the pool's devices, or None if no actor started. All devices count as equal.

        If one machine has too few cores for all threads of its actors, the actors count as fewer devices.
        """
        numerics, peaks = self._numerics, self._peaks
        if cluster.local and self._here is not None:
            peaks, devices = [self._here], min(pool.largest, max(1, cluster.cores // numerics.threads))
        else:  # a growing cluster may not have all of its nodes yet
            devices = max(pool.smallest, self._most_actors)
        if not peaks or not self._flop_per_image:
            return None
        return Ceiling(
            device=numerics.device,
            device_kind=numerics.device_kind,
            precision=numerics.precision,
            threads=numerics.threads,
            devices=devices,
            flop_per_s=statistics.median(peaks),
            flop_per_image=self._flop_per_image,
            flop_per_mask=self._flop_per_mask,
            decoder_precision=numerics.decoder_precision,
        )


def work_of(config: Config, weights: Callable[[], Path]) -> tuple[int, int]:
    """Return the number of operations per image before masks are drawn, and per drawn mask.

    `weights` returns a local copy of the checkpoint. It's only called if the checkpoint must be read. Raises
    `UsageError` if the checkpoint doesn't belong to a SAM.
    """
    architecture, depth = model_of(config.model.weights, weights)
    of_image = image_cost(config.masks.settings()).flop(architecture, depth)
    return of_image, mask_flop(depth, tokens_of(architecture))


def model_of(name: str, weights: Callable[[], Path]) -> tuple[Architecture, int]:
    """Return the architecture and decoder depth of the weights. For known names, the file isn't read.

    Raises `UsageError` if the checkpoint doesn't belong to a SAM.
    """
    if name == "mobile_sam" or name in VIT_SHAPES:
        return name, 2  # type: ignore[return-value]
    try:
        return inspect_checkpoint(weights())
    except SamWeightsError as error:
        raise UsageError(str(error)) from error
