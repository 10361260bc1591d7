"""Recall, confusions, time, and memory of the near-duplicate search, by how images were changed.

    python benchmarks/datasets/duplicates.py [--photos FOLDER] [--only PART ...] [--rows N] [--crowd N] [--output FILE]
    python benchmarks/datasets/duplicates.py --sizes N ... [--output FILE]

First, the benchmark searches for near-duplicates among photographs and changed versions of them; see
`duplicates_photographs.py`. Then it compares the search for near hashes with brute force over 100,000 hashes. Finally,
it plants near-duplicates among `--rows` rows, among `--crowd` rows with near-equal hashes, and among as many similar
frames of a video, with their thumbnails in memory. Everything runs in one process on as many cores as numpy uses.

The result is written to `benchmarks/results/duplicates.json`. `--only` measures some parts and keeps the other parts of
that file. The file names the machine of the last timed run. With `--sizes`, the benchmark only measures the memory of
the search among several numbers of rows, and writes it to `benchmarks/results/duplicates_memory.json`. Sizes that this
file already contains from the same machine are kept.
"""

import argparse
import functools
import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.datasets.duplicates_photographs import TILE, measure_photographs  # noqa: E402
from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, Figures, in_process, peak_mib, write_result  # noqa: E402
from segmint.operators.similar.clusters import DISTANCE, NONE, ImageRows, find_copies  # noqa: E402
from segmint.operators.similar.near import (  # noqa: E402
    KEPT,
    MIRROR,
    SIMILAR,
    SIMILAR_MIDDLE,
    VIEWS,
    mapped_zeros,
    near_pairs,
)

_CHUNK = 1 << 20  # rows to create at a time
PARTS = ("photographs", "rows", "crowds")


def main() -> None:
    """Measure all or some parts, print the figures, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, help="photographs besides scikit-image's and scikit-learn's")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="keep the other parts of the result")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--crowd", type=int, default=100_000, help="rows with near-equal hashes")
    parser.add_argument("--sizes", type=int, nargs="+", help="numbers of rows: measure only memory and time of these")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    packages = ("numpy", "pillow", "simplejpeg", "scipy")
    machine = describe_machine(os.cpu_count() or 1, "none", packages=packages)
    if arguments.sizes:
        figures = Figures(arguments.output or RESULTS / "duplicates_memory.json", "duplicates_memory", machine)
        for size in arguments.sizes:
            figures.add("sizes", {"rows": size}, functools.partial(in_process, measure_rows, size))
        return
    output = arguments.output or RESULTS / "duplicates.json"
    settings = {
        "distance": DISTANCE,
        "correlation": SIMILAR,
        "correlation_middle": SIMILAR_MIDDLE,
        "views": list(KEPT),
        "tile": TILE,
    }
    wanted = set(arguments.only)
    kept = kept_result(output, settings) if wanted < set(PARTS) else {}
    parts: dict[str, Any] = {"settings": kept.get("settings", {}) | settings}
    if "photographs" in wanted:
        parts |= measure_photographs(arguments.photos)
        for name, group in parts["groups"].items():
            found = {change: each["found"] for change, each in group["changes"].items()}
            print(name, found, group["different"], flush=True)
        print("set by the first half:", parts["set_by_first_half"], flush=True)
    if "rows" in wanted:
        parts["settings"]["rows"] = arguments.rows
        parts["all_with_all"] = timed(compare_with_brute_force, 100_000)
        parts["rows"] = timed(measure_rows, arguments.rows)
    if "crowds" in wanted:
        parts["settings"]["crowd"] = arguments.crowd
        parts["crowds"] = {
            "copies": timed(measure_crowd, arguments.crowd, True),
            "different": timed(measure_crowd, arguments.crowd, False),
            "frames": timed(measure_frames, arguments.crowd),
        }
    if wanted == {"photographs"}:  # nothing is timed
        output.write_text(json.dumps(kept | parts, indent=2) + "\n")
    else:
        kept = {name: kept[name] for name in kept.keys() - {"benchmark", "date", "machine"}}
        write_result(output, "duplicates", machine, {**kept, **parts})


def timed(function: Callable[..., dict[str, Any]], *arguments: Any) -> dict[str, Any]:
    """Run a function in a new process. Print and return its result, with the machine's load before the run."""
    load = round(os.getloadavg()[0], 2)
    found = {**in_process(function, *arguments), "load_before": load}
    print(function.__name__, *arguments, found, flush=True)
    return found


