"""Measurement of a device's peak: floating-point operations per second of matrix products."""

import math
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING

from segmint.infra.device import Compute

if TYPE_CHECKING:
    import torch

MEASURE_S = 0.3
"""Seconds that one measurement spends on trials."""

CPU_SIDE = 512
"""Rows and columns of the matrices on a CPU. They fit into the cache, and one core takes milliseconds per product."""

CUDA_SIDE = 8192
"""Rows and columns of the matrices on a GPU. Smaller products don't saturate it."""


def measure_peak(compute: Compute) -> float:
    """Measure how many operations per second matrix products reach in `compute`'s precision.

    A multiply-add counts as two operations. On a CPU, `compute.threads` threads run products in parallel, and their
    rates are added up. Each thread tries both of torch's libraries (see `model/sam/common.py`). Its fastest trial
    counts, because other load on the machine can only slow a product down, and a peak that is too low would make the
    run look better than it is. The measurement takes a fraction of a second and restores torch's threads, random state,
    and TF32 settings.
    """
    import torch

    if compute.kind == "cuda":
        matrix = _noise(compute, CUDA_SIDE)
        peak = _fastest_products(matrix)
        del matrix
        torch.cuda.empty_cache()
        return peak
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(compute.threads, initializer=partial(torch.set_num_threads, 1)) as pool:
            return sum(pool.map(_fastest_products, [_noise(compute, CPU_SIDE)] * compute.threads))
    finally:
        torch.set_num_threads(threads)


def _fastest_products(matrix: "torch.Tensor") -> float:
    """Return the operations per second of the fastest product. Trials run for `MEASURE_S` seconds after a warm-up."""
    products = list_products(matrix)
    for product in products:
        time_product(product, matrix)
    end = time.perf_counter() + MEASURE_S
    fastest = math.inf
    while time.perf_counter() < end or math.isinf(fastest):
        fastest = min(fastest, *(time_product(product, matrix) for product in products))
    rows: int = matrix.shape[0]
    return 2 * rows**3 / fastest


def list_products(matrix: "torch.Tensor") -> list[Callable[["torch.Tensor"], object]]:
    """Return torch's available implementations for multiplying a matrix by itself."""
    import torch

    out = matrix.clone()
    products: list[Callable[[torch.Tensor], object]] = [lambda one: torch.mm(one, one, out=out)]
    onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
    if (
        onednn is not None
        and not matrix.is_cuda
        and torch._C._has_mkldnn
        and (matrix.dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    ):
        products.append(lambda one: onednn(one, one, None, "none", [], "none"))
    return products


def time_product(product: Callable[["torch.Tensor"], object], matrix: "torch.Tensor") -> float:
    """Run one product, and return the seconds until its result is ready."""
    import torch

    with torch.inference_mode():
        if matrix.is_cuda:
            torch.cuda.synchronize(matrix.device)
        started = time.perf_counter()
        product(matrix)
        if matrix.is_cuda:
            torch.cuda.synchronize(matrix.device)
        return time.perf_counter() - started


def _noise(compute: Compute, side: int) -> "torch.Tensor":
    """Return a square matrix of noise. With zeros, a GPU uses less power and runs faster than with real data."""
    import torch

    generator = torch.Generator(compute.device).manual_seed(0)
    dtype = torch.bfloat16 if compute.precision == "bf16" else torch.float32
    return torch.randn(side, side, generator=generator, device=compute.device).to(dtype)
