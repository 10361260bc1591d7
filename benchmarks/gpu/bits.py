"""Reproducibility of bits on a GPU, and agreement of masks with the reference package's.

    python benchmarks/gpu/bits.py --device cuda

The command prints digests of one process's results. `measure_repeats` compares the digests of two such processes.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

from benchmarks.gpu.both import generator_of, heavy_encoder, light_sam, photographs, weights  # noqa: E402
from benchmarks.gpu.encoder import random_encoder  # noqa: E402
from benchmarks.gpu.run import FULL, QUICK, NotMeasuredError, PartRun, synchronize  # noqa: E402

RUNS = 3
THREADS = 2
CHILD_S = 200
"""Seconds after which `measure_repeats` stops a process."""


def measure_repeats(run: PartRun, encoder: str) -> dict[str, Any]:
    """Compare digests of masks, scores, and embeddings between runs, between threads, and between two processes.

    Each process has its own kernel caches. The result's `same` is True if all digests are equal. Raises RuntimeError if
    a process fails.
    """
    if encoder == "compiled":
        run.need_cuda()
    found: list[dict[str, Any]] = []
    for _ in range(1 if run.quick else 2):
        with tempfile.TemporaryDirectory() as folder:
            caches = {"TRITON_CACHE_DIR": f"{folder}/triton", "TORCHINDUCTOR_CACHE_DIR": f"{folder}/inductor"}
            command = [sys.executable, str(Path(__file__).resolve()), "--device", run.device.type, "--encoder", encoder]
            done = subprocess.run(
                [*command, *(["--quick"] if run.quick else [])],
                cwd=ROOT,
                env={**os.environ, **caches},
                capture_output=True,
                text=True,
                check=False,
                timeout=max(30.0, min(CHILD_S, run.left_s)),
            )
        if done.returncode != 0:
            raise RuntimeError(f"a process ended with {done.returncode}:\n{done.stderr[-3000:]}")
        found.append(json.loads(done.stdout.splitlines()[-1]))
    return {"processes": found, **compare(found)}


def compare(found: list[dict[str, Any]]) -> dict[str, bool]:
    """Return whether the bits are the same across runs, threads, and processes."""

    def same(pieces: list[Any]) -> bool:
        return len({json.dumps(piece, sort_keys=True) for piece in pieces}) == 1

    verdict = {
        "runs_same": all(same(one["runs"]) for one in found),
        "threads_same": all(same([*one["threads"], one["runs"][0]]) for one in found),
        "processes_same": same([one["runs"][0] for one in found]),
    }
    return {**verdict, "same": all(verdict.values())}


def digests(run: PartRun, compiled: bool) -> dict[str, Any]:
    """Compute digests of this process's results, from several runs and from concurrent threads."""
    sam = light_sam(run)
    heavy = heavy_encoder(run, sam, compiled)
    generator = generator_of(run, sam)
    pairs = photographs(run)

    def digest() -> dict[str, str]:
        pixels = torch.from_numpy(next(iter(pairs.values()))[0].copy()).to(run.device)[:1024, :1024]
        with torch.inference_mode():
            embedding = heavy([pixels] * 2)[0]
        synchronize(run)
        found = {"embedding": hashed_features(embedding)}
        for name, pair in pairs.items():
            records = generator.generate(*pair).records
            rows = [(one.segmentation.counts, one.bbox, one.predicted_iou, one.stability_score) for one in records]
            found[name] = f"{len(rows)} masks {hashed(repr(rows).encode())}"
        return found

    runs = [digest() for _ in range(1 if run.quick else RUNS)]
    beside: list[dict[str, str] | BaseException] = []

    def work() -> None:
        try:
            beside.append(digest())
        except BaseException as error:  # noqa: BLE001 - re-raised below
            beside.append(error)

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for one in beside:
        if isinstance(one, BaseException):
            raise one
    return {"runs": runs, "threads": beside}


NEIGHBORS = 8
"""Images per batch in `measure_neighbors`, as in `model.images_per_batch: 8`."""


