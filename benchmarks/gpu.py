"""SAM on one GPU, side by side with the reference package, without a network.

    make gpu-bundle                      where the package index is: weights, photographs, reference into bundle/
    python benchmarks/gpu.py             on the GPU machine, in a copy of the repository with bundle/
    python benchmarks/gpu.py --device cpu --quick    the same code at reduced sizes

Needs torch, numpy and Pillow. Without torchvision the reference package is left out. Without OpenCV, which only
clean-up calls, the `official` profile still runs, since it cleans nothing up, and the `sa1b` profile is left out.
pycocotools is not needed: the reference package is asked for plain masks. Each part that cannot run says why in the
result, and the others go on.

The ViT-H encoder runs on random weights, which do not change its cost; masks are made with MobileSAM, whose prompt
encoder and mask decoder are ViT-H's. Fractions are of a matrix product's rate that is measured in the same run. The
result goes to the folder `$OUT`, or to `benchmarks/results/`, as JSON.
"""

import argparse
import importlib.util
import json
import os
import platform
import statistics
import sys
import time
import types
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "bundle"
sys.path.insert(0, str(ROOT))
if importlib.util.find_spec("segment_anything") is None:
    sys.path.append(str(BUNDLE))

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

GIB = 1 << 30


@dataclass(frozen=True)
class Sizes:
    """How much work each part is given."""

    matrix: int
    vit: tuple[int, int, int, tuple[int, ...]]  # width, depth, heads, global blocks
    image_side: int
    batches: tuple[int, ...]
    points_per_side: int
    photo_side: int
    warmups: int
    runs: int


FULL = Sizes(8192, (1280, 32, 16, (7, 15, 23, 31)), 1024, (1, 7, 21), 32, 10_000, 2, 5)
QUICK = Sizes(512, (160, 2, 2, (1,)), 320, (1, 2), 3, 320, 1, 1)


def main() -> None:
    """Runs each part, prints a line for it and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--compile-mode", help="of torch.compile; max-autotune-no-cudagraphs, with --quick default")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--output", type=Path, help="the result's file")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here: use --device cpu --quick to try the code")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

    mode = arguments.compile_mode or ("default" if arguments.quick else "max-autotune-no-cudagraphs")
    run = Run(device, QUICK if arguments.quick else FULL, None if arguments.no_compile else mode)
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(device),
        "sizes": asdict(run.sizes),
    }
    folder = Path(os.environ["OUT"]) if os.environ.get("OUT") else ROOT / "benchmarks" / "results"
    output = arguments.output or folder / f"gpu-{device.type}{'-quick' if arguments.quick else ''}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        result[part] = attempt(PARTS[part], run)
        print(part, json.dumps({key: value for key, value in result[part].items() if key != "profile"}), flush=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {output}")


@dataclass
class Run:
    """Where and how large everything runs, and the peak that fractions refer to."""

    device: torch.device
    sizes: Sizes
    compile_mode: str | None
    peak_tflops: float | None = None

    def of_peak(self, tflops: float) -> float | None:
        """A rate as a fraction of the measured peak, once there is one."""
        return None if self.peak_tflops is None else tflops / self.peak_tflops


def attempt(part: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """The part's numbers, or why there are none."""
    try:
        with torch.inference_mode():
            return part(*arguments)
    except (RuntimeError, ImportError, OSError, ValueError) as error:
        return {"failed": f"{type(error).__name__}: {str(error)[:500]}"}


def measure_peak(run: Run) -> dict[str, Any]:
    """TFLOP/s of one large square matrix product of random numbers, in bfloat16 and float32."""
    size = run.sizes.matrix
    rates = {}
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        a, b = (torch.randn(size, size, device=run.device, dtype=dtype) for _ in range(2))
        seconds = timed(lambda a=a, b=b: a @ b, run)["median_s"]
        rates[f"{name}_tflops"] = 2 * size**3 / seconds / 1e12
    run.peak_tflops = rates["bf16_tflops"]
    return rates


