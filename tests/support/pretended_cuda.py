"""A CUDA device that is not there: tensors that say `cuda:0` over the CPU's memory, and a count of what it would do.

`PretendedCuda` is a mode of torch in which every operation is seen:

- An operation on tensors of both devices raises, as on a GPU; so does one that CUDA forbids while a graph is captured.
- *Launches*: kernels that the host starts, a graph's replay as one. Kernels inside replays are counted apart.
- *Syncs*: what makes the host wait for the device (`item`, `nonzero`, a mask or a list as index, copies that block).
- *Traffic*: bytes that kernels read and write, each tensor once a kernel, as if nothing stayed in a cache between two.

Each is counted by the line of `model/` that asked for it, and traffic also by stage. A copy to the host that does not
block delivers its numbers at the next wait and nonsense before it. A captured graph replays into the memory that it
was captured with. With `computing=False` there are shapes alone, so that full chunks cost nothing.
"""

# ruff: noqa: SLF001, PLC2701 - it takes the place of parts of torch that aren't public

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map_only

ROOT = str(Path(__file__).resolve().parents[2])
DEVICE = torch.device("cuda", 0)

# Stages by the functions that do their work; the outermost one that is running counts.
STAGES = {
    "embed_many": "encode",
    "plan_points": "plan",
    "start_chunks": "decode",
    "decode_points": "decode",
    "draw_masks": "decode",
    "measure_chunk": "measure",
    "stable_masks": "measure",
    "draw": "draw",
    "nms": "suppress",
}

aten = torch.ops.aten

# Operations that read numbers on the host, or whose output's shape depends on them.
_WAITING = {"_local_scalar_dense", "equal", "is_nonzero", "masked_select", "nonzero", "unique_dim", "_unique2"}
_FREE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided", "resize_", "record_stream"}
# Operations of several kernels; all others count as one.
_KERNELS = {"count_nonzero": 2, "nonzero": 4, "nonzero_static": 3, "sort": 4, "cumsum": 2, "masked_select": 5}
_GATHERS = {"index", "index_select", "gather", "embedding", "take"}


class DeviceMixError(RuntimeError):
    """An operation on tensors of two devices."""


class OnCuda(Tensor):
    """A tensor that says it is on `cuda:0`; `inner` holds its numbers, or its shape alone."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> Self:
        made: Self = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=DEVICE,
        )
        return made

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self, **_: Any) -> str:
        return f"OnCuda({tuple(self.shape)}, {self.dtype})"

    def tolist(self) -> Any:
        """The numbers, copied to the host."""
        return self.cpu().tolist()

    def record_stream(self, _: Any) -> None:
        """Memory is never reused while it is referred to."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a tensor of the pretended device, outside the pretence")


