"""A real Ray cluster of several nodes on this machine, started as users do: `ray start` for each node."""

import json
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from tests.support.s3_server import free_ports

OBJECT_STORE = 120_000_000


ROOT = Path(__file__).resolve().parents[2]

_HEAD_ID = "f" * 51 + "00000"
_HEAD_TYPE = "ray.head.default"
"""The id and the type of a head in Ray's provider of fake nodes, which knows no others."""


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


class RayNode:
    """One node: `ray start --block` with its raylet, workers and services below it."""

    def __init__(self, arguments: list[str], environment: dict[str, str], log: Path) -> None:
        self._log = log
        with log.open("wb") as stream:
            self._process = subprocess.Popen(
                [Path(sys.executable).parent / "ray", "start", "--block", *arguments],
                env=environment,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_until_started(self, deadline_s: float = 90) -> None:
        """Return when the node is part of its cluster."""
        deadline = time.monotonic() + deadline_s
        while b"Ray runtime started" not in self._log.read_bytes():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise AssertionError(f"the node did not start:\n{self._log.read_text()}")
            time.sleep(0.1)

    def processes(self) -> list[psutil.Process]:
        """All that runs on the node now, `ray start` first."""
        root = psutil.Process(self._process.pid)
        return [root, *root.children(recursive=True)]

    def alive(self) -> bool:
        """Whether the node runs: one that its cluster has given up ends itself when it hears of that."""
        return self._process.poll() is None

    def pause(self) -> None:
        """Send SIGSTOP to everything on the node, like a hypervisor that halts a machine."""
        stopped: set[int] = set()
        # Those that were started while the others were stopped come last.
        while new := {process for process in self.processes() if process.pid not in stopped}:
            for process in new:
                with suppress(psutil.NoSuchProcess):
                    process.suspend()
            stopped |= {process.pid for process in new}

    def wake_up(self) -> None:
        """Send SIGCONT to everything on the node, the workers first: they go on before their raylet does."""
        for process in reversed(self.processes()):
            with suppress(psutil.NoSuchProcess):
                process.resume()

    def kill(self) -> None:
        """Send SIGKILL to everything at once, the raylet and its workers included, like a power cut."""
        try:
            running = self.processes()
        except psutil.NoSuchProcess:
            running = []
        for process in running:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(running, timeout=30)
        self._process.wait()


class RayCluster:
    """A head and nodes that come and go, all on this machine, with their own token."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="ray-", dir="/tmp"))  # Ray puts sockets there: a short path
        self._port, self._client_port = free_ports(2)
        self.nodes: list[RayNode] = []
        self.metrics_ports: list[int] = []  # of the nodes, where Prometheus finds their metrics
        # What a driver needs besides its environment.
        self.environment = {
            "RAY_ADDRESS": f"127.0.0.1:{self._port}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
        }

    def add_node(self, cpus: int, *more: str, **environment: str) -> RayNode:
        """One more node, the first as the head; returns it when it is part of the cluster."""
        if self.nodes:
            role = [f"--address=127.0.0.1:{self._port}"]
        else:
            ports = [f"--port={self._port}", f"--ray-client-server-port={self._client_port}"]
            role = ["--head", "--include-dashboard=false", *ports]
        metrics_port, http_port, grpc_port, environments_port = free_ports(4)
        self.metrics_ports.append(metrics_port)
        arguments = [
            *role,
            f"--metrics-export-port={metrics_port}",
            "--node-ip-address=127.0.0.1",
            f"--num-cpus={cpus}",
            f"--object-store-memory={OBJECT_STORE}",
            f"--temp-dir={self._folder}",
            # Free ports, for nodes of one machine cannot have the same.
            "--min-worker-port=0",
            "--max-worker-port=0",
            # If these agents choose their ports, a raylet ends unless it learns of them within 30 s.
            f"--dashboard-agent-listen-port={http_port}",
            f"--dashboard-agent-grpc-port={grpc_port}",
            f"--runtime-env-agent-port={environments_port}",
            "--disable-usage-stats",
            *more,
        ]
        own = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        token = {name: value for name, value in self.environment.items() if name != "RAY_ADDRESS"}
        log = self._folder / f"node-{len(self.nodes)}.log"
        self.nodes.append(RayNode(arguments, {**own, **token, "OMP_WAIT_POLICY": "PASSIVE", **environment}, log))
        self.nodes[-1].wait_until_started()
        return self.nodes[-1]

    def add_autoscaler(self, cpus: int, most: int, **environment: str) -> None:
        """Start the head, without CPUs, and Ray's autoscaler, which adds nodes with so many logical CPUs on demand.

        It may add `most` nodes, but its cloud has none before `set_capacity`.
        """
        resources = {"CPU": cpus, "object_store_memory": OBJECT_STORE}
        lists = ("initialization_commands", "setup_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter")
        sides = [f"{side}_{kind}" for side in ("head", "worker") for kind in ("setup_commands", "start_ray_commands")]
        config = {
            "cluster_name": "fake",
            "max_workers": most,
            "upscaling_speed": 100.0,
            "idle_timeout_minutes": 10,
            "provider": {
                "type": "external",
                "module": "tests.support.limited_nodes.LimitedNodeProvider",
                "gcs_address": f"127.0.0.1:{self._port}",
                "head_node_id": _HEAD_ID,
                "launch_multiple": True,
                "use_node_id_as_ip": True,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
            },
            "head_node_type": _HEAD_TYPE,
            "available_node_types": {
                _HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
                "worker": {"resources": resources, "node_config": {}, "min_workers": 0, "max_workers": most},
            },
            **{name: {} for name in ("auth", "docker", "file_mounts")},
            **{name: [] for name in (*lists, *sides)},
        }
        path = self._folder / "autoscaler.json"
        path.write_text(json.dumps(config))
        (self._folder / "launches").touch()
        self.set_capacity(0)
        own = {
            "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            "PYTHONPATH": str(ROOT),
            "SEGMINT_TEST_RAY_FOLDER": str(self._folder),
            "RAY_FAKE_CLUSTER": "1",
            "RAY_enable_autoscaler_v2": "1",
            "RAY_CLOUD_INSTANCE_ID": _HEAD_ID,
            "RAY_OVERRIDE_NODE_ID_FOR_TESTING": _HEAD_ID,
            "RAY_NODE_TYPE_NAME": _HEAD_TYPE,
            # On a busy machine, nodes and workers take long to answer; they aren't lost.
            "RAY_health_check_failure_threshold": "10",
            "RAY_agent_register_timeout_ms": "300000",
            "RAY_worker_register_timeout_seconds": "300",
            "RAY_worker_niceness": "0",
        }
        self.add_node(0, f"--autoscaling-config={path}", **own, **environment)

    def set_capacity(self, nodes: int) -> None:
        """Set how many nodes the autoscaler's cloud can run at once. Those that run stay."""
        path = self._folder / "capacity"
        path.with_suffix(".new").write_text(str(nodes))
        path.with_suffix(".new").replace(path)

    def launches(self) -> list[int]:
        """Number of nodes in each request of the autoscaler to its cloud."""
        return [int(line) for line in (self._folder / "launches").read_text().splitlines()]

    def raylets(self) -> list[psutil.Process]:
        """The raylet of each node that runs now, also of those that the autoscaler has added."""
        return [process for process in self.nodes[0].processes() if "raylet/raylet" in " ".join(_words(process))[:500]]

    def close(self) -> None:
        """End every node and remove what they left."""
        for node in self.nodes:
            node.kill()
        shutil.rmtree(self._folder, ignore_errors=True)


@contextmanager
def ray_cluster(*cpus: int) -> Iterator[RayCluster]:
    """A cluster of nodes with so many logical CPUs each, the head first; gone afterwards."""
    cluster = RayCluster()
    try:
        for count in cpus:
            cluster.add_node(count)
        yield cluster
    finally:
        cluster.close()
