"""Part of a GPU day about whole images: the full recipe and the full image only, stage by stage, and streams."""

import re
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch

from benchmarks.gpu.both import generator_of, heavy_encoder, light_sam, photographs
from benchmarks.gpu.run import PartRun, memory, synchronize

TRACE_LIMIT = 12 << 20
"""Maximum size in bytes of a trace. Larger traces are deleted."""

Steps = Literal["kernels", "plain", "compiled"]
"""Implementation of the decoder's three whole-image steps, each in a graph: our Triton kernels, torch's operations, or
torch's operations compiled."""


class BenchmarkImages:
    """Models and photographs, which are prepared once and shared by all measurements."""

    def __init__(self) -> None:
        self._light: Any = None
        self.heavy: Any = None
        self.photographs: dict[str, tuple[Any, Any]] = {}
        self._features: dict[Any, Any] = {}
        self._generators: dict[tuple[int | None, str, int | None], Any] = {}

    def prepare(self, run: PartRun) -> dict[str, Any]:
        """Load and compile the models. Return the shapes of the photographs."""
        self.photographs = photographs(run)
        self._light = light_sam(run)
        started = time.monotonic()
        heavy = heavy_encoder(run, self._light)
        with torch.inference_mode():
            heavy([torch.zeros(64, 64, 3, dtype=torch.uint8, device=run.device)])
        synchronize(run)
        self.heavy = heavy
        return {
            "photographs": {name: [one.shape for one in pair] for name, pair in self.photographs.items()},
            "compile_s": round(time.monotonic() - started, 1),
        }

    def pairs(self, layers: int | None) -> dict[str, tuple[Any, Any]]:
        """Return the arguments of `find` for each photograph, as in builds: the original only if there are crops."""
        if layers == 0:
            return {name: (image, None) for name, (image, _) in self.photographs.items()}
        return self.photographs

    def generator(
        self, run: PartRun, layers: int | None = None, steps: "Steps" = "kernels", batch: int | None = None
    ) -> Any:
        """Create a generator and run it on every photograph, so that its graphs and kernels are ready.

        `batch` is the number of crops or full images per batch, by default the generator's own.
        """
        if self.heavy is None:
            raise RuntimeError("the models are not ready, see `models`")
        if (layers, steps, batch) not in self._generators:
            generator = generator_of(run, self._light, layers, self.heavy, self._features)
            if batch is not None:
                generator.crops_per_batch = batch
            for pair in self.pairs(layers).values():
                generator.generate(*pair)
            synchronize(run)
            self._generators[layers, steps, batch] = generator
        return self._generators[layers, steps, batch]


def measure_models(run: PartRun, images: BenchmarkImages) -> dict[str, Any]:
    """Load MobileSAM, and create and compile a random ViT-H."""
    return images.prepare(run)


def measure_images(
    run: PartRun, images: BenchmarkImages, layers: int | None, steps: Steps = "kernels"
) -> dict[str, Any]:
    """Measure the seconds per image in one thread: `find`, which needs the GPU, and `finish`.

    `of_peak` is the share of the ceiling as in a build, for the image's `drawn` masks. `find_of_peak` excludes
    `finish`, which the pipeline runs concurrently.
    """
    if steps != "kernels":
        run.need_cuda()
    with computing_by(steps):
        generator = images.generator(run, layers, steps)
        seconds: list[tuple[float, float]] = []
        masks: dict[str, int] = {}
        drawn: list[int] = []
        with memory(run) as peak:
            for _ in range(run.sizes.runs):
                for name, pair in images.pairs(layers).items():
                    began = time.perf_counter()
                    found = generator.find(*pair)
                    synchronize(run)
                    halfway = time.perf_counter()
                    masks[name] = len(generator.finish(found).records)
                    drawn.append(found.funnel.over_iou)
                    seconds.append((halfway - began, time.perf_counter() - halfway))
    find, finish = (statistics.median(part) for part in zip(*seconds, strict=True))
    mean_drawn = statistics.mean(drawn)
    ceiling = ceiling_s(run, generator, mean_drawn)
    return {
        "find_s": find,
        "finish_s": finish,
        "images_s": 1 / (find + finish),
        "find_images_s": 1 / find,
        "of_peak": None if ceiling is None else ceiling / (find + finish),
        "find_of_peak": None if ceiling is None else ceiling / find,
        "masks": masks,
        "drawn": mean_drawn,
        "original": layers != 0,
        **peak,
    }