def measure_neighbors(run: PartRun) -> dict[str, Any]:
    """Compare the embeddings of images in batches: with random neighbors, at random positions, and with padding only.

    `same` is True if no image's embedding depends on its position or its neighbors. The heavy encoder runs as in
    builds.
    """
    encoder = heavy_encoder(run, light_sam(run))
    batch = NEIGHBORS if run.on_cuda else 2
    (pixels, _), *_ = photographs(run).values()
    generator = torch.Generator().manual_seed(0)
    side = min(run.sizes.image_side, *pixels.shape[:2])
    images = []
    for _ in range(run.sizes.neighbors):
        y, x = (int(torch.randint(length - side + 1, (), generator=generator)) for length in pixels.shape[:2])
        images.append(torch.from_numpy(pixels[y : y + side, x : x + side].copy()))

    def embeddings(order: list[int]) -> dict[int, str]:
        found = {}
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            with torch.inference_mode():
                encoded = encoder([images[index].to(run.device) for index in part], batch)
            found |= {index: hashed_features(one) for index, one in zip(part, encoded, strict=True)}
        return found

    first = {index: digest for index in range(len(images)) for digest in embeddings([index]).values()}
    runs = [embeddings(torch.randperm(len(images), generator=generator).tolist()) for _ in range(2)]
    different = sorted(index for index in first if any(one[index] != first[index] for one in runs))
    return {"images": len(images), "batch": batch, "different": different, "same": not different}


def hashed_features(features: tuple[torch.Tensor, ...]) -> str:
    """Compute a short digest of an image's features."""
    return hashed(b"".join(one.float().cpu().numpy().tobytes() for one in features))


def hashed(data: bytes) -> str:
    """Return a short digest."""
    return hashlib.sha256(data).hexdigest()[:16]


def measure_agreement(run: PartRun, precision: str) -> dict[str, Any]:
    """Measure the share of the reference package's masks that our masks match by IoU in a precision, on the device.

    `precision` is "fp32", "bf16", or "bf16, decoder fp16". Both sides use MobileSAM's weights. The reference package
    lacks MobileSAM's encoder, so it uses ours. Otherwise, it runs with its own settings in float32.
    """
    if precision != "fp32" and not run.on_cuda:
        raise NotMeasuredError("bf16 needs a GPU")
    from segment_anything import SamAutomaticMaskGenerator

    from benchmarks.masks.generator_vs_reference import agreement
    from benchmarks.masks.reference import reference_sam
    from segmint.model.automatic.generator import MaskGenerator
    from segmint.model.automatic.settings import MaskSettings
    from segmint.model.sam.load import load_sam
    from segmint.model.sam.predictor import Predictor

    side = run.sizes.points_per_side
    ours = MaskGenerator(
        Predictor(light_sam(run, *precision.split(", decoder "))),
        MaskSettings.official(points_per_side=side, points_per_chunk=4 if run.quick else None),
    )
    theirs = SamAutomaticMaskGenerator(
        reference_sam(load_sam(weights(), run.device)), points_per_side=side, output_mode="coco_rle"
    )
    found: dict[str, Any] = {}
    for name, (image, _) in photographs(run).items():
        expected = [record["segmentation"] for record in theirs.generate(image)]
        records = ours.generate(image).records
        masks = [{"size": list(one.segmentation.size), "counts": one.segmentation.counts} for one in records]
        found[name] = {"reference": len(expected), **agreement(masks, expected)}
    total = sum(one["reference"] for one in found.values())
    matched = {
        least: sum(one["matched"][least] for one in found.values()) / total if total else None
        for least in ("0.99", "0.95")
    }
    return {"photographs": found, "masks": total, "share": matched}


def measure_reference_encoder(run: PartRun, name: str, dtype: str) -> dict[str, Any]:
    """Measure how much a ViT's embedding differs from the reference package's in float32, with equal weights."""
    from benchmarks.masks.reference import reference_vit
    from segmint.model.sam.image_encoder_vit import VitShape

    if name not in run.sizes.vits:
        raise NotMeasuredError(f"no {name} at these sizes")
    encoder = random_encoder(run, name).float()
    with torch.device("meta"):
        reference = reference_vit(VitShape(*run.sizes.vits[name]), run.sizes.image_side)
    reference.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    side = run.sizes.image_side
    images = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(run.device)
    expected = reference(images)
    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[dtype]
    with torch.inference_mode():
        found = encoder.to(kind)(images.to(kind)).float()
    return {
        "mean_difference": float((found - expected).abs().mean()),
        "largest_difference": float((found - expected).abs().max()),
        "std": float(expected.std()),
    }


def main() -> None:
    """Print this process's digests as the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--encoder", choices=["compiled", "eager"], default="compiled")
    arguments = parser.parse_args()
    run = PartRun(torch.device(arguments.device), QUICK if arguments.quick else FULL, Path(os.devnull), CHILD_S)
    print(json.dumps(digests(run, arguments.encoder == "compiled")))


if __name__ == "__main__":
    main()
