"""Node groups of a Ray cluster's autoscaler, and requests for their nodes."""

import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from segmint.infra.errors import last_line
from segmint.infra.log import get_logger

LOOK_S = 5.0
"""Seconds between checks of the cluster's nodes while a request is open."""

GPU_KIND = "accelerator_type:"
"""Prefix of the Ray resource that identifies the kind of a node's GPUs, as in `accelerator_type:H100`."""

_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_CONFIG_FILE = "--autoscaling-config="


@dataclass(frozen=True)
class NodeGroup:
    """Group of identical nodes that the autoscaler can add on demand."""

    name: str
    resources: Mapping[str, float]  # resources of one node, with Ray's names
    most: int  # maximum number of nodes that the autoscaler may run at once


def node_groups() -> list[NodeGroup]:
    """Return the node groups of the connected cluster's autoscaler, except for the head node's group.

    Ray's autoscaler doesn't tell drivers which nodes it can add. On KubeRay, this function reads the groups from the
    RayCluster resource. On other clusters, it reads the file that the head was started with, which works only if the
    driver runs on the head. If there is no autoscaler or its groups are unknown, the list is empty.
    """
    try:
        config = _of_kuberay() or _of_head() or {}
    except Exception as error:  # noqa: BLE001 - network, permissions, or a broken file: use the existing nodes
        get_logger("cluster").warning("node_groups_unknown", reason=last_line(error))
        return []
    head = config.get("head_node_type")
    total = int(config.get("max_workers", 0))
    groups = []
    for name, of in config.get("available_node_types", {}).items():
        if name != head:
            most = min(int(of.get("max_workers", total)), total)
            groups.append(NodeGroup(name, {key: float(value) for key, value in of["resources"].items()}, most))
    return groups


def _of_kuberay() -> dict[str, Any] | None:
    """Return the autoscaler's configuration on KubeRay, where the head pod may read its own RayCluster resource."""
    name = os.environ.get("RAY_CLUSTER_NAME")
    if not name or not _NAMESPACE.is_file():
        return None
    from segmint.infra.ray_internals import kuberay_cluster

    return config_of(kuberay_cluster(_NAMESPACE.read_text().strip(), name))


def config_of(ray_cluster: dict[str, Any]) -> dict[str, Any] | None:
    """Derive the autoscaler's configuration from a RayCluster resource. Return None if it has no autoscaler."""
    from segmint.infra.ray_internals import autoscaling_config

    if not ray_cluster["spec"].get("enableInTreeAutoscaling"):
        return None
    return autoscaling_config(ray_cluster)


def _of_head() -> dict[str, Any] | None:
    """Find this cluster's autoscaler among the local processes, and read the configuration on its command line."""
    import yaml

    from segmint.infra.ray_internals import session_name

    session = f"/{session_name()}/".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().split(b"\0")
        except OSError:  # the process has ended, or belongs to another user
            continue
        files = [word.decode() for word in words if word.startswith(_CONFIG_FILE.encode())]
        if files and any(session in word for word in words):
            config: dict[str, Any] = yaml.safe_load(Path(files[0].removeprefix(_CONFIG_FILE)).read_text())
            return config
    return None


def belongs(node: Mapping[str, Any], group: NodeGroup) -> bool:
    """Return whether a node from `ray.nodes()` belongs to the group, by its label or, without a label, by its size."""
    label = (node.get("Labels") or {}).get("ray.io/node-group")
    if label is not None or "node:__internal_head__" in node["Resources"]:
        return bool(label == group.name)
    return all(node["Resources"].get(key, 0) == group.resources.get(key, 0) for key in ("CPU", "GPU"))


def gpu_kind(resources: Mapping[str, float]) -> str:
    """Return the GPU kind that a node's resources contain, or "" if they don't contain any."""
    return min((name.removeprefix(GPU_KIND) for name in resources if name.startswith(GPU_KIND)), default="")


def with_gpu_kind(groups: Sequence[NodeGroup], nodes: Sequence[Mapping[str, Any]]) -> list[NodeGroup]:
    """Add the GPU kind to groups if the autoscaler doesn't know it, which is common.

    `nodes` is the result of `ray.nodes()`. If all live nodes with GPUs have the same kind, new nodes are assumed to
    have that kind, too.
    """
    kinds = {gpu_kind(node["Resources"]) for node in nodes if node["Alive"] and node["Resources"].get("GPU", 0) > 0}
    if len(kinds) != 1 or "" in kinds:
        return list(groups)
    named = {f"{GPU_KIND}{min(kinds)}": 1.0}
    found = []
    for group in groups:
        if group.resources.get("GPU", 0) > 0 and not gpu_kind(group.resources):
            group = replace(group, resources={**group.resources, **named})
        found.append(group)
    return found


