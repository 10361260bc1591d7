"""Check that Ray starts here as in a build, and that its actors can use the GPU; print what was found as JSON.

    python benchmarks/gpu/ray_check.py [--device cuda]

The exit code is 1 if Ray sees no GPU although torch does.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

PACKAGES = ("ray", "pyarrow", "duckdb", "c2pa-python", "pydantic", "s3fs", "facenet-pytorch", "onnxruntime", "protobuf")


def main() -> None:
    """Start Ray, and let an actor compute."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args().device
    began = time.monotonic()
    found: dict[str, Any] = {"free_gib": {path: round(shutil.disk_usage(path).free / 2**30, 1) for path in folders()}}
    import segmint.pipeline.build  # noqa: F401 - with everything that a build imports
    from segmint.infra.ray_session import ray_session

    found["imports_s"] = round(time.monotonic() - began, 2)
    found["versions"] = {name: version(name) for name in PACKAGES}
    began = time.monotonic()
    with ray_session("local") as cluster:
        found["start_s"] = round(time.monotonic() - began, 2)
        found |= {"logical_cpus": cluster.cpus, "cores": cluster.cores, "gpus": cluster.gpus}
        if device == "cuda" and not cluster.gpus:
            print(json.dumps(found))
            sys.exit("Ray sees no GPU")
        began = time.monotonic()
        found["actor"] = computed(device)
        found["actor_s"] = round(time.monotonic() - began, 2)
    print(json.dumps(found))


def folders() -> list[str]:
    """List the folders in which Ray and the builds store data."""
    return [path for path in ("/dev/shm", tempfile.gettempdir(), str(Path.home())) if Path(path).is_dir()]


def computed(device: str) -> dict[str, Any]:
    """Multiply two matrices in an actor, and return the device's name and the product's error."""
    import ray

    actor = ray.remote(num_gpus=int(device == "cuda"))(Computer).remote()
    return dict(ray.get(actor.compute.remote(device)))


class Computer:
    """Actor that computes on the device."""

    def compute(self, device: str) -> dict[str, Any]:
        """Return where torch computed, and whether the product was right."""
        import torch

        a = torch.eye(64, device=device)
        right = bool(torch.equal((a @ a).cpu(), torch.eye(64)))
        name = torch.cuda.get_device_name() if device == "cuda" else device
        return {"device": name, "right": right, "visible": os.environ.get("CUDA_VISIBLE_DEVICES")}


if __name__ == "__main__":
    main()
