"""A real Prometheus that scrapes a build: every query of the dashboard and of the alerts returns data.

A panel that can't have data on this machine says why in its description.
"""

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.builds import AS_SHIPPED, NO_DETECTORS, ROOT, small_catalog, write_config
from tests.support.clusters import ray_cluster
from tests.support.runs import running
from tests.support.s3_server import free_ports

pytestmark = [pytest.mark.ray, pytest.mark.timeout(600)]

NO_DATA = "No data without"
"""Begins the sentence of a description that says what a panel needs."""

VARIABLES = {"$dataset": ".*", "$session": ".*", "$__rate_interval": "1m"}


class Prometheus:
    """A server that scrapes these ports of 127.0.0.1 every second."""

    def __init__(self, folder: Path, ports: list[int]) -> None:
        (port,) = free_ports(1)
        self._url = f"http://127.0.0.1:{port}"
        self._began = time.time()
        targets = [f"127.0.0.1:{each}" for each in ports]
        scrape = {"job_name": "ray", "scrape_interval": "1s", "static_configs": [{"targets": targets}]}
        folder.mkdir()
        (folder / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [scrape]}))
        with (folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )

    def has_data(self, query: str) -> bool:
        """Whether a query returned a series at any time since the server's start. An invalid one fails."""
        for variable, value in VARIABLES.items():
            query = query.replace(variable, value)
        span = {"query": query, "start": self._began, "end": time.time(), "step": 1}
        address = f"{self._url}/api/v1/query_range?{urllib.parse.urlencode(span)}"
        with urllib.request.urlopen(address, timeout=20) as response:
            return bool(json.load(response)["data"]["result"])

    def wait_until_ready(self, deadline_s: float = 60) -> None:
        deadline = time.monotonic() + deadline_s
        while time.monotonic() < deadline:
            with suppress(OSError):
                return urllib.request.urlopen(f"{self._url}/-/ready", timeout=5).close()
            time.sleep(0.2)
        raise AssertionError("Prometheus did not start")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(timeout=30)


@contextmanager
def prometheus(folder: Path, ports: list[int]) -> Iterator[Prometheus]:
    server = Prometheus(folder, ports)
    try:
        server.wait_until_ready()
        yield server
    finally:
        server.close()


def panels() -> list[dict[str, Any]]:
    """The panels of the dashboard that have queries."""
    dashboard = json.loads((ROOT / "infra" / "grafana" / "segmint.json").read_text(encoding="utf-8"))
    return [panel for panel in dashboard["panels"] if panel.get("targets")]


def alerts() -> dict[str, str]:
    """The query of each alert without its thresholds, by name."""
    groups = yaml.safe_load((ROOT / "infra" / "grafana" / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    return {rule["title"]: rule["data"][0]["model"]["expr"] for group in groups for rule in group["rules"]}


def test_every_query_of_the_dashboard_has_data_from_a_live_build(tmp_path: Path) -> None:
    catalog = small_catalog(tmp_path / "photos", count=8)
    (port,) = free_ports(1)
    rows = [json.loads(line) for line in catalog.read_text().splitlines()]
    rows[-2]["uri"] = "s3://bucket/nowhere.jpg"  # no store answers there, so its shard is put on hold
    catalog.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = write_config(
        tmp_path / "build.yaml",
        catalog,
        tmp_path / "dataset",
        images_per_shard=1,
        rows_per_block=1,
        model=AS_SHIPPED,
        deidentify=NO_DETECTORS,
        outage_timeout_s=5,
        storage={"s3://": {"endpoint_url": f"http://127.0.0.1:{port}", "connect_timeout": 2, "read_timeout": 2}},
        resources={"prepare": {"actors": 1}, "segment": {"actors": 1}},
    )
    with ray_cluster(6) as cluster, prometheus(tmp_path / "prometheus", cluster.metrics_ports) as server:
        with running(config, AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret", **cluster.environment) as run:
            assert run.wait() == 3, run.told()
        time.sleep(3)  # a last scrape
        empty = {
            panel["title"]
            for panel in panels()
            if not any(server.has_data(target["expr"]) for target in panel["targets"])
        }
        assert empty == {panel["title"] for panel in panels() if NO_DATA in panel.get("description", "")}
        for query in alerts().values():
            server.has_data(query)  # fails for one that Prometheus refuses on these series
