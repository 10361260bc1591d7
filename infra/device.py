"""Device, precision, and thread count of a process, and the resolution of `auto`."""

import ctypes
import hashlib
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from segmint.infra.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["fp32", "bf16"]

DecoderPrecision = Literal["", "fp16"]
"""Precision of the mask decoder, or "" for the same precision as that of the image encoder."""

_MKL_MODE = "MKL_CBWR"
"""Variable with MKL's mode of conditional reproducibility. In the mode STRICT, addresses don't matter."""

_GPU_FILES = ("nvidia[0-9]*", "dxg", "kfd")  # device files of the NVIDIA driver, WSL, and the AMD driver

BF16_NEEDS_GPU = "precision bf16 needs a GPU: on a CPU, use precision fp32 or auto"
"""Error message for bf16 on a CPU."""


def describe_precision(precision: str | None, decoder_precision: str | None) -> str:
    """Return the precisions as text: `bf16`, or `bf16 with the decoder in fp16`."""
    if decoder_precision:
        return f"{precision} with the decoder in {decoder_precision}"
    return f"{precision}"


def cores_here() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class Compute:
    """Device, precision, and thread count after `auto` has been resolved."""

    device: str
    """Torch device: "cpu", "cuda", or "cuda:1"."""
    precision: Precision
    threads: int
    """Number of threads that torch uses within one operation, at least 1."""

    @property
    def kind(self) -> str:
        """Device type without its index: "cpu" or "cuda"."""
        return self.device.partition(":")[0]


def resolve_compute(device: str = "auto", precision: str = "auto", threads: str | int = "auto") -> Compute:
    """Resolve each `auto` for this machine, and check that explicit choices are available.

    - `device`: auto is "cuda" if torch finds a CUDA device. Otherwise, it's "cpu".
    - `precision`: auto is "bf16" on a CUDA device that supports it (Ampere or newer). Otherwise, it's "fp32".
    - `threads`: auto is the number of physical cores that this process may use. On a CUDA device, auto is 1, because
      the CPU only launches kernels.

    Raises `UsageError` if torch doesn't find the device, if bf16 is requested on a CPU or on a GPU that doesn't support
    it, or if a value is unknown.
    """
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind, index = torch.device(device).type, torch.device(device).index
    except RuntimeError:
        kind, index = "unknown", None
    if kind not in ("cpu", "cuda"):
        raise UsageError(f"device {device!r} is unknown: expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device {device!r} was requested, but torch sees no CUDA device here: use cpu or auto")
    if kind == "cuda" and index is not None and index >= torch.cuda.device_count():
        raise UsageError(f"device {device!r} was requested, but torch sees only {torch.cuda.device_count()} here")
    return Compute(device, _resolve_precision(precision, kind), _resolve_threads(threads, kind))


def device_kind(compute: Compute) -> str:
    """Return what determines the last bits of a device's results: torch's CPU instruction set, or the GPU's model.

    For a GPU, the string contains its name without the vendor, because older drivers don't report the vendor. It also
    contains the properties that libraries use to select kernels: "H100 80GB HBM3, compute capability 9.0, 132
    multiprocessors".
    """
    import torch

    if compute.kind == "cpu":
        return torch.backends.cpu.get_cpu_capability()
    gpu = torch.cuda.get_device_properties(compute.device)
    name = gpu.name.removeprefix("NVIDIA ")
    return f"{name}, compute capability {gpu.major}.{gpu.minor}, {gpu.multi_processor_count} multiprocessors"


def physical_cores() -> int:
    """Return the number of physical cores that this process can use.

    This is the minimum of the CPU affinity, `cpu_quota`, and torch's number of cores. Call this function
    before anything sets `OMP_NUM_THREADS` or torch's number of threads, because both hide the number of cores.
    """
    import torch

    usable = cores_here()
    return max(1, min(usable, torch.get_num_threads(), cpu_quota() or usable))


