"""Images per second from a dataset's shards: shuffled batches, `tarfile`, WebDataset, and MosaicML's streaming.

    python benchmarks/reading/side_by_side.py [--dataset DIR] [--images N] [--only PART ...] [--folder DIR]
        [--output FILE]

The dataset is made from the images of a small one, by default the demo's (see `large_dataset.py`). First, the benchmark
hashes each reader's images, pixels, and masks, and stops if two readers differ. Each pass then runs in a separate
process with one reader (see `sides.py`), on one core, with the files in the page cache. Rounds alternate which reader
goes first. `bytes` measures JPEG bytes and the rows of masks. `decoded` adds pixels, which all readers decode with the
same decoder. Ratios are of CPU seconds, which other work on the machine affects least.

Streaming pins an older numpy, so it runs in a separate environment, which is created in the folder. The result is
written to `benchmarks/results/reading.json`. `--only` keeps the other parts of that file.
"""

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.datasets.large_dataset import LargeDataset  # noqa: E402
from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, spread, write_result  # noqa: E402
from segmint.catalogs.dataset.reading.batches import EpochOrder  # noqa: E402
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset  # noqa: E402

PARTS = ("bytes", "decoded")
OTHERS = ("tarfile", "webdataset", "mixed", "streaming")
STREAMING = "mosaicml-streaming==0.13.0"
SIDES = ROOT / "benchmarks" / "reading" / "sides.py"
WINDOW = 32


def main() -> None:
    """Create the dataset, compare the readers, measure, print the figures, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=ROOT / "demo" / "dataset", help="a small local dataset")
    parser.add_argument("--images", type=int, default=2400)
    parser.add_argument("--masks", type=int, default=100, help="masks of each image")
    parser.add_argument("--images-per-shard", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="keep the other parts of the result")
    parser.add_argument("--others", nargs="+", choices=OTHERS, default=OTHERS)
    parser.add_argument("--folder", type=Path, help="folder for the dataset and the environment; it is kept")
    parser.add_argument("--output", type=Path, default=RESULTS / "reading.json")
    arguments = parser.parse_args()
    settings = {
        "images": arguments.images,
        "masks_per_image": arguments.masks,
        "images_per_shard": arguments.images_per_shard,
        "window": WINDOW,
        "streaming": STREAMING.partition("==")[2],
        "webdataset": version("webdataset"),
    }
    before = json.loads(arguments.output.read_text()) if arguments.output.exists() else {}
    kept = before if before.get("settings") == settings else {}
    folder = arguments.folder or Path(tempfile.mkdtemp(prefix="segmint-reading-"))
    try:
        parts = measure(arguments, folder)
    finally:
        if arguments.folder is None:
            shutil.rmtree(folder)
    machine = describe_machine(1, "none", packages=("webdataset", "simplejpeg", "pyarrow"))
    machine["load_average_before"] = parts.pop("load_before")
    kept = {name: kept[name] for name in PARTS if name in kept}
    write_result(arguments.output, "reading", machine, {"settings": settings, **kept, **parts})
    print(f"written to {arguments.output}")


def measure(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Create what the folder lacks, compare the readers, and time them."""
    pythons = dict.fromkeys(("segmint", "batches", *arguments.others), sys.executable)
    make_dataset(arguments, folder)
    if "streaming" in pythons:
        pythons["streaming"] = environment(folder)
    exact = {side: run(pythons[side], side, folder, "exact")["sha256"] for side in ("batches", *arguments.others)}
    print("read alike:", exact, flush=True)
    if len(set(exact.values())) != 1:
        raise SystemExit(f"the readers do not read the same: {exact}")
    load = describe_machine(1, "none")["load_average_before"]
    parts = {name: compare(pythons, folder, name, arguments.rounds) for name in arguments.only}
    return {"order": neighbors(folder), "exact": True, "load_before": load, **parts}


def make_dataset(arguments: argparse.Namespace, folder: Path) -> None:
    """Create the dataset unless the folder already contains it."""
    made = folder / "dataset"
    if made.exists():
        found = open_dataset(str(made))
        if (len(found), found.manifest.images_per_shard) != (arguments.images, arguments.images_per_shard):
            raise SystemExit(f"{made} is another dataset: delete it, or name another folder")
        return
    sizes = arguments.images, arguments.masks, arguments.images_per_shard
    dataset = LargeDataset(arguments.dataset, made, *sizes, with_images=True)
    dataset.begin()
    print("made", dataset.commit(0, dataset.shards), flush=True)


def environment(folder: Path) -> str:
    """Return the Python of an environment with streaming. Creates the environment and the dataset's copy if missing."""
    python = folder / "environment" / "bin" / "python"
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", str(folder / "environment")], check=True)
        packages = [STREAMING, f"simplejpeg=={version('simplejpeg')}"]
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *packages], check=True)
    if not (folder / "mds").exists():
        subprocess.run([str(python), str(SIDES), "streaming", str(folder), "convert"], check=True)
    return str(python)


def run(python: str, side: str, folder: Path, mode: str) -> dict[str, Any]:
    """Run one pass in a separate process."""
    done = subprocess.run([python, str(SIDES), side, str(folder), mode], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def compare(pythons: dict[str, str], folder: Path, mode: str, rounds: int) -> dict[str, Any]:
    """Measure each reader's images per second, and the ratios of ours to the others, with their spread."""
    passes: dict[str, list[dict[str, Any]]] = {side: [] for side in pythons}
    for number in range(rounds):
        for side in list(pythons)[:: 1 if number % 2 else -1]:
            passes[side].append(run(pythons[side], side, folder, mode))
            print(mode, side, passes[side][-1], flush=True)
    if len({(each["images"], each["sum"]) for found in passes.values() for each in found}) != 1:
        raise SystemExit("the readers do not read the same number of bytes")
    ours = [each["cpu_s"] for each in passes["segmint"]]
    return {
        side: {
            "images_per_s": spread([each["images"] / each["seconds"] for each in found], 1),
            "images_per_cpu_s": spread([each["images"] / each["cpu_s"] for each in found], 1),
            "peak_mib": max(each["peak_mib"] for each in found),
            "ours_to_it": spread([each["cpu_s"] / own for each, own in zip(found, ours, strict=True)]),
        }
        for side, found in passes.items()
    }


def neighbors(folder: Path) -> dict[str, Any]:
    """Measure which share of neighbors in the order come from different shards, over three epochs."""
    commits = list(open_dataset(str(folder / "dataset")).commits())
    images = np.array([commit.counts["images"] for commit in commits], np.int64)
    shares = []
    for epoch in range(3):
        order = EpochOrder(images, 1, epoch, WINDOW)
        shards: Sequence[int] = [shard for shard, _ in order.at(range(len(order)))]
        shares.append(statistics.fmean(one != other for one, other in pairwise(shards)))
    return {"shards": len(images), "different_shards": spread(shares, 4)}


if __name__ == "__main__":
    main()
