"""Peaks that are measured in Ray's workers reach the driver."""

import time

import pytest
import ray

from segmint.infra.peak_reports import PeakReports
from segmint.infra.ray_session import Cluster

pytestmark = pytest.mark.ray


def test_every_worker_s_report_arrives(local_ray: Cluster) -> None:
    reports = PeakReports()
    assert reports.collect() == []
    tell = ray.remote(num_cpus=0)(lambda report, peak: report(peak))
    ray.get([tell.remote(reports, peak) for peak in (1e12, 2e12)])
    assert sorted(reports.collect()) == [1e12, 2e12]


def test_reports_lost_with_their_node_are_none(local_ray: Cluster) -> None:
    reports = PeakReports()
    reports(1e12)
    ray.kill(reports._box)
    end = time.monotonic() + 30
    while reports.collect() and time.monotonic() < end:  # Ray kills when it gets to it
        time.sleep(0.1)
    assert reports.collect() == []
    reports(2e12)
