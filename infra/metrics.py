"""Metrics that a run exports through Ray, each with its name, kind, and labels.

An agent on every Ray node collects the metrics of the node's processes and serves them to Prometheus. To set the
agent's port, use `ray start --metrics-export-port`; KubeRay uses 8080. Prometheus sees the counter
`segmint_images_written` as `ray_segmint_images_written_total`. Metrics are always on: an update takes microseconds, and
if no agent is running, it's dropped. Counters start at 0 in each run, as Prometheus expects after a restart.
`infra/grafana/segmint.json` is a dashboard with all metrics, and `infra/grafana/alerts.yaml` defines alerts on some of
them.
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
    """Metric in Ray. Every metric has the label `dataset`; `labels` lists the others."""

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
    """Return the resident memory of this process in bytes. If the system doesn't report it, return the peak instead."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


class RunMetrics:
    """Metrics of one run, which its driver records. The first error disables them, so they never make a run fail."""

    def __init__(self, dataset: str) -> None:
        self._dataset = dataset
        self._handles: dict[str, Any] = {}
        self._works = True

    def add(self, metric: Metric, value: float = 1, **labels: str) -> None:
        """Add to a counter. Counters can only grow, so values of 0 or less are ignored."""
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
        except Exception as error:  # noqa: BLE001 - Ray's metrics aren't a public interface and may raise anything
            self._works = False
            get_logger("metrics").warning("switched off", metric=metric.name, error=str(error))

    def _handle(self, metric: Metric) -> Any:
        if metric.name not in self._handles:
            from ray.util.metrics import Counter, Gauge

            kind = Counter if metric.kind == "counter" else Gauge
            self._handles[metric.name] = kind(metric.name, metric.description, ("dataset", *metric.labels))
        return self._handles[metric.name]
