"""A part keeps to its budget, records every error and goes on, and leaves a whole file at any moment."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu.run import FULL, NotMeasuredError, PartRun, timed


@pytest.fixture
def run(tmp_path: Path) -> PartRun:
    return PartRun(torch.device("cpu"), FULL, tmp_path / "part.json", 100.0, {"part": 3})


def test_an_error_is_recorded_and_the_next_measurement_follows(run: PartRun) -> None:
    def fails(run: PartRun) -> dict[str, Any]:
        raise AssertionError("a wrong shape")

    def unable(run: PartRun) -> dict[str, Any]:
        raise NotMeasuredError("not on a CPU")

    run.measure("first", fails)
    run.measure("second", unable)
    run.measure("third", lambda run, value: {"value": value}, 5)
    written = json.loads(run.output.read_text())
    assert written["part"] == 3
    assert written["measurements"]["first"]["failed"] == "AssertionError: a wrong shape"
    assert "in fails" in written["measurements"]["first"]["traceback"]
    assert written["measurements"]["second"]["skipped"] == "not on a CPU"
    assert written["measurements"]["third"]["value"] == 5
    assert run.failures() == ["first"]


def test_what_would_overrun_is_skipped_by_what_its_kind_took(run: PartRun, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("benchmarks.gpu.run.time.monotonic", lambda: now[0])
    run.started = 0.0

    def slow(run: PartRun) -> dict[str, Any]:
        now[0] += 60
        return {"done": True}

    assert run.measure("first", slow, kind="slow", needs_s=5)["took_s"] == 60
    assert run.measure("second", slow, kind="slow", needs_s=5)["skipped"] == (
        "it takes about 60 s, and 40 s of 100 are left"
    )
    assert run.measure("third", slow, kind="other", needs_s=5)["done"]
    assert run.measure("fourth", lambda run: {}, needs_s=5)["skipped"]


def test_a_process_that_is_ended_leaves_what_it_was_at(run: PartRun) -> None:
    def killed(run: PartRun) -> dict[str, Any]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.measure("first", killed)
    assert json.loads(run.output.read_text())["measurements"] == {"first": {"running": True}}


def test_samples_end_with_the_budget(run: PartRun) -> None:
    calls: list[int] = []
    run.budget_s = 0.0
    found = timed(run, lambda: calls.append(1))
    assert len(calls) == FULL.warmups + 1
    assert found["least_s"] == found["most_s"] == found["median_s"]