def measure_stream(run: PartRun, images: BenchmarkImages, batch: int) -> dict[str, Any]:
    """Measure the images per second of a stream of full images, of which `batch` are encoded together.

    The stream is `find_many`, with pinned images as in builds. As in `measure_images`, `find_of_peak` excludes
    `finish`, which the pipeline runs concurrently.
    """
    generator = images.generator(run, 0, batch=batch)
    names = list(islice(cycle(images.photographs), batch * run.sizes.stream_batches))
    sources = {name: prepared(run, image) for name, (image, _) in images.pairs(0).items()}
    pairs = [(sources[name], None) for name in names]
    seconds: list[float] = []
    drawn: list[int] = []
    masks: dict[str, int] = {}
    with memory(run) as peak:
        results(generator, pairs[:batch])  # compiles the encoder for this batch size, and computes features
        for _ in range(run.sizes.runs):
            synchronize(run)
            began = time.perf_counter()
            found = results(generator, pairs)
            synchronize(run)
            seconds.append((time.perf_counter() - began) / len(pairs))
            drawn += [one.funnel.over_iou for one in found]
            if run.left_s < 0:
                break
        for name, one in zip(names, found, strict=True):
            masks.setdefault(name, len(generator.finish(one).records))
    median, mean_drawn = statistics.median(seconds), statistics.mean(drawn)
    ceiling = ceiling_s(run, generator, mean_drawn)
    return {
        "images_per_batch": batch,
        "images": len(pairs),
        "median_s": median,
        "least_s": min(seconds),
        "most_s": max(seconds),
        "find_images_s": 1 / median,
        "find_of_peak": None if ceiling is None else ceiling / median,
        "masks": masks,
        "drawn": mean_drawn,
        **peak,
    }


def prepared(run: PartRun, image: Any) -> Any:
    """Return an image as a segment actor passes it to the generator: in pinned memory on a GPU."""
    from segmint.operators.segment.segment import pinned

    return pinned(image) if run.on_cuda else image


def results(generator: Any, pairs: list[tuple[Any, Any]]) -> list[Any]:
    """Return the candidate masks of each image of a stream. Raises the exception of an image that failed."""
    found = []
    with torch.inference_mode():
        for one in generator.find_many(pairs):
            if isinstance(one, Exception):
                raise one
            found.append(one)
    return found


def ceiling_s(run: PartRun, generator: Any, drawn: float) -> float | None:
    """Return the seconds per image with `drawn` drawn masks at the measured peak. None if quick or not measured."""
    from segmint.model.cost import image_cost, mask_flop

    if run.peak_tflops is None or run.quick:
        return None
    name = next(iter(run.sizes.vits))
    flop = image_cost(generator.settings).flop(name) + drawn * mask_flop()  # type: ignore[arg-type]
    return flop / run.peak_tflops / 1e12


def measure_stages(run: PartRun, images: BenchmarkImages, layers: int | None) -> dict[str, Any]:
    """Measure the milliseconds of the GPU's stream for each stage of an image. Idle time counts for its stage."""
    generator = images.generator(run, layers)
    pair = next(iter(images.pairs(layers).values()))
    with staged(run) as clock:
        generator.generate(*pair)
    return {"ms": clock.milliseconds()}


def measure_launches(
    run: PartRun, images: BenchmarkImages, layers: int | None, trace: Path | None = None
) -> dict[str, Any]:
    """Measure an image's launches, waits, and kernels by time, and the GPU's busy share under the profiler.

    With `trace`, a compressed trace is written there.
    """
    generator = images.generator(run, layers)
    pair = next(iter(images.pairs(layers).values()))
    activities = [torch.profiler.ProfilerActivity.CPU]
    if run.on_cuda:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        started = time.perf_counter()
        generator.find(*pair)
        synchronize(run)
        seconds = time.perf_counter() - started
    calls: dict[str, int] = {}
    rows: list[tuple[float, str, int]] = []
    kernels = 0
    for event in recorded.key_averages():
        if getattr(event, "is_user_annotation", False):
            continue  # skip a span of kernels, which have their own rows
        if re.match(r"cu(da)?[A-Z]", event.key):
            calls[event.key] = event.count
        on_device = event.device_type != torch.autograd.DeviceType.CPU
        if on_device:
            kernels += event.count
        if on_device == run.on_cuda:
            spent = event.self_device_time_total if run.on_cuda else event.self_cpu_time_total
            rows.append((spent / 1e3, event.key[:100], event.count))
    rows.sort(reverse=True)
    found: dict[str, Any] = {
        "calls": calls,
        "launches": sum(count for name, count in calls.items() if "Launch" in name),
        "graph_launches": sum(count for name, count in calls.items() if "GraphLaunch" in name),
        "copies": sum(count for name, count in calls.items() if "Memcpy" in name),
        "syncs": sum(count for name, count in calls.items() if "Synchronize" in name),
        "kernels_run": kernels,
        "seconds": seconds,
        "kernels": [{"name": name, "ms": round(spent, 3), "calls": count} for spent, name, count in rows[:25]],
    }
    if run.on_cuda:
        found["busy_share"] = sum(row[0] for row in rows) / 1e3 / seconds
    else:
        found["launches"] = found["syncs"] = None  # there are none on a CPU
    if trace is not None:
        trace.parent.mkdir(parents=True, exist_ok=True)
        recorded.export_chrome_trace(str(trace))
        found["trace"] = trace.name
        if trace.stat().st_size > TRACE_LIMIT:
            found["trace"] = f"none: it took {trace.stat().st_size >> 20} MiB"
            trace.unlink()
    return found


