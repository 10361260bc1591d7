"""The parts of the GPU benchmark on masks: whole images in both profiles, and the upscaling of one chunk."""

import importlib.util
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.gpu_run import Run, attempt, memory, profile, synchronize, timed

BUNDLE = Path(__file__).resolve().parents[1] / "bundle"


def measure_masks(run: Run) -> dict[str, Any]:
    """Whole images with MobileSAM and the `official` profile: ours in fp32 and bf16, and the reference package."""
    note = need_opencv(placeholder=True)
    from segmint.model.automatic.generator import MaskGenerator
    from segmint.model.automatic.settings import MaskSettings
    from segmint.model.sam.load import load_sam
    from segmint.model.sam.predictor import Predictor

    images = photographs(run.sizes.photo_side)
    points = run.sizes.points_per_side
    found: dict[str, Any] = {"opencv": note, "photographs": {name: list(image.shape) for name, image in images.items()}}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        predictor = Predictor(load_sam(weights(), run.device).to(dtype))
        settings = MaskSettings.official(points_per_side=points, points_per_chunk=4 if run.device.type == "cpu" else 64)
        generator = MaskGenerator(predictor, settings)
        first = next(iter(images.values()))
        found[f"ours_{precision}"] = attempt(
            masks_rate, run, images, lambda image, generator=generator: len(generator.generate(image).records)
        )
        found[f"embed_{precision}"] = attempt(embed_rate, run, predictor, first)
        if precision == "bf16":
            found["profile"] = profile(lambda generator=generator, first=first: generator.generate(first), run)
    found["reference"] = attempt(reference_masks_rate, run, images)
    best = max(found[key].get("images_s", 0.0) for key in ("ours_fp32", "ours_bf16"))
    if "images_s" in found["reference"]:
        found["times_the_reference"] = best / found["reference"]["images_s"]
    return found


def measure_sa1b(run: Run) -> dict[str, Any]:
    """Whole images with the `sa1b` profile in bfloat16, the crops encoded one by one and all in one batch."""
    need_opencv(placeholder=False)
    from segmint.model.automatic.generator import MaskGenerator
    from segmint.model.automatic.settings import MaskSettings
    from segmint.model.sam.load import load_sam
    from segmint.model.sam.predictor import Predictor

    quick = run.sizes.points_per_side < 4
    layers = 1 if quick else 2
    chunk = 4 if run.device.type == "cpu" else 64
    settings = MaskSettings.sa1b(
        points_per_side=run.sizes.points_per_side, crop_n_layers=layers, points_per_chunk=chunk
    )
    images = photographs(run.sizes.photo_side)
    predictor = Predictor(load_sam(weights(), run.device).to(torch.bfloat16))
    found = {}
    for crops in (1, 5 if quick else 21):
        generator = MaskGenerator(predictor, settings, crops_per_batch=crops)
        found[f"crops_per_batch_{crops}"] = attempt(
            masks_rate, run, images, lambda image, generator=generator: len(generator.generate(image).records)
        )
    return found


def masks_rate(run: Run, images: dict[str, Any], count: Callable[[Any], int]) -> dict[str, Any]:
    """Images and masks a second over all photographs, after one warm-up run."""
    count(next(iter(images.values())))
    with memory(run) as peak:
        start = time.perf_counter()
        masks = {name: count(image) for name, image in images.items()}
        synchronize(run)
        seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "images_s": len(images) / seconds,
        "masks_s": sum(masks.values()) / seconds,
        "masks": masks,
        **peak,
    }


def embed_rate(run: Run, predictor: Any, image: Any) -> dict[str, Any]:
    """Images a second of `embed_many`, resizing and upload included, at the largest batch."""
    batch = run.sizes.batches[-1]
    with memory(run) as peak:
        seconds = timed(lambda: predictor.embed_many([image] * batch, batch_size=batch), run)
    return {"batch": batch, **seconds, "images_s": batch / seconds["median_s"], **peak}


def reference_masks_rate(run: Run, images: dict[str, Any]) -> dict[str, Any]:
    """The reference generator in its default float32, with our MobileSAM encoder, which it does not have."""
    from segment_anything import SamAutomaticMaskGenerator

    from benchmarks.reference import reference_sam
    from segmint.model.sam.load import load_sam

    sam = reference_sam(load_sam(weights(), run.device))
    generator = SamAutomaticMaskGenerator(sam, points_per_side=run.sizes.points_per_side)
    return masks_rate(run, images, lambda image: len(generator.generate(image)))


