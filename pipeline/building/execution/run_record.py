"""The progress of a run, for its log, its metrics and its accounting."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from segmint.catalogs.dataset.commits import REJECTED
from segmint.infra.errors import last_line
from segmint.infra.log import get_logger
from segmint.infra.metrics import (
    DRIVER_MEMORY,
    FAULTS,
    IMAGES_WRITTEN,
    MASKS_WRITTEN,
    ROWS_REJECTED,
    SHARDS_COMMITTED,
    SHARDS_ON_HOLD,
    RunMetrics,
    resident_bytes,
)
from segmint.operators.shards.write import ShardResult
from segmint.pipeline.building.execution.stage_loads import StageLoads


@dataclass
class RunRecord:
    """What a run has done so far."""

    metrics: RunMetrics
    built: Counter[str] = field(default_factory=Counter)
    on_hold: dict[int, str] = field(default_factory=dict)  # why, by shard
    loads: StageLoads = field(default_factory=StageLoads)

    def note(self, result: ShardResult) -> None:
        """Record how a shard ended."""
        log = get_logger("build")
        if result.status == "committed":
            self.built.update(result.counts)
            self.on_hold.pop(result.shard, None)
            self._count(result.counts)
            log.info("committed", shard=result.shard, **result.counts)
        elif result.status == "unchanged":
            log.info("unchanged", shard=result.shard, why=result.detail or "all rows were refused again")
        else:
            self.on_hold[result.shard] = result.detail
            self.metrics.add(FAULTS, kind="shard")
            log.warning("on hold", shard=result.shard, why=result.detail)
        self._measure()

    def _count(self, counts: Mapping[str, int]) -> None:
        self.metrics.add(SHARDS_COMMITTED)
        self.metrics.add(IMAGES_WRITTEN, counts.get("images", 0))
        self.metrics.add(MASKS_WRITTEN, counts.get("masks", 0))
        for name, count in counts.items():
            if name.startswith(REJECTED):
                self.metrics.add(ROWS_REJECTED, count, reason=name.removeprefix(REJECTED))

    def settled(self, window: Collection[int], left: Collection[int]) -> None:
        """Record that of a window's shards only those in `left` are still on hold, by whatever ended the window."""
        for shard in set(window) - set(left):
            self.on_hold.pop(shard, None)
        self._measure()

    def _measure(self) -> None:
        self.metrics.set(SHARDS_ON_HOLD, len(self.on_hold))
        self.metrics.set(DRIVER_MEMORY, resident_bytes())

    def note_failure(self, window: list[int], error: Exception) -> None:
        """Record that a window ended before its last shard."""
        cause = last_line(error)
        for shard in window:
            self.on_hold[shard] = cause
        self.metrics.add(FAULTS, kind="window")
        get_logger("build").warning("window ended early", error=cause)
