"""Copies between host and device wait only when their numbers are read."""

import torch

from segmint.model.device import HostTransfer, upload
from tests.support.pretended_cuda import PretendedCuda


def test_only_reading_waits() -> None:
    with PretendedCuda() as device:
        there = upload(torch.arange(4), torch.device("cuda"))
        fetched = HostTransfer(there + 1)
        assert not device.syncs
        assert fetched.numpy().tolist() == [1, 2, 3, 4]
        assert sum(device.syncs.values()) == 1
        assert fetched.numpy().tolist() == [1, 2, 3, 4]
        assert sum(device.syncs.values()) == 1


def test_on_a_cpu_nothing_is_copied() -> None:
    tensor = torch.arange(3)
    assert upload(tensor, torch.device("cpu")) is tensor
    assert HostTransfer(tensor).numpy().tolist() == [0, 1, 2]
