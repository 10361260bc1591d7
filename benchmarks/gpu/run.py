"""Runner of a GPU day's parts, with their sizes, budgets, and results, and functions that time calls."""

import faulthandler
import gc
import json
import math
import statistics
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

GIB = 1 << 30
SAMPLE_S = 0.02
"""Seconds of back-to-back calls per sample. With fewer, the host's latency would distort short kernels."""

NOT_ON_A_CPU = "not on a CPU"

HANGS_S = 55.0
"""Seconds over budget after which the process ends itself."""


@dataclass(frozen=True)
class Sizes:
    """Amount of work in each part."""

    matrix: int
    vits: dict[str, tuple[int, int, int, tuple[int, ...]]]  # by name, largest first: width, depth, heads, global layers
    image_side: int
    batches: tuple[int, ...]
    points_per_side: int
    crop_layers: int
    frame: tuple[int, int]  # (height, width) of the released image
    original: tuple[int, int]
    photographs: int
    stream_batches: int  # number of batches in a stream of full images
    sustained_s: float
    pipeline_s: float
    megapixels: float
    neighbors: int  # number of images whose bits are compared between batches
    warmups: int
    runs: int
    quick: bool = False  # True if the sizes only check that everything runs


FULL = Sizes(
    matrix=8192,
    vits={
        "vit_h": (1280, 32, 16, (7, 15, 23, 31)),
        "vit_l": (1024, 24, 16, (5, 11, 17, 23)),
        "vit_b": (768, 12, 12, (2, 5, 8, 11)),
    },
    image_side=1024,
    batches=(1, 7, 21),
    points_per_side=32,
    crop_layers=2,
    frame=(1500, 2250),
    original=(3300, 4950),
    photographs=2,
    stream_batches=4,
    sustained_s=20,
    pipeline_s=60,
    megapixels=16.3,
    neighbors=200,
    warmups=2,
    runs=5,
)
QUICK = Sizes(
    matrix=256,
    vits={"vit_h": (160, 1, 2, ())},
    image_side=320,
    batches=(1, 2),
    points_per_side=2,
    crop_layers=0,
    frame=(120, 180),
    original=(120, 180),
    photographs=1,
    stream_batches=2,
    sustained_s=0.05,
    pipeline_s=0.05,
    megapixels=0.05,
    neighbors=3,
    warmups=1,
    runs=1,
    quick=True,
)


class NotMeasuredError(Exception):
    """Error for a measurement that this machine can't make. The message is the reason."""


