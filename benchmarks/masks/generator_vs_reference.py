"""Comparison of our automatic mask generation with the reference package's, with the same weights and photographs.

    python benchmarks/masks/generator_vs_reference.py [--photos FOLDER [--only NAME ...] [--scikit-image]]
        [--crops 0|1|2] [--rounds N] [--threads N]

Both sides use MobileSAM and the reference's defaults: 32x32 points and, with `--crops`, half as many points per side in
each layer of crops as in the previous layer. The reference package lacks TinyViT, so it runs with our image encoder, in
its default float32. Our side runs in float32 with and without the CPU kernels (`torch`). If the CPU kernels use
AVX-512, our side also runs with and without them in processes that are limited to AVX2.

Every measurement runs in a separate process with its own peak memory. Rounds alternate which side goes first. Seconds
are medians, and the ratio is the median of the rounds' ratios. `setup_s` is the time before the measurement, for
libraries, weights, and one warm-up run on a small grid.

Each round measures every photograph, and counts how many of the reference's masks our masks match. The round with the
fewest matches is reported. Without a folder, the photographs are scikit-image's. After each measured photograph, the
result is written to `benchmarks/results/` as JSON, with a description of the machine.
"""

import argparse
import os
import statistics
import sys
import time
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import (  # noqa: E402
    RESULTS,
    in_process,
    peak_mib,
    photographs,
    read,
    spread,
    waiting_as_shipped,
    write_result,
)
from segmint.model.kernels.cpu.library import load_kernels, usable_kernels  # noqa: E402

THRESHOLDS = (0.99, 0.95, 0.9)
CROPS_DOWNSCALE = 2
REFERENCE, TORCH = "reference", "torch"
AVX2, TORCH_AVX2 = "avx2", "torch_avx2"
HELD_TO_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"}


def main() -> None:
    """Measure, compare, print lines per photograph, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="a folder of photographs; scikit-image's without it")
    parser.add_argument("--only", nargs="+", help="names of the folder's photographs, without their endings")
    parser.add_argument(
        "--scikit-image", action="store_true", help="scikit-image's photographs in addition to the folder's"
    )
    parser.add_argument("--crops", type=int, choices=[0, 1, 2], default=0, help="layers of crops, for both sides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1, help="torch's threads, for both sides")
    parser.add_argument("--points-per-side", type=int, default=32)
    parser.add_argument("--output", type=Path, help="the result's file")
    arguments = parser.parse_args()
    if arguments.rounds < 1:
        parser.error(f"--rounds is {arguments.rounds}: expected 1 or more")

    sources = photographs(arguments.photos, arguments.only, arguments.scikit_image)
    precisions = ["fp32"]
    name = f"generator_vs_reference{f'-crops{arguments.crops}' if arguments.crops else ''}.json"
    output = arguments.output or RESULTS / name
    machine = describe_machine(arguments.threads, ", ".join(precisions), packages=("segment-anything",))
    settings = {
        "weights": "mobile_sam",
        "profile": "official",
        "points_per_side": arguments.points_per_side,
        "crop_n_layers": arguments.crops,
        "crop_n_points_downscale_factor": CROPS_DOWNSCALE if arguments.crops else 1,
        "precisions": precisions,
        "rounds": arguments.rounds,
    }
    rounds: dict[str, list[dict[str, dict[str, Any]]]] = {}
    for index, (photograph, source) in product(range(arguments.rounds), sources.items()):
        found = rounds.setdefault(photograph, [])
        found.append(measure_round(index, source, arguments.threads, settings))
        rows = [compared(name, each, precisions) for name, each in rounds.items()]
        write_result(output, "generator_vs_reference", machine, {"settings": settings, "photographs": rows})
        print(summary_line(rows[list(rounds).index(photograph)]), flush=True)
    print(f"written to {output}")


def measure_round(index: int, source: str, threads: int, settings: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Run the reference, ours, and ours with torch once each. Return the results by name.

    The sides that are limited to AVX2 run only if the CPU kernels use AVX-512. In even rounds, our side goes first.
    """
    sides = [*settings["precisions"], TORCH, *avx2_sides(), REFERENCE]
    found = {}
    for side in sides if index % 2 == 0 else reversed(sides):
        if side == REFERENCE:
            with waiting_as_shipped():
                found[side] = in_process(run_reference, source, threads, settings)
        else:
            with patch.dict(os.environ, environment_of(side)):
                found[side] = in_process(run_ours, source, threads, settings, side)
    return found


