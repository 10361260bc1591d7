"""Time of automatic mask generation by stage, and how it scales with the work.

    python benchmarks/masks/stages.py [--photo FILE] [--crops 0|1|2] [--rounds N] [--threads N]

Float32 is measured in two ways, each in a separate process after one warm-up run:

- *Stages.* Our generator runs unchanged, and the functions that it calls are timed from outside. It uses one thread, so
  nothing overlaps, and the stages add up to the total; `other` is the remainder. The round of median length is
  reported. For a stage of the network, the fraction of the peak is its number of operations (`model/cost.py`) per
  second, divided by the measured rate of one thread (`infra/peak.py`).
- *Scaling.* The seconds per image with all threads, by grid, layers of crops, and size of the photograph. Each is the
  median of the rounds.

Before that, the stages that have CPU kernels are measured with and without the kernels in the same rounds, with one
thread and without crops. If the CPU kernels use AVX-512, the stages are also measured in processes that are limited to
AVX2.

The settings are those of the `sa1b` profile, with cleanup. There are no crops unless `--crops` is given. The weights
are MobileSAM's. The default photograph is scikit-image's astronaut. The result is written to
`benchmarks/results/stages.json`.

`--command` measures whole processes of `segmint masks` instead, with the photograph at 600 x 400 pixels. It prints the
seconds to the first line of output and to the end, and the CPU seconds, but doesn't write a result.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.masks.generator_vs_reference import (  # noqa: E402
    AVX2,
    TORCH,
    TORCH_AVX2,
    avx2_sides,
    environment_of,
    equal,
    kernels_of,
)
from benchmarks.measuring import RESULTS, in_process, read, spread, write_result  # noqa: E402

WEIGHTS: Literal["mobile_sam"] = "mobile_sam"
STAGES = ("encode", "plan", "decode", "draw", "upscale and filter", "suppression", "clean-up", "RLE")
NETWORK = ("encode", "plan", "decode", "draw")
"""Stages whose operations `model/cost.py` counts."""
WITH_KERNELS = ("decode", "draw", "upscale and filter")
"""Stages that have CPU kernels."""


def main() -> None:
    """Measure, print the stages, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", default="astronaut", help="a file, or a name of scikit-image's")
    parser.add_argument("--crops", type=int, choices=[0, 1, 2], default=0, help="layers of crops in the stages")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's threads in the scaling")
    parser.add_argument("--grids", nargs="*", type=int, default=[8, 16, 32], help="points per side in the scaling")
    parser.add_argument("--layers", nargs="*", type=int, default=[0, 1, 2], help="layers of crops in the scaling")
    parser.add_argument("--sides", nargs="*", type=int, default=[400, 800, 1600, 2400], help="long sides in pixels")
    parser.add_argument("--output", type=Path, default=RESULTS / "stages.json", help="the result's file")
    parser.add_argument("--command", action="store_true", help="only measure whole processes of `segmint masks`")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}: expected 1 or more")
    if arguments.command:
        measure_command(arguments.photo, arguments.rounds)
        return

    machine = describe_machine(arguments.threads, "fp32")
    image = read(arguments.photo)
    base = {"points_per_side": arguments.points_per_side, "crop_n_layers": arguments.crops}
    settings = {
        "weights": WEIGHTS,
        "profile": "sa1b",
        **base,
        "crop_n_points_downscale_factor": 2,
        "photograph": {"name": Path(arguments.photo).stem, "height": image.shape[0], "width": image.shape[1]},
        "rounds": arguments.rounds,
        "stages_threads": 1,
        "scaling_threads": arguments.threads,
    }
    work = {
        "points_per_side": [{**base, "points_per_side": points} for points in arguments.grids],
        "crop_n_layers": [{**base, "crop_n_layers": layers} for layers in arguments.layers],
        "long_side": [{**base, "long_side": side} for side in arguments.sides],
    }
    kernels = measure_kernels(arguments.photo, {**base, "crop_n_layers": 0}, arguments.rounds)
    for name, pair in kernels.items():
        ratios = ", ".join(f"{stage} {row['ratio']['median']:.2f}" for stage, row in pair["stages"].items())
        print(f"{name} kernels beside torch: {ratios} times as fast; {pair['equal']} of {pair['masks']} equal masks")
    stages = in_process(measure_stages, arguments.photo, base, arguments.rounds)
    print(summary_line("fp32", stages), flush=True)
    scaling = in_process(measure_scaling, arguments.photo, base, work, arguments.rounds, arguments.threads)
    print(f"fp32: {scaling['whole']['seconds']['median']:.2f} s with {arguments.threads} threads", flush=True)
    found = {"fp32": {**stages, **scaling}}
    write_result(arguments.output, "stages", machine, {"settings": settings, "kernels": kernels, "precisions": found})
    print(f"written to {arguments.output}")