@contextmanager
def computing_by(steps: Steps) -> Iterator[None]:
    """Use this implementation of the decoder's three large steps for all generators created while the block runs."""
    from segmint.model.automatic import device_crops as decoder
    from segmint.model.kernels import factored_image, factored_plainly

    with ExitStack() as stack:
        if steps == "plain":
            stack.enter_context(factored_image.formulas())
        elif steps == "compiled":
            # Replace the operators, because torch compiles nothing inside them.
            for step in ("answer", "look", "draw"):
                compiled = torch.compile(getattr(factored_plainly, step), dynamic=False)
                stack.enter_context(patch.object(decoder, step, compiled))
        yield


class EventClock:
    """Clock by stage. Time in nested stages only counts for the inner one. On a GPU, it uses events of the stream."""

    def __init__(self, run: PartRun) -> None:
        self._run = run
        self._turns: list[tuple[Any, str]] = []
        self._open = ["other"]
        self._turn("other")

    def timing(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its time counts for the stage."""

        @wraps(function)
        def counted(*arguments: Any, **keys: Any) -> Any:
            self._open.append(stage)
            self._turn(stage)
            try:
                return function(*arguments, **keys)
            finally:
                self._open.pop()
                self._turn(self._open[-1])

        return counted

    def _turn(self, stage: str) -> None:
        now: Any = time.perf_counter()
        if self._run.on_cuda:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        self._turns.append((now, stage))

    def milliseconds(self) -> dict[str, float]:
        """Wait for the device, and return the time by stage and in total."""
        self._turn("end")
        synchronize(self._run)
        spent: dict[str, float] = {}
        for (begin, stage), (end, _) in zip(self._turns, self._turns[1:], strict=False):
            took = begin.elapsed_time(end) if self._run.on_cuda else (end - begin) * 1e3
            spent[stage] = spent.get(stage, 0.0) + took
        return {**{stage: round(took, 3) for stage, took in spent.items()}, "whole": round(sum(spent.values()), 3)}


@contextmanager
def staged(run: PartRun) -> Iterator[EventClock]:
    """Time the functions that a generator on a GPU calls while the block runs. Only for a single thread."""
    from segmint.model import device
    from segmint.model.automatic import device_crops as crops
    from segmint.model.automatic import device_stream as stream
    from segmint.model.automatic import generator
    from segmint.model.automatic.tiled_upscaling import TiledUpscaling
    from segmint.model.sam import predictor
    from segmint.model.sam.load import BatchEncoder

    places: dict[str, list[tuple[Any, str]]] = {
        "upload, cut and resize": [(device.CopyStream, "start"), (stream, "cut"), (predictor, "resize_to_input")],
        "encode": [(BatchEncoder, "__call__")],
        "plan": [(crops._Graphs, "plan")],
        "decode": [(crops._Graphs, "decode")],
        "draw": [(crops, "draw_chunk")],
        "measure": [(crops, "measure_chunk")],
        "suppress and draw runs": [(crops, "suppress"), (TiledUpscaling, "_runs_of")],
        "finish": [(generator.MaskGenerator, "finish")],
    }
    clock = EventClock(run)
    with ExitStack() as stack:
        for stage, owners in places.items():
            for owner, name in owners:
                stack.enter_context(patch.object(owner, name, clock.timing(stage, getattr(owner, name))))
        yield clock