def avx2_sides() -> list[str]:
    """Return the sides that are limited to AVX2. There are none if the CPU kernels don't use AVX-512 here."""
    kernels = usable_kernels()
    return [AVX2, TORCH_AVX2] if kernels and kernels.instruction_set == "avx512" else []


def environment_of(side: str) -> dict[str, str]:
    """Return the environment variables that limit the libraries in a side's process to AVX2."""
    return HELD_TO_AVX2 if side in (AVX2, TORCH_AVX2) else {}


def kernels_of(side: str) -> Any:
    """Return the CPU kernels of a side, in the form that `Predictor` takes."""
    if side in (TORCH, TORCH_AVX2):
        return None
    return load_kernels("avx2") if side == AVX2 else "auto"


def run_ours(source: str, threads: int, settings: dict[str, Any], side: str) -> dict[str, Any]:
    """Run our generator as a side specifies. Return its seconds, peak memory, and masks.

    A side is fp32, with torch, or limited to AVX2.
    """
    started = time.perf_counter()
    from segmint.infra.assets import resolve
    from segmint.infra.device import Compute
    from segmint.model.automatic.generator import MaskGenerator
    from segmint.model.automatic.settings import MaskSettings
    from segmint.model.sam.predictor import Predictor
    from segmint.operators.segment.models import load_model

    sam = load_model(resolve(settings["weights"]), Compute("cpu", "fp32", threads))
    predictor, image = Predictor(sam, kernels=kernels_of(side)), read(source)
    MaskGenerator(predictor, MaskSettings.official(points_per_side=2)).generate(image)
    keys = ("points_per_side", "crop_n_layers", "crop_n_points_downscale_factor")
    generator = MaskGenerator(predictor, MaskSettings.official(**{key: settings[key] for key in keys}))
    ready = time.perf_counter()
    generated = generator.generate(image)
    seconds = time.perf_counter() - ready
    masks = [
        {"size": list(record.segmentation.size), "counts": record.segmentation.counts} for record in generated.records
    ]
    return {
        "seconds": seconds,
        "setup_s": ready - started,
        "peak_mib": peak_mib(),
        "masks": masks,
        "size": list(image.shape[:2]),
    }


def run_reference(source: str, threads: int, settings: dict[str, Any]) -> dict[str, Any]:
    """Run the reference generator with torch's defaults. Return its seconds, peak memory, and masks."""
    started = time.perf_counter()
    import torch
    from segment_anything import SamAutomaticMaskGenerator

    from benchmarks.masks.reference import reference_sam
    from segmint.infra.assets import resolve
    from segmint.model.sam.load import load_sam

    torch.set_num_threads(threads)
    sam = reference_sam(load_sam(resolve(settings["weights"]), device="cpu"))
    image = read(source)
    SamAutomaticMaskGenerator(sam, points_per_side=2).generate(image)
    generator = SamAutomaticMaskGenerator(
        sam,
        points_per_side=settings["points_per_side"],
        crop_n_layers=settings["crop_n_layers"],
        crop_n_points_downscale_factor=settings["crop_n_points_downscale_factor"],
        output_mode="coco_rle",
    )
    ready = time.perf_counter()
    records = generator.generate(image)
    seconds = time.perf_counter() - ready
    return {
        "seconds": seconds,
        "setup_s": ready - started,
        "peak_mib": peak_mib(),
        "masks": [record["segmentation"] for record in records],
        "size": list(image.shape[:2]),
    }


def compared(name: str, rounds: list[dict[str, dict[str, Any]]], precisions: list[str]) -> dict[str, Any]:
    """Return the row of a photograph: the reference, and for each precision our result with its ratio and agreement."""
    height, width = rounds[0][REFERENCE]["size"]
    ours = {}
    for precision in precisions:
        ratios = [each[REFERENCE]["seconds"] / each[precision]["seconds"] for each in rounds]
        found = [agreement(each[precision]["masks"], each[REFERENCE]["masks"]) for each in rounds]
        worst = min(found, key=lambda one: (*one["matched"].values(), one["least_iou"]))
        to_torch = [each[TORCH]["seconds"] / each[precision]["seconds"] for each in rounds]
        ours[precision] = {
            **summary(rounds, precision),
            "ratio": spread(ratios),
            "ratio_to_torch": spread(to_torch),
            "same_as_torch": min(equal(each[precision]["masks"], each[TORCH]["masks"]) for each in rounds),
            **worst,
        }
    return {
        "name": name,
        "height": height,
        "width": width,
        REFERENCE: {**summary(rounds, REFERENCE), "masks": len(rounds[0][REFERENCE]["masks"])},
        "ours": ours,
        TORCH: {**summary(rounds, TORCH), "masks": len(rounds[0][TORCH]["masks"])},
        **({AVX2: held_to_avx2(rounds)} if AVX2 in rounds[0] else {}),
        "rounds": [
            {side: {key: round(one[key], 3) for key in ("seconds", "setup_s")} for side, one in each.items()}
            for each in rounds
        ],
    }


