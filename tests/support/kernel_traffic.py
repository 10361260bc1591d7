"""How many bytes the kernels of a compiled module move, counted from its graph without a GPU.

The module is traced on fake CUDA tensors as `torch.compile` traces it, with Inductor's decompositions. The count is a
model of what Inductor makes of that graph:

- A library's kernel (matrix product, convolution, attention, ours) reads each input and writes each output once.
- All other operations are fused: those between the same library kernels, if one uses another's result, are one kernel.
  It reads what comes from outside once, and writes what is used outside.
- Views move nothing. A broadcast tensor counts as what is in memory of it.

Caches are not modelled: a kernel that reads an input twice finds it in the L2 cache or does not. Inductor's own
scheduler makes the same kernels of the ViT, and two small copies more before its convolutions.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

# torch shows the graphs of its compiler only to backends.
from torch._dynamo.backends.common import aot_autograd  # noqa: PLC2701
from torch._inductor.decomposition import select_decomp_table  # noqa: PLC2701
from triton.backends.compiler import GPUTarget
from triton.runtime import driver as triton_driver

aten = torch.ops.aten
LIBRARY = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution}
VIEWS = {aten.view, aten.reshape, aten.permute, aten.transpose, aten.t, aten.expand, aten.slice}
VIEWS |= {aten._unsafe_view}  # noqa: SLF001 - an operator of the graphs
VIEWS |= {aten.select, aten.unsqueeze, aten.squeeze, aten.alias, aten.split, aten.split_with_sizes, aten.unbind}
VIEWS |= {aten.as_strided, aten.detach, aten.lift_fresh_copy}
UNWRITTEN = {aten.empty, aten.new_empty, aten.empty_strided}


@dataclass(frozen=True)
class KernelTraffic:
    """One kernel: its operations, and the bytes that it reads and writes."""

    name: str
    read: int
    written: int

    @property
    def moved(self) -> int:
        return self.read + self.written


def trace(module: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    """The one graph that torch's compiler makes of the module; an error where it would make several."""
    graphs: list[fx.GraphModule] = []

    def keep(graph: fx.GraphModule, _: Any) -> Callable[..., Any]:
        graphs.append(graph)
        return end

    def end(*_: Any) -> None:
        raise _Traced

    backend = aot_autograd(fw_compiler=keep, decompositions=select_decomp_table())
    torch.compiler.reset()
    active = triton_driver._active  # noqa: SLF001 - Triton can set its driver but not show it
    triton_driver.set_active(_Hopper())
    try:
        torch.compile(module, backend=backend, fullgraph=True, dynamic=False)(*inputs)
    except _Traced:
        (graph,) = graphs
        return graph
    finally:
        triton_driver._active = active  # noqa: SLF001 - None if there was none
        torch.compiler.reset()
    raise AssertionError("the module ran without its graph")


class _Traced(Exception):
    """The graph is there, and fake tensors cannot run it."""


class _Hopper:
    """The part of Triton's driver that says what to compile for, which tells the compiler what a kernel writes."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)


def kernels_of(graph: fx.GraphModule) -> list[KernelTraffic]:
    """The kernels of a traced graph, in no particular order."""
    base = {node: _base(node) for node in graph.graph.nodes}
    depth: dict[fx.Node, int] = {}
    group = {node: node for node in graph.graph.nodes if _is_fused(node)}

    def leader(node: fx.Node) -> fx.Node:
        while group[node] is not node:
            node = group[node]
        return node

    for node in graph.graph.nodes:
        sources = [base[source] for source in node.all_input_nodes]
        depth[node] = max((depth[source] + _is_library(source) for source in sources), default=0)
        for source in sources if node in group else ():
            if source in group and depth[source] == depth[node]:
                group[leader(node)] = leader(source)

    names: dict[fx.Node, list[str]] = defaultdict(list)
    read: dict[fx.Node, dict[fx.Node, int]] = defaultdict(dict)
    written: dict[fx.Node, dict[fx.Node, int]] = defaultdict(dict)
    for node in graph.graph.nodes:
        if not (node in group or _is_library(node)) or node.target in _overloads(UNWRITTEN):
            continue
        kernel = leader(node) if node in group else node
        names[kernel].append(_name(node))
        for source in _read_by(node):
            producer = base[source]
            outside = producer not in group or leader(producer) is not kernel
            if outside and producer.target not in _overloads(UNWRITTEN):
                seen = read[kernel].get(producer, 0)
                read[kernel][producer] = max(seen, min(_in_memory(source), _in_memory(producer)))
        if _is_library(node) or any(group.get(user) is None or leader(user) is not kernel for user in _users(node)):
            written[kernel][node] = _in_memory(node)
    return [
        KernelTraffic("+".join(dict.fromkeys(names[one])), sum(read[one].values()), sum(written[one].values()))
        for one in names
    ]


def _base(node: fx.Node) -> fx.Node:
    """The node whose memory a view shows; the node itself if it is none."""
    while node.op == "call_function" and _is_view(node):
        node = node.all_input_nodes[0]
    return node


def _users(node: fx.Node) -> Iterator[fx.Node]:
    """The nodes that use a value, through views too."""
    for user in node.users:
        if user.op == "call_function" and _is_view(user):
            yield from _users(user)
        else:
            yield user


def _overloads(packets: set[Any]) -> set[Any]:
    return {getattr(packet, name) for packet in packets for name in packet.overloads()}


_VIEWS, _LIBRARY = _overloads(VIEWS), _overloads(LIBRARY)


def _is_view(node: fx.Node) -> bool:
    return node.target in _VIEWS or getattr(node.target, "__name__", "") == "getitem"


def _is_library(node: fx.Node) -> bool:
    return node.op == "call_function" and (node.target in _LIBRARY or _is_triton(node) or "scaled_dot" in _name(node))


def _is_triton(node: fx.Node) -> bool:
    return "triton_kernel_wrapper" in _name(node)


def _is_fused(node: fx.Node) -> bool:
    return node.op == "call_function" and not _is_view(node) and not _is_library(node)


def _name(node: fx.Node) -> str:
    name = getattr(node.target, "__name__", None) or str(node.target)
    return name.partition(".")[0]


def _read_by(node: fx.Node) -> list[fx.Node]:
    """What a kernel reads; ours names the tensors that it only writes."""
    if not _is_triton(node):
        return node.all_input_nodes
    only_written = node.kwargs.get("tensors_to_clone", ())
    given = node.kwargs["kwargs"]
    return [value for name, value in given.items() if isinstance(value, fx.Node) and name not in only_written]


def _in_memory(node: fx.Node) -> int:
    """Bytes of a node's tensors; a dimension of stride 0 has one element in memory."""
    value = node.meta["val"]
    tensors = value if isinstance(value, tuple | list) else value.values() if isinstance(value, dict) else [value]
    total = 0
    for tensor in tensors:
        if isinstance(tensor, Tensor):
            sizes = (size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride != 0)
            total += math.prod(sizes) * tensor.element_size()
    return total
