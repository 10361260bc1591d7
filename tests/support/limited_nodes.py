"""Ray's provider of fake nodes, as a cloud whose capacity a test changes."""

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

# Ray has no public provider of nodes for tests.
from ray._private import parameter, services  # noqa: PLC2701, TID251
from ray._raylet import DASHBOARD_AGENT_LISTEN_PORT_NAME, persist_port  # noqa: PLC2701, TID251
from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider  # noqa: PLC2701, TID251
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE

from tests.support.s3_server import free_ports

CAPACITY_WAIT_S = 5.0
"""Seconds after which a launch fails without capacity. The autoscaler then tries again."""

START_TIMEOUT_S = 300.0
"""Seconds that a node may take to register."""

AGENT_PORTS = ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port", "runtime_env_agent_port")


class LimitedNodeProvider(FakeMultiNodeProvider):
    """Starts nodes as processes of this machine, one after another, and at most as many at once as the capacity allows.

    In the folder `SEGMINT_TEST_RAY_FOLDER` of the environment, the file `capacity` contains the capacity, and the file
    `launches` gets a line with the number of nodes for each launch.
    """

    def __init__(self, provider_config: Any, cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._folder = Path(os.environ["SEGMINT_TEST_RAY_FOLDER"])
        self._launching = threading.Lock()

    def create_node_with_resources_and_labels(
        self, config: Any, tags: Any, count: int, resources: Any, labels: Any
    ) -> None:
        """Start `count` nodes. Raises `RuntimeError` when there is no capacity for the next one."""
        with (self._folder / "launches").open("a") as file:
            file.write(f"{count}\n")
        with self._launching:
            for _ in range(count):
                self._wait_for_capacity()
                self._start(config, tags, resources, labels)

    def _wait_for_capacity(self) -> None:
        deadline = time.monotonic() + CAPACITY_WAIT_S
        # The head is one of the nodes.
        while len(self._nodes) - 1 >= int((self._folder / "capacity").read_text()):
            if time.monotonic() > deadline:
                raise RuntimeError("the cloud has no capacity")
            time.sleep(0.2)

    def _start(self, config: Any, tags: Any, resources: Any, labels: Any) -> None:
        """Start a node as Ray does, but without two limits of 30 s that a busy machine exceeds.

        A raylet ends unless it learns the ports of its agents in time. And if a node doesn't register in time, the
        autoscaler starts another one beside it. Ray would also label the node with the head's group, which is in the
        environment of the autoscaler, and start a process that forwards logs.
        """
        ports = dict(zip(AGENT_PORTS, free_ports(len(AGENT_PORTS)), strict=True))
        session = str(self._folder / "session_latest")
        following = f"{self._next_node_id + 1:0>56}".replace("0", "f", 51)
        persist_port(session, following, DASHBOARD_AGENT_LISTEN_PORT_NAME, ports["dashboard_agent_listen_port"])
        params = parameter.RayParams

        def changed(**named: Any) -> parameter.RayParams:
            return params(**{**named, **ports, "include_log_monitor": False})

        with (
            mock.patch.dict(os.environ, {"RAY_NODE_TYPE_NAME": tags[TAG_RAY_USER_NODE_TYPE]}),
            mock.patch.object(parameter, "RayParams", changed),
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