def measure_attention(run: Run) -> dict[str, Any]:
    """One global attention of the ViT's shape, in bfloat16, both ways; the reference's plain formula beside them."""
    from segmint.model.sam.image_encoder_vit import attend_in_bands, attend_with_extended_keys

    width, _, heads, _ = run.sizes.vit
    side, dimensions = run.sizes.image_side // 16, width // heads
    shapes = [(1, heads, side * side, last) for last in (dimensions, dimensions, dimensions, side, side)]
    parts = [torch.randn(shape, device=run.device, dtype=torch.bfloat16) for shape in shapes]

    def plain(q: Any, k: Any, v: Any, rows: Any, columns: Any) -> Any:
        logits = (q * dimensions**-0.5) @ k.transpose(-2, -1)
        logits = logits.unflatten(-1, (side, side)) + rows[..., :, None] + columns[..., None, :]
        return logits.flatten(-2).softmax(-1) @ v

    expected = plain(*(part.float() for part in parts))
    found: dict[str, Any] = {}
    for name, attend in (("bands", attend_in_bands), ("extended", attend_with_extended_keys), ("plain", plain)):
        difference = float((attend(*parts).float() - expected).abs().max())
        found[name] = {**timed(partial(attend, *parts), run), "largest_difference": difference}
    return found


def measure_encoder(run: Run) -> dict[str, Any]:
    """The ViT encoder in bfloat16 by batch size, eager and compiled, and the reference's one image at a time."""
    from segmint.model.sam.image_encoder_vit import ImageEncoderViT, VitShape

    width, depth, heads, global_blocks = run.sizes.vit
    shape = VitShape(width, depth, heads, global_blocks)
    with torch.device(run.device):
        encoder = ImageEncoderViT(shape, run.sizes.image_side).eval()
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    encoder = encoder.to(torch.bfloat16)
    flops = encoder_flops(shape, run.sizes.image_side)
    found: dict[str, Any] = {"tflop_an_image": flops / 1e12}
    for batch in run.sizes.batches:
        found[f"eager_batch_{batch}"] = attempt(encoder_rate, run, encoder, batch, flops)
    largest = run.sizes.batches[-1]
    if run.compile_mode is not None:
        compiled = torch.compile(encoder, mode=run.compile_mode, dynamic=False)
        found[f"compiled_batch_{largest}"] = attempt(encoder_rate, run, compiled, largest, flops)
        del compiled
    found["profile"] = profile(lambda: encoder(noise(run, largest)), run)
    found["reference"] = attempt(reference_encoder_rate, run, encoder, shape, flops)
    best = max((part.get("images_s", 0.0) for part in found.values() if isinstance(part, dict)), default=0.0)
    if "images_s" in found["reference"]:
        found["times_the_reference"] = best / found["reference"]["images_s"]
    return found


def encoder_rate(run: Run, encoder: Callable[[Any], Any], batch: int, flops: float) -> dict[str, Any]:
    """Images a second of an encoder at one batch size, as a fraction of the peak, and the memory it took."""
    images = noise(run, batch)
    with memory(run) as peak:
        seconds = timed(lambda: encoder(images), run)
    rate = batch / seconds["median_s"]
    tflops = rate * flops / 1e12
    return {**seconds, "images_s": rate, "tflops": tflops, "of_peak": run.of_peak(tflops), **peak}


def reference_encoder_rate(run: Run, encoder: Any, shape: Any, flops: float) -> dict[str, Any]:
    """The reference package's encoder on the same weights, in bfloat16; one image, since it has no batches."""
    from benchmarks.reference import reference_vit

    with torch.device("meta"):
        reference = reference_vit(shape, run.sizes.image_side)
    reference.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    images = noise(run, 1)
    expected, ours = reference(images).float(), encoder(images).float()
    found = encoder_rate(run, reference, 1, flops)
    return {**found, "mean_difference": float((ours - expected).abs().mean()), "std": float(expected.std())}


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
    """Images and masks a second over all photographs, after one run that warms up."""
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
    """The reference generator, in float32 as it comes, around MobileSAM's encoder, which it does not have."""
    from segment_anything import SamAutomaticMaskGenerator

    from benchmarks.reference import reference_sam
    from segmint.model.sam.load import load_sam

    sam = reference_sam(load_sam(weights(), run.device))
    generator = SamAutomaticMaskGenerator(sam, points_per_side=run.sizes.points_per_side)
    return masks_rate(run, images, lambda image: len(generator.generate(image)))


