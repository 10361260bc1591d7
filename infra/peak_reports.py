"""Collection of the peaks that segment actors measure. Imports only Ray, not the model."""

import contextlib

import ray
import ray.exceptions

TIMEOUT_S = 10.0
"""Timeout in seconds of each call to the actor that keeps the reports."""


class PeakReports:
    """Collector of each device's peak in FLOP/s, reported by actors on any node; created by the driver."""

    def __init__(self) -> None:
        self._box = ray.remote(num_cpus=0)(_ReportsActor).remote()

    def __call__(self, flop_per_s: float) -> None:
        """Report one device's peak from any process; waits until it is stored, because Ray doesn't order callers.

        If the node that keeps the reports is gone, the report is lost; a missing metric never fails a run.
        """
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._box.put.remote(flop_per_s), timeout=TIMEOUT_S)

    def collect(self) -> list[float]:
        """Return all reports so far; empty if the node that kept them is gone: a missing metric never fails a run."""
        try:
            reports: list[float] = ray.get(self._box.all.remote(), timeout=TIMEOUT_S)
        except ray.exceptions.RayError:
            return []
        return reports


class _ReportsActor:
    """Actor that keeps the reports."""

    def __init__(self) -> None:
        self._reports: list[float] = []

    def put(self, flop_per_s: float) -> None:
        self._reports.append(flop_per_s)

    def all(self) -> list[float]:
        return self._reports
