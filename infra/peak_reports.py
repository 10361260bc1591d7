"""The peaks that segment actors measure, collected for the driver. Imports only Ray, not the model."""

import contextlib

import ray
import ray.exceptions

TIMEOUT_S = 10.0
"""Seconds that a report, or the end of a run, waits for the actor that keeps the reports."""


class PeakReports:
    """Collects the peak of each device in FLOP/s from actors on any node; created by the driver."""

    def __init__(self) -> None:
        self._box = ray.remote(num_cpus=0)(_ReportsActor).remote()

    def __call__(self, flop_per_s: float) -> None:
        """Report one device's peak, from any process; returns when it is stored, as Ray keeps no order between callers.

        If the node that keeps the reports is gone, this one is lost: a missing metric never fails a run.
        """
        with contextlib.suppress(ray.exceptions.RayError):
            ray.get(self._box.put.remote(flop_per_s), timeout=TIMEOUT_S)

    def collect(self) -> list[float]:
        """All reports so far; empty if the node that kept them is gone: a missing metric never fails a run."""
        try:
            reports: list[float] = ray.get(self._box.all.remote(), timeout=TIMEOUT_S)
        except ray.exceptions.RayError:
            return []
        return reports


class _ReportsActor:
    """The actor that keeps the reports."""

    def __init__(self) -> None:
        self._reports: list[float] = []

    def put(self, flop_per_s: float) -> None:
        self._reports.append(flop_per_s)

    def all(self) -> list[float]:
        return self._reports
