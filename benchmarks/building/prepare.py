"""Cost of `prepare` by stage.

    python benchmarks/building/prepare.py [--photos FOLDER] [--only NAME ...] [--megapixels 0.5 2 8 16 50]

Everything runs in one process with one thread, as in a child process of `prepare`.

The benchmark measures the CPU seconds of `prepare_image` on JPEGs of real photographs, scaled to the given megapixels.
`prepare_image` runs unchanged, and the functions that it calls are timed from outside. The stages that begin with
`look` belong to the last look; `look turned` is the search for faces in turned images. `shrink` creates the image that
is searched, and the original. `confirm` is the second look at all detections of the image.

An image may need several looks. `redact`, `release`, and the look are then averages over its looks. Therefore, `total`
is the cost if the first look is clean, and `round` is the cost of each further round. Each photograph is measured
twice: with the original for two layers of crops, and without it. The result is the median over photographs.

The result is written to `benchmarks/results/prepare.json`.
"""

import argparse
import functools
import io
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.machine import become_prepare_process  # noqa: E402
from benchmarks.measuring import RESULTS, photographs, read, write_result  # noqa: E402
from segmint.model.detectors.detection import CandidateDetector, Detector  # noqa: E402
from segmint.operators.prepare import prepare  # noqa: E402
from segmint.operators.prepare.deidentify import DeidentifyConfig, build_detectors  # noqa: E402
from segmint.operators.prepare.ingest import IngestConfig  # noqa: E402
from segmint.operators.prepare.prepare import PrepareConfig  # noqa: E402
from segmint.operators.prepare.release import CropLayers, ReleaseConfig  # noqa: E402
from segmint.operators.prepare.released_search import last_look  # noqa: E402

Pixels = Any
LOOK = ("look", "look faces", "look turned", "look plates")
ROUND = ("redact", "release", *LOOK)
STAGES = ("decode", "shrink", "faces", "plates", "confirm", "original", *ROUND)
CROPS = CropLayers(2, 512 / 1500)


def main() -> None:
    """Measure, print the table, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of photographs; without it, scikit-image's")
    parser.add_argument("--only", nargs="+", help="names without suffix")
    parser.add_argument("--megapixels", nargs="+", type=float, default=[0.5, 2, 8, 16, 50])
    parser.add_argument("--output", type=Path, default=RESULTS / "prepare.json", help="the result's file")
    arguments = parser.parse_args()

    machine = become_prepare_process()
    detectors = build_detectors(DeidentifyConfig(), threads=1)
    sources = photographs(arguments.photos, arguments.only)
    images = {name: read(source) for name, source in sources.items()}
    stages = [measure(images, megapixels, detectors) for megapixels in arguments.megapixels]
    for row in stages:
        print_stages(row)
    parts = {"photographs": sorted(images), "stages": stages}
    write_result(arguments.output, "prepare", machine, parts)


@dataclass
class CpuClock:
    """Clock for the CPU seconds of the functions that it wraps, by stage. Nested calls count once."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    inner: float = 0.0
    looks: int = 0
    searched: set[str] = field(default_factory=set)  # stages of this look, or of the search before the first look

    def looked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the last look so that its time, without the detectors' time, counts for its stage."""
        timed = self.timed("look", function)

        @functools.wraps(function)
        def wrapper(*arguments: Any) -> Any:
            self.looks += 1
            self.searched.clear()
            return timed(*arguments)

        return wrapper

    def detected(self, stage: str, detect: Callable[[Any], Any], image: Any) -> Any:
        """Search an image, and add the time to a detector's stage. Only the first search of a look is upright."""
        stage = "turned" if stage in self.searched else stage
        self.searched.add(stage)
        return self.timed(f"look {stage}" if self.looks else stage, detect)(image)

    def a_look(self) -> dict[str, float]:
        """Return the seconds of each stage if the first look is clean."""
        rounds = max(self.looks, 1)
        return {stage: took / (rounds if stage in ROUND else 1) for stage, took in self.seconds.items()}

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap a function to add its time to a stage, excluding timed functions that it calls."""

        @functools.wraps(function)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            before, self.inner, start = self.inner, 0.0, time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                took = time.process_time() - start
                self.seconds[stage] += took - self.inner
                self.inner = before + took

        return wrapper


class TimedDetector:
    """Detector whose searches are timed."""

    def __init__(self, detector: Detector, clock: CpuClock) -> None:
        self.name, self.kind, self.score = detector.name, detector.kind, detector.score
        self.detect = functools.partial(clock.detected, f"{detector.kind}s", detector.detect)
        if isinstance(detector, CandidateDetector):
            self.look = clock.timed("confirm", detector.look)


def measure(images: dict[str, Pixels], megapixels: float, detectors: Sequence[Detector]) -> dict[str, Any]:
    """Measure the CPU seconds of each stage at one size, with and without originals: medians over the photographs."""
    every: dict[bool, list[dict[str, float]]] = {}
    for image in images.values():
        data = jpeg(enlarged(image, megapixels))
        for with_original in (True, False):
            every.setdefault(with_original, []).append(timed(data, with_original, detectors))
    return {
        "megapixels": megapixels,
        "cpu_seconds": [
            {
                "with_original": with_original,
                **{stage: median(runs, (stage,)) for stage in STAGES},
                "total": median(runs, STAGES),
                "round": median(runs, ROUND),
            }
            for with_original, runs in every.items()
        ],
    }


def median(runs: Sequence[dict[str, float]], stages: Sequence[str]) -> float:
    """Return the median over runs of these stages' total seconds."""
    return round(statistics.median(sum(run[stage] for stage in stages) for run in runs), 3)


def timed(data: bytes, with_original: bool, detectors: Sequence[Detector]) -> dict[str, float]:
    """Measure the CPU seconds of each stage for one image."""
    clock = CpuClock()
    config = settings(with_original)
    timed_detectors = [TimedDetector(each, clock) for each in detectors]
    names = {
        "ingest": "decode",
        "resized": "shrink",
        "deidentify": "redact",
        "release": "release",
    }
    with ExitStack() as stack:
        for name, stage in {**names, "encode_original": "original"}.items():
            stack.enter_context(patch.object(prepare, name, clock.timed(stage, getattr(prepare, name))))
        stack.enter_context(patch.object(prepare, "last_look", clock.looked(last_look)))
        prepare.prepare_image(data, config, timed_detectors)
    return clock.a_look()


def settings(with_original: bool) -> PrepareConfig:
    """Return the default settings of a build."""
    crops = CROPS if with_original else None
    return PrepareConfig(IngestConfig(), DeidentifyConfig(), ReleaseConfig(), crops)


def enlarged(image: Pixels, megapixels: float) -> Pixels:
    """Scale a photograph to `megapixels`."""
    return scaled(image, (megapixels * 1e6 / (image.shape[0] * image.shape[1])) ** 0.5)


def jpeg(image: Pixels) -> bytes:
    """Encode an image as a JPEG with the quality of a camera's."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def print_stages(row: dict[str, Any]) -> None:
    """Print the stages of one size."""
    for run in row["cpu_seconds"]:
        kept = "with" if run["with_original"] else "without"
        stages = ", ".join(f"{stage} {run[stage]:.2f}" for stage in STAGES)
        costs = f"{run['total']:.2f} s, {run['round']:.2f} s per round"
        print(f"{row['megapixels']:g} MP, {kept} original: {costs} ({stages})", flush=True)


def scaled(image: Pixels, factor: float) -> Pixels:
    """Resize an image by a factor, with averaging or smooth enlargement."""
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.ascontiguousarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=method))


if __name__ == "__main__":
    main()
