"""Half-hour benchmark of segmint on a GPU machine, in five parts.

    make gpu-bundle                                  with a package index: write what the day needs to bundle/
    make gpu-day                                     on the GPU machine, in a copy of the repository with bundle/
    python benchmarks/gpu/day.py --part 1            one part, 1 to 5, in under 8 minutes
    python benchmarks/gpu/day.py --part 3 --device cpu --quick    the same code at reduced sizes

1. Versions, the tests marked `cuda`, the peak, the encoder's matrix products, and attention by kernel.
2. ViT-H, L, and B by batch size: eager and compiled, and with and without our attention kernels.
3. The full recipe and whole images: stages, launches, waits, memory, and a trace, with our decoder kernels and torch's.
   Streams of full images that are encoded one by one, and in batches of 4 and 8.
4. Bits: runs, threads, and processes with separate caches. Masks, compared with the reference package on the GPU.
5. The segment actor with the complete host pipeline for a minute, and the cost of `prepare` on one core and on all.

The machine needs no network. It must have torch, torchvision, Triton, numpy, OpenCV, Pillow, pyarrow, and onnxruntime.
The bundle contains the other packages, the weights, and the photographs. Ray isn't needed.

After each measurement, a part writes `gpu_day-N.json` to the folder `$OUT`, or to `benchmarks/results/`. A measurement
is recorded with its numbers and `took_s`, as `skipped` with a reason (not possible on a CPU, or over budget), or as
`failed` with its traceback. After a failure, the part continues. A part that hangs is ended after its budget, and
`gpu_day-N-stack.txt` shows where it hung.

Each part ends with a verdict: `passed`, or `failed` with the measurements that failed or whose results are wrong. The
exit code is 1 if a part failed, and 2 if the machine lacks something.
"""

import argparse
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.gpu.both import BUNDLE, HINT  # noqa: E402
from benchmarks.gpu.run import FULL, QUICK, PartRun, complete, measure_peak  # noqa: E402

BUDGETS_S = {1: 300.0, 2: 420.0, 3: 420.0, 4: 330.0, 5: 300.0}
"""Budget of each part in seconds, half an hour in total. Measurements that would exceed it are skipped. With the time
after which a hanging part ends itself (`run.HANGS_S`), a part takes less than 8 minutes."""

NEEDED = {
    "torchvision": "torchvision",
    "numpy": "numpy",
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "pyarrow": "pyarrow",
    "onnxruntime": "onnxruntime",
    "pycocotools": "pycocotools",
    "segment_anything": "segment-anything",
    "pydantic": "pydantic",
    "pebble": "pebble",
    "simplejpeg": "simplejpeg",
    "facenet_pytorch": "facenet-pytorch",
    "pytest": "pytest",
    "hypothesis": "hypothesis",
}
"""Modules that the parts import, with the packages that contain them."""


def main() -> None:
    """Run the requested parts one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", type=int, choices=sorted(PARTS), default=sorted(PARTS), metavar="N")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that everything runs")
    parser.add_argument("--budget", type=float, help="seconds of each part, in place of the usual ones")
    parser.add_argument("--output", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    device = prepare(parser, arguments.device)
    output = output_folder(arguments.output)
    runs = [
        run_part(part, device, arguments.quick, arguments.budget or BUDGETS_S[part], output) for part in arguments.part
    ]
    sys.exit(1 if any(run.failures() for run in runs) else 0)


def prepare(parser: argparse.ArgumentParser, name: str) -> torch.device:
    """Check that the machine has the device and all modules, and make torch and segmint ready for measurements.

    If something is missing, the process ends with an error of the parser.
    """
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here: use --device cpu --quick to try the code")
    missing = [package for module, package in NEEDED.items() if importlib.util.find_spec(module) is None]
    if missing:
        parser.error(f"{', '.join(missing)} not installed here: `make gpu-day` installs what the bundle has")
    if not (BUNDLE / "mobile_sam.pt").is_file():
        parser.error(f"{BUNDLE} lacks mobile_sam.pt: {HINT}")
    os.environ.setdefault("SEGMINT_CACHE", str(BUNDLE))  # find weight files here, and download nothing
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    return device


def output_folder(given: Path | None) -> Path:
    """Return the folder of the results: the given one, or `$OUT`, or `benchmarks/results/`."""
    if given is not None:
        return given
    return Path(os.environ["OUT"]) if os.environ.get("OUT") else ROOT / "benchmarks" / "results"


def run_part(part: int, device: torch.device, quick: bool, budget_s: float, folder: Path) -> PartRun:
    """Run one part, write its result, and print its verdict."""
    path = folder / f"gpu_day-{part}{suffix(device, quick)}.json"
    head = head_of("gpu_day", device, quick, budget_s, part=part)
    run = PartRun(device, QUICK if quick else FULL, path, budget_s, head)
    complete(run, f"part {part}", lambda run: PARTS[part](run, folder))
    return run


def suffix(device: torch.device, quick: bool) -> str:
    """Return the end of a result's name, which is empty for a GPU and full sizes."""
    return f"{'' if device.type == 'cuda' else f'-{device.type}'}{'-quick' if quick else ''}"


