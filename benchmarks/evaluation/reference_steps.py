"""Number of masks that each of the three steps affects that profile `sa1b` adopts from the reference code.

The counts come from photographs, with crops. `docs/decisions/0024-from-the-reference-code.md` names the steps:

- *edge*: masks that are written with a tolerance of 20 pixels at a crop's inner edges, compared with a tolerance of 1,
  at which a mask has to touch the edge;
- *order*: masks that differ if islands are removed before holes are filled;
- *third NMS*: masks that only the suppression after cleanup removes.

    python benchmarks/evaluation/reference_steps.py --photos PHOTOS dog.jpg groceries.jpg
"""

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks.machine import describe_machine
from benchmarks.measuring import RESULTS, write_result
from segmint.infra.assets import resolve
from segmint.infra.device import resolve_compute
from segmint.model.automatic import candidates as cleanup
from segmint.model.automatic import candidates as filters
from segmint.model.automatic.candidates import CandidateMasks, MaskPatch
from segmint.model.automatic.generator import MaskGenerator, clean_up, suppress_across_crops
from segmint.model.automatic.settings import MaskSettings
from segmint.model.sam.predictor import Predictor
from segmint.operators.segment.models import load_model
from tests.support.embedded_once import embed_once
from tests.support.pixel_cleanup import fill_holes, remove_islands

OUTPUT = RESULTS / "reference_steps.json"
MASKS_ALIKE = 0.9
"""Minimum IoU of boxes at which a mask of one run counts as found in the other run."""


def main() -> None:
    """Measure all images, print the counts, and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--photos", type=Path, required=True, help="a folder of photographs")
    parser.add_argument("names", nargs="+", help="photographs of it")
    parser.add_argument("--weights", default="mobile_sam", help="a known name or a checkpoint's path")
    parser.add_argument("-o", "--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    compute = resolve_compute("cpu")
    machine = describe_machine(compute.threads, "fp32")
    predictor = Predictor(load_model(resolve(options.weights), compute))
    embed_once(predictor)  # so that both tolerances use the same embeddings
    generator = MaskGenerator(predictor, MaskSettings.sa1b())
    images = {}
    for name in options.names:
        started = time.process_time()
        images[name] = {**measure(generator, options.photos / name)}
        images[name]["cpu_seconds"] = round(time.process_time() - started, 1)
        print(json.dumps({name: images[name]}), flush=True)
    total: Counter[str] = Counter()
    for counts in images.values():
        total.update({key: value for key, value in counts.items() if isinstance(value, int)})
    found = {"weights": options.weights, "images": images, "total": dict(total)}
    write_result(options.output, "reference_steps", machine, found)


def measure(generator: MaskGenerator, path: Path) -> dict[str, Any]:
    """Count the masks that each step affects in one photograph."""
    from PIL import Image

    with Image.open(path) as opened:
        image = np.asarray(opened.convert("RGB"))
    size = (image.shape[0], image.shape[1])
    candidates, inside, written = run(generator, image)
    tolerance = filters.EDGE_TOLERANCE
    try:
        filters.EDGE_TOLERANCE = 1  # because boxes include their end, but crops don't
        _, inside_strict, written_strict = run(generator, image)
    finally:
        filters.EDGE_TOLERANCE = tolerance
    least = generator.settings.min_mask_region_area
    other_order = holes = islands = dropped = 0
    for patch in candidates.patches:
        cleaned = cleanup.clean_patch(patch, size, least, keep_largest=False)
        holes, islands, dropped = holes + cleaned.holes, islands + cleaned.islands, dropped + (cleaned.patch is None)
        other_order += differs(patch, cleaned.patch, size, least)
    return {
        "size": [image.shape[1], image.shape[0]],
        "candidates_after_nms2": len(candidates),
        "written": len(written),
        "edge_inside_at_20": inside,
        "edge_inside_at_1": inside_strict,
        "edge_written_at_1": len(written_strict),
        "edge_written_only_at_1": alone(written_strict, written),
        "edge_written_only_at_20": alone(written, written_strict),
        "holes_filled": holes,
        "islands_removed": islands,
        "order_differs": other_order,
        "dropped_by_clean_up": dropped,
        "third_nms_removes": len(candidates) - dropped - len(written),
    }


def run(generator: MaskGenerator, image: NDArray[np.uint8]) -> tuple[CandidateMasks, int, CandidateMasks]:
    """Return the masks before cleanup, the number of these that are inside their crops, and the final masks."""
    found = generator.find(image)
    candidates = suppress_across_crops(found.candidates, generator.settings)
    return candidates, found.funnel.inside_crop, clean_up(candidates, found.frame_size, generator.settings)[0]


def alone(masks: CandidateMasks, others: CandidateMasks) -> int:
    """Count the masks whose boxes match no box of `others`."""
    x0, y0, x1, y1 = (side[:, None] for side in masks.boxes.T)
    a0, b0, a1, b1 = others.boxes.T
    across = np.clip(np.minimum(x1, a1) - np.maximum(x0, a0) + 1, 0, None)
    common = across * np.clip(np.minimum(y1, b1) - np.maximum(y0, b0) + 1, 0, None)
    both = (x1 - x0 + 1) * (y1 - y0 + 1) + (a1 - a0 + 1) * (b1 - b0 + 1) - common
    return int((common / both < MASKS_ALIKE).all(axis=1).sum())


def differs(patch: MaskPatch, cleaned: MaskPatch | None, size: tuple[int, int], least: int) -> bool:
    """Return whether the cleaned mask differs if islands are removed first. `size` is (height, width)."""
    x0, y0, x1, y1 = patch.box
    mask = np.zeros(size, np.bool_)
    mask[y0 : y1 + 1, x0 : x1 + 1] = patch.window()
    kept, _ = remove_islands(mask, least, False)
    islands_first = None if kept is None else fill_holes(kept, least)[0]
    if cleaned is None or islands_first is None:
        return cleaned is not islands_first
    x0, y0, x1, y1 = cleaned.box
    holes_first = np.zeros(size, np.bool_)
    holes_first[y0 : y1 + 1, x0 : x1 + 1] = cleaned.window()
    return not np.array_equal(holes_first, islands_first)


if __name__ == "__main__":
    main()
