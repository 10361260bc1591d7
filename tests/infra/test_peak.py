"""The measured peak of the device that runs the tests."""

import time

import pytest
import torch

from segmint.infra.device import Compute, resolve_compute
from segmint.infra.peak import measure_peak
from segmint.model.sam.products import linear


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpu_s_peak_is_found_in_a_fraction_of_a_second(precision: str) -> None:
    compute = Compute("cpu", precision, 1)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    started = time.perf_counter()
    peak = measure_peak(compute)
    assert time.perf_counter() - started < 3  # a quiet machine takes a third of a second
    assert 1e9 < peak < 1e13
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_no_product_of_another_size_is_faster_by_far() -> None:
    """The network's own products cannot beat the peak: here those of a ViT's perceptron."""
    peak = measure_peak(Compute("cpu", "fp32", torch.get_num_threads()))
    tokens, weight = torch.randn(1024, 768), torch.randn(3072, 768)
    with torch.inference_mode():
        fastest = min(_seconds(tokens, weight) for _ in range(10))
    assert 2 * 1024 * 768 * 3072 / fastest < 1.5 * peak


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    started = time.perf_counter()
    linear(left, right)
    return time.perf_counter() - started


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_gpu_s_peak(precision: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device here")
    assert 1e12 < measure_peak(resolve_compute("cuda", precision)) < 1e16
