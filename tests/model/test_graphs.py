"""A captured function is replayed into its own memory; what cannot be captured is called, with a warning."""

import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from segmint.model.device import CapturedGraph, CaptureError, PerThread
from tests.support.pretended_cuda import PretendedCuda


def test_a_replay_is_one_launch_on_what_the_inputs_hold_now() -> None:
    with PretendedCuda() as device, torch.inference_mode():
        held = torch.zeros(3, device="cuda")
        double = CapturedGraph(lambda: (held + 1) * 2, held.device)
        assert double.is_graph
        held.copy_(device.to_device(torch.tensor([1.0, 2.0, 3.0])))
        device.forget()
        first = double()

        assert (sum(device.launches.values()), sum(device.graph_kernels.values())) == (1, 2)
        assert first.tolist() == [4, 6, 8]
        held.zero_()
        assert double() is first
        assert first.tolist() == [2, 2, 2]


def test_a_function_that_waits_cannot_be_captured_and_is_called_instead() -> None:
    with PretendedCuda(), torch.inference_mode():
        held = torch.ones(3, device="cuda")
        with pytest.warns(RuntimeWarning, match=r"couldn't capture a CUDA graph \(CUDA error: operation not permitted"):
            positive = CapturedGraph(lambda: held[held > 0] * 3, held.device)
        assert not positive.is_graph
        held[1] = -1
        assert positive().tolist() == [3, 3]


def test_a_function_that_must_be_captured_and_cannot_be_is_an_error() -> None:
    with PretendedCuda(), torch.inference_mode():
        held = torch.ones(3, device="cuda")
        with pytest.raises(CaptureError, match=r"couldn't capture a CUDA graph \(CUDA error: operation not permitted"):
            CapturedGraph(lambda: held[held > 0] * 3, held.device, must_capture=True)
        assert CapturedGraph(lambda: held * 3, held.device, must_capture=True).is_graph


def test_threads_capture_one_after_another() -> None:
    """The pretended device, like a GPU, captures only one graph at a time."""
    with PretendedCuda():

        def capture(_: int) -> bool:
            return CapturedGraph(lambda: time.sleep(0.01), torch.device("cuda", 0), must_capture=True).is_graph

        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(capture, range(8))) == [True] * 8


def test_on_a_cpu_the_function_is_called() -> None:
    held = torch.ones(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        captured = CapturedGraph(lambda: held + 1, held.device)
        held[0] = 5
        assert captured().tolist() == [6, 2]
        assert not captured.is_graph


def test_every_thread_has_its_own_object() -> None:
    made: PerThread[object] = PerThread()
    ours = made.get(object)
    found: list[object] = []
    other = threading.Thread(target=lambda: found.extend([made.get(object), made.get(object)]))
    other.start()
    other.join()

    assert made.get(object) is ours
    assert found[0] is found[1] is not ours