def kept_result(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return the recorded result. Raises SystemExit if there is none, or if it was measured with different settings."""
    if not path.exists():
        raise SystemExit(f"{path} does not exist: there is no result to keep parts of, run without --only")
    result: dict[str, Any] = json.loads(path.read_text())
    if other := [name for name, value in settings.items() if result["settings"].get(name) != value]:
        raise SystemExit(f"{path} was measured with another {', '.join(other)}: run without --only")
    return result


def flipped(hashes: NDArray[np.uint64], bits: int, random: np.random.Generator) -> NDArray[np.uint64]:
    """Flip up to `bits` bits of each hash."""
    for _ in range(bits):
        bit = np.uint64(1) << random.integers(0, 64, hashes.shape, np.uint8).astype(np.uint64)
        hashes = hashes ^ np.where(random.random(hashes.shape, np.float32) < 0.6, bit, np.uint64(0))
    return hashes


def compare_with_brute_force(count: int) -> dict[str, Any]:
    """Compare the near-hash search with brute force, after planting a tenth of the hashes.

    Returns the time of the search, and whether brute force agrees.
    """
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, count, np.uint64)
    planted = count // 10
    hashes[:planted] = flipped(hashes[random.integers(planted, count, planted)], 5, random)
    hashes = np.unique(hashes)
    started = time.perf_counter()
    found = np.concatenate([np.stack(pair, axis=1) for pair in near_pairs(hashes, DISTANCE)])
    seconds = time.perf_counter() - started
    expected = []
    started = time.perf_counter()
    for place in range(len(hashes) - 1):
        others = np.flatnonzero(np.bitwise_count(hashes[place] ^ hashes[place + 1 :]) <= DISTANCE) + place + 1
        expected.append(np.stack([np.full(len(others), place), others], axis=1))
    by_all = np.concatenate(expected)
    return {
        "hashes": len(hashes),
        "pairs": len(by_all),
        "found": len(found),
        "agree": bool(np.array_equal(np.unique(found, axis=0), by_all)),
        "seconds": round(seconds, 2),
        "seconds_all_with_all": round(time.perf_counter() - started, 1),
    }


def measure_rows(count: int) -> dict[str, Any]:
    """Measure time and memory for a catalog with 5% near-duplicate rows and 2% exact duplicates.

    As in photographs, the hashes of a row's crops differ in some bits from the hash of the full frame, so many hashes
    are near.
    """
    random = np.random.default_rng(0)
    hashes = mapped_zeros((count, VIEWS), np.uint64)  # as `segmint catalog curate` reads them
    for low in range(0, count, _CHUNK):
        chunk = hashes[low : low + _CHUNK]
        chunk[:, 0] = random.integers(0, 2**64, len(chunk), np.uint64)
        for view in range(1, MIRROR):
            chunk[:, view] = flipped(chunk[:, view - 1], 7, random)
        chunk[:, MIRROR] = random.integers(0, 2**64, len(chunk), np.uint64)
    of = np.arange(count)
    chosen = random.permutation(count)
    near, same, rest = chosen[: count // 20], chosen[count // 20 : count // 20 + count // 50], chosen[count // 10 :]
    for copies in (near, same):
        of[copies] = random.choice(rest, len(copies))
        hashes[copies] = hashes[of[copies]]
    hashes[near] = flipped(hashes[near], 2, random)
    sources = mapped_zeros((count, 2), np.uint64)
    for low in range(0, count, _CHUNK):
        sources[low : low + _CHUNK] = random.integers(1, 2**63, sources[low : low + _CHUNK].shape)
    sources[same] = sources[of[same]]
    thumbnails = random.integers(0, 256, (4096, 64, 64), np.uint8)
    pixels = np.where(of == np.arange(count), 2, 1)
    rows = ImageRows(sources, hashes, pixels, np.ones(count, bool), np.zeros(count, bool))
    del chosen, rest
    gc.collect()
    with PrivateMemory() as memory:
        started = time.perf_counter()
        found = find_copies(rows, lambda numbers: thumbnails[of[numbers] % len(thumbnails)])
        seconds = time.perf_counter() - started
    right = found.kept[of != np.arange(count)] == of[of != np.arange(count)]
    return {
        "rows": count,
        "hashes": count * VIEWS,
        "planted": {"near": len(near), "same": len(same)},
        "found": int(right.sum()),
        "others": int((found.kept != NONE).sum() - right.sum()),
        "exact": int(found.exact.sum()),
        "seconds": round(seconds, 1),
        "input_mib": round(memory.before_mib),
        "peak_mib": round(memory.peak_mib),
        "resident_peak_mib": peak_mib(),  # includes mapped pages of temporary files, which the kernel may drop
    }


class PrivateMemory:
    """Sampler for the peak of this process's private memory (RssAnon), 50 times per second."""

    def __enter__(self) -> "PrivateMemory":
        self.before_mib = self.peak_mib = self._now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._done.wait(0.02):
            self.peak_mib = max(self.peak_mib, self._now())

    @staticmethod
    def _now() -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024, 1)


def measure_crowd(count: int, same: bool) -> dict[str, Any]:
    """Measure time and memory if all rows have near-equal hashes: of one image, or each of a different image."""
    random = np.random.default_rng(0)
    hashes = flipped(np.repeat(random.integers(0, 2**64, (1, VIEWS), np.uint64), count, axis=0), 3, random)
    coarse = random.integers(0, 256, (1 if same else count, 16, 16), np.uint8)

    return _measured(hashes, coarse)


def measure_frames(count: int) -> dict[str, Any]:
    """Measure time and memory if hashes vary in 16 bits per view and every hundredth row shows the same image."""
    random = np.random.default_rng(0)
    hashes = random.integers(0, 2**64, (1, VIEWS), np.uint64) ^ random.integers(0, 2**16, (count, VIEWS), np.uint64)
    return _measured(hashes, random.integers(0, 256, (100, 16, 16), np.uint8))


def _measured(hashes: NDArray[np.uint64], coarse: NDArray[np.uint8]) -> dict[str, Any]:
    """Measure time and memory of the search among rows with these hashes. The rows use the images in turn."""

    def thumbnails(numbers: NDArray[np.int64]) -> NDArray[np.uint8]:
        return coarse[numbers % len(coarse)].repeat(4, axis=1).repeat(4, axis=2)

    count = len(hashes)
    rows = ImageRows(
        np.zeros((count, 2), np.uint64), hashes, np.ones(count, np.int64), np.ones(count, bool), np.zeros(count, bool)
    )
    started = time.perf_counter()
    found = find_copies(rows, thumbnails)
    seconds = round(time.perf_counter() - started, 1)
    return {"rows": count, "copies": int((found.kept != NONE).sum()), "seconds": seconds, "peak_mib": peak_mib()}


if __name__ == "__main__":
    main()
