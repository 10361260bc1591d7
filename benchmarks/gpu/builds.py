"""Builds with Ray on a GPU: images per second of `segmint build`, and whether a repeated build has the same digest.

    make gpu-bundle                                       with a package index: write bundle/ and bundle-ray/
    make gpu-ray                                          on the GPU machine with bundle-ray/: does Ray start?
    make gpu-builds                                       then there with bundle/: everything
    python benchmarks/gpu/builds.py --quick --device cpu  the same code with two small photographs

The steps, in this order:

- `ray`: Ray starts, and an actor computes on the device. If that fails, the other steps are skipped.
- `photographs`: photographs of 16 megapixels, from those in the bundle.
- `small`: a build with MobileSAM and the full recipe, crops included. Then `segmint verify` checks it.
- `checkpoint`: a random ViT-H, fitted so that MobileSAM's decoder finds masks. With `--checkpoint`, real weights are
  used instead.
- `recipe`: a build with ViT-H and the full recipe.
- `full`: a build with ViT-H of full images only, eight per batch.
- `again`: the small build in a new folder. Its digest must be the same.
- `cuda-detectors` and `no-detectors`: the build of full images again, with the detectors on the GPU, and without them.

After each step, `gpu_builds.json` is written to the folder `$OUT`, or to `benchmarks/results/`. A step is recorded with
its numbers and `took_s`, as `skipped` with a reason, or as `failed` with the end of its output. A build that exceeds
its time is stopped, and the images that it committed are recorded. `settings` lists every key of the configuration that
differs from segmint's defaults. The exit code is 1 if a step failed, and 2 if the machine lacks something.
"""

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.gpu.both import BUNDLE, HINT, weights  # noqa: E402
from benchmarks.gpu.build_figures import (  # noqa: E402
    ENVIRONMENT,
    STOP_S,
    accounted,
    child_environment,
    committed,
    failed,
    load_of,
    per_million,
    rates,
    run_command,
)
from benchmarks.gpu.build_inputs import write_catalog, write_checkpoint, write_config, write_photographs  # noqa: E402
from benchmarks.gpu.machine import describe, measure_versions  # noqa: E402
from benchmarks.gpu.run import FULL, QUICK, NotMeasuredError, PartRun, complete  # noqa: E402
from benchmarks.gpu.samples import sampling  # noqa: E402
from benchmarks.measuring import command_of, commit  # noqa: E402

NEEDED = {
    "torchvision": "torchvision",
    "cv2": "opencv-python-headless",
    "pyarrow": "pyarrow",
    "onnxruntime": "onnxruntime",
    "google.protobuf": "protobuf",
    "scipy": "scipy",
    "pandas": "pandas",
    "ray": "ray",
}
"""Modules of a build that the machine must have, with the packages that contain them. Only Ray is in the bundle."""

BUDGET_S = 400.0
SMALL_ROWS, ROWS = 16, 64
SIZE = (4950, 3300)  # (width, height): 16.3 megapixels
QUICK_SIZE = (600, 400)
QUICK_MASKS = {"points_per_side": 4, "crop_n_layers": 1}


@dataclass(frozen=True)
class BuildCase:
    """Build to measure. `masks`, `model`, and `deidentify` are parts of its configuration."""

    dataset: str
    rows: int
    images_per_shard: int
    masks: Mapping[str, Any]
    model: Mapping[str, Any]
    deidentify: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass
class Builds:
    """Folder and environment of the builds, and what earlier steps found."""

    folder: Path
    environment: dict[str, str]
    price: float | None = None
    checkpoint: Path | None = None
    real: bool = False  # True if the checkpoint has trained weights
    ray_started: bool = True
    rows: list[dict[str, Any]] = field(default_factory=list)
    digest: str | None = None  # of the first small build


