"""CPU seconds of the segment stage in the demo's build, with the CPU kernels and by torch.

    python benchmarks/masks/demo_kernels.py [--rounds N]

In each round, both sides build the demo's dataset once, each in a separate process with a separate Ray cluster. The
side that goes first alternates. `actor_s` is the CPU time of the segment actors' processes over their whole life,
including libraries and weights, sampled every 0.1 s. `build_s` is the wall time of the build. The benchmark compares
the masks of both sides, which must be the same for each image, with predicted IoUs within 2e-6.
"""

import argparse
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, in_process, spread, write_result  # noqa: E402
from benchmarks.processes import Trace  # noqa: E402

SIDES = {"kernels": "auto", "torch": "torch"}
SCORES_WITHIN = 2e-6


def build(kernels: str) -> dict[str, Any]:
    """Build the demo's dataset. Return the seconds, and each image's masks as (RLE counts, predicted IoU)."""
    import yaml

    from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
    from segmint.catalogs.source.collect import write_demo
    from segmint.pipeline.build import run_build
    from segmint.pipeline.config.config import load_config
    from segmint.pipeline.demo import CONFIG

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {"catalog": str(write_demo(folder)), "output": str(folder / "dataset")}
        document = {**CONFIG, **paths, "model": {"device": "cpu", "kernels": kernels}}
        config = folder / "build.yaml"
        config.write_text(yaml.safe_dump(document), encoding="utf-8")
        trace, ended = Trace(os.getpid()), threading.Event()
        sampler = threading.Thread(target=sample, args=(trace, ended))
        sampler.start()
        started = time.perf_counter()
        try:
            run_build(load_config(str(config)))
        finally:
            build_s = time.perf_counter() - started
            ended.set()
            sampler.join()
        actors = [process.cpu_s for process in trace.processes.values() if process.role == "segment actor"]
        masks = {
            sample.id: sorted((mask.counts, mask.predicted_iou) for mask in sample.masks)
            for sample in open_dataset(paths["output"])
        }
    return {"actor_s": sum(actors), "actors": len(actors), "build_s": build_s, "masks": masks}


def sample(trace: Trace, ended: threading.Event) -> None:
    """Sample the processes until the event is set."""
    while not ended.wait(0.1):
        trace.look()


def main() -> None:
    """Measure, compare, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--output", type=Path, default=RESULTS / "demo_kernels.json", help="the result's file")
    arguments = parser.parse_args()
    machine = describe_machine(1, "fp32")
    rounds = []
    for index in range(arguments.rounds):
        order = list(SIDES) if index % 2 == 0 else list(SIDES)[::-1]
        rounds.append({side: in_process(build, SIDES[side]) for side in order})
    ours, torch = ([each[side]["masks"] for each in rounds] for side in SIDES)
    equal = sum(matched(a, b) for mine, other in zip(ours, torch, strict=True) for a, b in paired(mine, other))
    of = sum(len(masks) for each in torch for masks in each.values())
    ratio = spread([each["kernels"]["actor_s"] / each["torch"]["actor_s"] for each in rounds])
    sides = {
        side: {key: spread([each[side][key] for each in rounds], 1) for key in ("actor_s", "build_s")} for side in SIDES
    }
    print(f"segment stage: {ratio['median']:.2f} of the CPU seconds by torch; {equal} of {of} equal masks")
    result = {"rounds": arguments.rounds, "ratio": ratio, "sides": sides, "masks": of, "equal": equal}
    write_result(arguments.output, "demo_kernels", machine, result)
    if equal != of or any(len(mine) != len(other) for mine, other in zip(ours, torch, strict=True)):
        raise SystemExit("the masks differ")


def paired(mine: dict[str, Any], other: dict[str, Any]) -> list[tuple[Any, Any]]:
    """Pair both sides' masks by image. An image that one side lacks is included, too."""
    return [(mine.get(image, []), other.get(image, [])) for image in mine.keys() | other.keys()]


def matched(mine: list[tuple[str, float]], other: list[tuple[str, float]]) -> int:
    """Count the masks of an image with equal run lengths and a predicted IoU within `SCORES_WITHIN`."""
    if len(mine) != len(other):
        return 0
    return sum(a[0] == b[0] and abs(a[1] - b[1]) <= SCORES_WITHIN for a, b in zip(mine, other, strict=True))


if __name__ == "__main__":
    main()
