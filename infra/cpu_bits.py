"""Names a CPU by the bits that torch computes on it.

Which of their kernels torch, oneDNN and MKL run depends on the CPU's maker, on its instruction sets and caches, and on
environment variables that hold a library to older ones, and kernels differ in the last bits of sums. None of these
libraries says what it chose; the results do.
"""

import hashlib
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # the last one of ARM


@cache
def cpu_bits(threads: int, precision: str) -> str:
    """Return the CPU's maker, and a hash of the results of small operations of the model: "GenuineIntel, 5f0e12ab34cd".

    The operations run on so many torch threads, and in `precision`. Takes about 0.2 s once in a process.
    """
    import torch

    digest = hashlib.sha256()
    with _threads_set(threads), torch.inference_mode():
        for result in _results(torch.bfloat16 if precision == "bf16" else torch.float32):
            digest.update(result.float().contiguous().numpy().tobytes())
    return f"{_facts().get('vendor_id', platform.machine())}, {digest.hexdigest()[:12]}"


def computes_bf16() -> bool:
    """Whether the CPU has instructions for products in bf16; True where that is not known."""
    flags = " ".join(value for key, value in _facts().items() if key in ("flags", "Features"))
    return not flags or not _BF16_FLAGS.isdisjoint(flags.split())


def _results(dtype: "torch.dtype") -> Iterator["Tensor"]:  # type: ignore[name-defined]  # noqa: F821
    """Results of operations of the kinds and about the shapes that encoder, decoder and face detector have."""
    import torch
    import torch.nn.functional as F

    def noise(*shape: int) -> "Tensor":
        """Numbers from -1 to 1 that are the same everywhere."""
        counted = torch.arange(int(torch.tensor(shape).prod()), dtype=torch.int64)
        mixed = (counted * 2654435761 + len(shape)) % 2**32
        mixed = (mixed ^ (mixed >> 13)) * 1274126177 % 2**32
        return (mixed.double() / 2**31 - 1).to(dtype).reshape(shape)

    yield F.linear(noise(256, 320), noise(640, 320))
    yield F.linear(noise(4096, 160), noise(480, 160), noise(480))
    yield noise(8, 49, 32) @ noise(8, 32, 49)
    yield F.conv2d(noise(1, 64, 64, 64), noise(64, 64, 3, 3), padding=1)
    yield F.conv2d(noise(1, 128, 64, 64), noise(128, 1, 3, 3), padding=1, groups=128)
    yield F.conv2d(noise(1, 256, 64, 64), noise(64, 256, 1, 1))
    yield F.conv_transpose2d(noise(4, 64, 32, 32), noise(64, 16, 2, 2), stride=2)
    rows = noise(64, 160)
    yield F.layer_norm(rows, (160,))
    yield torch.softmax(rows * 9, -1)
    yield F.gelu(rows * 3)
    yield F.interpolate(noise(1, 3, 40, 40), (97, 61), mode="bilinear")


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
def _facts() -> dict[str, str]:
    """What Linux says about the first processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}
