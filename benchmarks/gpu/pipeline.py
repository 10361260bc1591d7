"""Part of a GPU day about the host: the real segment actor for a while, and the cost of `prepare`."""

import importlib.util
import multiprocessing
import os
import queue
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from itertools import cycle
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from benchmarks.gpu.both import BUNDLE, heavy_encoder, install, photographs, weights
from benchmarks.gpu.masks import ceiling_s
from benchmarks.gpu.run import NotMeasuredError, PartRun, synchronize

ROWS_A_CALL = 4
PREPARED_A_PROCESS = 2
"""Number of photographs that each process prepares while it is timed."""


def measure_pipeline(run: PartRun) -> dict[str, Any]:
    """Measure the segment actor's images per second with the full recipe, including host stages on all cores.

    The actor is the product's actor, but without Ray, which would only pass tables to it. As many threads call it as
    there are concurrent calls in a build. `bare` is the generator alone on decoded images, and `of_bare` compares the
    two.
    """
    from segmint.operators.segment.overlap import HostThreads
    from segmint.operators.segment.segment import Segment, decode_row
    from segmint.operators.shards.write import drawn_masks

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    threads = HostThreads(1, 1, 1) if run.quick else HostThreads.of("cuda", max(2, (cores - 1) // 2))
    segment = Segment(settings_of(run), threads=threads)
    segment._stages.on_device(lambda: install(segment.generator, heavy_encoder(run, segment.generator.predictor.sam)))
    pairs = photographs(run)
    tables = [table_of([pair]) for pair in pairs.values()]
    found = [segment(table) for table in tables]  # also prepares graphs and features
    for table in found:
        check(table)
    drawn = statistics.mean(map(drawn_masks, found))
    decoded = [decode_row(table.to_pylist()[0]) for table in tables]
    bare = segment._stages.on_device(lambda: bare_images_s(run, segment.generator, decoded))
    check(segment(tables[0]))  # the device's thread has not waited since

    rows = 1 if run.quick else ROWS_A_CALL
    calls = threads.calls(rows)
    work: queue.SimpleQueue[pa.Table] = queue.SimpleQueue()
    done: list[tuple[float, int]] = []
    faults: list[str] = []
    before = segment._stages.seconds()
    began = time.monotonic()
    end = began + run.sizes.pipeline_s
    several = cycle([table_of([pair] * rows) for pair in pairs.values()])

    def call() -> None:
        while time.monotonic() < end and not faults:
            try:
                table = work.get_nowait()
                check(segment(table))
            except Exception as error:  # noqa: BLE001 - ends the measurement, see below
                faults.append(repr(error))
                return
            done.append((time.monotonic(), table.num_rows))

    for _ in range(1 if run.quick else 10_000):
        work.put(next(several))
    workers = [threading.Thread(target=call) for _ in range(1 if run.quick else calls)]
    with sampling_gpu(run) as busy:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    if faults:
        raise RuntimeError(f"a call failed: {faults[0]}")
    images, took = sum(rows for _, rows in done), max(at for at, _ in done) - began
    spent = {stage: round(seconds - before[stage], 2) for stage, seconds in segment._stages.seconds().items()}
    ceiling = ceiling_s(run, segment.generator, drawn)
    return {
        "ray": "none: the actor is called by threads",
        "cores": cores,
        "threads": asdict(threads),
        "calls": len(workers),
        "images": images,
        "seconds": took,
        "images_s": images / took,
        "of_peak": None if ceiling is None else images / took * ceiling,
        "bare_images_s": bare,
        "of_bare": images / took / bare,
        "stage_seconds": spent,
        "device_thread_busy": spent["compute"] / max(1e-9, spent["compute"] + spent["idle"] + spent["blocked"]),
        **busy,
    }


def settings_of(run: PartRun) -> Any:
    """Return the settings of a segment actor for a dataset that is started on this machine."""
    from segmint.infra.assets import sha256_of
    from segmint.infra.device import Compute
    from segmint.model.automatic.settings import MaskSettings
    from segmint.operators.segment.numerics import observe_numerics
    from segmint.operators.segment.segment import SegmentSettings

    masks = MaskSettings.sa1b(
        points_per_side=run.sizes.points_per_side,
        crop_n_layers=run.sizes.crop_layers,
        points_per_chunk=4 if run.quick else None,
    )
    compute = Compute(run.device.type, "bf16" if run.on_cuda else "fp32", 1)
    chunk, crops = masks.chunk_on(run.device.type), 7 if run.on_cuda else 1
    numerics = observe_numerics(compute, chunk, crops, sha256_of(weights()), "eager")
    return SegmentSettings(masks, str(weights()), numerics)


def table_of(pairs: list[tuple[Any, Any]]) -> pa.Table:
    """Create prepared rows as from the previous stage, with the release and the original as JPEG."""
    from segmint.operators.prepare.release import ReleaseConfig, encode_original, release
    from segmint.operators.rows import PREPARED, to_table

    rows = []
    for ordinal, (image, original) in enumerate(pairs):
        released = release(image, ReleaseConfig())
        sizes = {"width": released.width, "height": released.height}
        rows.append({"ordinal": ordinal, **sizes, "release": released.jpeg, "original": encode_original(original)})
    return to_table(rows, PREPARED)


def check(table: pa.Table) -> None:
    """Raise RuntimeError if a row has no masks, either because it was rejected or because of a fault."""
    for row in table.select(["reason", "fault"]).to_pylist():
        if row["reason"] is not None or row["fault"] is not None:
            raise RuntimeError(f"a row was not segmented: {row}")


def bare_images_s(run: PartRun, generator: Any, pairs: list[tuple[Any, Any]]) -> float:
    """Measure the images per second of `find` alone, one image after the other."""
    started, images = time.perf_counter(), 0
    while images < len(pairs) or time.perf_counter() - started < run.sizes.pipeline_s / 6:
        generator.find(*pairs[images % len(pairs)])
        images += 1
    synchronize(run)
    return images / (time.perf_counter() - started)


@contextmanager
def sampling_gpu(run: PartRun) -> Iterator[dict[str, Any]]:
    """Yield a dictionary that receives the share of time in which the GPU ran a kernel.

    NVML samples this share ten times per second.
    """
    found: dict[str, Any] = {"gpu_busy": None}
    if not run.on_cuda or importlib.util.find_spec("pynvml") is None:
        found["gpu_busy_source"] = "none: not on a GPU, or pynvml is not installed"
        yield found
        return
    import pynvml

    pynvml.nvmlInit()
    handle = pynvml.nvmlDeviceGetHandleByIndex(run.device.index or 0)
    shares: list[int] = []
    watts: list[float] = []
    clocks: list[int] = []
    end = threading.Event()

    def watch() -> None:
        while not end.wait(0.1):
            shares.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu)
            watts.append(pynvml.nvmlDeviceGetPowerUsage(handle) / 1000)
            clocks.append(pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        end.set()
        watcher.join()
        if shares:
            found |= {"gpu_busy": statistics.mean(shares) / 100, "gpu_busy_source": "NVML"}
            found |= {"watts": statistics.median(watts), "sm_mhz": statistics.median(clocks)}


def measure_prepare(run: PartRun, cores: str, with_original: bool) -> dict[str, Any]:
    """Measure the seconds that `prepare` takes per 16-megapixel photograph, in single-threaded processes.

    `cores` selects one process on one core, or a process on each core.
    """
    if run.quick and (cores == "all" or not with_original):
        raise NotMeasuredError("not at reduced sizes: the process would be the same")
    processes = os.cpu_count() or 1 if cores == "all" else 1
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(processes)
    results: Any = context.Queue()
    data = photograph_of(run)
    os.environ.setdefault("SEGMINT_CACHE", str(BUNDLE))
    children = [
        context.Process(target=prepare_some, args=(data, with_original, barrier, results), daemon=True)
        for _ in range(processes)
    ]
    for child in children:
        child.start()
    found = []
    for _ in children:
        one = results.get(timeout=max(10.0, min(200.0, run.left_s)))
        if isinstance(one, str):
            raise RuntimeError(one)
        found.append(one)
    for child in children:
        child.join()
    wall = max(one["wall_s"] for one in found)
    return {
        "processes": processes,
        "cpu_s": statistics.median(one["cpu_s"] for one in found),
        "images_s": processes * PREPARED_A_PROCESS / wall,
        "stages": found[0]["stages"],
    }


def photograph_of(run: PartRun) -> bytes:
    """Enlarge a photograph of the bundle to the size of the originals, and encode it like a camera's JPEG."""
    from benchmarks.building.prepare import enlarged, jpeg

    image = next(iter(photographs(run).values()))[1]
    return bytes(jpeg(np.ascontiguousarray(enlarged(image, run.sizes.megapixels))))


def prepare_some(data: bytes, with_original: bool, barrier: Any, results: Any) -> None:
    """Prepare photographs in a separate process, and put the seconds into `results`."""
    try:
        results.put(prepared(data, with_original, barrier))
    except Exception as error:  # noqa: BLE001 - re-raised by the parent process
        barrier.abort()
        results.put(repr(error))


def prepared(data: bytes, with_original: bool, barrier: Any) -> dict[str, Any]:
    """Wait until every process is ready, and prepare photographs.

    Returns the CPU seconds per image, in total and by stage, and the wall seconds of all images.
    """
    import cv2

    from benchmarks.building.prepare import DeidentifyConfig, build_detectors, timed
    from segmint.infra.device import keep_freed_memory

    keep_freed_memory()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    detectors = build_detectors(DeidentifyConfig(), threads=1)
    timed(data, with_original, detectors)
    barrier.wait(timeout=200)
    started = time.perf_counter()
    stages = [timed(data, with_original, detectors) for _ in range(PREPARED_A_PROCESS)]
    return {
        "wall_s": time.perf_counter() - started,
        "cpu_s": statistics.median(sum(one.values()) for one in stages),
        "stages": {name: round(seconds, 3) for name, seconds in stages[-1].items()},
    }
