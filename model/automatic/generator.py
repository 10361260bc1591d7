"""Automatic mask generation for an image and its crops, from a grid of points."""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from segmint.infra.arrays import Box, Floats, Ints, Pixels, Size
from segmint.model.automatic.candidates import CandidateMasks, MaskPatch, RawMasks, clean_patch, concatenate, nms
from segmint.model.automatic.crops import Crop, crop_points, cut, placed_crops, xyxy_to_xywh
from segmint.model.automatic.device_crops import DeviceCrops, suits
from segmint.model.automatic.device_stream import ImagePair, ImageStream, Progress, check_pair, deadline
from segmint.model.automatic.proposals import MeasuredMasks, chunks_of, measure, propose, suppress_and_draw
from segmint.model.automatic.rle import Funnel, GeneratedMasks, MaskRecord, Rle
from segmint.model.automatic.settings import MaskSettings
from segmint.model.automatic.tiled_upscaling import upscaling_of
from segmint.model.device import CopyStream, inference
from segmint.model.sam.load import MAX_BATCH, default_batch_size
from segmint.model.sam.predictor import Embedding, Predictor

__all__ = ["Funnel", "GeneratedMasks", "MaskGenerator", "MaskRecord", "RawMasks", "Report", "Rle"]

Report = Callable[[int, int], object]
"""Callback that reports progress on an image. It receives the number of decoded points and the total number of points.
"""

Item = TypeVar("Item")
Result = TypeVar("Result")


