"""Cost of `prepare` by stage, and the recall of its detectors.

    python benchmarks/building/prepare.py [--photos FOLDER] [--only NAME ...] [--megapixels 0.5 2 8 16 50] [--no-recall]

Everything runs in one process with one thread, as in a child process of `prepare`.

- *Stages.* CPU seconds of `prepare_image` on JPEGs of real photographs, scaled to the given megapixels. It runs
  unchanged, and the functions that it calls are timed from outside. `turned` is the search for faces in turned images,
  the stages that begin with `look` are those of the last look, and `shrink` makes the image that is searched and the
  original. If an image needs several looks, `redact`, `release`, and the look are those of an average one, so `total`
  is the cost if the first look is clean, and `round` that of each further round. `rule_2` is the cost without turned
  images and looks, in the same run. Each photograph is measured with the original for two layers of crops and without
  it. The median over photographs is shown.
- *Recall.* Recall of the faces and plates that tests label, on the photographs and on variants of them: other sizes,
  tilted, darkened. A label counts as found if at least 90 % of it is redacted.

The result is written to `benchmarks/results/prepare.json`.
"""

import argparse
import functools
import io
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, photographs, read, write_result  # noqa: E402
from segmint.infra.device import keep_freed_memory  # noqa: E402
from segmint.model.detectors.detection import Detection, Detector  # noqa: E402
from segmint.operators.prepare import prepare  # noqa: E402
from segmint.operators.prepare.deidentify import DeidentifyConfig, build_detectors, outline  # noqa: E402
from segmint.operators.prepare.ingest import IngestConfig  # noqa: E402
from segmint.operators.prepare.last_look import last_look  # noqa: E402
from segmint.operators.prepare.prepare import PrepareConfig  # noqa: E402
from segmint.operators.prepare.release import CropLayers, ReleaseConfig, largest_size, resized  # noqa: E402
from tests.support.labels import MULTIFACE, PLATE_CORNERS, SOLVAY  # noqa: E402

Pixels = Any
LOOK = ("look", "look faces", "look turned", "look plates")
ROUND = ("redact", "release", *LOOK)
STAGES = ("decode", "shrink", "faces", "turned", "plates", "original", *ROUND)
CROPS = CropLayers(2, 512 / 1500)
FOUND = 0.9
"""Minimum share of a label that must be redacted."""


def main() -> None:
    """Measure, print both tables, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of photographs; without it, scikit-image's")
    parser.add_argument("--only", nargs="+", help="names without suffix")
    parser.add_argument("--megapixels", nargs="+", type=float, default=[0.5, 2, 8, 16, 50])
    parser.add_argument("--recall", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--output", type=Path, default=RESULTS / "prepare.json", help="the result's file")
    arguments = parser.parse_args()

    import torch

    keep_freed_memory()
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    machine = describe_machine(1, "fp32", packages=("onnxruntime", "opencv-python-headless", "facenet-pytorch"))
    detectors = build_detectors(DeidentifyConfig(), threads=1)
    sources = photographs(arguments.photos, arguments.only)
    images = {name: read(source) for name, source in sources.items()}
    stages = [measure(images, megapixels, detectors) for megapixels in arguments.megapixels]
    found = list(recall(arguments.photos, detectors)) if arguments.recall and arguments.photos else []
    for row in stages:
        print_stages(row)
    for row in found:
        print(row)
    parts = {"photographs": sorted(images), "stages": stages, "recall": found}
    write_result(arguments.output, "prepare", machine, parts)


@dataclass
class CpuClock:
    """CPU seconds of the functions that it wraps, by stage; nested calls count once."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(STAGES, 0.0))
    inner: float = 0.0
    looks: int = 0
    searched: set[str] = field(default_factory=set)  # stages of this look, or of the search before the first one

    def looked(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the last look to add its time, without that of detectors, to its stage."""
        timed = self.timed("look", function)

        @functools.wraps(function)
        def wrapper(*arguments: Any) -> Any:
            self.looks += 1
            self.searched.clear()
            return timed(*arguments)

        return wrapper

    def detected(self, stage: str, detect: Callable[[Any], Any], image: Any) -> Any:
        """Search an image, and add the time to a detector's stage; only its first search is upright."""
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


def measure(images: dict[str, Pixels], megapixels: float, detectors: Sequence[Detector]) -> dict[str, Any]:
    """Return the CPU seconds of each stage at one size, with and without originals, as medians over the photographs."""
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
                "rule_2": median(runs, tuple(stage for stage in STAGES if stage not in {"turned", *LOOK})),
                "round": median(runs, ROUND),
            }
            for with_original, runs in every.items()
        ],
    }


def median(runs: Sequence[dict[str, float]], stages: Sequence[str]) -> float:
    """Return the median over runs of the seconds of these stages together."""
    return round(statistics.median(sum(run[stage] for stage in stages) for run in runs), 3)


def timed(data: bytes, with_original: bool, detectors: Sequence[Detector]) -> dict[str, float]:
    """Return the CPU seconds of each stage for one image."""
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
    """Return the photograph scaled to `megapixels`."""
    return scaled(image, (megapixels * 1e6 / (image.shape[0] * image.shape[1])) ** 0.5)


