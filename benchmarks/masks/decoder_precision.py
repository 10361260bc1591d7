"""Masks of the decoder in bf16 and in fp16 by the GPU's formulas, compared with the reference package's.

    python benchmarks/masks/decoder_precision.py --photos FOLDER --recorded FOLDER [--only NAME ...] [--threads N]

It runs without a GPU: the GPU's code runs on the CPU with torch's formulas in place of kernels. Products of half
precision are summed in float32 and rounded once, and logits stay in float32, as on a GPU. The order of the sums differs
from the kernels', so the last bits do too. This is no measurement of speed.

`--recorded` contains the results of the reference package with MobileSAM's weights and its default settings, one JSON
file per photograph without crops (`dog_layers0.json`). A reference mask is matched if one of our masks reaches the IoU.

After each photograph, the result is written to `benchmarks/results/decoder_precision.json`.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.masks.generator_vs_reference import agreement  # noqa: E402
from benchmarks.measuring import RESULTS, read, write_result  # noqa: E402

PRECISIONS = ("bf16", "fp16")


def main() -> None:
    """Compare the photographs, and print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True, help="a folder of JPEGs, by the names of the results")
    parser.add_argument("--recorded", type=Path, required=True, help="a folder of the reference package's results")
    parser.add_argument("--only", nargs="+", default=["dog", "truck", "groceries"], help="names of photographs")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--output", type=Path, default=RESULTS / "decoder_precision.json", help="the result's file")
    arguments = parser.parse_args()

    machine = describe_machine(arguments.threads, ", ".join(PRECISIONS))
    settings = {"weights": "mobile_sam", "profile": "official", "points_per_side": 32, "crop_n_layers": 0}
    photographs = []
    for name in arguments.only:
        photographs.append(compare(arguments.photos / f"{name}.jpg", arguments.recorded, arguments.threads))
        print(json.dumps(photographs[-1]), flush=True)
        parts = {"settings": settings, "photographs": photographs, "matched": totals(photographs)}
        write_result(arguments.output, "decoder_precision", machine, parts)
    print(f"written to {arguments.output}")


def compare(photograph: Path, recorded: Path, threads: int) -> dict[str, Any]:
    """Return a photograph's row: the reference's masks, and for each precision, how many of them our masks match.

    Raises ValueError if the recorded result is of another file.
    """
    result = json.loads((recorded / f"{photograph.stem}_layers0.json").read_text())
    digest = hashlib.sha256(photograph.read_bytes()).hexdigest()
    if digest != result["sha256"]:
        raise ValueError(f"{photograph} has SHA-256 {digest}, but the recorded result is of {result['sha256']}")
    image = read(str(photograph))
    reference = [one["segmentation"] for one in result["annotations"]]
    row = {"name": photograph.stem, "height": image.shape[0], "width": image.shape[1], "reference": len(reference)}
    return row | {precision: measure(image, precision, reference, threads) for precision in PRECISIONS}


def measure(image: Any, precision: str, reference: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    """Return the agreement of our masks with the reference's, and the largest logit before upscaling."""
    from segmint.infra.assets import resolve
    from segmint.model.automatic import device_crops
    from segmint.model.automatic.settings import MaskSettings
    from tests.support.half_products import generator_with_gpu_formulas, gpu_formulas

    own: Any = "" if precision == "bf16" else precision
    generator = generator_with_gpu_formulas(
        resolve("mobile_sam"), own, MaskSettings.official(points_per_chunk=64), threads
    )
    draw, largest = device_crops.draw_chunk, [0.0]

    def drawn(decoded: Any) -> Any:
        chunk = draw(decoded)
        of_wanted = chunk.logits[chunk.wanted]
        largest.append(float(of_wanted.abs().max()) if len(of_wanted) else 0.0)
        return chunk

    with gpu_formulas(), patch.object(device_crops, "draw_chunk", drawn):
        records = generator.generate(image).records
    masks = [{"size": list(one.segmentation.size), "counts": one.segmentation.counts} for one in records]
    return {**agreement(masks, reference), "largest_logit": round(max(largest), 1)}


def totals(photographs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the sums of all photographs: the reference's masks, and how many each precision matches at IoU 0.99."""
    matched = {precision: sum(row[precision]["matched"]["0.99"] for row in photographs) for precision in PRECISIONS}
    return {"reference": sum(row["reference"] for row in photographs), **matched}


if __name__ == "__main__":
    main()
