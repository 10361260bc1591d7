"""How busy stages were: sums over windows, and the stage that is said to limit."""

import pytest

from segmint.pipeline.building.execution.accounting import StageLoad, StageLoads, loads_line


def test_seconds_of_all_windows_and_workers_add_up() -> None:
    loads = StageLoads()
    assert loads.read() == ()
    loads.add(10.0, {"prepare": 1, "segment": 2}, {"prepare": 9.0, "segment": 8.0, "describe": 3.0})
    loads.add(5.0, {"prepare": 3, "segment": 2}, {"segment": 4.0})
    assert loads.read() == (StageLoad("prepare", 9.0, 25.0), StageLoad("segment", 12.0, 30.0))
    assert [load.share for load in loads.read()] == [0.36, 0.4]
    assert StageLoad("prepare", 0.0, 0.0).share == 0


@pytest.mark.parametrize(
    ("busy", "verdict"),
    [
        ({"prepare": 9.6, "segment": 4.0}, "prepare limited this run"),
        ({"prepare": 1.0, "segment": 5.0}, "segment limited this run"),
        ({"prepare": 1.0, "segment": 4.9}, "no stage was busy most of the time"),
    ],
)
def test_the_busiest_stage_limits_a_run_if_it_was_busy_for_most_of_the_time(
    busy: dict[str, float], verdict: str
) -> None:
    loads = StageLoads()
    loads.add(10.0, {"prepare": 1, "segment": 1}, busy)
    shares = ", ".join(f"{stage} {10 * seconds:.0f}%" for stage, seconds in busy.items())
    assert loads_line(loads.read()) == f"busy      {shares} of their workers' time: {verdict}"