def apply_compute(compute: Compute) -> None:
    """Set torch's and OpenCV's threads, disable TF32, and call `fix_products`.

    OpenCV gets a single thread. TF32 is disabled because its results differ from those of fp32. On a CPU, this function
    also makes the C library keep freed memory; see `keep_freed_memory`.
    """
    import cv2
    import torch

    fix_products()
    if compute.kind == "cpu":
        keep_freed_memory()
    torch.set_num_threads(compute.threads)
    cv2.setNumThreads(1)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def fix_products() -> None:
    """Make the bits of MKL's products independent of addresses, in this process and the processes that it starts.

    On Intel CPUs, MKL's results can depend on where an array lies in memory. This was seen on a Xeon with AMX. On AMD
    CPUs, they only depend on the address modulo 16 bytes, and all allocators align arrays to at least that. MKL reads
    its mode from the environment at the first product of a process, so call this function before. A strict or
    compatible mode in the environment stays. On other CPUs, this function does nothing.
    """
    if cpu_facts().get("vendor_id") == "GenuineIntel" and not _fixed_mode():
        given = os.environ.get(_MKL_MODE, "")
        os.environ[_MKL_MODE] = f"{given},STRICT" if given else "AUTO,STRICT"


def _fixed_mode() -> str:
    """Return MKL's mode if this CPU is Intel's and the mode makes results independent of addresses, otherwise ""."""
    mode = os.environ.get(_MKL_MODE, "")
    is_fixed = mode.endswith(",STRICT") or mode == "COMPATIBLE"
    return mode if is_fixed and cpu_facts().get("vendor_id") == "GenuineIntel" else ""