def main() -> None:
    """Run the requested steps one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", nargs="+", choices=list(STEPS), metavar="STEP", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that everything runs")
    parser.add_argument("--rows", type=int, default=ROWS, help=f"photographs of the ViT-H builds; default: {ROWS}")
    parser.add_argument("--checkpoint", type=Path, help="real ViT-H weights, in place of random ones")
    parser.add_argument("--price", type=float, help="price of a GPU-hour, for the cost of a million images")
    parser.add_argument("--budget", type=float, default=BUDGET_S, help=f"seconds of all steps; default: {BUDGET_S:g}")
    parser.add_argument("--output", type=Path, help="folder of the results")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here: use --device cpu --quick to try the code")
    missing = [package for module, package in NEEDED.items() if not is_installed(module)]
    if missing:
        parser.error(
            f"{', '.join(missing)} not installed here: `make gpu-ray` unpacks Ray, the machine needs the others"
        )
    steps = arguments.steps or list(STEPS)
    if steps != ["ray"] and not (BUNDLE / "mobile_sam.pt").is_file():
        parser.error(f"{BUNDLE} lacks mobile_sam.pt: {HINT}")
    if arguments.checkpoint is not None and not arguments.checkpoint.is_file():
        parser.error(f"{arguments.checkpoint} does not exist")
    folder = arguments.output or (Path(os.environ["OUT"]) if os.environ.get("OUT") else ROOT / "benchmarks" / "results")
    sizes = QUICK if arguments.quick else FULL
    name = "-".join(["gpu_builds", *(arguments.steps or [])])
    name += f"{'' if device.type == 'cuda' else f'-{device.type}'}{'-quick' if arguments.quick else ''}"
    head = {
        "benchmark": "gpu_builds",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe(device),
        "command": command_of(sys.argv),
        "commit": commit(),
        "quick": arguments.quick,
        "budget_s": arguments.budget,
    }
    run = PartRun(device, sizes, folder / f"{name}.json", arguments.budget, head)
    with tempfile.TemporaryDirectory(prefix="builds-", ignore_cleanup_errors=True) as scratch:
        builds = Builds(Path(scratch), child_environment(os.environ), arguments.price, arguments.checkpoint)
        builds.real = arguments.checkpoint is not None
        head["environment"] = {key: builds.environment[key] for key in sorted(ENVIRONMENT) if key != "SEGMINT_CACHE"}
        run_steps(run, builds, steps, arguments.rows)
    sys.exit(1 if run.failures() else 0)


def is_installed(module: str) -> bool:
    """Return whether a module can be found. Its package may be imported, but not the module."""
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def run_steps(run: PartRun, builds: Builds, steps: Sequence[str], rows: int) -> None:
    """Run the steps, write the result after each, and print the verdict."""

    def work(run: PartRun) -> None:
        run.measure("versions", measure_versions)
        if steps != ["ray"]:
            run.measure("photographs", measure_photographs, builds, rows)
        for step in steps:
            STEPS[step](run, builds)

    complete(run, "builds", work)


def ray_step(run: PartRun, builds: Builds) -> None:
    """Start Ray."""
    run.measure("ray", measure_ray, builds, needs_s=20)


def small_step(run: PartRun, builds: Builds) -> None:
    """Build a small dataset, and verify it."""
    run.measure("small", measure_small, builds, needs_s=40)


def recipe_step(run: PartRun, builds: Builds) -> None:
    """Build with the full recipe."""
    checkpoint_step(run, builds)
    masks = {"crop_n_layers": 1} if run.quick else {}
    run.measure("recipe", measure_vit, builds, "recipe", masks, {}, {}, 180.0, needs_s=90)


def full_step(run: PartRun, builds: Builds) -> None:
    """Build from full images, without crops."""
    checkpoint_step(run, builds)
    run.measure("full", measure_vit, builds, "full", {"crop_n_layers": 0}, batch_of(run), {}, 140.0, needs_s=50)


def again_step(run: PartRun, builds: Builds) -> None:
    """Repeat the small build."""
    run.measure("again", measure_again, builds, needs_s=40)


def cuda_detectors_step(run: PartRun, builds: Builds) -> None:
    """Build from full images with detectors on the GPU."""
    checkpoint_step(run, builds)
    deidentify = {"device": run.device.type}
    arguments = "cuda-detectors", {"crop_n_layers": 0}, batch_of(run), deidentify, 140.0
    run.measure("cuda-detectors", measure_on_gpu, builds, *arguments, needs_s=50)


def no_detectors_step(run: PartRun, builds: Builds) -> None:
    """Build from full images without detectors."""
    checkpoint_step(run, builds)
    deidentify = {"faces": {"detector": "none"}, "plates": {"detector": "none"}}
    arguments = "no-detectors", {"crop_n_layers": 0}, batch_of(run), deidentify, 140.0
    run.measure("no-detectors", measure_on_gpu, builds, *arguments, needs_s=50)


def checkpoint_step(run: PartRun, builds: Builds) -> None:
    """Write the random checkpoint, unless there is a checkpoint."""
    if builds.checkpoint is None:
        run.measure("checkpoint", measure_checkpoint, builds, needs_s=20)


def batch_of(run: PartRun) -> dict[str, Any]:
    """Return the batch size of full images. CPUs only accept the default."""
    return {"images_per_batch": 8} if run.on_cuda else {}


STEPS: dict[str, Callable[[PartRun, Builds], None]] = {
    "ray": ray_step,
    "small": small_step,
    "recipe": recipe_step,
    "full": full_step,
    "again": again_step,
    "cuda-detectors": cuda_detectors_step,
    "no-detectors": no_detectors_step,
}


def measure_ray(run: PartRun, builds: Builds) -> dict[str, Any]:
    """Start Ray and let an actor compute. If Ray doesn't find the GPU that torch sees, tell it that there is one."""
    builds.ray_started = False
    command = [sys.executable, str(ROOT / "benchmarks/gpu/ray_check.py"), "--device", run.device.type]
    done = run_command(command, builds.folder, builds.environment, 100)
    override = None
    if done.code == 1 and "Ray sees no GPU" in done.errors:
        override = {"RAY_OVERRIDE_RESOURCES": json.dumps({"GPU": torch.cuda.device_count()})}
        builds.environment |= override
        done = run_command(command, builds.folder, builds.environment, 100)
    if done.code != 0:
        return failed(done)
    found: dict[str, Any] = json.loads(done.output.strip().splitlines()[-1])
    found["override"] = override
    if not found["actor"]["right"]:
        return {**found, "failed": "an actor computed a wrong product"}
    builds.ray_started = True
    return found


