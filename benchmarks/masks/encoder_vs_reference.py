"""Comparison of our ViT image encoders with the reference package's, on the same random weights and image.

    python benchmarks/masks/encoder_vs_reference.py [--models b l h] [--runs N] [--threads N]

Both sides run alternately in one process, in float32 on a CPU. Each side first does one warm-up run, and the largest
difference between the embeddings of these two runs is recorded. Weights don't change an encoder's cost. Then each side
runs once in a separate process to measure its peak memory. Wall and CPU seconds are both recorded, because CPU seconds
are more meaningful on a busy machine. The result is written to `benchmarks/results/` as JSON, with a description of the
machine.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, in_process, peak_mib, spread, write_result  # noqa: E402

SIDE = 1024


def main() -> None:
    """Measure each model, print a line for it, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=["b", "l", "h"], default=["b"])
    parser.add_argument("--runs", type=int, default=3, help="timed runs of each side")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads, for both sides")
    parser.add_argument("--output", type=Path, default=RESULTS / "encoder_vs_reference.json", help="the result's file")
    arguments = parser.parse_args()

    machine = describe_machine(arguments.threads, "fp32", packages=("segment-anything",))
    rows = []
    for model in arguments.models:
        row = compare(model, arguments.runs, arguments.threads)
        rows.append(row)
        print(
            f"ViT-{model.upper()}: {row['ours']['wall_s']['median']:.2f} s against "
            f"{row['reference']['wall_s']['median']:.2f} s, CPU {row['ours']['cpu_s']['median']:.2f} s against "
            f"{row['reference']['cpu_s']['median']:.2f} s, {row['speedup_cpu']:.2f} times as fast; peak "
            f"{row['ours']['peak_mib']} MiB against {row['reference']['peak_mib']} MiB; largest difference "
            f"{row['largest_difference']:.1e}",
            flush=True,
        )
    settings = {"precision": "fp32", "side": SIDE, "runs": arguments.runs}
    write_result(arguments.output, "encoder_vs_reference", machine, {"settings": settings, "models": rows})
    print(f"written to {arguments.output}")


def compare(model: str, runs: int, threads: int) -> dict[str, Any]:
    """Measure one model. Return the times and differences, and each side's peak memory."""
    import torch

    from benchmarks.masks.reference import reference_vit
    from segmint.model.sam.load import VIT_SHAPES

    torch.set_num_threads(threads)
    ours, reference = our_encoder(model), reference_vit(VIT_SHAPES[f"vit_{model}"], SIDE)
    # Both sides share the memory of the reference's random weights. Position tables are made nonzero.
    torch.manual_seed(0)
    state = reference.state_dict()
    for name in state:
        if "rel_pos" in name or name == "pos_embed":
            torch.nn.init.normal_(state[name], std=0.1)
    ours.load_state_dict(state, strict=True, assign=True)
    image = torch.randn(1, 3, SIDE, SIDE)
    with torch.inference_mode():
        expected = reference(image)
        difference = float((ours(image) - expected).abs().max())
        times: dict[str, list[tuple[float, float]]] = {"ours": [], "reference": []}
        for _ in range(runs):
            for side, encoder in (("ours", ours), ("reference", reference)):
                wall, cpu = time.perf_counter(), time.process_time()
                encoder(image)
                times[side].append((time.perf_counter() - wall, time.process_time() - cpu))
    del ours, reference, state
    sides = {
        side: {
            "wall_s": spread([wall for wall, _ in seconds]),
            "cpu_s": spread([cpu for _, cpu in seconds]),
            "peak_mib": in_process(peak_memory, side, model, threads),
        }
        for side, seconds in times.items()
    }
    return {
        "model": f"vit_{model}",
        "largest_difference": difference,
        "embedding_std": float(expected.std()),
        **sides,
        "speedup_wall": sides["reference"]["wall_s"]["median"] / sides["ours"]["wall_s"]["median"],
        "speedup_cpu": sides["reference"]["cpu_s"]["median"] / sides["ours"]["cpu_s"]["median"],
    }


def our_encoder(model: str) -> Any:
    """Create our encoder in evaluation mode, without weights."""
    import torch

    from segmint.model.sam.image_encoder_vit import ImageEncoderViT
    from segmint.model.sam.load import VIT_SHAPES

    with torch.device("meta"):
        return ImageEncoderViT(VIT_SHAPES[f"vit_{model}"], SIDE).eval()


def peak_memory(side: str, model: str, threads: int) -> int:
    """Return the peak MiB of a process in which one side encodes an image, including its weights and libraries."""
    import torch

    from benchmarks.masks.reference import reference_vit
    from segmint.model.sam.load import VIT_SHAPES

    torch.set_num_threads(threads)
    encoder = reference_vit(VIT_SHAPES[f"vit_{model}"], SIDE) if side == "reference" else our_encoder(model)
    if side == "ours":
        encoder = encoder.to_empty(device="cpu")
        for parameter in encoder.parameters():
            torch.nn.init.normal_(parameter, std=0.02)
    with torch.inference_mode():
        encoder(torch.randn(1, 3, SIDE, SIDE))
    return peak_mib()


if __name__ == "__main__":
    main()