class PretendedCuda(TorchDispatchMode):
    """The pretence, as a context; see the module."""

    def __init__(self, computing: bool = True) -> None:
        super().__init__()
        self.computing = computing
        self.launches: Counter[str] = Counter()
        self.syncs: Counter[str] = Counter()
        self.graph_kernels: Counter[str] = Counter()
        self.traffic: Counter[str] = Counter()
        self.traffic_by_line: Counter[str] = Counter()
        # What happens in order, each with the number of launches before it: copies to the device (bytes, stream), waits
        # for an event, with the place at which it was recorded, and what a test notes.
        self.events: list[tuple[Any, ...]] = []
        self.stream: Any = None
        self._pinned: set[int] = set()
        self._kept: list[Tensor] = []  # pinned memory, whose addresses must not return
        self._undelivered: list[tuple[Tensor, Tensor]] = []
        self._tape: list[_Taped] | None = None
        self._patches = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._patch()
        super().__enter__()
        return self

    def _patch(self) -> None:
        names: dict[str, Any] = {
            "CUDAGraph": lambda *_, **__: PretendedGraph(self),
            "graph": self._capture,
            "Stream": _Anything,
            "stream": self._on_stream,
            "current_stream": lambda *_: _Anything(),
            "Event": lambda *_, **__: _Event(self),
            "device": lambda _: contextlib.nullcontext(),
            "synchronize": lambda *_: self.wait(),
            "is_current_stream_capturing": lambda: self._tape is not None,
        }
        self._patches.enter_context(mock.patch.object(F, "scaled_dot_product_attention", _attention))
        # Inference tensors have no versions, which tensors of our own must.
        self._patches.enter_context(
            mock.patch.object(torch._C, "_InferenceMode", lambda on: torch.set_grad_enabled(not on))
        )
        torch._C._set_only_lift_cpu_tensors(True)
        self._patches.callback(torch._C._set_only_lift_cpu_tensors, False)
        if not torch.cuda.is_available():
            torch._C._ensureCUDADeviceGuardSet()
            names["_lazy_init"] = lambda: None
        for name, value in names.items():
            self._patches.enter_context(mock.patch.object(torch.cuda, name, value))

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, trace)
        self._patches.close()

    def moved(self, module: nn.Module) -> nn.Module:
        """Move a module's weights to the device, in place."""
        for part in module.modules():
            for group in (part._parameters, part._buffers):
                for name, tensor in group.items():
                    if tensor is not None:
                        group[name] = self.to_device(tensor.detach())  # type: ignore[assignment]
        return module

    def to_device(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU on the device, without counting anything."""
        return OnCuda(tensor.clone() if self.computing else tensor.to("meta"))

    def forget(self) -> None:
        """Count from nothing."""
        for counts in (self.launches, self.syncs, self.graph_kernels, self.traffic, self.traffic_by_line):
            counts.clear()

    def note(self, *event: Any) -> None:
        """Add to the events, after all launches so far."""
        self.events.append((*event, len(self.events)))

    @contextlib.contextmanager
    def _on_stream(self, stream: Any) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    def wait(self, recorded: int | None = None) -> None:
        """Block the host until the device has finished all its work, or the work before an event."""
        self._forbid_in_graph("a wait")
        self.note("wait", len(self.events) if recorded is None else recorded)
        self.syncs[_line()] += 1
        self._deliver()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket.__name__
        leaves = tree_leaves((args, kwargs))
        on_device = [leaf for leaf in leaves if isinstance(leaf, OnCuda)]
        wanted = kwargs.get("device")
        to_device = wanted is not None and torch.device(wanted).type == "cuda"
        if name in ("pin_memory", "_pin_memory", "is_pinned"):
            return self._pinning(name, args[0])
        if kwargs.pop("pin_memory", None):
            made = func(*args, **kwargs)
            return self._pin(made)
        if not on_device and not to_device:
            return func(*args, **kwargs)
        if name == "_to_copy" and wanted is not None and to_device != bool(on_device):
            return self._copied(func, args, kwargs, to_device)
        if name == "copy_" and isinstance(args[0], OnCuda) != isinstance(args[1], OnCuda):
            return self._copied_onto(args[0], args[1], bool(kwargs.get("non_blocking", args[2:] == (True,))))
        self._check_mix(name, args, leaves)
        return self._run(func, name, args, kwargs, on_device)

    def _run(self, func: Any, name: str, args: Any, kwargs: Any, on_device: list[OnCuda]) -> Any:
        if "device" in kwargs:
            kwargs["device"] = "cpu" if self.computing else "meta"
        if name in _WAITING or (name == "index" and _is_mask(args[1])):
            self.wait()
        originals = {id(tensor.inner): tensor for tensor in on_device}
        inner_args, inner_kwargs = tree_map_only(OnCuda, lambda tensor: tensor.inner, (args, kwargs))
        found = _computed(func, name, inner_args, inner_kwargs)
        outputs = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        if name != "_local_scalar_dense" and name not in _FREE and not _is_view(func):
            self._count(func, name, args, kwargs, on_device, [one for one in outputs if id(one) not in originals])
        if self._tape is not None:
            self._tape.append(_Taped(func, name, inner_args, inner_kwargs, outputs, _line()))
        return tree_map_only(
            Tensor, lambda tensor: originals[id(tensor)] if id(tensor) in originals else OnCuda(tensor), found
        )

    def _count(self, func: Any, name: str, args: Any, kwargs: Any, inputs: list[OnCuda], outputs: list[Tensor]) -> None:
        written = _written(func, args, kwargs)
        unread = written if name in ("copy_", "fill_", "zero_") or func._overloadname == "out" else []
        read = {id(one): _bytes(one) for one in inputs if all(one is not other for other in unread)}
        if name in _GATHERS and outputs:
            read[id(args[0])] = _bytes(outputs[0])
        moved = sum(read.values()) + sum(map(_bytes, outputs)) + sum(map(_bytes, written))
        self.traffic[_stage()] += moved
        self.traffic_by_line[_line()] += moved
        kernels = _KERNELS.get(name, 1)
        if self._tape is None:
            self.launches[_line()] += kernels
        else:
            self._tape.append(_CountedOps(_stage(), _line(), kernels, moved))

    def _check_mix(self, name: str, args: Any, leaves: list[Any]) -> None:
        for leaf in leaves:
            if not isinstance(leaf, Tensor) or isinstance(leaf, OnCuda) or leaf.dim() == 0:
                continue
            if name in ("index", "index_put", "index_put_") and leaf is not args[0]:
                self.wait()  # an index on the host is uploaded
                continue
            raise DeviceMixError(f"{name} of tensors on cuda and {leaf.device}, at {_line()}")

    def _copied(self, func: Any, args: Any, kwargs: Any, to_device: bool) -> Any:
        """`to` across devices."""
        source = args[0]
        blocking = not kwargs.pop("non_blocking", False)
        self._forbid_in_graph("a copy between devices")
        kwargs.pop("device")
        if to_device:
            self._upload(source, blocking)
            copy = func(source, **kwargs)
            return OnCuda(copy if self.computing else copy.to("meta"))
        self.launches[_line()] += 1
        copy = func(source.inner, device="cpu", **kwargs)
        if blocking:
            self.wait()
            return copy
        host = self._pin(torch.full_like(copy, 7))
        self._undelivered.append((host, copy))
        return host

    def _copied_onto(self, to: Tensor, source: Tensor, non_blocking: bool) -> Tensor:
        """`copy_` across devices."""
        self._forbid_in_graph("a copy between devices")
        if isinstance(to, OnCuda):
            self._upload(source, not non_blocking)
            if self.computing:
                to.inner.copy_(source)
            return to
        assert isinstance(source, OnCuda)
        self.launches[_line()] += 1
        if non_blocking and to.data_ptr() in self._pinned:
            self._undelivered.append((to, source.inner.clone()))
            return to
        self.wait()
        return to.copy_(source.inner)

    def _upload(self, source: Tensor, blocking: bool) -> None:
        self.launches[_line()] += 1
        self.note("upload", source.nbytes, self.stream)
        if blocking or not self._is_pinned(source):
            self.syncs[_line()] += 1
            self.note("wait", len(self.events))

    def _pinning(self, name: str, tensor: Tensor) -> Any:
        if name == "is_pinned":
            return self._is_pinned(tensor)
        return tensor if self._is_pinned(tensor) else self._pin(tensor.clone())

    def _pin(self, tensor: Tensor) -> Tensor:
        self._kept.append(tensor)
        self._pinned.add(tensor.untyped_storage().data_ptr())
        return tensor

    def _is_pinned(self, tensor: Tensor) -> bool:
        return tensor.numel() == 0 or tensor.untyped_storage().data_ptr() in self._pinned

    def _deliver(self) -> None:
        for host, numbers in self._undelivered:
            host.copy_(numbers)
        self._undelivered.clear()

    def _forbid_in_graph(self, what: str) -> None:
        if self._tape is not None:
            raise RuntimeError(f"CUDA error: operation not permitted when stream is capturing: {what}, at {_line()}")

    @contextlib.contextmanager
    def _capture(self, graph: "PretendedGraph", **_: Any) -> Iterator[None]:
        assert self._tape is None, "a graph is captured inside another"
        self._tape = graph.tape
        try:
            yield
        finally:
            self._tape = None

    def replayed(self, tape: Sequence["_Taped | _CountedOps"]) -> None:
        """Do again what a graph has recorded."""
        self.launches[_line()] += 1
        for step in tape:
            if isinstance(step, _CountedOps):
                self.graph_kernels[step.line] += step.kernels
                self.traffic[step.stage] += step.moved
                self.traffic_by_line[step.line] += step.moved
            elif self.computing:
                step.again()


class PretendedGraph:
    """A CUDA graph as a list of operations with the tensors they had."""

    def __init__(self, device: PretendedCuda) -> None:
        self.tape: list[Any] = []
        self._device = device

    def replay(self) -> None:
        """Compute everything again, into the same memory."""
        self._device.replayed(self.tape)


class _CountedOps:
    def __init__(self, stage: str, line: str, kernels: int, moved: int) -> None:
        self.stage, self.line, self.kernels, self.moved = stage, line, kernels, moved


class _Taped:
    def __init__(self, func: Any, name: str, args: Any, kwargs: Any, outputs: list[Tensor], line: str) -> None:
        self.func, self.name, self.args, self.kwargs, self.outputs, self.line = func, name, args, kwargs, outputs, line

    def again(self) -> None:
        """Compute the outputs again, where they were."""
        if _is_view(self.func):
            return
        found = _computed(self.func, self.name, self.args, self.kwargs)
        if not self.func._schema.is_mutable:
            again = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
            for output, fresh in zip(self.outputs, again, strict=True):
                output.copy_(fresh)


class _Anything:
    """A stream, on which everything happens at once."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def wait_stream(self, _: Any) -> None:
        """Wait for nothing: operations are done one after another."""

    def wait_event(self, _: Any) -> None:
        """Wait for nothing."""


class _Event:
    def __init__(self, device: PretendedCuda) -> None:
        self._device = device
        self._recorded = 0

    def record(self, *_: Any) -> None:
        """Mark a place in the stream."""
        self._recorded = len(self._device.events)

    def synchronize(self) -> None:
        """Make the host wait."""
        self._device.wait(self._recorded)


_plain_attention = F.scaled_dot_product_attention


def _attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any) -> Tensor:
    """As CUDA does it, in one kernel, where there is no mask."""
    if attn_mask is not None or not isinstance(query, OnCuda):
        return _plain_attention(query, key, value, attn_mask, **kwargs)
    attended: Tensor = aten._scaled_dot_product_flash_attention(query, key, value, **kwargs)[0]
    return attended


