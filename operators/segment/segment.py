"""Segment stage: automatic mask generation for released images, in an actor that loads the model once."""

import functools
import os
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa

from segmint.catalogs.findings import Reason, RejectedError
from segmint.infra.arrays import Pixels
from segmint.infra.assets import resolve, sha256_of
from segmint.infra.device import device_failure, fix_products
from segmint.infra.errors import UsageError
from segmint.infra.peak import measure_peak
from segmint.infra.stopping import Deadline, outlive_signals
from segmint.infra.storage.storage import Storage
from segmint.model.automatic.settings import MaskSettings
from segmint.model.kernels.cpu.library import kernels_named, reason
from segmint.operators.child import is_out_of_memory
from segmint.operators.images import decode_jpeg
from segmint.operators.rows import MASKS_PER_IMAGE_LIMIT, SEGMENTED, Row, carried, gather, is_live, judged, to_rows
from segmint.operators.segment.mask_config import without_artifacts
from segmint.operators.segment.numerics import (
    SEGMENTER,
    MixedNumericsError,
    Numerics,
    check_release_numerics,
    observe_numerics,
)
from segmint.operators.segment.overlap import HostThreads, OverlappedStages

# Processes that describe rows or write shards import this module without torch, and single images don't need Ray.
if TYPE_CHECKING:
    from segmint.infra.row_ledger import BlockEntry, RowLedger
    from segmint.model.automatic.generator import MaskGenerator, RawMasks
    from segmint.model.automatic.rle import GeneratedMasks, MaskRecord


SWITCH_INTERVAL_S = 1e-4
"""Seconds after which a thread of a GPU actor releases the GIL if another thread waits for it.

With Python's default of 5 ms, each time another thread took the GIL, the thread that owns the device couldn't launch
kernels for 5 ms.
"""


@dataclass(frozen=True)
class SegmentSettings:
    """Everything that a segment actor needs. All actors of a dataset use the same settings."""

    masks: MaskSettings
    weights: str  # as named in the configuration; each machine uses its own copy, checked by hash
    numerics: Numerics
    assets: str | None = None  # a folder that mirrors the weight files
    storage_options: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    allow_mixed_numerics: bool = False
    artifact_iou: float | None = None  # minimum IoU with a redacted region at which masks are dropped; None: none are


def mask_columns(generated: "GeneratedMasks") -> dict[str, Any]:
    """Convert an image's masks to values of the columns `masks` and `funnel`."""
    return {"masks": [mask_row(record) for record in generated.records], "funnel": asdict(generated.funnel)}


def mask_row(record: "MaskRecord") -> Row:
    """Convert a mask to a value of `MASK`."""
    return {
        "segmentation": {"size": list(record.segmentation.size), "counts": record.segmentation.counts},
        "bbox": [float(value) for value in record.bbox],
        "area": record.area,
        "predicted_iou": record.predicted_iou,
        "stability_score": record.stability_score,
        "crop_box": [float(value) for value in record.crop_box],
        "point_coords": [[float(value) for value in record.point_coords]],
        "output": record.output,
    }