def measure_upscaling(run: Run) -> dict[str, Any]:
    """One chunk's masks of a photograph, measured and drawn: whole masks, torch's tiles, Triton's kernels; and NMS.

    Every way's counts and boxes are compared with those of torch's tiles, which have to be the same bit by bit.
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
    for name, computing in ways.items():
        tiled = TiledUpscaling(embedding, predictor.sam.image_size, computing=computing)
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


PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "peak": measure_peak,
    "attention": measure_attention,
    "encoder": measure_encoder,
    "upscaling": measure_upscaling,
    "masks": measure_masks,
    "sa1b": measure_sa1b,
}


def encoder_flops(shape: Any, image_side: int) -> float:
    """Operations of one image, a multiply-add counted as two, padded windows' tokens where they are computed."""
    side, width = image_side // 16, shape.width
    tokens = side * side
    windows = (-(-side // 14)) ** 2
    linear = 2 * tokens * 12 * width * width
    everywhere = 4 * tokens * tokens * width
    windowed = 4 * windows * 196 * 196 * width
    blocks = shape.depth * linear + len(shape.global_blocks) * everywhere
    blocks += (shape.depth - len(shape.global_blocks)) * windowed
    return float(blocks + 2 * tokens * (768 * width + 256 * width + 9 * 256 * 256))


def timed(function: Callable[[], Any], run: Run) -> dict[str, float]:
    """Seconds of a call: the median of some, with the least and the most, after some that warm up."""
    for _ in range(run.sizes.warmups):
        function()
    synchronize(run)
    seconds = []
    for _ in range(run.sizes.runs):
        start = time.perf_counter()
        function()
        synchronize(run)
        seconds.append(time.perf_counter() - start)
    return {"median_s": statistics.median(seconds), "least_s": min(seconds), "most_s": max(seconds)}


def synchronize(run: Run) -> None:
    """Waits until the device has done its work."""
    if run.device.type == "cuda":
        torch.cuda.synchronize(run.device)


@contextmanager
def memory(run: Run) -> Iterator[dict[str, float]]:
    """A dictionary that holds the device's peak memory after the block; it stays empty on a CPU."""
    peak: dict[str, float] = {}
    if run.device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(run.device)
    yield peak
    if run.device.type == "cuda":
        peak["peak_gib"] = torch.cuda.max_memory_allocated(run.device) / GIB


def profile(function: Callable[[], Any], run: Run, rows: int = 12) -> list[dict[str, Any]]:
    """The operations that take the device's time, the longest first: name, milliseconds, calls."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if run.device.type == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as recorded:
        function()
        synchronize(run)
    key = "self_device_time_total" if run.device.type == "cuda" else "self_cpu_time_total"
    events = sorted(recorded.key_averages(), key=lambda event: -getattr(event, key))
    return [
        {"name": event.key[:80], "ms": round(getattr(event, key) / 1e3, 3), "calls": event.count}
        for event in events[:rows]
    ]


def noise(run: Run, batch: int) -> Any:
    """Random images as the encoder takes them, in bfloat16."""
    side = run.sizes.image_side
    return torch.randn(batch, 3, side, side, device=run.device, dtype=torch.bfloat16)


def weights() -> Path:
    """MobileSAM's checkpoint in the bundle."""
    path = BUNDLE / "mobile_sam.pt"
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: run `make gpu-bundle` where the package index is")
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
    """Where OpenCV comes from; without it a placeholder refuses every call, or the part fails."""
    present = "cv2" in sys.modules or importlib.util.find_spec("cv2") is not None
    if present and not isinstance(sys.modules.get("cv2"), Placeholder):
        return "installed"
    if not placeholder:
        raise ImportError("OpenCV (cv2) is not installed here, and clean-up needs it: this part was left out")
    sys.modules["cv2"] = Placeholder("cv2")
    return "missing; the official profile never calls it"


class Placeholder(types.ModuleType):
    """Stands for a module that is missing, so that what imports but does not call it runs."""

    def __getattr__(self, name: str) -> Any:
        """Raises ImportError for what the missing module would have; AttributeError for Python's own names."""
        if name.startswith("__"):
            raise AttributeError(name)
        raise ImportError(f"{self.__name__}.{name} was called, but {self.__name__} is not installed here")


def machine(device: torch.device) -> dict[str, Any]:
    """What the numbers depend on, and which optional packages are there."""
    optional: Sequence[str] = ("torchvision", "cv2", "pycocotools", "segment_anything", "triton")
    described: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "missing": [name for name in optional if importlib.util.find_spec(name) is None],
    }
    return described


if __name__ == "__main__":
    warnings.simplefilter("default", RuntimeWarning)
    main()
