"""Estimate of mask generation on GPUs that haven't run segmint: an earlier estimate, updated by what the code counts.

    python benchmarks/gpu/cost_model.py [--output FILE]

The earlier estimate is older than the overlap between the images of a stream. It gives images/s as a slow and a fast
end for the full recipe and for the full image, both alone and, for two GPUs, overlapped in batches of 8 images. Three
unknowns explain these rates, and the model solves for them at each end:

    full recipe        = 21 crop + 3 masks + wait
    full image, alone  = crop + masks + wait + single
    full image, stream = crop + masks

- crop: seconds to cut, encode, and plan a crop, and to suppress and draw its masks as runs
- masks: seconds to decode, draw, and measure 1,024 points
- wait: idle time of the device between two images
- single: extra time of an encoder batch of one image, which follows from the assumptions below

The earlier rates are input, so the model can't confirm them. The solution must agree with two more figures in the
earlier estimate: 15 to 30 ms for `masks` on an H100 or H200, and 11 ms to encode a crop on an H200.

Today, `find_many` removes the waits. The host's launches then only matter if they take longer than the device's work.
Everything else is unchanged. The model only estimates the GPU's side, not `prepare` or the host pipeline. Pairs in the
JSON are (slow, fast).
"""

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.measuring import RESULTS, write_result  # noqa: E402
from segmint.model.automatic.settings import MaskSettings  # noqa: E402
from segmint.model.cost import ImageCost, image_cost, mask_flop  # noqa: E402
from segmint.model.sam.geometry import SAM1  # noqa: E402
from segmint.model.sam.load import VIT_SHAPES  # noqa: E402

NOTE = "estimate, nothing has run on a GPU"
TARGET = 0.6  # share of the ceiling that the full recipe is meant to reach on an H100 and an H200

Pair = NDArray[np.float64]
"""Pair of values at the slow end and at the fast end."""

# Tests count these numbers: tests/support/pretended_cuda.py for the parts around the encoder, and
# tests/support/kernel_traffic.py for a batch of the compiled ViT-H.
EARLIER_LAUNCHES = 425 + 3 * 326 + 1074
LAUNCHES = {"full recipe": 425 + 3 * 326 + 367, "full image, 1 per batch": 413, "full image, 8 per batch": 123}
# Bytes per encode of kernels other than matrix products and attention, in batches of 8; the count of a quarter of the
# blocks, times four.
POINTWISE_BYTES = 5.5e9
DECODER_BYTES = 9.65e6  # per prompt in bfloat16, in chunks of 256

# Operations of plain SAM. The ceiling counted these before it counted the factored algebra (docs/metric.md).
PLAIN_ENCODE, PLAIN_PROMPT = 5.96e12, 3.62e9
DRAWN_PER_POINT = 2  # masks, as docs/metric.md and `segmint plan` assume

# Assumptions of the earlier estimate for an H200.
ATTENTION_S = 0.7e-3 + 1.0e-3  # 28 window and 4 global attentions of an encode, by our kernels
ENCODE_MS = 11.0
MASKS_MS = [30.0, 15.0]  # also on an H100

# Assumption of this model, only for `single`: the tile of a matrix product that a multiprocessor computes at once.
TILE = 128, 256


@dataclass(frozen=True)
class Gpu:
    """Assumptions about a GPU, and the earlier estimate's images/s at both ends.

    Attributes:
        peak: operations per second of half-precision matrix products; the encoder's are assumed to reach this rate. It
            is stated for the H200, for which an older ceiling had 790e12. For other GPUs, it follows from the recipe's
            rates, which the earlier estimate called 50–63% of the ceiling by plain SAM's operations. This share is
            therefore input, too.
        bandwidth: bytes per second. It is stated for the H200, where it is 77% of the nominal value; other GPUs are
            assumed to reach the same share.
        processors: streaming multiprocessors.
        recipe, alone, stream: images/s. `stream` is None if the estimate doesn't contain it.
    """

    peak: float
    bandwidth: float
    processors: int
    recipe: tuple[float, float]
    alone: tuple[float, float]
    stream: tuple[float, float] | None = None


