"""What keeps a GPU busy without the host: copies during which neither waits for the other, and CUDA graphs.

A graph is a function's kernels, recorded once and started again by one launch. The host starts a few hundred thousand
kernels a second at best, and a chunk of prompts has hundreds that take microseconds each. Replayed, they follow one
another without the host. A graph reads and writes the memory that it was captured with: its inputs are copied there,
and its outputs hold until the next replay.
"""

import threading
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Generic, TypeVar, cast

import torch
from numpy.typing import NDArray
from torch import Tensor

Output = TypeVar("Output")


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`; from the host to CUDA by pinned memory, so that the copy does not block the host."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` current: Triton launches there, wherever its tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class HostTransfer:
    """A device's tensor on its way to the host; the copy starts here and is waited for when its numbers are read."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            # The host sleeps until the event, and other threads have its core.
            self._arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def numpy(self) -> NDArray[Any]:
        """The numbers, once they are there."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        return self._host.numpy()


class CapturedGraph(Generic[Output]):
    """A function without arguments, of tensors that stay where they are; captured on CUDA, called elsewhere.

    `function` must have no shape that depends on numbers, and never make the host wait for the device. If it cannot be
    captured, there is a RuntimeWarning and it is called each time, with the same results.
    """

    def __init__(self, function: Callable[[], Output], device: torch.device) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            return
        with torch.cuda.device(device):
            # Libraries allocate and kernels are compiled at the first call, which a graph must not record.
            stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                function()
            torch.cuda.current_stream(device).wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            try:
                # Other threads may use the device meanwhile.
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    self._output = function()
            except torch.OutOfMemoryError:
                raise
            except RuntimeError as error:
                warnings.warn(
                    f"a CUDA graph could not be captured ({first_line(error)}): kernels are launched one by one, "
                    "slower but with the same results",
                    RuntimeWarning,
                    stacklevel=2,
                )
            else:
                self._graph = graph

    @property
    def is_graph(self) -> bool:
        """Whether the function was captured."""
        return self._graph is not None

    def __call__(self) -> Output:
        """The function's result for what its inputs hold now; from a graph, it holds until the next call."""
        if self._graph is None:
            return self._function()
        self._graph.replay()
        return self._output


class PerThread(Generic[Output]):
    """An object for each thread that asks: a graph is replayed by the thread that captured it.

    Libraries keep a handle and its workspace for each thread, and a graph has that of the thread it was captured in.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def get(self, make: Callable[[], Output]) -> Output:
        """The object of this thread, from `make` at first."""
        if not hasattr(self._local, "made"):
            self._local.made = make()
        return cast(Output, self._local.made)


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or ["no message"])[0]
