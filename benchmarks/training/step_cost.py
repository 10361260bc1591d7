"""CPU time and memory of a training step, each kind in a separate process.

    python benchmarks/training/step_cost.py [--steps N] [--output FILE]

The benchmark measures steps of the preset `finetune`, with eleven iterations per mask, on four images with two masks
each, with one thread. Encoders other than MobileSAM's have random weights, which don't affect time and memory. The
result is written to `benchmarks/results/step_cost.json`.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, peak_mib, write_result  # noqa: E402


@dataclass(frozen=True)
class StepKind:
    """Kind of training step, with its number of `images` and `masks`."""

    weights: str
    encoder: str
    images: int
    masks: int
    recompute: bool = False


KINDS = (
    StepKind("mobile_sam", "frozen", 1, 1),
    StepKind("mobile_sam", "frozen", 4, 4),
    StepKind("mobile_sam", "frozen", 4, 8),
    StepKind("mobile_sam", "trained", 1, 1),
    StepKind("vit_b", "trained", 1, 1, recompute=True),
)


def measure(kind: StepKind, steps: int, folder: Path) -> dict[str, float]:
    """Run the steps in this process. Return the CPU seconds per step after the first step, and the peak memory."""
    from segmint.infra.assets import resolve
    from segmint.infra.device import Compute, apply_compute
    from segmint.infra.storage.location import Location
    from segmint.infra.storage.storage import Storage
    from segmint.model.sam.load import build_sam, load_sam
    from segmint.pipeline.engine.train.images import DrawSequence, SkippedImages, find_images, open_datasets
    from segmint.pipeline.engine.train.reading import EmbeddingCache, FrozenEncoder, TrainingImageReader
    from segmint.pipeline.engine.train.settings import load_train_config, with_preset
    from segmint.pipeline.engine.train.trainer import Trainer
    from tests.support.trainable import write_trainable

    dataset = Location(Storage(), str(folder / "dataset"))
    write_trainable(dataset, 2)
    batch = f"{{images: {kind.images}, masks: {kind.masks}, masks_per_image: 2, recompute: {kind.recompute}}}"
    keys = f"datasets: [{{uri: {dataset}}}]\noutput: {folder}/run\nencoder: {kind.encoder}\nbatch: {batch}\n"
    (folder / "train.yaml").write_text(keys)
    config = with_preset(load_train_config(str(folder / "train.yaml")), "mobile_sam")
    compute = Compute("cpu", "fp32", 1)
    apply_compute(compute)
    skipped = SkippedImages()
    images, _ = find_images(config, open_datasets(config, Storage()), None, skipped)
    sam = load_sam(resolve("mobile_sam")) if kind.weights == "mobile_sam" else build_sam(kind.weights)
    cache = EmbeddingCache(Location(Storage(), str(folder / "cache")), "w", 1e9)
    frozen = FrozenEncoder(sam, images, cache, compute) if kind.encoder == "frozen" else None
    reader = TrainingImageReader(images, config.losses.resolution, config.max_mask_area_ratio, skipped)
    draws = DrawSequence(images, images.ids > 0, [1.0], config.batch, seed=0)
    trainer = Trainer(sam, config, images, draws, reader, frozen, compute)
    warm = 1 if frozen is None else -(-len(images) // kind.images)  # after these steps, all embeddings are cached
    for step in range(warm):
        trainer.step(step + 1)
    begun = time.process_time()
    for step in range(warm, warm + steps):
        trainer.step(step + 1)
    seconds = (time.process_time() - begun) / steps
    trainer.close()
    reader.close()
    return {"cpu_s_a_step": round(seconds, 2), "peak_mib": peak_mib()}


def main() -> None:
    """Measure each kind in a new process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--only", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=RESULTS / "step_cost.json")
    options = parser.parse_args()
    if options.only is not None:
        with TemporaryDirectory() as folder:
            print(json.dumps(measure(KINDS[options.only], options.steps, Path(folder))))
        return
    rows = []
    for number, kind in enumerate(KINDS):
        command = [sys.executable, __file__, "--only", str(number), "--steps", str(options.steps)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append({**asdict(kind), **json.loads(done.stdout.splitlines()[-1])})
        print(rows[-1], flush=True)
    write_result(options.output, "step_cost", describe_machine(1, "fp32"), {"steps": options.steps, "rows": rows})


if __name__ == "__main__":
    main()