def jpeg(image: Pixels) -> bytes:
    """Encode an image as a JPEG of a camera's quality."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "JPEG", quality=92)
    return stream.getvalue()


def print_stages(row: dict[str, Any]) -> None:
    """Print the stages of one size."""
    for run in row["cpu_seconds"]:
        kept = "with" if run["with_original"] else "without"
        stages = ", ".join(f"{stage} {run[stage]:.2f}" for stage in STAGES)
        ratio = f"{run['total'] / run['rule_2']:.2f} times rule 2's {run['rule_2']:.2f} s, {run['round']:.2f} s a round"
        print(f"{row['megapixels']:g} MP, {kept} original: {run['total']:.2f} s, {ratio} ({stages})", flush=True)


@dataclass(frozen=True)
class LabeledDetector:
    """Image with the labels on it: polygons (N, 2) as x, y in its pixels."""

    image: Pixels
    kind: str
    labels: tuple[Any, ...]

    def moved(self, image: Pixels, matrix: Any) -> "LabeledDetector":
        """Return the image after an affine map (2, 3), with its labels."""
        return LabeledDetector(image, self.kind, tuple(each @ matrix[:, :2].T + matrix[:, 2] for each in self.labels))


def labeled(folder: Path) -> Iterator[tuple[str, LabeledDetector]]:
    """Yield the photographs in the folder that have labels, by name."""
    faces = {"multiface.jpg": MULTIFACE, "solvay_1927.jpg": SOLVAY}
    for name, boxes in faces.items():
        corners = tuple(np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float) for x0, y0, x1, y1 in boxes)
        yield name, LabeledDetector(read(str(folder / name)), "face", corners)
    for name, quad in PLATE_CORNERS.items():
        yield name, LabeledDetector(read(str(folder / name)), "plate", (np.array(quad, float),))


def variants(photograph: LabeledDetector) -> Iterator[tuple[str, LabeledDetector]]:
    """Yield the photograph unchanged, in other sizes, tilted, and darkened; some of these also at 16 megapixels."""
    yield "as it is", photograph
    for factor in (0.5, 1.5):
        yield f"{factor:g} times the size", resized_by(photograph, factor)
    large = resized_by(photograph, (16e6 / (photograph.image.shape[0] * photograph.image.shape[1])) ** 0.5)
    yield "16 megapixels", large
    for name, base in (("", photograph), (" at 16 megapixels", large)):
        yield f"tilted by 10°{name}", tilted(base, 10)
        yield (
            f"darkened to a quarter{name}",
            LabeledDetector((base.image * 0.25).astype(np.uint8), base.kind, base.labels),
        )


def scaled(image: Pixels, factor: float) -> Pixels:
    """Return the image resized by a factor, averaging or enlarging smoothly."""
    method = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.ascontiguousarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=method))


def resized_by(photograph: LabeledDetector, factor: float) -> LabeledDetector:
    """Return the photograph resized by a factor."""
    return photograph.moved(scaled(photograph.image, factor), np.array([[factor, 0, 0], [0, factor, 0]]))


def tilted(photograph: LabeledDetector, degrees: float) -> LabeledDetector:
    """Return the photograph rotated about its center, with borders filled by reflection."""
    height, width = photograph.image.shape[:2]
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, 1)
    turned = cv2.warpAffine(
        photograph.image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    return photograph.moved(turned, matrix)


def recall(folder: Path, detectors: Sequence[Detector]) -> Iterator[dict[str, Any]]:
    """Yield the number of labels and of found labels for each photograph and variant."""
    for name, photograph in labeled(folder):
        for variant, each in variants(photograph):
            size = each.image.shape[1], each.image.shape[0]
            for with_original in (True, False):
                config = settings(with_original)
                searched = largest_size(*size, config.release.short_side, config.crops)
                mask = redacted(each.image, resized(each.image, searched), detectors)
                yield {
                    "photograph": name,
                    "variant": variant,
                    "with_original": with_original,
                    "kind": each.kind,
                    "labels": len(each.labels),
                    "found": sum(share(mask, label) >= FOUND for label in each.labels),
                    "redacted": round(float(mask.mean()), 5),
                }


def redacted(image: Pixels, searched: Pixels, detectors: Sequence[Detector]) -> Pixels:
    """Return the mask of redacted pixels, (H, W) bool, if the detectors search `searched`."""
    shape = image.shape[0], image.shape[1]
    mask = np.zeros(shape, bool)
    across, down = shape[1] / searched.shape[1], shape[0] / searched.shape[0]
    found: list[Detection] = [each for detector in detectors for each in detector.detect(searched)]
    for each in found:
        patch_ = outline(each.mapped(across, down), shape, band=False)  # the pixels that are certainly hidden
        if patch_ is not None:
            mask[patch_.y : patch_.y + patch_.height, patch_.x : patch_.x + patch_.width] |= patch_.mask
    return mask


def share(mask: Pixels, label: Any) -> float:
    """Return the share of a label's pixels inside the image that are redacted."""
    inside = np.zeros(mask.shape, np.uint8)
    cv2.fillConvexPoly(inside, label.round().astype(np.int32), 1)
    return float(mask[inside == 1].mean()) if inside.any() else 1.0


if __name__ == "__main__":
    main()
