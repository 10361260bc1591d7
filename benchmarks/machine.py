"""Description of what a benchmark's figures depend on besides our code: machine, load, and library versions."""

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any


def become_prepare_process() -> dict[str, Any]:
    """Set this process up like a process of `prepare`, which uses one thread, and describe the machine."""
    import cv2
    import torch

    from segmint.infra.device import keep_freed_memory

    keep_freed_memory()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    return describe_machine(1, "fp32", packages=("onnxruntime", "opencv-python-headless", "facenet-pytorch"))


def describe_machine(threads: int, precision: str, *, packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """Describe the machine, and its load over the last minute, as JSON values. Call this before measuring.

    `threads` and `precision` are the benchmark's settings. The versions of `packages` are recorded.
    """
    import torch

    return {
        "cpu": processor(),
        "cores": os.cpu_count(),
        "cores_usable": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": threads,
        "precision": precision,
        "load_average_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{package.replace("-", "_"): version(package) for package in packages},
    }


def processor() -> str:
    """Return the name of the CPU, as the system reports it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
