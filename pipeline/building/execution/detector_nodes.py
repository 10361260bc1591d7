"""Detector processes on nodes with GPUs. Ray actors of the driver own them, so they end with the run."""

from dataclasses import replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from segmint.infra.node_groups import gpu_kind
from segmint.operators.prepare.detector_process import (
    DetectorProcess,
    DetectorSettings,
    new_address,
    require_numerics,
)
from segmint.operators.prepare.prepare import detector_settings
from segmint.pipeline.building.execution.stages import DETECTOR_CPUS, NodeDetectors, Stages

_RESTARTS = 3
"""Maximum number of restarts of the actor. Restarts are rare, because the actor restarts its process itself."""


class _DetectorActor:
    """Actor that owns a node's detector process. When the actor dies, the process ends."""

    def __init__(self, settings: DetectorSettings, address: str) -> None:
        self._process = DetectorProcess(settings, address)

    def ready(self) -> None:
        """Wait until the process accepts connections; see `DetectorProcess.ready`."""
        self._process.ready()


def check_detectors(stages: Stages) -> None:
    """Raise `UsageError` if this machine's GPU differs from the GPU in the dataset's detector numerics."""
    config = stages.prepare_arguments[0]
    if stages.detectors_share:
        require_numerics(config.deidentify.device, config.detector_numerics)


def start_detectors(stages: Stages, before: Stages | None = None) -> Stages:
    """Start a detector process on each GPU node. Return the stages with `prepare` restricted to these nodes.

    If detectors run on CPUs, returns the stages unchanged. Nodes that are still alive keep their processes from
    `before`.
    """
    if not stages.detectors_share:
        return stages
    config, storage, _, _, assets, *_ = stages.prepare_arguments
    settings = detector_settings(config, storage, assets)
    known = {} if before is None or before.detectors is None else before.detectors.holders
    nodes = [node for node in ray.nodes() if node["Alive"]]
    holders = {
        node["NodeID"]: known.get(node["NodeID"]) or _start(stages.detectors_share, settings, node["NodeID"])
        for node in nodes
        if node["Resources"].get("GPU", 0) > 0 and stages.gpus.name in (None, gpu_kind(node["Resources"]))
    }
    selector = {"ray.io/node-id": f"in({','.join(sorted(holders))})"}
    return replace(stages, detectors=NodeDetectors(holders), prepare_nodes=selector)


def _start(share: float, settings: DetectorSettings, node: str) -> tuple[Any, str]:
    address = new_address()
    holder = ray.remote(
        num_gpus=share,
        num_cpus=DETECTOR_CPUS,
        max_restarts=_RESTARTS,
        max_task_retries=_RESTARTS,
        scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
    )(_DetectorActor)
    return holder.remote(settings, address), address
