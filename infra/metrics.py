"""Metrics that a run exports through Ray, each with its name, kind, and labels.

An agent on every Ray node collects the metrics of the node's processes and serves them to Prometheus. `ray start
--metrics-export-port` sets the agent's port; KubeRay uses 8080. In Prometheus, the counter `segmint_images_written` is
named `ray_segmint_images_written_total`. Metrics are always on, because an update takes microseconds and is dropped if
no agent is running. Counters start at 0 in each run, as Prometheus expects after a restart.
`infra/grafana/segmint.json` shows all of them, and `infra/grafana/alerts.yaml` watches some.
"""

import os
import resource
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segmint.infra.log import get_logger


@dataclass(frozen=True)
class Metric:
    """Metric in Ray; `labels` are in addition to `dataset`, which every metric has."""

    name: str
    kind: Literal["counter", "gauge"]
    description: str
    labels: tuple[str, ...] = ()


IMAGES_WRITTEN = Metric("segmint_images_written", "counter", "Images in the shards that this run committed.")
MASKS_WRITTEN = Metric("segmint_masks_written", "counter", "Masks in the shards that this run committed.")
ROWS_REJECTED = Metric(
    "segmint_rows_rejected", "counter", "Rows rejected, by reason, in the shards that this run committed.", ("reason",)
)
SHARDS_COMMITTED = Metric("segmint_shards_committed", "counter", "Shards that this run committed.")
SHARDS_MISSING = Metric("segmint_shards_missing", "gauge", "Shards of this run that are not committed yet.")
SHARDS_ON_HOLD = Metric("segmint_shards_on_hold", "gauge", "Shards that are on hold now; they will be retried.")
DRIVER_MEMORY = Metric("segmint_driver_memory_bytes", "gauge", "Resident memory of the driver, at its last shard.")
FAULTS = Metric(
    "segmint_faults",
    "counter",
    "Work to be retried: shards on hold (kind=shard) and windows that ended early (kind=window).",
    ("kind",),
)
STAGE_ROWS = Metric("segmint_stage_rows", "counter", "Rows that left a stage, accepted or rejected.", ("stage",))
STAGE_SECONDS = Metric(
    "segmint_stage_seconds",
    "counter",
    "Seconds that a stage's workers spent on blocks, summed over workers.",
    ("stage",),
)

METRICS = (
    IMAGES_WRITTEN,
    MASKS_WRITTEN,
    ROWS_REJECTED,
    SHARDS_COMMITTED,
    SHARDS_MISSING,
    SHARDS_ON_HOLD,
    DRIVER_MEMORY,
    FAULTS,
    STAGE_ROWS,
    STAGE_SECONDS,
)


def resident_bytes() -> int:
    """Return the resident memory of this process in bytes, or its peak if the system reports nothing else."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class RunMetrics:
    """Metrics of one run, recorded on its driver. They never make a run fail, because the first error disables them."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._handles: dict[str, Any] = {}
        self._works = True

    def add(self, metric: Metric, value: float = 1, **labels: str) -> None:
        """Add to a counter. Values of 0 or less are ignored, because a counter only grows."""
        if value > 0:
            self._record(metric, "inc", value, labels)

    def set(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge."""
        self._record(metric, "set", value, labels)

    def _record(self, metric: Metric, verb: str, value: float, labels: dict[str, str]) -> None:
        if not self._works:
            return
        try:
            getattr(self._handle(metric), verb)(value, tags={"dataset": self._dataset, **labels})
        except Exception as error:  # noqa: BLE001 - Ray's metrics are not a public interface: they may raise anything
            self._works = False
            get_logger("metrics").warning("switched off", metric=metric.name, error=str(error))

    def _handle(self, metric: Metric) -> Any:
        if metric.name not in self._handles:
            from ray.util.metrics import Counter, Gauge

            kind = Counter if metric.kind == "counter" else Gauge
            self._handles[metric.name] = kind(metric.name, metric.description, ("dataset", *metric.labels))
        return self._handles[metric.name]
