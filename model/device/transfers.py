"""Copies between the host and an accelerator during which neither waits for the other."""

from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor


def upload(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on `device`; from the host to CUDA by pinned memory, so that the copy does not block the host."""
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


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