GPUS = {
    "H100": Gpu(627e12, 0.77 * 3.35e12, 132, (2.3, 2.9), (17, 27), (22, 34)),
    "H200": Gpu(680e12, 3.7e12, 132, (2.5, 3.1), (18, 28), (23, 36)),
    "A100": Gpu(271e12, 0.77 * 2.04e12, 108, (1.0, 1.25), (8.5, 13)),
    "L4": Gpu(64e12, 0.77 * 0.30e12, 58, (0.24, 0.29), (2.3, 3.4)),
}


@dataclass(frozen=True)
class Unknowns:
    """Solution of the equations in the module docstring, in seconds."""

    crop: Pair
    masks: Pair
    wait: Pair
    single: Pair


def encode_parts_s(gpu: Gpu) -> dict[str, float]:
    """Return the seconds of each part of an encode. Attention reaches the H200's assumed share of the peak."""
    shape, tokens = VIT_SHAPES["vit_h"], SAM1.embedding_size**2
    patches, neck = 3 * SAM1.patch_size**2 * shape.width, 256 * (shape.width + 9 * 256)
    products = 2 * tokens * (shape.depth * 12 * shape.width**2 + patches + neck)
    return {
        "encoder's matrix products": products / gpu.peak,
        "encoder's attention": ATTENTION_S * GPUS["H200"].peak / gpu.peak,
        "encoder's other kernels": POINTWISE_BYTES / gpu.bandwidth,
    }


def single_s(gpu: Gpu) -> Pair:
    """Return how many seconds encoding one image takes beyond an eighth of encoding 8 images.

    At the fast end, the only cause is that weights are read for each image instead of for each batch. At the slow end,
    matrix products also leave multiprocessors idle.
    """
    shape, tokens = VIT_SHAPES["vit_h"], SAM1.embedding_size**2

    def slowdown(batch: int) -> float:
        total = 0.0
        for outputs, work in ((3, 3), (1, 1), (4, 4), (1, 4)):  # a block's products, in widths and widths squared
            tiles = batch * tokens / TILE[0] * outputs * shape.width / TILE[1]
            total += work * float(np.ceil(tiles / gpu.processors)) * gpu.processors / tiles
        return total / 12

    weights = 7 / 8 * 2 * 12 * shape.depth * shape.width**2 / gpu.bandwidth
    products = encode_parts_s(gpu)["encoder's matrix products"]
    return np.array([weights + products * (slowdown(1) - slowdown(8)), weights])


def solve(gpu: Gpu) -> Unknowns:
    """Solve for the unknowns. Without rates of a stream, `wait` is the H100's, because it depends on the host."""
    recipe, alone, single = 1 / np.array(gpu.recipe), 1 / np.array(gpu.alone), single_s(gpu)
    wait = solve(GPUS["H100"]).wait if gpu.stream is None else alone - 1 / np.array(gpu.stream) - single
    image = alone - wait - single
    crop = (recipe - wait - 3 * image) / 18
    return Unknowns(crop, image - crop, wait, single)


def launch_s() -> Pair:
    """Return the seconds per launch: a short torch operation on a CPU, beside the host's other work, and alone."""
    result = json.loads((RESULTS / "segment_overlap.json").read_text())
    cases = ("beside finishing, with the actor's interval", "alone")
    return np.array([result["launches_s"][name]["median"] for name in cases]) / result["settings"]["launches"]


def image_flop(cost: ImageCost) -> dict[str, float]:
    """Return an image's operations by the ceiling's current definition and by its former one."""
    factored = cost.flop("vit_h") + DRAWN_PER_POINT * cost.prompts * mask_flop()
    return {"current": factored, "plain": cost.encodes * PLAIN_ENCODE + cost.prompts * PLAIN_PROMPT}


def case(gpu: Gpu, cost: ImageCost, seconds: Pair) -> dict[str, Any]:
    """Return the seconds, images/s, and shares of the ceiling for one kind of image."""
    shares = {name: rounded(flop / gpu.peak / seconds) for name, flop in image_flop(cost).items()}
    return {"seconds": rounded(seconds), "images_s": rounded(1 / seconds), "share": shares}


