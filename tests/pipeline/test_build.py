"""The loop over a build's windows: what follows a window runs on the nodes that are there then."""

from collections.abc import Collection
from types import SimpleNamespace
from typing import Any

import pytest

from segmint.infra.storage.errors import StorageFaultError
from segmint.pipeline import build
from segmint.pipeline.building.execution.quarantine import Trials


class LostWindow:
    """Work whose first window can't be read, and that another build then finishes."""

    def __init__(self) -> None:
        self.left = [0]

    def read(self, window: list[int]) -> Any:
        raise StorageFaultError("the store is out")

    def settle(self, window: list[int], done: Collection[int]) -> int:
        self.left = []
        return 0


class RecordedQuarantine:
    """In place of `Quarantine`: the stages of each round of trials."""

    def __init__(self) -> None:
        self.stages = "of the run's first nodes"
        self.tried_on: list[str] = []

    def run_trials(self, spans: object) -> Trials:
        self.tried_on.append(self.stages)
        return Trials(0, {})


def test_trials_run_on_the_nodes_that_are_there_after_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would wait for the nodes of the run's start, which may be gone for good."""
    monkeypatch.setattr(build, "lay_out_again", lambda *_: "of the nodes now")
    monkeypatch.setattr(build, "start_detectors", lambda stages, before: f"{stages}, with detectors")
    quarantine = RecordedQuarantine()
    nothing: Any = SimpleNamespace(
        window_shards=1, images_per_shard=1, rows_per_block=1, on_hold={}, spans=lambda shards: []
    )
    nothing.note_failure = nothing.settled = lambda *_: None
    stopped: Any = quarantine
    loop = build._OuterLoop(nothing, nothing, nothing, nothing, stopped, nothing, nothing, nothing)
    loop.go_through(LostWindow())
    assert quarantine.tried_on == [loop.stages] == ["of the nodes now, with detectors"]
