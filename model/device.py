"""Utilities that keep a GPU busy: asynchronous copies, CUDA graphs, and per-thread objects.

The host launches a few hundred thousand kernels per second at best, and a chunk of prompts needs hundreds of kernels
that take microseconds each. A CUDA graph records a function's kernels once and replays them back to back with a single
launch. A graph reads and writes the memory with which it was captured, so inputs must be copied to that memory, and
outputs are only valid until the next replay.
"""

import threading
import warnings
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar, cast

import torch
from numpy.typing import NDArray
from torch import Tensor

Output = TypeVar("Output")


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on `device`. Host-to-CUDA copies use pinned memory so that they do not block the host."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class CopyStream:
    """A separate CUDA stream for copies to the device, which run beside kernels; elsewhere, copies are made at once.

    The stream is created on first use.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream: torch.cuda.Stream | None = None

    def start(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start to copy a tensor. The returned function makes the current stream wait for the copy, and returns it."""
        if self._device.type != "cuda" or tensor.device.type != "cpu":
            there = tensor.to(self._device)
            return lambda: there
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):
            copy = upload(tensor, self._device)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self._stream)

        def use() -> Tensor:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(arrived)
            copy.record_stream(current)  # its memory belongs to the copy stream, but kernels of this one read it
            return copy

        return use


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` current, because Triton launches kernels on the current device, no matter where the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class HostTransfer:
    """Asynchronous copy of a device tensor to the host, which starts on creation and which `numpy` waits for."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            # A blocking event puts the host thread to sleep, so other threads can use its core.
            self._arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def numpy(self) -> NDArray[Any]:
        """Wait for the copy, and return the values."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        return self._host.numpy()


class CaptureError(RuntimeError):
    """Raised if a CUDA graph can't be captured where it must be."""


class CapturedGraph(Generic[Output]):
    """A function without arguments on fixed tensors, captured as a CUDA graph on CUDA and called directly elsewhere.

    In `function`, shapes must not depend on values, and nothing may make the host wait for the device. If the capture
    fails, a RuntimeWarning is issued and the function is called directly each time, with the same results. With
    `must_capture`, `CaptureError` is raised instead.
    """

    def __init__(self, function: Callable[[], Output], device: torch.device, must_capture: bool = False) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            return
        with torch.cuda.device(device):
            # The first call allocates library workspaces and compiles kernels, which must not be captured.
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                function()
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may use the device during the capture.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._output = function()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                if must_capture:
                    raise CaptureError(f"couldn't capture a CUDA graph ({first_line(error)})") from error
                warnings.warn(
                    f"couldn't capture a CUDA graph ({first_line(error)}); launching kernels one by one, "
                    "which is slower but gives the same results",
                    RuntimeWarning,
                    stacklevel=2,
                )
            else:
                self._graph = graph

    @property
    def is_graph(self) -> bool:
        """True if the function was captured."""
        return self._graph is not None

    def __call__(self) -> Output:
        """Return the function's result for the current inputs. A graph's result is valid until the next call."""
        if self._graph is None:
            return self._function()
        self._graph.replay()
        return self._output


class PerThread(Generic[Output]):
    """One object per thread, such as a graph, which only the thread that captured it may replay.

    Libraries keep a handle and a workspace per thread, and a graph uses those of its thread.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def get(self, make: Callable[[], Output]) -> Output:
        """Return this thread's object, which `make` creates on first use."""
        if not hasattr(self._local, "made"):
            self._local.made = make()
        return cast(Output, self._local.made)


def run_to_end(steps: Generator[None, None, Output]) -> Output:
    """Run a generator to its end without a pause, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(Output, end.value)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or ["no message"])[0]
