"""Utilities for devices: a context for inference, and asynchronous copies, CUDA graphs, and per-thread objects.

The host can launch at most a few hundred thousand kernels per second. A chunk of prompts needs hundreds of kernels that
take only microseconds each, so launching them one at a time would leave the GPU idle. A CUDA graph records the kernels
of a function once. It then replays all of them with a single launch. A graph always reads and writes the memory with
which it was captured. Inputs must therefore be copied to that memory, and outputs are valid only until the next replay.
"""

import os
import threading
import warnings
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Generic, TypeVar, cast

import torch
from numpy.typing import NDArray
from torch import Tensor

Output = TypeVar("Output")

capture_lock = threading.RLock()
"""Lock of the thread that captures a CUDA graph. A process can only capture one graph at a time. Meanwhile, another
thread must not synchronize the device, because this would invalidate the capture."""

_ready = {os.getpid()}
"""Processes whose threads work: the one that imported this module, and forked ones that `inference` has set up."""


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to `device`. From the host to CUDA, the copy uses pinned memory, so it doesn't block the host."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


class CopyStream:
    """Separate CUDA stream for copies to the device, which run at the same time as kernels.

    The stream is created on first use. On other devices, copies are made immediately.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.stream: torch.cuda.Stream | None = None

    def start(self, tensor: Tensor) -> Callable[[], Tensor]:
        """Start copying a tensor to the device.

        Returns a function that makes the current stream wait for the copy, and then returns the copy.
        """
        if self._device.type != "cuda" or tensor.device.type != "cpu":
            there = tensor.to(self._device)
            return lambda: there
        if self.stream is None:
            self.stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self.stream):
            copy = upload(tensor, self._device)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record(self.stream)

        def use() -> Tensor:
            current = torch.cuda.current_stream(self._device)
            current.wait_event(arrived)
            copy.record_stream(current)  # kernels of this stream read the copy, whose memory belongs to the copy stream
            return copy

        return use


@contextmanager
def inference(device: torch.device) -> Iterator[None]:
    """Run the block in torch's inference mode, without the caller's autocast. Raises the errors of `check_process`.

    A forked process doesn't have its parent's threads, so torch would wait for them forever. Therefore, this limits
    torch to one thread there, as the workers of torch's `DataLoader` do.
    """
    check_process(device)
    if os.getpid() not in _ready:
        _ready.add(os.getpid())
        torch.set_num_threads(1)
    full_precision: AbstractContextManager[object] = nullcontext()
    if torch.amp.is_autocast_available(device.type):
        full_precision = torch.autocast(device.type, enabled=False)
    with torch.inference_mode(), full_precision:
        yield


def check_process(device: torch.device) -> None:
    """Raise RuntimeError if the device is a GPU that this process can't use, because it's a fork of one that used it.

    CUDA's own errors in such a process don't say what to do.
    """
    if device.type == "cuda" and torch.cuda._is_in_bad_fork():
        raise RuntimeError(
            f"the model is on {device}, which a forked process can't use after its parent did: load the predictor or "
            "generator in the worker, or start workers with multiprocessing's method spawn or forkserver"
        )


def launching_on(device: torch.device) -> AbstractContextManager[object]:
    """Make `device` the current device, on which Triton launches kernels no matter where the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


class HostTransfer:
    """Asynchronous copy of a device tensor to the host. The copy starts at once, and `numpy` waits for it."""

    def __init__(self, tensor: Tensor) -> None:
        self._host = tensor.to("cpu", non_blocking=True)
        self._arrived: torch.cuda.Event | None = None
        if tensor.device.type == "cuda":
            # With a blocking event, the host thread sleeps while it waits, so other threads can use its core.
            self._arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            self._arrived.record(torch.cuda.current_stream(tensor.device))

    def numpy(self) -> NDArray[Any]:
        """Wait for the copy, and return it as an array."""
        if self._arrived is not None:
            self._arrived.synchronize()
            self._arrived = None
        return self._host.numpy()


class CaptureError(RuntimeError):
    """Raised when a required CUDA graph can't be captured."""


class CapturedGraph(Generic[Output]):
    """Function without arguments that is captured as a CUDA graph. On other devices, it's called directly.

    The function must work on fixed tensors. Its shapes must not depend on values, and nothing in it may make the host
    wait for the device. Threads capture one after another. If the capture fails, a RuntimeWarning is issued, and each
    call runs the function directly, with the same results. With `must_capture`, `CaptureError` is raised instead.
    """

    def __init__(self, function: Callable[[], Output], device: torch.device, must_capture: bool = False) -> None:
        self._function = function
        self._graph: torch.cuda.CUDAGraph | None = None
        if device.type != "cuda":
            return
        with capture_lock, torch.cuda.device(device):
            self._capture(device, must_capture)

    def _capture(self, device: torch.device, must_capture: bool) -> None:
        """Warm up and capture on a stream of the device, instead of torch's, which belongs to the first device used."""
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # The first call allocates workspaces for libraries and compiles kernels. Neither may happen during the capture.
        stream.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(stream):
            self._function()
        torch.cuda.current_stream(device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        try:
            # Let other threads use the device during the capture.
            with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                self._output = self._function()
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            if must_capture:
                raise CaptureError(f"couldn't capture a CUDA graph ({first_line(error)})") from error
            warnings.warn(
                f"couldn't capture a CUDA graph ({first_line(error)}); launching kernels one by one, "
                "which is slower but gives the same results",
                RuntimeWarning,
                stacklevel=3,
            )
        else:
            self._graph = graph

    @property
    def is_graph(self) -> bool:
        """True if the function was captured."""
        return self._graph is not None

    def __call__(self) -> Output:
        """Run the function on the current inputs. A graph's result is valid until the next call."""
        if self._graph is None:
            return self._function()
        self._graph.replay()
        return self._output


class PerThread(Generic[Output]):
    """Container of one object per thread, such as a CUDA graph.

    Only the thread that captured a graph may replay it, because libraries keep a handle and a workspace per thread, and
    the graph uses those of its thread.
    """

    def __init__(self) -> None:
        self._local = threading.local()

    def get(self, make: Callable[[], Output]) -> Output:
        """Return this thread's object. The first call in a thread creates it with `make`."""
        if not hasattr(self._local, "made"):
            self._local.made = make()
        return cast(Output, self._local.made)


def run_to_end(steps: Generator[None, None, Output]) -> Output:
    """Run a generator to its end without pausing, and return its result."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return cast(Output, end.value)


def first_line(error: Exception) -> str:
    """Return the first line of an error's message."""
    return (str(error).strip().splitlines() or ["no message"])[0]
