"""The benchmark of the device's idle share: the right rows and calls, stages that overlap, and an exact share."""

import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.building.segment_overlap import SleepingSegment, idle_share, measure_idle, repeated, timed_launches
from segmint.infra.ray_session import Cluster
from segmint.operators.segment import overlap
from segmint.operators.segment.overlap import STAGES, HostThreads

IMAGES = 12
BESIDE = {"compute": "decode", "finish": "compute"}

WAIT_S = 60.0
"""Until something happens that must: only a failing test waits so long."""


class Overlapping(SleepingSegment):
    """The device keeps an image until the next is being decoded; finishing lasts until the device has another."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._begun = {"decode": 0, "compute": 0, "finish": 0}
        self._alone = False
        self._changed = threading.Condition()

    def _spend(self, stage: str, seconds: float) -> None:
        with self._changed:
            self._begun[stage] += 1
            self._changed.notify_all()
            beside = BESIDE.get(stage)
            if beside is not None and not self._alone:
                wanted = min(self._begun[stage] + 1, IMAGES)
                self._alone = not self._changed.wait_for(lambda: self._begun[beside] >= wanted, WAIT_S)
            assert not self._alone, "no stage works beside another"


class Alternating(SleepingSegment):
    """An image is decoded only when the device waits for it; the seconds of these two stages alone move the clock."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._now = 0.0
        self._turn = threading.Semaphore()
        self._device = 0
        self._readings = 0
        vars(overlap)["time"] = SimpleNamespace(monotonic=self._read_clock)  # in the actor's process

    def _read_clock(self) -> float:
        """The device reads it when an image is computed, when it isn't blocked, and when no decoded image is left."""
        now = self._now
        if threading.get_ident() == self._device:
            self._readings += 1
            if self._readings == 3:
                self._turn.release()
        return now

    def _spend(self, stage: str, seconds: float) -> None:
        if stage == "finish":
            return
        if stage == "compute":
            self._device = threading.get_ident()
            self._readings = 0
        else:
            assert self._turn.acquire(timeout=WAIT_S)
        self._now += seconds


@pytest.mark.long
@pytest.mark.ray
def test_stages_of_images_of_all_calls_overlap(local_ray: Cluster) -> None:
    found = measure_idle(HostThreads.of("cuda"), rows_per_block=4, images=IMAGES, compute_s=0, segment=Overlapping)
    assert (found["decoders"], found["calls"], found["rows_per_block"]) == (2, 5, 4)


@pytest.mark.long
@pytest.mark.ray
def test_the_idle_share_is_that_of_the_time_in_which_the_device_waits(local_ray: Cluster) -> None:
    found = measure_idle(HostThreads(1, 1, 1), IMAGES, IMAGES, compute_s=2, host_share=4.0, segment=Alternating)
    assert found["idle_share"] == pytest.approx(1 - 2 * IMAGES / (2 * IMAGES + 8 * (IMAGES - 1)), abs=1e-4)


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


def test_the_idle_share_is_the_time_without_computing() -> None:
    assert idle_share({"compute": 6, "idle": 1, "blocked": 3}) == pytest.approx(0.4)
    assert idle_share(dict.fromkeys(STAGES, 0.0)) == 0
