"""SAM on one GPU, compared with the reference package, without network.

    make gpu-bundle                      with a package index: weights, photographs, reference into bundle/
    python benchmarks/gpu.py             on the GPU machine, in a copy of the repository with bundle/
    python benchmarks/gpu.py --device cpu --quick    the same code at reduced sizes

Needs torch, numpy and Pillow. Without torchvision the reference package is left out. Without OpenCV, which only
clean-up calls, the `official` profile still runs, as it has no clean-up, and the `sa1b` profile is left out.
pycocotools is not needed: the reference package returns plain masks. A part that cannot run is recorded with the
reason, and the others go on.

The ViT-H encoder runs on random weights, which do not change its cost; masks are made with MobileSAM, whose prompt
encoder and mask decoder are ViT-H's. Fractions are relative to the rate of a matrix product, measured in the same run.
The result goes to the folder `$OUT`, or to `benchmarks/results/`, as JSON.
"""

import argparse
import importlib.util
import json
import os
import platform
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
if importlib.util.find_spec("segment_anything") is None:
    sys.path.append(str(ROOT / "bundle"))

import torch  # noqa: E402

from benchmarks.gpu_encoder import measure_attention, measure_encoder, measure_peak  # noqa: E402
from benchmarks.gpu_masks import measure_masks, measure_sa1b, measure_upscaling  # noqa: E402
from benchmarks.gpu_run import FULL, QUICK, Run, attempt  # noqa: E402

PARTS: dict[str, Callable[[Run], dict[str, Any]]] = {
    "peak": measure_peak,
    "attention": measure_attention,
    "encoder": measure_encoder,
    "upscaling": measure_upscaling,
    "masks": measure_masks,
    "sa1b": measure_sa1b,
}


def main() -> None:
    """Run each part, print a line for it and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="small sizes, to check that everything runs")
    parser.add_argument("--parts", nargs="+", choices=list(PARTS), default=list(PARTS))
    parser.add_argument("--compile-mode", help="of torch.compile; max-autotune-no-cudagraphs, with --quick default")
    parser.add_argument("--no-compile", action="store_true")
    parser.add_argument("--output", type=Path, help="file of the result")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here: use --device cpu --quick to try the code")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False

    mode = arguments.compile_mode or ("default" if arguments.quick else "max-autotune-no-cudagraphs")
    run = Run(device, QUICK if arguments.quick else FULL, None if arguments.no_compile else mode)
    result: dict[str, Any] = {
        "benchmark": "gpu",
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(device),
        "sizes": asdict(run.sizes),
    }
    folder = Path(os.environ["OUT"]) if os.environ.get("OUT") else ROOT / "benchmarks" / "results"
    output = arguments.output or folder / f"gpu-{device.type}{'-quick' if arguments.quick else ''}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    for part in arguments.parts:
        result[part] = attempt(PARTS[part], run)
        print(part, json.dumps({key: value for key, value in result[part].items() if key != "profile"}), flush=True)
        output.write_text(json.dumps(result, indent=2) + "\n")
    print(f"written to {output}")


def machine(device: torch.device) -> dict[str, Any]:
    """The machine, and the optional packages that are missing."""
    optional: Sequence[str] = ("torchvision", "cv2", "pycocotools", "segment_anything", "triton")
    described: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or "cpu",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "missing": [name for name in optional if importlib.util.find_spec(name) is None],
    }
    return described


if __name__ == "__main__":
    warnings.simplefilter("default", RuntimeWarning)
    main()
