"""What `prepare` actors know of the detector processes of a run: which one is on their node."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
import ray.exceptions

from segmint.infra.errors import last_line
from segmint.operators.prepare.detector_process import DetectorsGoneError


@dataclass(frozen=True)
class NodeDetectors:
    """The `DetectorHost` of whatever node it is used on."""

    holders: Mapping[str, tuple[Any, str]]  # by node: the actor, and the name of its process's socket

    @property
    def address(self) -> str:
        """The name of this node's socket."""
        return self._here()[1]

    def ready(self) -> None:
        """Wait until this node's process listens. Raises `DetectorsGoneError`."""
        try:
            ray.get(self._here()[0].ready.remote())
        except ray.exceptions.RayActorError as error:
            raise DetectorsGoneError(
                f"the worker that holds the detectors (deidentify.device) of a node died: {last_line(error)}"
            ) from error

    def _here(self) -> tuple[Any, str]:
        node = ray.get_runtime_context().get_node_id()
        if node not in self.holders:
            raise DetectorsGoneError(
                f"deidentify.device is cuda, and the node {node} had no GPU when the window began: build again"
            )
        return self.holders[node]
