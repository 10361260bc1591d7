"""Automatic mask generation side by side: the reference package and ours, the same weights, the same photographs.

    python benchmarks/generator_vs_reference.py [--photos FOLDER] [--precision fp32|bf16] [--threads N]

Both sides get the reference's defaults (32x32 points, no crops) and MobileSAM; the reference package, which has no
TinyViT, runs with our image encoder. Every measurement is a process of its own, so that peak memory is its own too.
Loading and one warming run on a small grid are not in the times. Without a folder the photographs are those of
scikit-image. The result is written to `benchmarks/results/` as JSON, with what the machine is.
"""

import argparse
import json
import multiprocessing
import os
import resource
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

# Threads that wait by spinning take the core from those they wait for, as soon as anything else runs on the machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp"}
SCIKIT_IMAGE = ("astronaut", "coffee", "chelsea")
MIB = 1 << 20


def main() -> None:
    """Measures, compares, prints a line a photograph and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of photographs; scikit-image's without it")
    parser.add_argument("--only", nargs="+", help="names of photographs, without their endings")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="of our side")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's threads, for both sides")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--output", type=Path, help="the result's file")
    arguments = parser.parse_args()

    from benchmarks.machine import describe_machine

    machine = describe_machine(arguments.threads, arguments.precision, packages=("segment-anything",))
    rows = []
    for name, source in photographs(arguments.photos, arguments.only).items():
        keys = (source, arguments.threads, arguments.points_per_side)
        ours = measure(run_ours, *keys, arguments.precision)
        reference = measure(run_reference, *keys)
        row = compared(name, ours, reference)
        rows.append(row)
        print(
            f"{name}: {row['ours']['seconds']:.1f} s against {row['reference']['seconds']:.1f} s, "
            f"{row['speedup']:.1f} times as fast; {row['ours']['masks']} masks against {row['reference']['masks']}, "
            f"{row['matched']} of them at IoU 0.99 or more; {row['ours']['peak_mib']} MiB against "
            f"{row['reference']['peak_mib']} MiB",
            flush=True,
        )
    result = {
        "benchmark": "generator_vs_reference",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        "settings": {
            "weights": "mobile_sam",
            "profile": "official",
            "points_per_side": arguments.points_per_side,
            "precision": arguments.precision,
        },
        "photographs": rows,
    }
    output = arguments.output or ROOT / "benchmarks" / "results" / f"generator_vs_reference-{arguments.precision}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {output}")


def photographs(folder: Path | None, only: list[str] | None) -> dict[str, str]:
    """Where each photograph comes from, by its name: a file, or a name of scikit-image's."""
    if folder is None:
        found = {name: name for name in SCIKIT_IMAGE}
    else:
        found = {path.stem: str(path) for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES}
    chosen = {name: source for name, source in found.items() if only is None or name in only}
    if not chosen:
        raise SystemExit(f"no photograph to measure: expected one of {', '.join(sorted(found)) or 'some, found none'}")
    return chosen


def read(source: str) -> Any:
    """(height, width, 3) uint8 RGB."""
    import numpy as np
    from PIL import Image

    if source in SCIKIT_IMAGE:
        from skimage import data

        return np.asarray(getattr(data, source)())
    with Image.open(source) as image:
        return np.asarray(image.convert("RGB"))


def measure(side: Any, *arguments: Any) -> dict[str, Any]:
    """What `side` returns, from a fresh process, with the process's peak memory."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        result: dict[str, Any] = pool.apply(side, arguments)
        return result


def run_ours(source: str, threads: int, points_per_side: int, precision: str) -> dict[str, Any]:
    """Our generator: seconds, peak memory, masks."""
    from infra.assets import resolve
    from infra.device import Compute
    from model.automatic.generator import MaskGenerator
    from model.automatic.settings import MaskSettings
    from model.sam.predictor import Predictor
    from operators.models import load_model

    sam = load_model(resolve("mobile_sam"), Compute("cpu", "bf16" if precision == "bf16" else "fp32", threads))
    predictor, image = Predictor(sam), read(source)
    MaskGenerator(predictor, MaskSettings.official(points_per_side=2)).generate(image)
    generator = MaskGenerator(predictor, MaskSettings.official(points_per_side=points_per_side))
    started = time.perf_counter()
    generated = generator.generate(image)
    seconds = time.perf_counter() - started
    masks = [
        {"size": list(record.segmentation.size), "counts": record.segmentation.counts} for record in generated.records
    ]
    return {"seconds": seconds, "peak": peak_memory(), "masks": masks, "size": list(image.shape[:2])}


def run_reference(source: str, threads: int, points_per_side: int) -> dict[str, Any]:
    """The reference generator with its defaults: seconds, peak memory, masks."""
    from segment_anything import SamAutomaticMaskGenerator

    from infra.assets import resolve
    from infra.device import Compute
    from operators.models import load_model
    from tests.support.parity import reference_sam

    sam = reference_sam(load_model(resolve("mobile_sam"), Compute("cpu", "fp32", threads)))
    image = read(source)
    SamAutomaticMaskGenerator(sam, points_per_side=2).generate(image)
    generator = SamAutomaticMaskGenerator(sam, points_per_side=points_per_side, output_mode="coco_rle")
    started = time.perf_counter()
    records = generator.generate(image)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "peak": peak_memory(), "masks": [record["segmentation"] for record in records]}


def peak_memory() -> int:
    """Bytes of this process at its largest."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def compared(name: str, ours: dict[str, Any], reference: dict[str, Any]) -> dict[str, Any]:
    """The row of one photograph: both sides, and how many of the reference's masks are among ours."""
    from pycocotools import mask as coco

    def encoded(masks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**mask, "counts": mask["counts"].encode()} for mask in masks]

    overlaps = [0.0] * len(reference["masks"])
    if ours["masks"] and reference["masks"]:
        theirs = encoded(reference["masks"])
        overlaps = coco.iou(encoded(ours["masks"]), theirs, [0] * len(theirs)).max(axis=0).tolist()
    return {
        "name": name,
        "height": ours["size"][0],
        "width": ours["size"][1],
        "ours": summary(ours),
        "reference": summary(reference),
        "speedup": round(reference["seconds"] / ours["seconds"], 2),
        "matched": sum(overlap >= 0.99 for overlap in overlaps),
        "matched_at_0.9": sum(overlap >= 0.9 for overlap in overlaps),
        "least_iou": round(min(overlaps, default=1.0), 5),
    }


def summary(side: dict[str, Any]) -> dict[str, Any]:
    """Seconds, MiB and the number of masks."""
    return {
        "seconds": round(side["seconds"], 2),
        "peak_mib": side["peak"] // MIB,
        "masks": len(side["masks"]),
    }


if __name__ == "__main__":
    main()