def measure_kernels(source: str, keys: dict[str, int], rounds: int) -> dict[str, Any]:
    """Measure the stages that have CPU kernels, with the kernels and with torch, in the same rounds with one thread.

    The result contains the pair `fp32` and, if the CPU kernels use AVX-512 here, the pair `avx2`, whose processes are
    limited to AVX2.
    """
    pairs = {"fp32": ("fp32", TORCH), **({AVX2: (AVX2, TORCH_AVX2)} if avx2_sides() else {})}
    sides = [side for pair in pairs.values() for side in pair]
    found: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for index in range(rounds):
        for side in sides if index % 2 == 0 else reversed(sides):
            with patch.dict(os.environ, environment_of(side)):
                found[side].append(in_process(run_stages, source, side, keys))
    result = {}
    for name, (ours, torch) in pairs.items():
        rows = list(zip(found[ours], found[torch], strict=True))
        result[name] = {
            "masks": len(found[torch][0]["masks"]),
            "equal": min(equal(one["masks"], other["masks"]) for one, other in rows),
            "stages": {
                stage: {
                    "seconds": round(statistics.median(one["stages"][stage] for one, _ in rows), 3),
                    "torch_seconds": round(statistics.median(other["stages"][stage] for _, other in rows), 3),
                    "ratio": spread([other["stages"][stage] / one["stages"][stage] for one, other in rows]),
                }
                for stage in WITH_KERNELS
            },
        }
    return result


def run_stages(source: str, side: str, keys: dict[str, int]) -> dict[str, Any]:
    """Run our generator in float32 with a side's kernels and one thread. Return the stages' seconds and the masks."""
    from segmint.model.automatic.generator import MaskGenerator

    predictor, _ = prepared(threads=1, side=side)
    image, generator = read(source), MaskGenerator(predictor, settings_of(keys))
    with timed_stages() as clock:
        generated = generator.generate(image)
    masks = [{"counts": record.segmentation.counts} for record in generated.records]
    return {"stages": clock.seconds, "masks": masks}


def measure_command(source: str, rounds: int) -> None:
    """Print the medians of `segmint masks` with its defaults. A first run loads the files into memory."""
    from PIL import Image

    runs = []
    with tempfile.TemporaryDirectory() as folder:
        photo = Path(folder, "photo.png")
        Image.fromarray(read(source)).resize((600, 400)).save(photo)
        command = [sys.executable, "-m", "segmint", "masks", str(photo), "--overwrite", "--device", "cpu"]
        for _ in range(rounds + 1):
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
                assert process.stderr is not None
                process.stderr.readline()
                first = time.perf_counter() - started
                process.stderr.read()
            if process.returncode:
                raise SystemExit(f"segmint masks ended with exit code {process.returncode}")
            total, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
            runs.append((first, total, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime))
    first, total, cpu = (statistics.median(column) for column in zip(*runs[1:], strict=True))
    print(f"first line {first:.2f} s, done {total:.2f} s, {cpu:.2f} CPU s; load {os.getloadavg()[0]:.1f}")