@dataclass
class PartRun:
    """Run of one part on one device, with its results so far and the rest of its budget.

    `found` maps the name of each measurement to a dictionary. It contains the numbers and `took_s`, or `skipped`, or
    `failed` with `traceback`. `found` is written to `output` after each measurement.
    """

    device: torch.device
    sizes: Sizes
    output: Path
    budget_s: float
    head: dict[str, Any] = field(default_factory=dict)
    found: dict[str, dict[str, Any]] = field(default_factory=dict)
    peak_tflops: float | None = None
    started: float = field(default_factory=time.monotonic)
    _longest: dict[str, float] = field(default_factory=dict)

    @property
    def on_cuda(self) -> bool:
        """True if the device is a GPU."""
        return self.device.type == "cuda"

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the encoder: bfloat16 on a GPU, and float32 on a CPU, which may lack bfloat16 units."""
        return torch.bfloat16 if self.on_cuda else torch.float32

    @property
    def quick(self) -> bool:
        """True if the sizes only check that everything runs."""
        return self.sizes.quick

    @property
    def left_s(self) -> float:
        """Remaining seconds of the budget."""
        return self.budget_s - (time.monotonic() - self.started)

    def need_cuda(self) -> None:
        """Raise `NotMeasuredError` on a CPU."""
        if not self.on_cuda:
            raise NotMeasuredError(NOT_ON_A_CPU)

    def of_peak(self, tflops: float) -> float | None:
        """Convert a rate to a fraction of the peak. None until `measure_peak` has measured it."""
        return None if self.peak_tflops is None else tflops / self.peak_tflops

    def measure(
        self, name: str, function: Callable[..., dict[str, Any]], *arguments: Any, kind: str = "", needs_s: float = 5
    ) -> dict[str, Any]:
        """Call `function(run, *arguments)`, and record its result or exception. Skip it if it would exceed the budget.

        The expected time is the longest of its kind so far, or `needs_s` for the first one.
        """
        expected = self._longest.get(kind, needs_s) if kind else needs_s
        self.found[name] = {"running": True}  # the result if the process is killed now
        self.write()
        started = time.monotonic()
        if not self.quick and expected > self.left_s:
            found: dict[str, Any] = {
                "skipped": f"it takes about {expected:.0f} s, and {max(0.0, self.left_s):.0f} s of {self.budget_s:.0f} "
                "are left"
            }
        else:
            found = self._attempt(function, arguments)
            took = time.monotonic() - started
            found["took_s"] = round(took, 2)
            self._longest[kind] = max(took, self._longest.get(kind, 0.0))
        self.found[name] = found
        self.write()
        shown = {key: value for key, value in found.items() if key not in ("traceback", "kernels", "output")}
        print(name, json.dumps(shown, default=str), flush=True)
        return found

    def _attempt(self, function: Callable[..., dict[str, Any]], arguments: tuple[Any, ...]) -> dict[str, Any]:
        try:
            with torch.no_grad():
                return dict(function(self, *arguments))
        except NotMeasuredError as reason:
            return {"skipped": str(reason)}
        except Exception as error:  # noqa: BLE001 - the part continues with the next measurement
            found = {"failed": f"{type(error).__name__}: {str(error)[:500]}", "traceback": traceback.format_exc()}
        gc.collect()  # frees tensors of a failed measurement
        if self.on_cuda:
            try:
                torch.cuda.empty_cache()
            except RuntimeError as error:
                found["traceback"] += f"\nand the GPU is unusable for this process: {error}"
        return found

    def failures(self) -> list[str]:
        """Return the names of the measurements that failed, or whose bits differ although they must be the same."""
        return [name for name, found in self.found.items() if "failed" in found or found.get("same") is False]

    def write(self) -> None:
        """Write all results so far atomically."""
        spent = round(self.budget_s - self.left_s, 1)
        text = json.dumps({**self.head, "spent_s": spent, "measurements": self.found}, indent=2, default=str)
        self.output.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.output.with_suffix(".tmp")
        temporary.write_text(text + "\n")
        temporary.replace(self.output)


def complete(run: PartRun, name: str, work: Callable[[PartRun], None]) -> None:
    """Make the measurements of a run with `work(run)`, and record and print the verdict.

    If the run hangs, the process ends after its budget, and a file beside the result shows where it hung.
    """
    run.write()
    print(f"{name}:", flush=True)
    with (run.output.with_name(f"{run.output.stem}-stack.txt")).open("w") as stack:
        # This runs in a separate thread that doesn't need Python's global lock.
        faulthandler.dump_traceback_later(run.budget_s + HANGS_S, file=stack, exit=True)
        try:
            work(run)
        finally:
            faulthandler.cancel_dump_traceback_later()
    Path(stack.name).unlink(missing_ok=True)
    failures = run.failures()
    skipped = sum("skipped" in found for found in run.found.values())
    verdict = f"failed: {', '.join(failures)}" if failures else "passed"
    run.head["verdict"] = verdict
    run.write()
    print(f"{name}: {verdict} ({len(run.found)} measurements, {skipped} skipped), written to {run.output}", flush=True)


def timed(run: PartRun, function: Callable[[], Any], runs: int | None = None) -> dict[str, float]:
    """Time a call, and return the median, minimum, and maximum seconds over several samples, after warm-up calls.

    On a GPU, a sample consists of as many calls as fit into `SAMPLE_S`, between two events.
    """
    for _ in range(run.sizes.warmups):
        function()
    synchronize(run)
    calls = 1
    if run.on_cuda:
        calls = max(1, min(200, math.ceil(SAMPLE_S / sample(run, function, 1))))
    seconds = []
    for _ in range(runs or run.sizes.runs):
        seconds.append(sample(run, function, calls) / calls)
        if run.left_s < 0:
            break
    return {"median_s": statistics.median(seconds), "least_s": min(seconds), "most_s": max(seconds)}


def sample(run: PartRun, function: Callable[[], Any], calls: int) -> float:
    """Return the seconds that consecutive calls take until the device has finished them."""
    if not run.on_cuda:
        started = time.perf_counter()
        for _ in range(calls):
            function()
        return time.perf_counter() - started
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    for _ in range(calls):
        function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


def synchronize(run: PartRun) -> None:
    """Wait until the device has finished its work."""
    if run.on_cuda:
        torch.cuda.synchronize(run.device)


@contextmanager
def memory(run: PartRun) -> Iterator[dict[str, float]]:
    """Yield a dictionary that receives the device's peak memory at the end of the block. It stays empty on a CPU."""
    peak: dict[str, float] = {}
    if run.on_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(run.device)
    yield peak
    if run.on_cuda:
        peak["peak_gib"] = torch.cuda.max_memory_allocated(run.device) / GIB


def measure_peak(run: PartRun) -> dict[str, float]:
    """Measure the peak in the same way as a build, in the encoder's data type, for all shares that the part records."""
    from segmint.infra import peak
    from segmint.infra.device import Compute

    compute = Compute(run.device.type, "bf16" if run.on_cuda else "fp32", 1)
    run.peak_tflops = peak.measure_peak(compute) / 1e12
    return {"peak_tflops": run.peak_tflops}


def sustained(run: PartRun, seconds: float) -> dict[str, float]:
    """Measure the TFLOP/s of products in the first 0.1 s after a pause, and in the last of several `seconds`.

    A GPU that is warm or at its power limit is slower than a GPU that was idle. The result only describes the GPU. No
    share is computed from it, see `measure_peak`.
    """
    size = run.sizes.matrix
    a, b = (torch.randn(size, size, device=run.device, dtype=run.dtype) for _ in range(2))
    out = torch.empty_like(a)
    torch.mm(a, b, out=out)
    synchronize(run)
    time.sleep(min(1.0, seconds))
    rates: list[tuple[float, float]] = []
    started = time.perf_counter()
    while not rates or time.perf_counter() - started < seconds:
        calls = 5 if run.on_cuda else 1
        took = sample(run, lambda: torch.mm(a, b, out=out), calls)
        rates.append((time.perf_counter() - started, 2 * size**3 * calls / took / 1e12))
    last = [rate for at, rate in rates if at >= rates[-1][0] - 1]
    first = [rate for at, rate in rates if at <= 0.1] or [rates[0][1]]
    return {"cold_tflops": max(first), "sustained_tflops": statistics.median(last), "seconds": seconds}
