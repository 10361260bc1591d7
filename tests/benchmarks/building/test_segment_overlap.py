"""The benchmark of the device's idle share: the right rows and calls, and a share that the host's part moves."""

import sys
import time

import pytest

from benchmarks.building.segment_overlap import measure_idle, repeated, timed_launches
from segmint.infra.ray_session import Cluster
from segmint.operators.segment.overlap import HostThreads


@pytest.mark.ray
def test_the_idle_share_is_small_with_threads_and_large_where_the_host_is_the_slower(local_ray: Cluster) -> None:
    found = measure_idle(HostThreads.of("cuda"), rows_per_block=4, images=40, compute_s=0.05)
    assert (found["decoders"], found["calls"], found["rows_per_block"]) == (2, 5, 4)
    assert found["idle_share"] < 0.3
    slow = measure_idle(HostThreads(1, 1, 1), rows_per_block=4, images=12, compute_s=0.05, host_share=4.0)
    assert slow["idle_share"] > 0.6


def test_operations_are_timed_while_another_thread_works() -> None:
    calls = []

    def work() -> None:
        calls.append(sys.getswitchinterval())
        time.sleep(0.001)

    with repeated(work):
        while not calls:
            time.sleep(0.001)
        found = timed_launches(3)
    assert 0 < found["least"] <= found["median"] <= found["most"]
