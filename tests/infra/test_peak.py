"""The measured peak of the device that runs the tests."""

import time

import pytest
import torch

from segmint.infra import peak
from segmint.infra.device import Compute, resolve_compute
from segmint.infra.peak import measure_peak
from segmint.model.sam.common import linear


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_cpu_s_peak_is_found_in_a_fraction_of_a_second(precision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products are measured for that time, and one of each kind more if they take longer."""
    assert peak.MEASURE_S < 1
    monkeypatch.setattr(peak, "MEASURE_S", 0.0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    kinds, measured = len(peak.list_products(torch.ones(2, 2, dtype=dtype))), []
    product_s = peak.time_product
    monkeypatch.setattr(peak, "time_product", lambda *product: measured.append(product) or product_s(*product))
    compute = Compute("cpu", precision, 1)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    assert 1e9 < measure_peak(compute) < 1e13
    assert len(measured) == 2 * kinds, "one to warm up, and one of each"
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)


def test_no_product_of_another_size_is_faster_by_far() -> None:
    """The network's own products cannot beat the peak: here those of a ViT's perceptron."""
    compute = Compute("cpu", "fp32", torch.get_num_threads())
    tokens, weight = torch.randn(1024, 768), torch.randn(3072, 768)
    with torch.inference_mode():
        fastest = min(_seconds(tokens, weight) for _ in range(10))
    fastest_rate = 2 * 1024 * 768 * 3072 / fastest
    assert any(fastest_rate < 1.5 * measure_peak(compute) for _ in range(5)), "other load only slows a product down"


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
