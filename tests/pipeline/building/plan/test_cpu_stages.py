"""Tests of the price of CPU nodes next to GPU nodes, and of the number of actor starts."""

import pytest

from segmint.pipeline.building.plan.cpu_stages import count_starts, cpu_stages, price_nodes


def test_cpu_nodes_cost_what_the_cores_beyond_the_gpu_nodes_cost() -> None:
    stages = cpu_stages(3.3, 0.05, "segment", measured=False)
    assert (stages.cores_a_gpu, stages.fewer_cores, stages.fewer_images_per_s) == (66, 33, 10)
    nodes = price_nodes(stages, 10.0, 660.0, 20, 0.04)
    assert nodes is not None
    assert (nodes.more_cores, nodes.core_hours) == (46, 460)
    assert nodes.cost == pytest.approx(18.4)
    assert nodes.starved_hours == pytest.approx(33)
    assert [line.split()[:2] for line in nodes.lines()] == [["CPU", "nodes"], ["without", "33"]]
    enough = price_nodes(stages, 10.0, 660.0, 80, 0.04)
    assert enough is not None
    assert (enough.more_cores, enough.cost, enough.starved_hours) == (0, 0, 10)
    assert len(enough.lines()) == 1
    alone = price_nodes(stages, 10.0, 660.0, 0, 0.04)
    assert alone is not None
    assert (alone.more_cores, alone.starved_hours) == (66, None)
    on_cpu = cpu_stages(3.3, None, "segment", measured=False)
    assert price_nodes(on_cpu, 10.0, 660.0, 0, 0.04) is None


def test_each_window_starts_all_actors() -> None:
    starts = count_starts(1001, 200, 9.0, 8, 45.0)
    assert (starts.windows, starts.starts, starts.measured) == (6, 48, True)
    assert starts.device_hours == pytest.approx(6 * 8 * 45 / 3600)
    assumed = count_starts(1001, 200, 9.0, 8, None)
    assert "48 of segment actors, in 6 windows: 0.8 GPU-hours more at 60 s each, assumed" in assumed.line("GPU")
    assert count_starts(1000, "auto", 9.5, 8, None).windows == 10
    assert count_starts(1000, "auto", 0.1, 8, None).windows == 1
    assert count_starts(0, "auto", 0.0, 8, None).windows == 0