def _computed(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    if name == "_scaled_dot_product_flash_attention":
        query, key, value = args[:3]
        if query.device.type == "meta":
            attended = query.new_empty(*query.shape[:-1], value.shape[-1])
        else:
            attended = aten._scaled_dot_product_attention_math(query, key, value, scale=kwargs.get("scale"))[0]
        nothing = attended.new_empty(0)
        return attended, nothing, nothing, nothing, 0, 0, nothing, nothing, nothing
    return func(*args, **kwargs)


def _is_view(func: Any) -> bool:
    """Whether the operation gives its input's memory and starts no kernel."""
    returns = func._schema.returns
    return bool(returns) and all(one.alias_info is not None and not one.alias_info.is_write for one in returns)


def _written(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The arguments that the operation writes."""
    found: list[Tensor] = []
    for place, one in enumerate(func._schema.arguments):
        if one.alias_info is not None and one.alias_info.is_write:
            value = kwargs.get(one.name) if place >= len(args) else args[place]
            found += [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
    return found


def _is_mask(indices: Any) -> bool:
    return any(isinstance(one, Tensor) and one.dtype in (torch.bool, torch.uint8) for one in indices)


def _bytes(tensor: Tensor) -> int:
    """Bytes that a kernel moves to read all of a tensor; what is expanded is read once."""
    count = tensor.element_size()
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= size if stride or size == 0 else 1
    return count


def _frames() -> Iterator[tuple[str, str, int]]:
    """The running functions of segmint, from the inside: file, function, line."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if "/model/" in file and (file.startswith(ROOT) or "/segmint/" in file) and "/tests/" not in file:
            yield file.rpartition("/model/")[2], frame.f_code.co_name, frame.f_lineno
        frame = frame.f_back  # type: ignore[assignment]


def _line() -> str:
    """The innermost line of `model/` that is running."""
    for file, _, line in _frames():
        return f"{file}:{line}"
    return "elsewhere"


def _stage() -> str:
    found = "other"
    for _, function, _ in _frames():
        found = STAGES.get(function, found)
    return found


def counted(device: PretendedCuda) -> str:
    """What was counted, as lines for a person."""
    lines = [
        f"{sum(device.launches.values())} launches, {sum(device.graph_kernels.values())} kernels in replays, "
        f"{sum(device.syncs.values())} syncs"
    ]
    tables: list[tuple[str, Counter[str], Callable[[int], str]]] = [
        ("launches", device.launches, str),
        ("kernels in replays", device.graph_kernels, str),
        ("syncs", device.syncs, str),
        ("traffic", device.traffic, lambda moved: f"{moved / 1e6:.1f} MB"),
        ("traffic by line", device.traffic_by_line, lambda moved: f"{moved / 1e6:.1f} MB"),
    ]
    for title, counts, shown in tables:
        lines += [f"{title}:", *(f"  {shown(count):>12}  {place}" for place, count in counts.most_common(20))]
    return "\n".join(lines)


@contextlib.contextmanager
def pretended_mask_kernels(device: PretendedCuda) -> Iterator[None]:
    """Have the Triton kernels of `mask_kernels` computed by `mask_tiles`, each as one launch."""
    from segmint.model.automatic import mask_kernels, mask_tiles
    from segmint.model.automatic.mask_tiles import Taps
    from tests.support.whole_masks import reached

    def taps(first: OnCuda, weights: OnCuda) -> Taps:
        return Taps(first.inner, weights.inner, first.inner, first.inner)

    def measured(
        low: Any, bounds: Any, y: Any, down: Any, x: Any, across: Any, found: Any, offset: float, *_: int
    ) -> None:
        rows, columns = taps(y, down), taps(x, across)
        x0, y0, x1, y1 = bounds.inner.T
        some = (x1 > x0) & (y1 > y0)
        numbers = mask_tiles.measure(low.inner, rows, columns, offset) * some[:, None]
        nothing = torch.tensor([0, 0, 0, columns.pixels, rows.pixels, -1, -1], dtype=torch.int32)
        found.inner[:] = nothing
        found.inner[:, -1] = torch.where(numbers[:, 1:2] > 0, numbers, nothing)
        found.inner[:, -1, :3] = numbers[:, :3]

    def bounded(low: Any, wanted: Any, x0: Any, y0: Any, x1: Any, y1: Any, bounds: Any, offset: float) -> None:
        columns, rows = (Taps(one.inner, one.inner, one.inner, other.inner) for one, other in ((x0, x1), (y0, y1)))
        bounds.inner[:] = reached(low.inner, offset, rows, columns) * (wanted.inner > 0)[:, None]

    def totaled(found: Any, numbers: Any, _: int) -> None:
        counts = found.inner[:, :, :3].sum(dim=1)
        boxes = torch.cat([found.inner[:, :, 3:5].amin(dim=1), found.inner[:, :, 5:].amax(dim=1)], dim=1)
        numbers.inner[:] = torch.cat([counts, boxes * (counts[:, 1:2] > 0)], dim=1)

    def drawn(low: Any, strips: Any, y: Any, down: Any, x: Any, across: Any, flat: Any, *_: int) -> None:
        table = [mask_tiles.Strip(*strip) for strip in strips.inner.tolist()]
        mask_tiles.draw(flat.inner, low.inner, taps(y, down), taps(x, across), table)

    class LaunchedKernel:
        def __init__(self, compute: Callable[..., None]) -> None:
            self.compute = compute

        def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
            def launch(*args: Any, **_: Any) -> None:
                tensors = [one for one in args if isinstance(one, Tensor)]
                for one in tensors:
                    if not isinstance(one, OnCuda):
                        raise DeviceMixError(f"a kernel is given a tensor on {one.device}")
                device.launches[_line()] += 1
                device.traffic[_stage()] += sum(map(_bytes, tensors))
                device.traffic_by_line[_line()] += sum(map(_bytes, tensors))
                if device.computing:
                    with _disable_current_modes():
                        self.compute(*args)

            return launch

    with (
        mock.patch.object(mask_kernels, "measure_kernel", LaunchedKernel(measured)),
        mock.patch.object(mask_kernels, "draw_kernel", LaunchedKernel(drawn)),
        mock.patch.object(mask_kernels, "reach_kernel", LaunchedKernel(bounded)),
        mock.patch.object(mask_kernels, "total_kernel", LaunchedKernel(totaled)),
    ):
        yield
