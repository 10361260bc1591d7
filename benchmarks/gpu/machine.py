"""Description of a GPU machine, and segmint's CUDA tests on it."""

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.both import BUNDLE
from benchmarks.gpu.run import PartRun, sustained
from benchmarks.machine import describe_machine

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("torchvision", "numpy", "triton", "opencv-python-headless", "onnxruntime", "pycocotools", "ray")
TESTS_S = 240
"""Seconds after which the tests count as failed."""


class TestsFailedError(RuntimeError):
    """Error for a failed CUDA test. Measurements after it would be of wrong results."""


def measure_versions(run: PartRun) -> dict[str, Any]:
    """Collect versions that affect speed and bits on a GPU, torch's order of attention kernels, and environment."""
    found: dict[str, Any] = {name: installed(name) for name in PACKAGES}
    found["environment"] = {
        key: os.environ[key] for key in sorted(os.environ) if re.match(r"(TORCH|CUDA|TRITON|NV)", key)
    }
    if run.on_cuda:
        properties = torch.cuda.get_device_properties(run.device)
        found |= {
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory_gib": round(properties.total_memory / (1 << 30), 1),
            "driver": driver(),
            "sdpa_order": sdpa_order(),
        }
    return found


def measure_numerics(run: PartRun) -> dict[str, Any]:
    """Return the numerics that a dataset would record if a build started on this machine."""
    from segmint.infra.device import resolve_compute
    from segmint.operators.segment.mask_config import MasksConfig, ModelConfig
    from segmint.operators.segment.numerics import resolve_numerics

    compute = resolve_compute(run.device.type)
    return resolve_numerics(compute, ModelConfig(), MasksConfig(), "0" * 64).to_dict()


def measure_tests(run: PartRun, folder: Path) -> dict[str, Any]:
    """Run the tests that are marked `cuda`, and keep their complete output. Raises `TestsFailedError`.

    On a GPU, a skipped test fails the run. On a CPU, all of these tests are skipped.
    """
    tests = ["tests/infra/test_peak.py"] if run.quick else []
    command = [sys.executable, "-m", "pytest", "-m", "cuda", "-q", "-p", "no:cacheprovider", "-p", "pytest_timeout"]
    # Plugins are disabled, because the machine's may belong to another version of pytest.
    environment = {**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    if run.on_cuda:
        environment["SEGMINT_TEST_NO_SKIPS"] = "1"
    if (BUNDLE / "test-photos").is_dir():
        environment.setdefault("SEGMINT_TEST_PHOTOS", str(BUNDLE / "test-photos"))
    log = folder / "gpu_day-tests.txt"
    code: int | str
    with log.open("w") as stream:
        streams = {"stdout": stream, "stderr": subprocess.STDOUT}
        try:
            done = subprocess.run(
                [*command, *tests], cwd=ROOT, env=environment, check=False, timeout=TESTS_S, **streams
            )
            code = done.returncode
        except subprocess.TimeoutExpired:
            code = f"a stop after {TESTS_S} s"
    output = log.read_text()
    if code != 0:
        raise TestsFailedError(f"pytest -m cuda ended with {code}:\n{output[-12_000:]}")
    return {"summary": (output.strip().splitlines() or [""])[-1]}


def measure_rates(run: PartRun) -> dict[str, Any]:
    """Measure the peak of both precisions as a build does, and the TFLOP/s after a pause and after many products."""
    from segmint.infra import peak
    from segmint.infra.device import Compute

    found: dict[str, Any] = {}
    for precision in ("bf16", "fp32"):
        found[f"{precision}_tflops"] = peak.measure_peak(Compute(run.device.type, precision, 1)) / 1e12
    run.peak_tflops = found["bf16_tflops"] if run.on_cuda else found["fp32_tflops"]
    return {**found, **sustained(run, run.sizes.sustained_s)}


def describe(device: torch.device) -> dict[str, Any]:
    """Describe the machine for the header of a result."""
    described = describe_machine(torch.get_num_threads(), "bf16")
    return {**described, "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None}


def installed(package: str) -> str | None:
    """Return a package's version, or None if it is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def driver() -> str | None:
    """Return the version of the GPU's driver, or None if it cannot be found."""
    if importlib.util.find_spec("pynvml") is not None:
        import pynvml

        pynvml.nvmlInit()
        return str(pynvml.nvmlSystemGetDriverVersion())
    try:
        lines = Path("/proc/driver/nvidia/version").read_text().splitlines()
    except OSError:
        return None
    return lines[0]


def sdpa_order() -> list[str]:
    """Return the order in which torch tries the kernels of `scaled_dot_product_attention` by default."""
    from torch.nn.attention import SDPBackend

    names = {int(backend): name for name, backend in SDPBackend.__members__.items()}
    return [names.get(int(number), str(number)) for number in torch._C._get_sdp_priority_order()]
