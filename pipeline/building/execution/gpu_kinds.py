"""The kind of GPU that a run uses in a cluster that has several: masks of another kind would have other bits."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from segmint.infra.errors import UsageError
from segmint.infra.ray_session import NAME_GPUS, Cluster, GpuNodes, accelerator_types
from segmint.infra.wording import counted
from segmint.operators.segment.numerics import Numerics
from segmint.pipeline.config.config import Config


@dataclass(frozen=True)
class ChosenKind:
    """The kind that workers on GPUs ask Ray for."""

    name: str | None = None  # as Ray names it, `H100`; None: they take any
    idle: Mapping[str, GpuNodes] = field(default_factory=dict)  # the other kinds, by name

    @property
    def idle_text(self) -> str:
        """The idle GPUs in words: `4 x A100 on 1 node`."""
        return in_words(self.idle)


def in_words(kinds: Mapping[str, GpuNodes]) -> str:
    """Write GPUs by kind: `8 x H100 on 1 node, 4 x A100 on 2 nodes`."""
    each = (f"{of.gpus:g} x {name or 'unnamed'} on {counted(of.nodes, 'node')}" for name, of in sorted(kinds.items()))
    return ", ".join(each)


def choose_kind(config: Config, numerics: Numerics, cluster: Cluster) -> ChosenKind:
    """Return the kind that the dataset's numerics record, or `resources.segment.accelerator_type`.

    None where no GPU is used, where the cluster has one kind and none is set, where Ray names no kind, so that none can
    be asked for, or with `allow_mixed_numerics`. Raises `UsageError`, with the kinds that the cluster has, if it has
    several and none is that of the dataset.
    """
    gpu = numerics.device_kind if numerics.device == "cuda" else numerics.detectors
    wanted, kinds = config.resources.segment.accelerator_type, cluster.gpu_kinds
    if not gpu or config.allow_mixed_numerics or (kinds and not cluster.names_gpus):
        return ChosenKind()
    unnamed = f". {NAME_GPUS}" if cluster.has_unnamed_gpus else ""
    if wanted == "auto":
        if len(kinds) < 2:  # autoscalers do not know what nodes to add for a kind; each actor checks its own GPU
            return ChosenKind()
        fitting = sorted(accelerator_types(gpu) & kinds.keys())
        if not fitting:
            raise UsageError(
                f"the dataset's numerics are of a GPU {gpu!r}, and the cluster has {in_words(kinds)}: add nodes of "
                "that kind; if Ray names it otherwise, set resources.segment.accelerator_type to that name; or set "
                f"allow_mixed_numerics: true{unnamed}"
            )
        wanted = fitting[0]
    elif wanted not in kinds:
        raise UsageError(
            f"resources.segment.accelerator_type is {wanted!r}, and the cluster has "
            f"{in_words(kinds) or 'no GPUs'}: set it to the name of one of these, or add nodes of that kind{unnamed}"
        )
    return ChosenKind(wanted, {name: of for name, of in kinds.items() if name != wanted})


def only_kind(cluster: Cluster, kind: ChosenKind) -> Cluster:
    """Return the cluster with the GPUs of this kind alone; its other nodes keep their CPUs."""
    if kind.name is None:
        return cluster
    of = cluster.gpu_kinds[kind.name]
    return replace(cluster, gpus=of.gpus, gpu_nodes=of.nodes, gpu_node_cpus=of.cpus)
