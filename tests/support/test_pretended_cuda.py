"""The pretended device refuses what a GPU refuses, and counts what it costs."""

import pytest
import torch

from tests.support.pretended_cuda import DeviceMixError, PretendedCuda


def test_tensors_of_two_devices_do_not_mix() -> None:
    with PretendedCuda() as device:
        there = device.to_device(torch.ones(3))
        assert there.device == torch.device("cuda", 0)
        with pytest.raises(DeviceMixError, match="add of tensors on cuda and cpu"):
            there + torch.ones(3)
        assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]
        with pytest.raises(RuntimeError, match="numpy"):
            there.numpy()


@pytest.mark.parametrize(
    "waits",
    [
        lambda there: there.sum().item(),
        lambda there: there.nonzero(),
        lambda there: bool((there > 0).all()),
        lambda there: there.cpu(),
        lambda there: there.tolist(),
        lambda there: there[there > 0],
        lambda there: torch.equal(there, there),
        lambda there: torch.arange(3).to(there.device),
        lambda there: torch.tensor([1, 2], device=there.device),
        lambda there: torch.arange(3).to(there.device, non_blocking=True),
    ],
)
def test_what_makes_the_host_wait_is_counted(waits: object) -> None:
    with PretendedCuda() as device:
        there = device.to_device(torch.ones(3))
        assert callable(waits)
        waits(there)
    assert sum(device.syncs.values()) == 1


def test_launches_and_bytes_are_those_of_kernels_and_views_cost_nothing() -> None:
    with PretendedCuda(computing=False) as device:
        there = device.to_device(torch.ones(1000, 4))
        view = there.T[:2].expand(3, 2, 1000)
        assert not device.launches
        found = view + 1
    assert found.shape == (3, 2, 1000)
    assert sum(device.launches.values()) == 1
    assert sum(device.traffic.values()) == 4 * (2000 + 6000)


def test_a_copy_that_does_not_block_brings_nothing_before_the_wait() -> None:
    with PretendedCuda() as device:
        host = device.to_device(torch.ones(2)).to("cpu", non_blocking=True)
        assert host.tolist() != [1, 1]
        torch.cuda.Event().synchronize()
        assert host.tolist() == [1, 1]