def measure_photographs(run: PartRun, builds: Builds, rows: int) -> dict[str, Any]:
    """Write the photographs of all builds."""
    count, size = (2, QUICK_SIZE) if run.quick else (max(rows, SMALL_ROWS), SIZE)
    catalog = write_photographs(BUNDLE / "photos", count, builds.folder, size)
    builds.rows = [json.loads(line) for line in catalog.read_text().splitlines()]
    written = sum(path.stat().st_size for path in (builds.folder / "photos").iterdir())
    return {"photographs": count, "size": size, "mean_mib": written / count / 2**20}


def measure_checkpoint(run: PartRun, builds: Builds) -> dict[str, Any]:
    """Write a ViT with random weights and a fitted neck: ViT-H, or ViT-B if quick."""
    architecture, samples = ("vit_b", 2) if run.quick else ("vit_h", 32)
    path = builds.folder / f"random_{architecture}.pth"
    write_checkpoint(weights(), architecture, run.device, path, BUNDLE / "photos", samples)
    builds.checkpoint = path
    return {"architecture": architecture, "gib": path.stat().st_size / 2**30}


def measure_small(run: PartRun, builds: Builds) -> dict[str, Any]:
    """Build with MobileSAM, and verify the dataset."""
    found = measure_build(run, builds, small_case(run, "small"), 120)
    if "failed" in found:
        return found
    if not found["masks"]:
        return {**found, "failed": "MobileSAM found no masks"}
    command = [sys.executable, "-m", "segmint", "verify", str(builds.folder / "small"), "--json"]
    done = run_command(command, builds.folder, builds.environment, 60)
    if done.code != 0:
        return {**found, **failed(done)}
    builds.digest = found["digest"]
    return {**found, "verified": True}


def measure_again(run: PartRun, builds: Builds) -> dict[str, Any]:
    """Repeat the small build in a new folder, and compare the digests."""
    if builds.digest is None:
        raise NotMeasuredError("the first small build failed or was not requested")
    found = measure_build(run, builds, small_case(run, "again"), 100)
    if "failed" in found:
        return found
    return {**found, "first_digest": builds.digest, "same": found["digest"] == builds.digest}


def measure_on_gpu(run: PartRun, *arguments: Any) -> dict[str, Any]:
    """Build with a ViT, only on a GPU."""
    run.need_cuda()
    return measure_vit(run, *arguments)


