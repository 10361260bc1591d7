"""Points that SAM 2.1's decoder processes per CPU second, beside the `sam2` package, with equal masks.

    python benchmarks/masks/points_vs_sam2.py [--points N] [--batch N]

The benchmark needs the `sam2` package. It uses random weights, because the decoder's work doesn't depend on them. All
sides run on one thread. A point counts once its three low-resolution masks are drawn. The result is printed as JSON.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.interop.oracles.check_sam2 import same_weights  # noqa: E402


@torch.inference_mode()
def main() -> None:
    """Time all sides, compare the logits, and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64, help="points that the package decodes together")
    arguments = parser.parse_args()

    import skimage.data

    from segmint.model.sam.predictor import Embedding, Predictor

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        sam, theirs = same_weights("tiny", Path(folder))
    image = skimage.data.coffee()
    embedding = Predictor(sam).embed(image)
    points = np.random.default_rng(0).uniform(0, [image.shape[1], image.shape[0]], (arguments.points, 2))

    def package() -> torch.Tensor:
        decoder, encoder, low = theirs.sam_mask_decoder, theirs.sam_prompt_encoder, []
        scaled = torch.from_numpy(points)[:, None] * torch.tensor([1024 / image.shape[1], 1024 / image.shape[0]])
        for start in range(0, len(points), arguments.batch):
            part = scaled[start : start + arguments.batch]
            sparse, dense = encoder((part, torch.ones(len(part), 1, dtype=torch.int32)), None, None)
            high_res = list(embedding.high_res[::-1])
            low.append(decoder(embedding.features, encoder.get_dense_pe(), sparse, dense, True, True, high_res)[0])
        return torch.cat(low)

    def ours(predictor: Predictor, embedding: Embedding) -> torch.Tensor:
        plan, low = predictor.plan_points(embedding), []
        for start in range(0, len(points), 8):
            part = points[start : start + 8]
            masks = predictor.decode_points(embedding, plan, part)
            low.append(predictor.draw_masks(plan, masks, torch.ones(len(part), 3, dtype=torch.bool)))
        return torch.cat(low).unflatten(0, (-1, 3))

    expected, seconds = timed(package)
    found = {"package": {"points_per_s": arguments.points / seconds}}
    for name, predictor in (("torch", Predictor(sam, kernels=None)), ("kernels", Predictor(sam))):
        if name == "kernels" and predictor.kernels is None:
            continue
        logits, seconds = timed(lambda predictor=predictor: ours(predictor, embedding))  # type: ignore[misc]
        speed = arguments.points / seconds
        found[name] = {
            "points_per_s": speed,
            "times": speed / found["package"]["points_per_s"],
            "largest_difference": float((logits - expected).abs().max()),
            "other_signs": int(((logits > 0) != (expected > 0)).sum()),
        }
    print(json.dumps(found, indent=2))


def timed(call: Callable[[], torch.Tensor]) -> tuple[torch.Tensor, float]:
    """Return the result of a call, and the fewest CPU seconds of three calls."""
    seconds = []
    for _ in range(3):
        start = time.process_time()
        result = call()
        seconds.append(time.process_time() - start)
    return result, min(seconds)


if __name__ == "__main__":
    main()