def missing_nodes(
    bundles: Sequence[Mapping[str, float]], groups: Sequence[NodeGroup], nodes: Sequence[Mapping[str, Any]]
) -> Counter[str]:
    """Count the nodes of each group that must be added to the live nodes in `nodes` to fit these bundles of resources.

    `nodes` is the result of `ray.nodes()`. Bundles that don't fit even with every node that the groups can add are
    ignored.
    """
    alive = [node for node in nodes if node["Alive"]]
    open_nodes = [dict(node["Resources"]) for node in alive]
    spare = {}
    for group in groups:
        spare[group.name] = group.most - sum(belongs(node, group) for node in alive)
    missing: Counter[str] = Counter()
    for bundle, equal in groupby(bundles):  # there may be thousands of equal bundles, so place them together
        left = len(list(equal))
        for node in open_nodes:
            left -= _place(bundle, left, node)
        for group in groups:
            while spare[group.name] > 0 and (placed := _place(bundle, left, added := dict(group.resources))):
                open_nodes.append(added)
                left -= placed
                spare[group.name] -= 1
                missing[group.name] += 1
    return missing


def _place(bundle: Mapping[str, float], most: int, node: dict[str, float]) -> int:
    """Place the bundle on a node as often as it fits, up to `most` times, and return that number."""
    needed = [(name, amount) for name, amount in bundle.items() if amount]
    count = min((most, *(int((node.get(name, 0) + 1e-6) / amount) for name, amount in needed)))
    node.update((name, node[name] - count * amount) for name, amount in needed if count)
    return count


class NodeRequest(AbstractContextManager["NodeRequest"]):
    """Request for nodes from the autoscaler. As a context manager, it withdraws the request on exit.

    For each missing node, the request starts a task that needs all CPUs and GPUs of one such node. The autoscaler adds
    the node, the task starts and ends immediately, and the pools can use the node. A thread starts new tasks for nodes
    that were lost, and cancels tasks that aren't needed anymore. All tasks end with the driver, even if the driver is
    killed.

    There are three reasons not to use `ray.autoscaler.sdk.request_resources` instead. First, a cluster has only one
    such request, and every 20 s, Ray Data's coordinator replaces it with the sum of the requests that the coordinator
    knows. Second, the coordinator reserves existing nodes for each of these requests, and Ray Data's executions can't
    use reserved nodes. Third, if the sum exceeds what the autoscaler may add, Ray's current autoscaler ignores the
    whole request, including the parts of other jobs.
    """

    def __init__(self) -> None:
        self._bundles: list[dict[str, float]] = []
        self._changed, self._ended = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None

    def ask(self, bundles: Sequence[Mapping[str, float]]) -> None:
        """Request enough nodes to fit all of these bundles. This replaces earlier requests.

        Without node groups, this does nothing.
        """
        self._bundles = list(map(dict, bundles))
        self._changed.set()
        if self._thread is None and (groups := node_groups()):
            self._thread = threading.Thread(target=self._run, args=(groups,), daemon=True, name="node-request")
            self._thread.start()

    def _run(self, groups: Sequence[NodeGroup]) -> None:
        import ray
        from ray.exceptions import RayError

        tasks: dict[str, list[Any]] = {group.name: [] for group in groups}
        while not self._ended.is_set():
            self._changed.clear()
            try:
                nodes = ray.nodes()
                missing = missing_nodes(self._bundles, with_gpu_kind(groups, nodes), nodes)
                for group in groups:
                    tasks[group.name] = _adjust(tasks[group.name], missing[group.name], group)
            except RayError as error:  # at worst, the cluster doesn't grow
                get_logger("cluster").warning("node_request_failed", reason=last_line(error))
            self._changed.wait(LOOK_S)
        for group in groups:
            _adjust(tasks[group.name], 0, group)

    def __exit__(self, *_: object) -> None:
        """Withdraw the request. This waits for at most 5 s."""
        self._ended.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join(5)


def _adjust(tasks: Sequence[Any], count: int, group: NodeGroup) -> list[Any]:
    """Start or cancel tasks for nodes of this group until exactly `count` tasks are waiting, and return those tasks."""
    import ray

    waiting: list[Any] = []
    if tasks:
        waiting = ray.wait(list(tasks), num_returns=len(tasks), timeout=0)[1]
    for task in waiting[count:]:
        ray.cancel(task)
    size = {"num_cpus": group.resources.get("CPU", 0), "num_gpus": group.resources.get("GPU", 0)}
    # Each task has its own function. If tasks shared a function, Ray would keep requesting the resources of a canceled
    # task while other tasks of that function are waiting.
    arrive = ray.remote(max_retries=0, **size)
    return [*waiting[:count], *(arrive(lambda: None).remote() for _ in range(count - len(waiting)))]