def measure_vit(
    run: PartRun,
    builds: Builds,
    dataset: str,
    masks: Mapping[str, Any],
    model: Mapping[str, Any],
    deidentify: Mapping[str, Any],
    limit_s: float,
) -> dict[str, Any]:
    """Build with the checkpoint."""
    if builds.checkpoint is None:
        raise NotMeasuredError("there is no checkpoint")
    masks = {**(QUICK_MASKS if run.quick else {}), **masks}
    note = "trained weights"
    if not builds.real:
        # Fitted features show objects so roughly that few masks pass the usual thresholds.
        masks |= {"pred_iou_thresh": 0.7, "stability_score_thresh": 0.6}
        note = "random image encoder with a fitted neck, MobileSAM's decoder, lower thresholds"
    model = {"weights": str(builds.checkpoint), **model}
    case = BuildCase(dataset, len(builds.rows), 1 if run.quick else 4, masks, model, deidentify, note)
    return measure_build(run, builds, case, limit_s)


def small_case(run: PartRun, dataset: str) -> BuildCase:
    """Return the build with MobileSAM. Compiling its encoder would take longer than the build."""
    masks = QUICK_MASKS if run.quick else {}
    rows = min(SMALL_ROWS, 2 if run.quick else SMALL_ROWS)
    return BuildCase(dataset, rows, 1 if run.quick else 4, masks, {"weights": "mobile_sam", "encoder": "eager"})


def measure_build(run: PartRun, builds: Builds, case: BuildCase, limit_s: float) -> dict[str, Any]:
    """Run `segmint build`, and return its figures. A build that fails or is stopped has those of its commits."""
    if not builds.ray_started:
        raise NotMeasuredError("Ray did not start")
    if not builds.rows:
        raise NotMeasuredError("there are no photographs")
    catalog = write_catalog(builds.rows[: case.rows], builds.folder / f"catalog-{case.rows}.jsonl")
    output = builds.folder / case.dataset
    config = builds.folder / f"{case.dataset}.yaml"
    settings = write_config(config_of(run, case, catalog, output), config)
    if "model.weights" in settings:
        settings["model.weights"]["here"] = Path(settings["model.weights"]["here"]).name
    command = [sys.executable, "-m", "segmint", "build", str(config), "--json"]
    with sampling(run.on_cuda, run.device.index or 0) as samples:
        done = run_command(command, builds.folder, builds.environment, min(limit_s, max(10.0, run.left_s - STOP_S)))
    shards = committed(output)
    found: dict[str, Any] = {
        "photographs": case.rows,
        "gpus": int(run.on_cuda),
        "cores": os.cpu_count(),
        **rates(shards, done.began, done.ended, case.rows),
    }
    if done.code == 0:
        accounting = json.loads(done.output)
        found |= accounted(accounting, found)
        if accounting["written"] != case.rows:
            found["failed"] = f"{accounting['written']} of {case.rows} photographs became images"
    else:
        found |= failed(done)
    hourly = builds.price
    if run.on_cuda:
        found["million"] = per_million(found["images_s"], 1, hourly)
        found["million_between_commits"] = per_million(found["images_s_between_commits"], 1, hourly)
    found |= load_of(samples, done, shards)
    return {**found, "settings": settings, **({"note": case.note} if case.note else {})}


def config_of(run: PartRun, case: BuildCase, catalog: Path, output: Path) -> dict[str, Any]:
    """Return the configuration of a build.

    The blocks and shards are small, because a block of the default size would keep most cores waiting in a build of so
    few photographs, and the rate between commits needs several commits. Both small builds have the same name, because
    the name is a part of the digest.
    """
    return {
        "name": "small" if case.dataset == "again" else case.dataset,
        "catalog": str(catalog),
        "output": str(output),
        "images_per_shard": case.images_per_shard,
        "license": {"allow": ["CC0-1.0"], "policy_date": "2026-01-01"},
        "rows_per_block": 1 if run.quick else 2,
        "deidentify": dict(case.deidentify),
        "masks": dict(case.masks),
        "model": {"device": run.device.type, **case.model},
        "resources": {"address": "local"},
    }


if __name__ == "__main__":
    warnings.simplefilter("default", RuntimeWarning)
    main()