def head_of(benchmark: str, device: torch.device, quick: bool, budget_s: float, **more: Any) -> dict[str, Any]:
    """Return the head of a result: benchmark, date (UTC), machine, command, commit, and sizes."""
    from benchmarks.gpu.machine import describe
    from benchmarks.measuring import command_of, commit

    return {
        "benchmark": benchmark,
        **more,
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(device),
        "command": command_of(sys.argv),
        "commit": commit(),
        "quick": quick,
        "budget_s": budget_s,
    }


def first(run: PartRun, folder: Path) -> None:
    """Measure versions, tests, peak, matrix products, and attention."""
    from benchmarks.gpu import encoder, machine

    run.measure("versions", machine.measure_versions)
    run.measure("numerics", machine.measure_numerics)
    run.measure("tests", machine.measure_tests, folder, needs_s=60)
    run.measure("peak", machine.measure_rates, needs_s=25)
    for batch in run.sizes.batches:
        run.measure(f"products, batch {batch}", encoder.measure_products, batch)
    grid = run.sizes.image_side // 16
    for way in encoder.WAYS:
        for dimensions in (80, 64):
            for name, side in (("window", 14), ("global", grid)):
                arguments = dimensions, side, way, run.sizes.batches[1]
                run.measure(f"{name} attention, {dimensions}, {way}", encoder.measure_attention, *arguments)


def second(run: PartRun, _: Path) -> None:
    """Measure the encoders as the product runs them, and then the alternatives."""
    from benchmarks.gpu.encoder import Encoders, measure_encoder

    run.measure("peak", measure_peak)
    encoders = Encoders()
    large = run.sizes.batches[1]
    for name in run.sizes.vits:
        plan: list[tuple[int, str, bool]] = [(large, "triton", True), (large, "triton", False)]
        if name == next(iter(run.sizes.vits)):
            others = [batch for batch in run.sizes.batches if batch != large]
            plan += [(batch, "triton", True) for batch in others] + [(batch, "triton", False) for batch in others]
            plan += [(large, "flash", False), (large, "flash", True)]
        for batch, way, compiled in plan:
            how = "compiled" if compiled else "eager"
            run.measure(
                f"{name}, batch {batch}, {how}, {way}",
                measure_encoder,
                *(encoders, name, batch, way, compiled),
                kind=f"{name} {how}",
                needs_s=60 if compiled else 10,
            )


def third(run: PartRun, folder: Path) -> None:
    """Measure whole images."""
    from benchmarks.gpu import masks

    images = masks.BenchmarkImages()
    run.measure("peak", measure_peak)
    run.measure("models", masks.measure_models, images, needs_s=90)
    recipes: dict[str, int | None] = {"full image": 0} if run.quick else {"full recipe": None, "full image": 0}
    for name, layers in recipes.items():
        run.measure(name, masks.measure_images, images, layers, needs_s=40)
        run.measure(f"{name}, stages", masks.measure_stages, images, layers, needs_s=15)
    for batch in (1, 2) if run.quick else (1, 4, 8):
        name = f"stream of full images, {batch} per batch"
        run.measure(name, masks.measure_stream, images, batch, kind="stream", needs_s=45)
    for name, layers in recipes.items():
        # Only the full image is traced, because a trace of the full recipe would be 21 times as long.
        trace = folder / f"{run.output.stem}-trace.json.gz" if layers == 0 else None
        run.measure(f"{name}, launches", masks.measure_launches, images, layers, trace, needs_s=40)
    for steps, layers in (("plain", 0), ("compiled", 0), ("plain", None)):
        name = f"full {'image' if layers == 0 else 'recipe'}, steps {steps}"
        run.measure(name, masks.measure_images, images, layers, steps, needs_s=60)


def fourth(run: PartRun, _: Path) -> None:
    """Measure the reproducibility of bits and the agreement with the reference."""
    from benchmarks.gpu import bits

    for precision in ("fp32", "bf16", "bf16, decoder fp16"):
        run.measure(f"masks against the reference, {precision}", bits.measure_agreement, precision, needs_s=30)
    run.measure("repeats", bits.measure_repeats, "compiled", needs_s=180)
    for name in ("vit_h", "vit_b"):
        for dtype in ("fp32", "bf16"):
            run.measure(f"{name} against the reference, {dtype}", bits.measure_reference_encoder, name, dtype)
    run.measure("repeats, eager encoder", bits.measure_repeats, "eager", needs_s=90)
    run.measure("batch neighbors", bits.measure_neighbors, needs_s=60)


def fifth(run: PartRun, _: Path) -> None:
    """Measure the pipeline and the stage that feeds it."""
    from benchmarks.gpu import pipeline

    run.measure("peak", measure_peak)
    run.measure("pipeline", pipeline.measure_pipeline, needs_s=200)
    for cores in ("one", "all"):
        for with_original in (True, False):
            name = f"prepare, {cores} core{'s' * (cores == 'all')}, original {'kept' if with_original else 'dropped'}"
            run.measure(name, pipeline.measure_prepare, cores, with_original, kind=f"prepare {cores}", needs_s=60)


PARTS: dict[int, Callable[[PartRun, Path], None]] = {1: first, 2: second, 3: third, 4: fourth, 5: fifth}


if __name__ == "__main__":
    warnings.simplefilter("default", RuntimeWarning)
    main()