def held_to_avx2(rounds: list[dict[str, dict[str, Any]]]) -> dict[str, Any]:
    """Return our results with and without the CPU kernels, both limited to AVX2: seconds, their ratio, and masks."""
    ratios = [each[TORCH_AVX2]["seconds"] / each[AVX2]["seconds"] for each in rounds]
    return {
        **summary(rounds, AVX2),
        "torch_seconds": summary(rounds, TORCH_AVX2)["seconds"],
        "ratio_to_torch": spread(ratios),
        "same_as_torch": min(equal(each[AVX2]["masks"], each[TORCH_AVX2]["masks"]) for each in rounds),
        **agreement(rounds[0][AVX2]["masks"], rounds[0][REFERENCE]["masks"]),
    }


def equal(ours: list[dict[str, Any]], others: list[dict[str, Any]]) -> int:
    """Count our masks that another side contains as well, with the same pixels."""
    pixels = {mask["counts"] for mask in others}
    return sum(mask["counts"] in pixels for mask in ours)


def summary(rounds: list[dict[str, dict[str, Any]]], side: str) -> dict[str, Any]:
    """Return a side's median seconds and maximum memory."""
    return {
        "seconds": round(statistics.median(each[side]["seconds"] for each in rounds), 2),
        "setup_s": round(statistics.median(each[side]["setup_s"] for each in rounds), 2),
        "peak_mib": max(each[side]["peak_mib"] for each in rounds),
    }


def agreement(ours: list[dict[str, Any]], reference: list[dict[str, Any]]) -> dict[str, Any]:
    """Count our masks and, at each IoU, the reference's masks that ours match. Also return the lowest IoU of a match.

    Masks are COCO's compressed RLE with `size` and `counts`.
    """
    from pycocotools import mask as coco

    def encoded(masks: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**mask, "counts": mask["counts"].encode()} for mask in masks]

    overlaps = [0.0] * len(reference)
    if ours and reference:
        overlaps = coco.iou(encoded(ours), encoded(reference), [0] * len(reference)).max(axis=0).tolist()
    return {
        "masks": len(ours),
        "matched": {str(least): sum(overlap >= least for overlap in overlaps) for least in THRESHOLDS},
        "least_iou": round(min(overlaps, default=1.0), 5),
    }


def summary_line(row: dict[str, Any]) -> str:
    """Format a photograph's row as readable lines."""
    reference = row[REFERENCE]
    lines = []
    for precision, ours in row["ours"].items():
        to_reference, to_torch = (
            f"{found['median']:.2f} times as fast ({found['least']:.2f} to {found['most']:.2f})"
            for found in (ours["ratio"], ours["ratio_to_torch"])
        )
        found = ", ".join(f"{count} at IoU {least}" for least, count in ours["matched"].items())
        lines += [
            f"{row['name']} {precision}: {ours['seconds']:.1f} s against {reference['seconds']:.1f} s, {to_reference}; "
            f"{ours['masks']} masks against {reference['masks']}, of which {found} or more; "
            f"{ours['peak_mib']} MiB against {reference['peak_mib']} MiB",
            f"{row['name']} {precision} without kernels: {row[TORCH]['seconds']:.1f} s, {to_torch} with them; "
            f"{ours['same_as_torch']} equal masks",
        ]
    if AVX2 in row:
        held = row[AVX2]
        lines.append(
            f"{row['name']} fp32 held to AVX2: {held['seconds']:.1f} s, without kernels {held['torch_seconds']:.1f} s, "
            f"{held['ratio_to_torch']['median']:.2f} times as fast; {held['same_as_torch']} equal masks"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