class MaskGenerator:
    """Generator that segments everything in an image (SAM paper, Section 4 and Appendix B).

    The generator doesn't resize the image, and returns masks in the image's own frame. With the `sa1b` profile, it can
    cut crops from a larger `original` of the image. Builds and `segmint masks` pass the released image and its
    original.
    """

    def __init__(
        self, predictor: Predictor, settings: MaskSettings | None = None, crops_per_batch: int | None = None
    ) -> None:
        """Set up a generator with a model's predictor. `settings` defaults to `MaskSettings.sa1b()`.

        `crops_per_batch`, 1 to 64, is the number of crops of an image to encode in one batch. It defaults to 1 on a
        CPU. On CUDA, it defaults to 7 if the settings have crops, and to 1 otherwise. A GPU with enough memory can
        encode all 21 crops of SA-1B's settings at once. If the settings have no crops, `find_many` encodes this number
        of images together on CUDA. The batch size affects the last bits of the embeddings. Raises ValueError if it's
        out of range.

        On a CPU, the generator starts a pool with as many threads as torch uses. You can pickle a generator, and use it
        in a forked process unless the model is on a GPU.
        """
        self.settings = MaskSettings.sa1b() if settings is None else settings
        if crops_per_batch is None:
            crops_per_batch = default_batch_size(predictor.sam.device) if self.settings.crop_n_layers > 0 else 1
        if not 1 <= crops_per_batch <= MAX_BATCH:
            raise ValueError(f"crops_per_batch is {crops_per_batch}: expected 1 to {MAX_BATCH}")
        self._map: Callable[..., Iterable[tuple[MeasuredMasks[Any], Funnel]]] = map
        if predictor.sam.device.type == "cpu" and torch.get_num_threads() > 1:
            self._map = Workers(torch.get_num_threads()).map
        self.predictor = predictor
        self.crops_per_batch = crops_per_batch
        on_device = predictor.sam.device.type != "cpu" and suits(predictor.sam.mask_decoder, self.settings)
        self.device_crops = DeviceCrops(predictor, self.settings) if on_device else None
        self.copies = CopyStream(predictor.sam.device)

    def __getstate__(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("predictor", "settings", "crops_per_batch")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        MaskGenerator.__init__(self, **state)

    def generate(self, image: Pixels, original: Pixels | None = None) -> GeneratedMasks:
        """Generate the masks of one image by calling `find`, then `finish`. Raises the same errors as `find`."""
        return self.finish(self.find(image, original))

    def find(self, image: Pixels, original: Pixels | None = None, report: Report | None = None) -> RawMasks:
        """Run the model on an image and its crops, and return the candidate masks in host memory.

        Args:
            image: (height, width, 3) uint8 RGB. All coordinates and limits are in pixels of this image. The masks of
                the full image come from it.
            original: uint8 RGB version of the same scene, with 3 channels and any height and width. The `sa1b` profile
                cuts the crops of layers 1 and up from it. By default, they are cut from `image`.
            report: progress callback. It's called after each chunk of points on a CPU, and after each crop elsewhere.

        Raises ValueError if an array has a different shape or dtype, or if you pass an original with a profile other
        than `sa1b`. Raises RuntimeError in a forked process if the model is on a GPU that the parent used.
        """
        check_pair(image, original, self.settings)
        with inference(self.predictor.sam.device):
            frame_size = (image.shape[0], image.shape[1])
            crops = placed_crops(frame_size, self.settings)
            count = _PointCounter(report, sum(self.settings.count_of_layer(crop.layer) for crop in crops))
            if self.device_crops is not None:
                (one,) = self._stream([(image, original)], lambda: count.add)
                if isinstance(one, Exception):
                    raise one
                return one
            parts: list[CandidateMasks] = []
            funnel = Funnel()
            for crop, embedding in self.embed_crops(crops, image, original):
                found, counts = self.process_crop(crop, embedding, frame_size, count)
                parts.append(found)
                funnel += counts
            return RawMasks(concatenate(parts), funnel, frame_size)

    def find_many(
        self, images: Iterable[ImagePair | None], timeout_s: float | None = None
    ) -> Iterator[RawMasks | Exception]:
        """Run `find` on each (image, original or None), and yield the results in order, even if some images fail.

        If an image fails, the generator yields its exception instead of a result. If an image takes more than
        `timeout_s` seconds, the exception is a TimeoutError. None in `images` means that no image is ready yet; the
        generator then continues with the images that it has already started.

        On an accelerator, the next image is copied and encoded while the current one is decoded. The results have the
        same bits as for a single image. An image's time starts with its copy to the device, and is checked after each
        crop. On a CPU, images run one after another, and the time is checked after each chunk of points.
        """
        if self.device_crops is not None:
            stream = self._stream(images, lambda: deadline(timeout_s))
            while True:
                with inference(self.predictor.sam.device):  # left before each result, because the caller continues then
                    found = next(stream, None)
                if found is None:
                    return
                yield found
        for pair in images:
            if pair is None:
                continue
            try:
                yield self.find(*pair, report=_checking(deadline(timeout_s)))
            except Exception as error:  # noqa: BLE001 - it is the result of the image
                yield error

    def _stream(
        self, images: Iterable[ImagePair | None], progress: Callable[[], Progress]
    ) -> Iterator[RawMasks | Exception]:
        assert self.device_crops is not None
        stream = ImageStream(self.predictor, self.settings, self.crops_per_batch, self.device_crops, self.copies)
        return stream.find(images, progress)

    def finish(self, found: RawMasks) -> GeneratedMasks:
        """Turn the candidates from `find` into masks: apply NMS across crops, clean up, and run-length encode.

        This step doesn't use torch or the device, so another thread can run it while the device processes the next
        image.
        """
        candidates = suppress_across_crops(found.candidates, self.settings)
        written, counts = clean_up(candidates, found.frame_size, self.settings)
        return GeneratedMasks(to_records(written, found.frame_size), found.funnel + counts)

    def embed_crops(
        self, crops: list[Crop], image: Pixels, original: Pixels | None
    ) -> Iterator[tuple[Crop, Embedding]]:
        """Encode the crops in batches, and yield each crop with its embedding.

        On a GPU, `image` and, if there are crops, `original` are each copied to the device once. The crops are cut
        there.
        """
        frame_size = (image.shape[0], image.shape[1])
        whole = finer = self.predictor.on_device(image)
        if original is not None and self.settings.crop_n_layers > 0:
            finer = self.predictor.on_device(original)
        for start in range(0, len(crops), self.crops_per_batch):
            batch = crops[start : start + self.crops_per_batch]
            pixels = [cut(crop, frame_size, whole if crop.layer == 0 else finer) for crop in batch]
            sizes = [crop.size for crop in batch]
            yield from zip(batch, self.predictor.embed_many(pixels, sizes, self.crops_per_batch), strict=True)

    def process_crop(
        self, crop: Crop, embedding: Embedding, frame_size: Size, count: "_PointCounter | None" = None
    ) -> tuple[CandidateMasks, Funnel]:
        """Return one crop's masks after NMS within the crop, best first, and the counts of each step."""
        upscaling = upscaling_of(self.predictor, embedding)
        plan = self.predictor.plan_points(embedding)
        if self.settings.use_m2m and self.predictor.kernels is not None:
            self.predictor.plan_prompts(embedding)
        points = crop_points(crop, self.settings.grid_of_layer(crop.layer))

        @torch.inference_mode()
        def process(chunk: Floats) -> tuple[MeasuredMasks[Any], Funnel]:
            proposals, predicted = propose(self.predictor, embedding, plan, chunk, self.settings)
            found, counts = measure(upscaling, proposals, crop, frame_size, self.settings)
            return found, counts + Funnel(predicted=predicted, over_iou=len(proposals.points))

        parts: list[MeasuredMasks[Any]] = []
        funnel = Funnel()
        for found, counts in self._map(process, chunks_of(points, self.settings.chunk_on("cpu"))):
            parts.append(found)
            funnel += counts
            if count is not None:
                count.add(counts.predicted // 3)
        device = self.predictor.sam.device
        candidates = suppress_and_draw(upscaling, parts, crop, self.settings.box_nms_thresh, device)
        return candidates, funnel + Funnel(after_nms1=len(candidates))


def _checking(check: Progress) -> Report:
    return lambda points, _: check(points)


class _PointCounter:
    """Counter that adds up the decoded points of one image and passes the sum to a `Report`."""

    def __init__(self, report: Report | None, points: int) -> None:
        self._report = report
        self._points = points
        self._done = 0

    def add(self, points: int) -> None:
        self._done += points
        if self._report is not None:
            self._report(self._done, self._points)


def suppress_across_crops(candidates: CandidateMasks, settings: MaskSettings) -> CandidateMasks:
    """Suppress duplicates across the crops of an image. Masks from smaller crops win.

    If the settings have no crops, the candidates don't change.
    """
    if settings.crop_n_layers == 0:
        return candidates
    x0, y0, x1, y1 = candidates.crop_boxes.T
    areas = ((x1 - x0) * (y1 - y0)).astype(np.float32)
    return candidates.take(nms(candidates.boxes, np.float32(1) / areas, settings.crop_nms_thresh))


def clean_up(candidates: CandidateMasks, frame_size: Size, settings: MaskSettings) -> tuple[CandidateMasks, Funnel]:
    """Fill small holes, remove small islands, and suppress masks that become duplicates.

    When two masks are duplicates, a mask that cleanup didn't change wins over one that it changed. Scores don't change.
    The returned funnel contains the counts from `after_nms2` on.
    """
    if settings.min_mask_region_area == 0:
        return candidates, Funnel(after_nms2=len(candidates), written=len(candidates))
    changed: dict[int, MaskPatch] = {}
    dropped: list[int] = []
    cleaned = holes_filled = islands_removed = 0
    for index, patch in enumerate(candidates.patches):
        clean, holes, islands = clean_patch(
            patch, frame_size, settings.min_mask_region_area, keep_largest=settings.profile != "sa1b"
        )
        holes_filled += holes
        islands_removed += islands
        cleaned += holes or islands
        if clean is None:
            dropped.append(index)
        elif holes or islands:
            changed[index] = clean
    untouched = np.ones(len(candidates), dtype=np.float32)
    untouched[list(changed)] = 0
    left = np.setdiff1d(np.arange(len(candidates)), dropped)
    kept = candidates.with_patches(changed).take(left)
    kept = kept.take(nms(kept.boxes, untouched[left], max(settings.box_nms_thresh, settings.crop_nms_thresh)))
    return kept, Funnel(
        after_nms2=len(candidates),
        cleaned=cleaned,
        removed_by_cleanup=len(candidates) - len(kept),
        written=len(kept),
        holes_filled=holes_filled,
        islands_removed=islands_removed,
    )


def to_records(candidates: CandidateMasks, frame_size: Size) -> tuple[MaskRecord, ...]:
    """Convert candidates to records in the same order. `frame_size` is (height, width)."""
    records = []
    for index, patch in enumerate(candidates.patches):
        x, y = candidates.points[index].tolist()
        records.append(
            MaskRecord(
                segmentation=patch.encode(frame_size),
                area=patch.area,
                bbox=_floats(candidates.boxes[index]),
                predicted_iou=float(candidates.predicted_iou[index]),
                stability_score=float(candidates.stability[index]),
                crop_box=_floats(candidates.crop_boxes[index]),
                point_coords=(x, y),
                output=int(candidates.outputs[index]),
            )
        )
    return tuple(records)


def _floats(box: Ints) -> Box:
    x0, y0, x1, y1 = box.tolist()
    x, y, width, height = xyxy_to_xywh((x0, y0, x1, y1))
    return float(x), float(y), float(width), float(height)


class Workers:
    """Thread pool in which each thread runs torch single-threaded.

    On a CPU, the pool decodes chunks of prompts in parallel. Each prompt needs hundreds of short operations. Torch's
    own threads would synchronize after each of them; on two cores, the pool takes half the time. The pool also makes
    each chunk's arithmetic, and therefore its last bits, independent of the number of cores.
    """

    def __init__(self, threads: int) -> None:
        """Start the threads, 1 or more."""
        own = torch.get_num_threads()
        self._process = os.getpid()
        self._pool = ThreadPoolExecutor(threads, "segmint-decode", _compute_alone)
        # A new thread inherits the process-wide count. Start all threads before resetting that count.
        barrier = threading.Barrier(threads)
        list(self._pool.map(lambda _: barrier.wait(), range(threads)))
        torch.set_num_threads(own)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Yield the function's result for each item, in order. Exceptions are raised at their item's position."""
        if os.getpid() == self._process:
            yield from self._pool.map(function, items)
        else:  # a forked process has none of its parent's threads, and `inference` limits torch to one thread
            yield from map(function, items)


def _compute_alone() -> None:
    # On its first query, a new thread copies the process-wide count. Query it first, or the copy would overwrite the
    # thread's own setting.
    torch.get_num_threads()
    torch.set_num_threads(1)
