"""What segment actors measure, collected for the driver. Imports Ray alone: its actor starts without the model."""

import ray
import ray.exceptions

COLLECT_TIMEOUT_S = 10.0
"""How long the end of a run waits for what was reported long before."""


class PeakReports:
    """Collects the peak of each device in FLOP/s, wherever the actor runs that measures it; made by the driver."""

    def __init__(self) -> None:
        self._box = ray.remote(num_cpus=0)(_Box).remote()

    def __call__(self, flop_per_s: float) -> None:
        """Takes one device's peak, from any process, without waiting."""
        self._box.put.remote(flop_per_s)

    def collect(self) -> list[float]:
        """All reports so far; none when the node that kept them is gone, for no run fails for want of its metric."""
        try:
            reports: list[float] = ray.get(self._box.all.remote(), timeout=COLLECT_TIMEOUT_S)
        except ray.exceptions.RayError:
            return []
        return reports


class _Box:
    """The actor that keeps the reports."""

    def __init__(self) -> None:
        self._reports: list[float] = []

    def put(self, flop_per_s: float) -> None:
        self._reports.append(flop_per_s)

    def all(self) -> list[float]:
        return self._reports
