"""Share of points at which the decoder's outputs 0, 1, and 2 rise in area, so that pages may call them by names.

    python benchmarks/masks/output_order.py [--weights NAME|FILE] [--points-per-side N] PHOTO...

SAM returns three masks for a point, which are meant for a subpart, a part, and the whole object. Nothing in the model
enforces this order. The benchmark encodes each photograph once and, for every point of its grid, draws the three masks
at the photograph's size, without filters. A point counts as rising if output 0 has a smaller area than output 1, and
output 1 a smaller area than output 2. The result is written to `benchmarks/results/output_order.json`, per weights.
Copy it to `pipeline/serving/images.py`.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, read, write_result  # noqa: E402

CHUNK = 32


def main() -> None:
    """Measure the photographs, and print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", nargs="+", help="files, or names of scikit-image's")
    parser.add_argument("--weights", default="mobile_sam")
    parser.add_argument("--points-per-side", type=int, default=16)
    parser.add_argument("--output", type=Path, default=RESULTS / "output_order.json", help="the result's file")
    arguments = parser.parse_args()

    import torch

    from segmint.infra.assets import resolve, sha256_of
    from segmint.model.automatic.settings import point_grid
    from segmint.model.sam.load import load_sam
    from segmint.model.sam.predictor import Predictor

    weights = resolve(arguments.weights)
    predictor = Predictor(load_sam(weights))
    by_photo = {}
    for name in arguments.photos:
        image = read(name)
        embedding = predictor.embed(image)
        points = point_grid(arguments.points_per_side) * [image.shape[1], image.shape[0]]
        areas = []
        for start in range(0, len(points), CHUNK):
            chunk = points[start : start + CHUNK, None]
            logits = predictor.predict(embedding, chunk, np.ones(chunk.shape[:2])).low_res_logits
            areas += [(predictor.upscale(each[None], embedding) > 0).sum((2, 3))[0].tolist() for each in logits]
        rising = sum(one < two < three for one, two, three in areas)
        by_photo[Path(name).stem] = {"points": len(areas), "rising": rising}
        print(f"{Path(name).stem}: {rising} of {len(areas)} points", flush=True)
    total = {key: sum(each[key] for each in by_photo.values()) for key in ("points", "rising")}
    print(f"{arguments.weights}: {total['rising']} of {total['points']} points")
    known = json.loads(arguments.output.read_text())["weights"] if arguments.output.exists() else {}
    known[sha256_of(weights)] = {"weights": Path(arguments.weights).name, **total, "photographs": by_photo}
    machine = describe_machine(torch.get_num_threads(), "fp32")
    write_result(arguments.output, "output_order", machine, {"weights": known})


if __name__ == "__main__":
    main()
