"""CPU time of `MaskGenerator.finish`, which cleans and encodes an image's masks, by runs and by pixels.

    python benchmarks/masks/finish.py [--photo FILE ...] [--long-side PIXELS] [--points-per-side N] [--rounds N]

Each photograph's masks are found once on the CPU, with the `sa1b` profile without crops and MobileSAM's weights. Then
they are finished again and again in one process, alternately in two ways: with `candidates.clean_patch`, which labels
components on the masks' runs, and with the function that it replaced, which draws each mask and lets OpenCV label its
pixels. The records must be equal. The CPU time is that of all threads of the process.

The result is written to `benchmarks/results/finish.json`.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, read, spread, write_result  # noqa: E402


def main() -> None:
    """Measure the photographs, and print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photo", nargs="+", default=["astronaut", "coffee"], help="files, or names of scikit-image's")
    parser.add_argument("--long-side", type=int, default=2250, help="long side of the photographs in pixels")
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS / "finish.json", help="the result's file")
    arguments = parser.parse_args()

    from segmint.infra.assets import resolve
    from segmint.model.automatic.generator import MaskGenerator
    from segmint.model.automatic.settings import MaskSettings
    from segmint.model.sam.load import load_sam
    from segmint.model.sam.predictor import Predictor

    machine = describe_machine(1, "fp32")
    settings = MaskSettings.sa1b(crop_n_layers=0, points_per_side=arguments.points_per_side)
    generator = MaskGenerator(Predictor(load_sam(resolve("mobile_sam"))), settings)
    photographs = []
    for name in arguments.photo:
        row = measure(generator, resized(read(name), arguments.long_side), arguments.rounds)
        photographs.append({"name": Path(name).stem, **row})
        print(photographs[-1], flush=True)
    measured = {
        "weights": "mobile_sam",
        "profile": "sa1b",
        "crop_n_layers": 0,
        "points_per_side": arguments.points_per_side,
        "rounds": arguments.rounds,
    }
    write_result(arguments.output, "finish", machine, {"settings": measured, "photographs": photographs})
    print(f"written to {arguments.output}")


def resized(image: Any, long_side: int) -> Any:
    """Resize a photograph, (height, width, 3), so that its long side has this many pixels."""
    import cv2

    factor = long_side / max(image.shape[:2])
    return cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)


def measure(generator: Any, image: Any, rounds: int) -> dict[str, Any]:
    """Finish an image's masks in both ways alternately, and return the CPU milliseconds per mask and their ratio.

    Raises RuntimeError if the two ways don't give equal records.
    """
    from segmint.model.automatic import candidates
    from segmint.model.automatic import generator as module
    from tests.support.pixel_cleanup import clean_in_window

    found = generator.find(image)
    masks = len(found.candidates)
    ways = {"by_pixels": clean_in_window, "by_runs": candidates.clean_patch}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for index in range(rounds + 1):
        results = {}
        for name, way in ways.items():
            with patch.object(module, "clean_patch", way):
                before = time.process_time()
                results[name] = generator.finish(found)
                spent = time.process_time() - before
            if index > 0:  # the first round is a warm-up
                times[name].append(1000 * spent / masks)
        if results["by_pixels"] != results["by_runs"]:
            raise RuntimeError("the masks differ: expected equal records by runs and by pixels")
    ratios = [new / old for old, new in zip(times["by_pixels"], times["by_runs"], strict=True)]
    return {
        "height": image.shape[0],
        "width": image.shape[1],
        "masks": masks,
        "written": len(results["by_runs"].records),
        "cleaned": results["by_runs"].funnel.cleaned,
        "records_equal": True,
        "cpu_ms_per_mask": {name: spread(values) for name, values in times.items()},
        "ratio": spread([round(ratio, 4) for ratio in ratios]),
    }


if __name__ == "__main__":
    main()