def measure_stages(source: str, keys: dict[str, int], rounds: int) -> dict[str, Any]:
    """Measure the seconds of each stage with one thread, and the fraction of the peak where operations are known."""
    from segmint.model.automatic.generator import MaskGenerator

    predictor, peak = prepared(threads=1)
    image, settings = read(source), settings_of(keys)
    generator = MaskGenerator(predictor, settings)
    runs = []
    for _ in range(rounds):
        with timed_stages() as clock:
            started = time.perf_counter()
            generated = generator.generate(image)
            total = time.perf_counter() - started
        runs.append((total, dict(clock.seconds)))
    total, seconds = sorted(runs, key=lambda run: run[0])[(len(runs) - 1) // 2]
    work = NetworkWork.of(settings, generated.funnel.over_iou)
    flop = work.flop
    rows = {**seconds, "other": total - sum(seconds.values())}
    return {
        "seconds": round(total, 3),
        "masks": len(generated.records),
        "encodes": work.encodes,
        "prompts": work.prompts,
        "drawn": work.drawn,
        "stages": [
            {"name": name, "seconds": round(value, 4), "share": round(value / total, 4)} for name, value in rows.items()
        ],
        "network": {
            stage: {
                "seconds": round(seconds[stage], 4),
                "gflop": round(flop[stage] / 1e9, 2),
                "computes_in": "fp32",
                "peak_gflops": round(peak / 1e9, 1),
                "of_peak": round(flop[stage] / seconds[stage] / peak, 4),
            }
            for stage in NETWORK
        },
    }


def measure_scaling(
    source: str,
    base: dict[str, int],
    work: dict[str, list[dict[str, int]]],
    rounds: int,
    threads: int,
) -> dict[str, Any]:
    """Measure the seconds per image with all threads, for `base` and for each distinct piece of `work`."""
    from segmint.model.automatic.generator import MaskGenerator

    predictor, peak = prepared(threads)
    image = read(source)
    known: dict[tuple[tuple[str, int], ...], dict[str, Any]] = {}

    def measured(keys: dict[str, int]) -> dict[str, Any]:
        key = tuple(sorted(keys.items()))
        if key not in known:
            settings = settings_of(keys)
            pixels = image if "long_side" not in keys else resized(image, keys["long_side"])
            generator = MaskGenerator(predictor, settings)
            seconds, masks, drawn = [], 0, 0
            for _ in range(rounds):
                started = time.perf_counter()
                generated = generator.generate(pixels)
                seconds.append(time.perf_counter() - started)
                masks, drawn = len(generated.records), generated.funnel.over_iou
            cost = NetworkWork.of(settings, drawn)
            ceiling_s = sum(cost.flop.values()) / peak
            known[key] = {
                "height": pixels.shape[0],
                "width": pixels.shape[1],
                "encodes": cost.encodes,
                "prompts": cost.prompts,
                "drawn": drawn,
                "masks": masks,
                "seconds": spread(seconds),
                "of_peak": round(ceiling_s / statistics.median(seconds), 4),
            }
        return {**keys, **known[key]}

    whole = {"threads": threads, **measured(base)}
    return {"whole": whole, "scaling": {over: [measured(keys) for keys in pieces] for over, pieces in work.items()}}


@dataclass(frozen=True)
class NetworkWork:
    """Work of the network on an image, with the operations of each stage in `NETWORK`."""

    encodes: int
    prompts: int
    drawn: int
    flop: dict[str, int]

    @classmethod
    def of(cls, settings: Any, drawn: int) -> "NetworkWork":
        """Count the work on an image with these mask settings if `drawn` masks are drawn."""
        from segmint.model.cost import decode_flop, encode_flop, image_cost, mask_flop, plan_flop

        cost = image_cost(settings)
        flop = {
            "encode": cost.encodes * encode_flop(WEIGHTS),
            "plan": cost.encodes * plan_flop(),
            "decode": cost.prompts * decode_flop(),
            "draw": drawn * mask_flop(),
        }
        return cls(cost.encodes, cost.prompts, drawn, flop)


def prepared(threads: int, side: str = "fp32") -> tuple[Any, float]:
    """Warm up a predictor. Return it with the threads' peak in float32, in operations per second."""
    from segmint.infra.assets import resolve
    from segmint.infra.device import Compute
    from segmint.infra.peak import measure_peak
    from segmint.model.automatic.generator import MaskGenerator
    from segmint.model.automatic.settings import MaskSettings
    from segmint.model.sam.predictor import Predictor
    from segmint.operators.segment.models import load_model

    compute = Compute("cpu", "fp32", threads)
    predictor = Predictor(load_model(resolve(WEIGHTS), compute), kernels=kernels_of(side))
    settings = MaskSettings.sa1b(points_per_side=4, crop_n_layers=0)
    MaskGenerator(predictor, settings).generate(read("astronaut"))
    return predictor, measure_peak(compute)


def settings_of(keys: dict[str, int]) -> Any:
    """Return the `sa1b` profile with the grid and the layers of crops in `keys`."""
    from segmint.model.automatic.settings import MaskSettings

    return MaskSettings.sa1b(points_per_side=keys["points_per_side"], crop_n_layers=keys["crop_n_layers"])


def resized(image: Any, long_side: int) -> Any:
    """Resize an image, (H, W, 3) uint8, to a long side of `long_side` pixels."""
    import numpy as np
    from PIL import Image

    height, width = (max(1, round(side * long_side / max(image.shape[:2]))) for side in image.shape[:2])
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS))


class StageClock:
    """Clock by stage. Time in a nested stage counts only for the inner stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self._open: list[str] = []
        self._since = 0.0

    def timing(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function so that its seconds count for the stage."""

        @wraps(function)
        def timed(*arguments: Any, **keys: Any) -> Any:
            self._turn()
            self._open.append(stage)
            try:
                return function(*arguments, **keys)
            finally:
                self._turn()
                self._open.pop()

        return timed

    def _turn(self) -> None:
        """Add the time since the last call to the innermost stage."""
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def timed_stages() -> Iterator[StageClock]:
    """Time the functions that the generator calls while the block runs. Only for a single thread."""
    from segmint.model.automatic import generator
    from segmint.model.sam.predictor import Predictor

    places: dict[str, list[tuple[Any, str]]] = {
        "encode": [(Predictor, "embed_many")],
        "plan": [(Predictor, "plan_points")],
        "decode": [(Predictor, "decode_points")],
        "draw": [(Predictor, "draw_masks")],
        "upscale and filter": [(generator, "upscaling_of"), (generator, "measure")],
        "suppression": [(generator, "nms"), (generator, "suppress_across_crops")],
        "clean-up": [(generator, "clean_up")],
        "RLE": [(generator, "to_records")],
    }
    clock = StageClock()
    with ExitStack() as stack:
        for stage, owners in places.items():
            for owner, name in owners:
                stack.enter_context(patch.object(owner, name, clock.timing(stage, getattr(owner, name))))
        yield clock


def summary_line(precision: str, found: dict[str, Any]) -> str:
    """Format the stages as one readable line."""
    shares = ", ".join(f"{row['name']} {100 * row['share']:.1f}%" for row in found["stages"])
    peaks = ", ".join(f"{stage} {100 * one['of_peak']:.0f}%" for stage, one in found["network"].items())
    return f"{precision}: {found['seconds']:.2f} s with one thread: {shares}; of the peak: {peaks}"


if __name__ == "__main__":
    main()
