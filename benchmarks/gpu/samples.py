"""Load of a machine while another process works: the GPU's load, power, clock, and memory, and the CPU cores' load."""

import importlib.util
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INTERVAL_S = 0.2


@dataclass(frozen=True)
class Sample:
    """Readings at one time. The GPU's are None on a machine without NVML."""

    at: float  # seconds since the epoch
    cpu_busy: float  # clock ticks of all cores since the machine started
    cpu_total: float
    gpu: float | None = None  # share of the last moments in which the GPU ran a kernel
    watts: float | None = None
    sm_mhz: float | None = None
    memory_gib: float | None = None


@dataclass
class Samples:
    """Readings so far."""

    gpu_source: str
    taken: list[Sample] = field(default_factory=list)

    def summary(self, begin: float, end: float) -> dict[str, Any]:
        """Summarize the samples between two times in seconds since the epoch."""
        return {**summarize([one for one in self.taken if begin <= one.at <= end]), "gpu_source": self.gpu_source}


def summarize(samples: Sequence[Sample]) -> dict[str, Any]:
    """Return the mean load of the GPU and of the cores, the median power and clock, and the most memory in use."""
    found: dict[str, Any] = {"samples": len(samples), "cpu_busy": None, "gpu_busy": None}
    if len(samples) > 1 and samples[-1].cpu_total > samples[0].cpu_total:
        busy = samples[-1].cpu_busy - samples[0].cpu_busy
        found["cpu_busy"] = busy / (samples[-1].cpu_total - samples[0].cpu_total)
    shares = [one.gpu for one in samples if one.gpu is not None]
    watts = [one.watts for one in samples if one.watts is not None]
    clocks = [one.sm_mhz for one in samples if one.sm_mhz is not None]
    memory = [one.memory_gib for one in samples if one.memory_gib is not None]
    if shares:
        found["gpu_busy"] = statistics.mean(shares)
    if watts:
        found["watts"] = statistics.median(watts)
    if clocks:
        found["sm_mhz"] = statistics.median(clocks)
    if memory:
        found["gpu_memory_gib"] = max(memory)
    return found


@contextmanager
def sampling(on_cuda: bool, device: int = 0) -> Iterator[Samples]:
    """Sample the machine in a thread while the block runs. The GPU is sampled with NVML, if it is available."""
    handle, source = None, "none: not on a GPU"
    if on_cuda:
        handle, source = nvml_handle(device)
    samples = Samples(source)
    end = threading.Event()

    def watch() -> None:
        while True:
            samples.taken.append(read_sample(handle))
            if end.wait(INTERVAL_S):
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield samples
    finally:
        end.set()
        watcher.join()


def nvml_handle(device: int) -> tuple[Any, str]:
    """Return NVML's handle of a GPU and the source of the readings, or None and the reason why there is no handle."""
    if importlib.util.find_spec("pynvml") is None:
        return None, "none: pynvml is not installed"
    import pynvml

    try:
        pynvml.nvmlInit()
        return pynvml.nvmlDeviceGetHandleByIndex(device), "NVML"
    except pynvml.NVMLError as error:
        return None, f"none: {error}"


def read_sample(handle: Any) -> Sample:
    """Read the cores' load, and the GPU's if there is a handle. Readings that NVML refuses are None."""
    busy, total = cpu_ticks()
    if handle is None:
        return Sample(time.time(), busy, total)
    import pynvml

    readings: list[float | None] = []
    for read in (
        lambda: pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100,
        lambda: pynvml.nvmlDeviceGetPowerUsage(handle) / 1000,
        lambda: pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        lambda: pynvml.nvmlDeviceGetMemoryInfo(handle).used / (1 << 30),
    ):
        try:
            readings.append(read())
        except pynvml.NVMLError:
            readings.append(None)
    return Sample(time.time(), busy, total, *readings)


def cpu_ticks(text: str | None = None) -> tuple[float, float]:
    """Return the busy and the total ticks of all cores from the text of /proc/stat. (0, 0) if it doesn't exist."""
    if text is None:
        try:
            text = Path("/proc/stat").read_text()
        except OSError:
            return 0.0, 0.0
    ticks = [float(word) for word in text.split("\n", 1)[0].split()[1:9]]  # the last two are parts of the first two
    idle = sum(ticks[3:5])  # idle, and waiting for a disk
    return sum(ticks) - idle, sum(ticks)