def keep_freed_memory() -> None:
    """Make glibc keep freed memory in this process for reuse. With another C library, this does nothing.

    Each image allocates and frees thousands of matrices of up to 64 MB. By default, glibc maps and unmaps this memory
    each time, and the kernel zeroes the fresh pages. That takes a fifth of the encoder's time. The process uses a
    single arena, because each additional arena would keep its own freed memory.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 64 << 20)
    mallopt(_M_ARENA_MAX, 1)


# From malloc.h; see mallopt(3).
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


def _resolve_precision(precision: str, kind: str) -> Precision:
    import torch

    if precision == "auto":
        native = kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if native else "fp32"
    if precision == "bf16" and kind == "cpu":
        raise UsageError(BF16_NEEDS_GPU)
    if precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UsageError(f"{torch.cuda.get_device_name()} does not support bf16: use precision fp32 or auto")
    if precision == "bf16":
        return "bf16"
    if precision == "fp32":
        return "fp32"
    raise UsageError(f"precision {precision!r} is unknown: expected auto, fp32 or bf16")


def _resolve_threads(threads: str | int, kind: str) -> int:
    if threads == "auto":
        return physical_cores() if kind == "cpu" else 1
    if isinstance(threads, int) and not isinstance(threads, bool) and threads >= 1:
        return threads
    raise UsageError(f"threads {threads!r} is invalid: expected auto or a number of at least 1")


@cache
def cpu_bits(threads: int) -> str:
    """Return the CPU's vendor and a hash of the results of small model operations: "GenuineIntel, 5f0e12ab34cd".

    torch, oneDNN, and MKL choose their kernels by the CPU's vendor, instruction sets, and caches. Environment variables
    can also restrict a library to older instruction sets. The libraries don't report their choice, but different
    kernels produce different last bits in sums, so a hash of the results reveals it. The operations run with `threads`
    torch threads. If `fix_products` set MKL's mode, it's between the two:
    "GenuineIntel, MKL_CBWR=AUTO,STRICT, 5f0e12ab34cd". The first call in a process takes about 0.2 s.
    """
    import torch

    digest = hashlib.sha256()
    with _threads_set(threads), torch.inference_mode():
        for result in _results():
            digest.update(result.contiguous().numpy().tobytes())
    mode = _fixed_mode()
    names = [cpu_facts().get("vendor_id", platform.machine()), *([f"{_MKL_MODE}={mode}"] if mode else [])]
    return ", ".join([*names, digest.hexdigest()[:12]])


def _results() -> Iterator["Tensor"]:
    """Yield the results of operations like those of the encoder, decoder, and face detector, with similar shapes."""
    import torch
    import torch.nn.functional as F

    yield F.linear(_noise(256, 320), _noise(640, 320))
    yield F.linear(_noise(4096, 160), _noise(480, 160), _noise(480))
    yield _noise(8, 49, 32) @ _noise(8, 32, 49)
    yield F.conv2d(_noise(1, 64, 64, 64), _noise(64, 64, 3, 3), padding=1)
    yield F.conv2d(_noise(1, 128, 64, 64), _noise(128, 1, 3, 3), padding=1, groups=128)
    yield F.conv2d(_noise(1, 256, 64, 64), _noise(64, 256, 1, 1))
    yield F.conv_transpose2d(_noise(4, 64, 32, 32), _noise(64, 16, 2, 2), stride=2)
    rows = _noise(64, 160)
    yield F.layer_norm(rows, (160,))
    yield torch.softmax(rows * 9, -1)
    yield F.gelu(rows * 3)
    yield F.interpolate(_noise(1, 3, 40, 40), (97, 61), mode="bilinear")


def _noise(*shape: int) -> "Tensor":
    """Return deterministic float32 pseudorandom numbers from -1 to 1, which are the same on every machine."""
    import torch

    counted = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.int64)
    mixed = (counted * 2654435761 + len(shape)) % 2**32
    mixed = (mixed ^ (mixed >> 13)) * 1274126177 % 2**32
    return (mixed.double() / 2**31 - 1).float().reshape(shape)


@contextmanager
def _threads_set(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@cache
def cpu_facts() -> dict[str, str]:
    """Return the fields of the first processor in /proc/cpuinfo. If the file can't be read, the dictionary is empty."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def memory_here(root: Path = Path("/")) -> int:
    """Return the memory in bytes that this process may use: the machine's memory or the smallest cgroup limit.

    A cgroup's limit also applies to all cgroups below it (cgroups(7), versions 1 and 2). For example, Slurm sets the
    limit below the root. So this function checks every cgroup from the process's cgroup up to the root. `root` is the
    folder that contains `proc` and `sys`.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for limit in _cgroup_limits(root, "memory", ("memory.max",), ("memory.limit_in_bytes",)):
        if limit[0].isdigit():  # not "max"
            limits.append(int(limit[0]))
    return min(limits)


def cpu_quota(root: Path = Path("/")) -> int | None:
    """Return the smallest CPU quota of this process's cgroups in whole CPUs, at least 1, or None if there is no quota.

    `root` is as in `memory_here`.
    """
    quotas = []
    for limit in _cgroup_limits(root, "cpu", ("cpu.max",), ("cpu.cfs_quota_us", "cpu.cfs_period_us")):
        if limit[0].isdigit():  # neither "max" nor -1
            quotas.append(max(1, int(limit[0]) // int(limit[1])))
    return min(quotas, default=None)


def _cgroup_limits(root: Path, controller: str, files: Sequence[str], old_files: Sequence[str]) -> Iterator[list[str]]:
    """Yield the words in the limit files of this process's cgroups and all their parents.

    `files` are the names of the controller's limit files in version 2 of cgroups, and `old_files` those in version 1.
    """
    try:
        mounts = (root / "proc/self/mountinfo").read_text().splitlines()
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    own = {kind: path for _, kinds, path in (line.split(":", 2) for line in lines) for kind in kinds.split(",")}
    for mount in mounts:
        place, _, source = mount.partition(" - ")
        fields, kind = place.split(), source.split()
        if kind[0] == "cgroup2":
            path, names = own.get(""), files
        elif kind[0] == "cgroup" and controller in kind[-1].split(","):
            path, names = own.get(controller), old_files
        else:
            continue
        top = root / fields[4].lstrip("/")
        shown = Path(fields[3])  # the cgroup mounted at `top`; a container may see only a part of the tree
        inside = Path(path) if path is not None else shown
        below = inside.relative_to(shown) if inside.is_relative_to(shown) and ".." not in inside.parts else Path()
        for part in (below, *below.parents):
            try:
                yield " ".join((top / part / name).read_text(encoding="ascii") for name in names).split()
            except OSError:
                continue  # the root cgroup has no limit


def kind_here(device: str) -> str:
    """Return "cuda" or "cpu", the type of a torch device. For auto, return the type that `resolve_compute` chooses.

    This imports torch only if the machine may have a GPU.
    """
    if device != "auto":
        return device.partition(":")[0]
    if sys.platform == "linux" and not any(next(Path("/dev").glob(name), None) for name in _GPU_FILES):
        return "cpu"
    return resolve_compute().kind


def device_failure(device: str) -> str | None:
    """Return the error that made the GPU unusable for this process, or None. After a fault, every call reports it.

    This synchronizes the device, so no thread of this process may capture a CUDA graph meanwhile.
    """
    if not device.startswith("cuda"):
        return None
    import torch

    try:
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        return str(error).partition("\n")[0]
    return None