def compiler_cache() -> Path:
    """Return the cache folder of torch's compiler, which is `TORCHINDUCTOR_CACHE_DIR` or torch's default."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    return Path(cache_dir())


@contextmanager
def first_alone(folder: Path, name: str) -> Iterator[None]:
    """Run the block in a single process first; make other processes on this machine wait until it has finished.

    The first process compiles into a cache in `folder`, and the others then reuse its results. Only processes that pass
    the same folder and name wait for each other. If the first process fails or dies, the next one takes its place.
    """
    import fcntl  # only Linux has this module, and only GPU builds need it

    folder.mkdir(parents=True, exist_ok=True)
    done = folder / f"segmint-{name}.done"
    with (folder / f"segmint-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if done.exists():
            fcntl.flock(lock, fcntl.LOCK_UN)
            yield
            return
        yield
        done.touch()


def load_generator(settings: SegmentSettings) -> "MaskGenerator":
    """Load the model onto its device and set up torch for the dataset's numerics.

    Raises `MixedNumericsError` if this process can't produce the same bits as the process that started the dataset.
    """
    from segmint.model.automatic.device_crops import KernelError
    from segmint.model.automatic.device_stream import check_other_kernels
    from segmint.model.automatic.generator import MaskGenerator
    from segmint.model.device import CaptureError
    from segmint.model.sam.load import CompilationError
    from segmint.model.sam.predictor import Predictor
    from segmint.operators.segment.models import load_model

    weights = _weights(settings)
    check_numerics(settings)
    numerics = settings.numerics
    compiled = numerics.encoder == "compiled"
    predictor = Predictor(
        load_model(weights, numerics.compute, numerics.decoder_precision),
        compile_encoder="default" if compiled else None,
        must_compile=not settings.allow_mixed_numerics,
        kernels=kernels_named(numerics.kernels),
    )
    generator = MaskGenerator(predictor, settings.masks, numerics.crops_per_batch)
    # Compile and capture graphs now, because this takes minutes and must not count toward the first image's time limit.
    # If this GPU can't run the kernels, the actor ends here, and no image is blamed.
    if compiled or numerics.device == "cuda":
        nothing = np.zeros((64, 64, 3), np.uint8)
        try:
            with first_alone(compiler_cache(), numerics.fingerprint) if compiled else nullcontext():
                if numerics.device == "cuda":
                    check_other_kernels(predictor)
                    generator.find(nothing)
                else:
                    predictor.embed_many([nothing], batch_size=numerics.crops_per_batch)
        except CompilationError as error:
            raise MixedNumericsError(
                f"the dataset was created with model.encoder compiled, but {error} here. Fix this machine's compiler, "
                "build another dataset with model.encoder: eager, or set allow_mixed_numerics: true."
            ) from error
        except CaptureError as error:
            raise MixedNumericsError(
                f"this GPU decodes points in CUDA graphs, but segmint {error}. Fix this machine's driver, or set "
                "allow_mixed_numerics: true to decode more slowly."
            ) from error
        except KernelError as error:
            raise UsageError(str(error)) from error
    return generator


def check_numerics(settings: SegmentSettings) -> None:
    """Raise `MixedNumericsError` if this process can't produce the same bits as the one that started the dataset."""
    wanted = settings.numerics
    if wanted.device == SEGMENTER:
        if not settings.allow_mixed_numerics:
            check_release_numerics(wanted)
        return
    fix_products()
    here = observe_numerics(
        wanted.compute,
        wanted.points_per_chunk,
        wanted.crops_per_batch,
        sha256_of(_weights(settings)),
        wanted.encoder,
        wanted.kernels,
    ).with_decoder(wanted.decoder_precision)
    differences = here.differences(wanted)
    if here.kernels != wanted.kernels and (why := reason()) is not None:
        differences += f" ({why})"
    if differences and not settings.allow_mixed_numerics:
        raise MixedNumericsError(
            f"this machine can't reproduce the dataset's masks bit for bit: {differences}. "
            "Use the same machines and versions, or set allow_mixed_numerics: true."
        )


def _weights(settings: SegmentSettings) -> Path:
    return resolve(settings.weights, mirror=settings.assets, storage=Storage(settings.storage_options))


def decode_row(row: Row) -> tuple[Pixels, Pixels | None]:
    """Decode a prepared row's released image, and the original for cutting crops if the row contains one."""
    return decode_jpeg(row["release"]), None if row["original"] is None else decode_jpeg(row["original"])


def find_frugally(generator: "MaskGenerator", image: Pixels, original: Pixels | None) -> "RawMasks":
    """Call `generator.find`. If the GPU runs out of memory, empty its cache and retry, which gives the same results."""
    import torch

    try:
        return generator.find(image, original)
    except torch.OutOfMemoryError:
        pass  # retry outside this block, which keeps the tensors of the first try alive
    torch.cuda.empty_cache()
    return generator.find(image, original)


