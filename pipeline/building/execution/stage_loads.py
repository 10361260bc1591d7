"""How busy the workers of each stage were in a run, and which stage limited it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

MOSTLY = 0.5
"""The least share of its time that a stage is busy if it limits a run: below, the run is mostly start or waiting."""


@dataclass(frozen=True)
class StageLoad:
    """One stage's share of its workers' time that they worked."""

    stage: str
    busy_s: float  # summed over the stage's workers
    worker_s: float  # seconds of all windows, times the workers

    @property
    def share(self) -> float:
        """The busy share, 0 to 1; measured in other processes, it may be over 1 by a little."""
        return self.busy_s / self.worker_s if self.worker_s else 0.0


class StageLoads:
    """Adds up the stages' seconds over the windows of a run."""

    def __init__(self) -> None:
        self._busy: dict[str, float] = {}
        self._had: dict[str, float] = {}

    def add(self, seconds: float, workers: Mapping[str, int], busy: Mapping[str, float]) -> None:
        """Add a window of so many seconds: each stage's workers, and the seconds that these worked, summed.

        What `busy` has of other stages is left out.
        """
        for stage, count in workers.items():
            self._busy[stage] = self._busy.get(stage, 0.0) + busy.get(stage, 0.0)
            self._had[stage] = self._had.get(stage, 0.0) + seconds * count

    def read(self) -> tuple[StageLoad, ...]:
        """Return the loads so far, in the order of the stages."""
        return tuple(StageLoad(stage, self._busy[stage], had) for stage, had in self._had.items())


def loads_line(loads: Sequence[StageLoad]) -> str:
    """Say how busy each stage was, and which limited the run; `loads` is not empty."""
    shares = ", ".join(f"{load.stage} {100 * load.share:.0f} %" for load in loads)
    most = max(loads, key=lambda load: load.share)
    verdict = f"{most.stage} limited this run" if most.share >= MOSTLY else "no stage was busy for most of the time"
    return f"busy      {shares} of their workers' time: {verdict}"