def estimate_gpu(gpu: Gpu) -> dict[str, Any]:
    """Estimate one GPU: its cases before and now, the parts of an image, and the effect of each change."""
    recipe, full = image_cost(MaskSettings.sa1b()), image_cost(MaskSettings.official())
    found, launch = solve(gpu), launch_s()
    masks = recipe.prompts / 1024 * found.masks
    device = {
        "full recipe": recipe.encodes * found.crop + masks,
        "full image, 1 per batch": found.crop + found.masks + found.single,
        "full image, 8 per batch": found.crop + found.masks,
    }
    costs = {name: recipe if name == "full recipe" else full for name in device}
    now = {name: np.maximum(seconds, LAUNCHES[name] * launch) for name, seconds in device.items()}
    parts = {name: recipe.encodes * np.full(2, seconds) for name, seconds in encode_parts_s(gpu).items()}
    parts["decode, draw, and measure"] = masks
    parts["cut, resize, plan, NMS, and the rest"] = device["full recipe"] - sum(parts.values())
    saved = (EARLIER_LAUNCHES - LAUNCHES["full recipe"]) * launch
    return {
        "ceiling_images_s": {name: round(gpu.peak / flop, 3) for name, flop in image_flop(recipe).items()},
        "before": {
            "full recipe": case(gpu, recipe, device["full recipe"] + found.wait),
            "full image": case(gpu, full, device["full image, 1 per batch"] + found.wait),
        },
        "now": {name: case(gpu, costs[name], seconds) for name, seconds in now.items()},
        "host_ms": {name: rounded(1e3 * launches * launch, 1) for name, launches in LAUNCHES.items()},
        "parts_ms": {name: rounded(1e3 * seconds, 1) for name, seconds in parts.items()},
        "decoder_traffic_ms": round(1e3 * recipe.prompts * DECODER_BYTES / gpu.bandwidth, 1),  # for comparison
        "solved_ms": {name: rounded(1e3 * seconds, 2) for name, seconds in vars(found).items()},
        "effects_ms": {
            "overlap across images": rounded(-1e3 * found.wait, 1),
            "fewer launches": [0.0, 0.0],  # because the device's work hides them
            "fewer launches, had the device waited for each (not included)": rounded(-1e3 * saved, 1),
            "8 full images per encoder batch": rounded(-1e3 * found.single, 1),
            "tiles of float32 kernels": [0.0, 0.0],  # because half precision doesn't use them
        },
        "target": {name: reached(*case(gpu, recipe, now["full recipe"])["share"][name]) for name in image_flop(recipe)},
    }


def reached(slow: float, fast: float) -> str:
    """Describe whether a share meets `TARGET` at both ends."""
    return "yes" if slow >= TARGET else "only near the fast end" if fast >= TARGET else "no"


def estimate() -> dict[str, Any]:
    """Compute the complete estimate."""
    constants = {
        "launches": {**LAUNCHES, "full recipe, before": EARLIER_LAUNCHES},
        "launch_us": rounded(1e6 * launch_s(), 1),
        "peak_tflops": {name: gpu.peak / 1e12 for name, gpu in GPUS.items()},
        "bandwidth_tb_s": {name: round(gpu.bandwidth / 1e12, 2) for name, gpu in GPUS.items()},
    }
    checks = {
        "masks_ms": {name: rounded(1e3 * solve(GPUS[name]).masks, 1) for name in ("H100", "H200")},
        "masks_ms_stated": MASKS_MS,
        "encode_h200_ms": round(1e3 * sum(encode_parts_s(GPUS["H200"]).values()), 2),
        "encode_h200_ms_stated": ENCODE_MS,
    }
    gpus = {name: estimate_gpu(gpu) for name, gpu in GPUS.items()}
    return {"note": NOTE, "target_share": TARGET, "constants": constants, "checks": checks, "gpus": gpus}


def rounded(pair: Pair, digits: int = 4) -> list[float]:
    """Round the slow and the fast end."""
    return [round(float(value), digits) for value in pair]


def main() -> None:
    """Print the estimate and write it to `benchmarks/results/`."""
    from benchmarks.gpu.tables import estimate_part

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=RESULTS / "gpu_cost_model.json")
    arguments = parser.parse_args()
    found = estimate()
    print(estimate_part({"gpu_cost_model": found}))
    write_result(arguments.output, "gpu_cost_model", {"gpu": None}, found)


if __name__ == "__main__":
    main()