def measure_upscaling(run: Run) -> dict[str, Any]:
    """Measure and draw one chunk's masks of a photograph: whole masks, torch's tiles, Triton's kernels; and NMS.

    Counts and boxes are compared with those of torch's tiles, and must be the same bit by bit.
    """
    from segmint.model.automatic import mask_tiles
    from segmint.model.automatic.crops import Crop, crop_points
    from segmint.model.automatic.nms import nms
    from segmint.model.automatic.proposals import propose
    from segmint.model.automatic.settings import MaskSettings
    from segmint.model.automatic.tiled_upscaling import TiledUpscaling, kernels
    from segmint.model.sam.load import load_sam
    from segmint.model.sam.predictor import Predictor

    image = next(iter(photographs(run.sizes.photo_side).values()))
    predictor = Predictor(load_sam(weights(), run.device))
    embedding = predictor.embed(image)
    points = crop_points(Crop(0, (0, 0, image.shape[1], image.shape[0])), min(8, run.sizes.points_per_side))
    settings = MaskSettings.official(points_per_chunk=len(points), pred_iou_thresh=0)
    proposals, _ = propose(predictor, embedding, predictor.plan_points(embedding), points, settings)
    low = proposals.low_res_logits
    found: dict[str, Any] = {"masks": len(low), "frame": list(image.shape[:2])}

    def whole() -> torch.Tensor:
        """Area and stability's counts of whole masks, eight at a time."""
        parts = [predictor.upscale(part[None], embedding)[0] for part in low.split(8)]
        return torch.cat([torch.stack([(part > t).sum(dim=(1, 2)) for t in (1, 0, -1)], dim=1) for part in parts])

    with memory(run) as peak:
        found["whole"] = {**timed(whole, run)}
    found["whole"] |= peak
    ways = {"torch_tiles": mask_tiles}
    if run.device.type == "cuda":
        ways["triton"] = kernels()
        found["triton_found"] = ways["triton"] is not mask_tiles
    expected = None
    for name, operations in ways.items():
        tiled = TiledUpscaling(embedding, predictor.sam.image_size, operations=operations)
        found[name] = attempt(upscaling_rate, run, tiled, low)
        if "failed" not in found[name]:
            numbers = found[name].pop("numbers")
            expected = numbers if expected is None else expected
            found[name]["same_bits"] = numbers == expected
    boxes = np.array([[x, y, x + 60, y + 40] for x, y in (points * 0.7).astype(int)] * 8)
    scores = np.linspace(0, 1, len(boxes), dtype=np.float32)
    for name, device in (("host", None), ("device", run.device)):
        found[f"nms_{name}"] = timed(partial(nms, boxes, scores, 0.7, device), run)
    found["profile"] = profile(lambda: tiled.draw(tiled.stable_masks(low, 1.0, 0.95).sketches), run)
    return found


def upscaling_rate(run: Run, tiled: Any, low: Any) -> dict[str, Any]:
    """Seconds of measuring a chunk's masks and of drawing the stable ones, with their numbers to compare."""
    stable = tiled.stable_masks(low, 1.0, 0.95)
    patches = tiled.draw(stable.sketches)
    with memory(run) as peak:
        measured = timed(lambda: tiled.stable_masks(low, 1.0, 0.95), run)
        drawn = timed(lambda: tiled.draw(stable.sketches), run)
    numbers = [stable.positions.tolist(), stable.stability.tolist(), stable.boxes.tolist(), stable.areas.tolist()]
    runs = [patch.changes.tolist() for patch in patches]
    return {"stable": len(patches), "measure": measured, "draw": drawn, **peak, "numbers": [*numbers, runs]}


def weights() -> Path:
    """The path of MobileSAM's checkpoint in the bundle."""
    path = BUNDLE / "mobile_sam.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: run `make gpu-bundle` on a machine with a package index")
    return path


def photographs(longest: int) -> dict[str, Any]:
    """The bundle's photographs by name, (H, W, 3) uint8 RGB, no side longer than `longest` pixels."""
    paths = sorted((BUNDLE / "photos").glob("*"))
    if not paths:
        raise FileNotFoundError(f"{BUNDLE / 'photos'} has no photographs: run `make gpu-bundle` first")
    found = {}
    for path in paths:
        with Image.open(path) as image:
            upright = image.convert("RGB")
        upright.thumbnail((longest, longest))
        found[path.stem] = np.array(upright)
    return found


def need_opencv(placeholder: bool) -> str:
    """Whether OpenCV is installed; without it, install a placeholder that refuses calls, or raise ImportError."""
    present = "cv2" in sys.modules or importlib.util.find_spec("cv2") is not None
    if present and not isinstance(sys.modules.get("cv2"), Placeholder):
        return "installed"
    if not placeholder:
        raise ImportError("OpenCV (cv2) is not installed here, and clean-up needs it: this part was left out")
    sys.modules["cv2"] = Placeholder("cv2")
    return "missing; the official profile never calls it"


class Placeholder(types.ModuleType):
    """Replaces a missing module, so that code runs which imports it but does not call it."""

    def __getattr__(self, name: str) -> Any:
        """Raise ImportError for names of the missing module; AttributeError for Python's special names."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{self.__name__}.{name} was called, but {self.__name__} is not installed here")
