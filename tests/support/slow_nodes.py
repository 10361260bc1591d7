"""Ray's provider of fake nodes, whose nodes take time to arrive as a cloud's do."""

import os
import time
from collections.abc import Callable
from typing import Any
from unittest import mock

from ray._private import parameter, services
from ray._raylet import DASHBOARD_AGENT_LISTEN_PORT_NAME, persist_port
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider

from tests.support.s3_server import free_ports

START_TIMEOUT_S = 300.0
"""Seconds that a node may take to register."""

AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


class SlowNodeProvider(FakeMultiNodeProvider):
    """Starts nodes as processes of this machine, after `SEGMINT_TEST_NODE_SECONDS` of the environment.

    The very first node starts at once, so that a build can begin.
    """

    def create_node_with_resources_and_labels(
        self, config: Any, tags: Any, count: int, resources: Any, labels: Any
    ) -> None:
        """Start `count` nodes, one after another."""
        if not self._next_node_id:
            self._start(config, tags, resources, labels)
            count -= 1
        if count:
            time.sleep(float(os.environ.get("SEGMINT_TEST_NODE_SECONDS", "0")))
        for _ in range(count):
            self._start(config, tags, resources, labels)

    def _start(self, config: Any, tags: Any, resources: Any, labels: Any) -> None:
        """Start a node as Ray does, but without two limits of 30 s that a busy machine exceeds.

        A raylet ends unless it learns the ports of its agents in time. And if a node doesn't register in time, the
        autoscaler starts another one beside it.
        """
        ports = dict(zip(AGENT_PORTS, free_ports(len(AGENT_PORTS)), strict=True))
        session = f"{os.environ['SEGMINT_TEST_RAY_FOLDER']}/session_latest"
        following = f"{self._next_node_id + 1:0>56}".replace("0", "f", 51)
        persist_port(session, following, DASHBOARD_AGENT_LISTEN_PORT_NAME, ports["dashboard_agent_listen_port"])
        params = parameter.RayParams

        def with_ports(**named: Any) -> parameter.RayParams:
            return params(**{**named, **ports})

        with (
            mock.patch.object(parameter, "RayParams", with_ports),
            mock.patch.object(services, "get_node", _patient(services.get_node)),
        ):
            super().create_node_with_resources_and_labels(config, tags, 1, resources, labels)


def _patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function, which raises `RuntimeError` for a node that hasn't registered yet, with a longer wait."""

    def get(*arguments: Any) -> Any:
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)

    return get
