"""How the parts of the GPU benchmark are run: their sizes, timing, peak memory and profiles."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

GIB = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """The amount of work of each part."""

    matrix: int
    vit: tuple[int, int, int, tuple[int, ...]]  # width, depth, heads, global blocks
    image_side: int
    batches: tuple[int, ...]
    points_per_side: int
    photo_side: int
    warmups: int
    runs: int


FULL = Sizes(8192, (1280, 32, 16, (7, 15, 23, 31)), 1024, (1, 7, 21), 32, 10_000, 2, 5)
QUICK = Sizes(512, (160, 2, 2, (1,)), 320, (1, 2), 3, 320, 1, 1)


@dataclass
class Run:
    """The device and sizes of a run, and the measured peak that fractions refer to."""

    device: torch.device
    sizes: Sizes
    compile_mode: str | None
    peak_tflops: float | None = None

    def of_peak(self, tflops: float) -> float | None:
        """A rate as a fraction of the measured peak; None before it is measured."""
        return None if self.peak_tflops is None else tflops / self.peak_tflops


def attempt(part: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The part's numbers, or why it failed."""
    try:
        with torch.inference_mode():
            return part(*arguments)
    except (RuntimeError, ImportError, OSError, ValueError) as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:500]}"}


def timed(function: Callable[[], Any], run: Run) -> dict[str, float]:
    """Median, minimum and maximum seconds of some calls, after some to warm up."""
    for _ in range(run.sizes.warmups):
        function()
    synchronize(run)
    seconds = []
    for _ in range(run.sizes.runs):
        start = time.perf_counter()
        function()
        synchronize(run)
        seconds.append(time.perf_counter() - start)
    return {"median_s": statistics.median(seconds), "least_s": min(seconds), "most_s": max(seconds)}


def synchronize(run: Run) -> None:
    """Wait until the device has finished its work."""
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)


@contextmanager
def memory(run: Run) -> Iterator[dict[str, float]]:
    """A dictionary that gets the device's peak memory at the end of the block; empty on a CPU."""
    peak: dict[str, float] = {}
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(run.device)
    yield peak
    if run.device.type == "cuda":
        peak["peak_gib"] = torch.cuda.max_memory_allocated(run.device) / GIB


def profile(function: Callable[[], Any], run: Run, rows: int = 12) -> list[dict[str, Any]]:
    """The operations that take the most time on the device, longest first: name, milliseconds, calls."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if run.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        function()
        synchronize(run)
    key = "self_device_time_total" if run.device.type == "cuda" else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda event: -getattr(event, key))
    return [
        {"name": event.key[:80], "ms": round(getattr(event, key) / 1e3, 3), "calls": event.count}
        for event in events[:rows]
    ]


def noise(run: Run, batch: int) -> Any:
    """Random input for the encoder, in bfloat16."""
    side = run.sizes.image_side
    return torch.randn(batch, 3, side, side, device=run.device, dtype=torch.bfloat16)