def pinned(pixels: Pixels) -> Pixels:
    """Return a copy of the pixels in pinned memory. A GPU can copy from pinned memory while its kernels run."""
    import torch

    return torch.from_numpy(np.require(pixels, requirements=["C", "W"])).pin_memory().numpy()


def check_count(masks: int) -> None:
    """Raise `RejectedError` if an image has more masks than there are mask ids."""
    if masks > MASKS_PER_IMAGE_LIMIT:
        detail = f"{masks:,} masks; there are ids for {MASKS_PER_IMAGE_LIMIT:,} masks of one image"
        raise RejectedError(Reason.TOO_MANY_MASKS, detail)


class Segment:
    """Ray Data actor that maps a table of prepared rows to the same rows with masks.

    On a GPU, the stages overlap: some threads decode images, one thread owns the device, and other threads finish
    masks. The device's thread starts the next image before the device has finished the current one, so the device never
    waits for the host. Up to `HostThreads.calls` calls may run concurrently. On a CPU, the caller's thread does
    everything.

    - `ledger`: records each row before it is processed.
    - `measures_peak`: measures the peak performance of the actor's device first and records it in the ledger.
    - `timeout_s`: time limit, in seconds, for each of decoding, computing, and finishing an image.
    - `threads`: by default, `HostThreads.of` chooses the threads for the device.

    If an image exceeds the time limit, memory runs out, or the GPU breaks, this process can't handle more rows, so it
    ends.
    """

    def __init__(
        self,
        settings: SegmentSettings,
        measures_peak: bool = False,
        ledger: "RowLedger | None" = None,
        timeout_s: float | None = None,
        threads: HostThreads | None = None,
    ) -> None:
        self._set_up(settings.numerics.device, ledger, timeout_s, threads)
        self._artifact_iou = settings.artifact_iou
        # Load the model in the thread that uses it, because compiled code and captured graphs belong to their thread.
        self.generator = self._stages.on_device(functools.partial(load_generator, settings))
        if measures_peak and ledger is not None:
            ledger.report_peak(self._stages.on_device(functools.partial(measure_peak, settings.numerics.compute)))

    def _set_up(
        self,
        device: str,
        ledger: "RowLedger | None",
        timeout_s: float | None,
        threads: HostThreads | None,
    ) -> None:
        self._device = device
        self._ledger = ledger
        if ledger is not None:  # in a Ray worker
            outlive_signals()
        self._deadline = Deadline(timeout_s)
        self._hands_over = threading.Lock()
        threads = threads or HostThreads.of(device)
        self._together = threads.together
        if threads.decoders:
            sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._stages = OverlappedStages(self._decode_watched, self._find_watched, self._finish_watched, threads)

    def __call__(self, table: pa.Table) -> pa.Table:
        """Segment each live row and pass all other rows through."""
        rows = to_rows(table, "segment")
        with nullcontext() if self._ledger is None else self._ledger.entry(self._stages.seconds) as entry:
            with self._hands_over:  # one call at a time, so that the earlier one finishes first
                started = self._submit(rows, entry)
            done = [
                row if result is None else judged(row, "segment", result.result)
                for row, result in zip(rows, started, strict=True)
            ]
        return carried(table, gather(done, "segment", SEGMENTED), "prompts")

    def _submit(self, rows: list[Row], entry: "BlockEntry | None") -> list["Future[Row] | None"]:
        """Start the live rows and return a future for each. A single call records all rows that start together."""
        started: list[Future[Row] | None] = [None] * len(rows)
        live = [place for place, row in enumerate(rows) if is_live(row)]
        for first in range(0, len(live), self._together):
            places = live[first : first + self._together]
            self._stages.take_room(len(places))
            begun: Iterable[tuple[Sequence[int], Exception | None]] = [(range(len(places)), None)]
            if entry is not None:
                begun = entry.start([rows[place]["ordinal"] for place in places])
            for indices, error in begun:
                for index in indices:
                    place = places[index]
                    if error is None:
                        started[place] = self._stages.start(_SegmentTask(rows[place], entry))
                        continue
                    self._stages.give_room()
                    started[place] = failed = Future[Row]()
                    failed.set_exception(error)
        return started

    def _decode(self, row: Row) -> tuple[Pixels, Pixels | None]:
        image, original = decode_row(row)
        if self._device != "cuda":
            return image, original
        return pinned(image), None if original is None else pinned(original)

    def _find(self, images: "Iterator[tuple[Pixels, Pixels | None] | None]") -> "Iterator[RawMasks | Exception]":
        return self.generator.find_many(images)

    def _finish(self, row: Row, found: "RawMasks") -> Row:
        columns = without_artifacts(row, mask_columns(self.generator.finish(found)), self._artifact_iou)
        check_count(len(columns["masks"]))
        return {**row, **columns}

    def _decode_watched(self, task: "_SegmentTask") -> tuple[Pixels, Pixels | None]:
        with self._watched(task):
            return self._decode(task.row)

    def _find_watched(self, stream: "Iterator[_Decoded | None]") -> "Iterator[RawMasks | BaseException]":
        """Find the masks of a stream of images. Each image has its own deadline, from its start to its result."""
        begun: deque[tuple[_SegmentTask, tuple[Pixels, Pixels | None], ExitStack]] = deque()

        def images() -> Iterator[tuple[Pixels, Pixels | None] | None]:
            for decoded in stream:
                if decoded is not None:
                    running = ExitStack()
                    running.enter_context(self._deadline.running())
                    begun.append((*decoded, running))
                yield None if decoded is None else decoded[1]

        try:
            for found in self._find(images()):
                task, pixels, running = begun.popleft()
                running.close()
                result: RawMasks | BaseException = found
                if isinstance(found, Exception):
                    import torch  # outside of the deadline, because the first import takes seconds
                try:
                    with self._watched(task, owns_device=True):
                        if isinstance(found, Exception):
                            if not isinstance(found, torch.OutOfMemoryError):
                                raise found
                            torch.cuda.empty_cache()
                            result = find_frugally(self.generator, *pixels)
                except BaseException as error:  # noqa: BLE001 - it is the result of the row
                    result = error
                yield result
        except BaseException as error:
            for task, _, running in begun:  # it is the result of all images in progress
                running.close()
                with suppress(BaseException), self._watched(task, owns_device=True):
                    raise error
            raise

    def _finish_watched(self, task: "_SegmentTask", found: "RawMasks") -> Row:
        with self._watched(task):
            row = self._finish(task.row, found)
        if task.entry is not None:
            task.entry.leave(task.row["ordinal"])
        return row

    @contextmanager
    def _watched(self, task: "_SegmentTask", *, owns_device: bool = False) -> Iterator[None]:
        """Run one stage of a row within its deadline. End this process if an error leaves it unusable."""
        try:
            with self._deadline.running():
                yield
        except BaseException as error:
            if task.entry is not None:
                self._end_if_unfit(task.row["ordinal"], task.entry, error, owns_device=owns_device)
                task.entry.leave(task.row["ordinal"])
            raise

    def _end_if_unfit(self, ordinal: int, entry: "BlockEntry", error: BaseException, *, owns_device: bool) -> None:
        from segmint.model.device import capture_lock

        if is_out_of_memory(error):
            os._exit(1)  # this process is now unreliable, and the ledger lists its rows
        # Querying the device disturbs the thread that owns it; CUDA errors are RuntimeErrors.
        if not owns_device and not isinstance(error, RuntimeError):
            return
        with capture_lock:
            failure = device_failure(self._device)
        if failure is None:
            return
        try:
            entry.excuse(ordinal, f"the GPU failed, and its worker was ended: {failure}")
        finally:
            os._exit(1)


_Decoded = tuple["_SegmentTask", tuple[Pixels, Pixels | None]]


class _SegmentTask(NamedTuple):
    """A row on its way through the stages. `entry` is its block's entry in the ledger, or None without a ledger."""

    row: Row
    entry: "BlockEntry | None"
