"""Tests of the cores that a GPU needs, and of the number of actor starts."""

import pytest

from segmint.pipeline.building.plan_rates import count_starts, cpu_stages


def test_a_gpu_needs_the_cores_that_keep_up_with_it() -> None:
    stages = cpu_stages(3.3, 0.05, "segment", measured=False)
    assert (stages.cores_a_gpu, stages.fewer_cores, stages.fewer_images_per_s) == (66, 33, 10)
    few = cpu_stages(0.04, 0.05, "segment", measured=False)
    assert (few.cores_a_gpu, few.fewer_cores, few.fewer_images_per_s) == (1, 1, 20)
    assert cpu_stages(3.3, None, "segment", measured=False).cores_a_gpu is None


def test_each_window_starts_all_actors() -> None:
    starts = count_starts(1001, 200, 9.0, 8, 1, 45.0)
    assert (starts.windows, starts.starts) == (6, 48)
    assert starts.device_hours == pytest.approx(6 * 8 * 45 / 3600)
    assert "48 of segment actors, in 6 windows: 0.6 GPU-hours more at 45 s each, measured in" in starts.line("GPU")
    assert count_starts(1000, "auto", 9.5, 8, 1, 45.0).windows == 10
    assert count_starts(1000, "auto", 0.1, 8, 1, 45.0).windows == 1
    assert count_starts(0, "auto", 0.0, 8, 1, 45.0).windows == 0
    on_cpu = count_starts(100, "auto", 0.1, 2, 16, 45.0)
    assert (on_cpu.starts, on_cpu.device_hours) == (2, pytest.approx(2 * 16 * 45 / 3600))
