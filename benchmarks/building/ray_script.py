"""A plain Ray Data script and segmint's steps (docs/ray.md) on the same photographs, with a deadly one and a kill.

    python benchmarks/building/ray_script.py [--images N] [--points-per-side N] [--deaths N] [--sides SIDE ...]

The sides are the script with `segment_anything`, the same script with `segmint.compat`, one with `segmint.ray.Masks`,
and `segmint build`. All use MobileSAM on one thread with the same grid of points. The photographs are parts of
scikit-image's, and one is a panorama of 13,300 × 13,300 pixels. Each process may use 1.5 GiB of memory that it doesn't
share. As the kernel does in a container with this limit, the benchmark kills a process that uses more (SIGKILL); the
panorama takes more on every side.

Each side is started twice, as a person would do it: the first run's driver is killed (`kill -9`) with all its processes
once a third of the photographs are done, and the same command is then repeated. Once the second run's processes have
exceeded the limit `--deaths` times in a row without a new photograph, it is ended, because it would go on for ever. The
result contains the number of
photographs with masks, without any row, and with more than one row, whether the output or the log names the panorama,
the minutes, and the CPU seconds of all processes of both runs. It is written to `benchmarks/results/` as JSON.
"""

import argparse
import json
import math
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, write_result  # noqa: E402
from benchmarks.processes import MIB  # noqa: E402

PLAIN = """
import io
import sys

import numpy as np
import ray
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator, sam_model_registry


class Segment:
    def __init__(self):
        sam = sam_model_registry["mobile_sam"]("mobile_sam")
        self.generator = SamAutomaticMaskGenerator(sam, points_per_side=POINTS, output_mode="coco_rle")

    def __call__(self, row):
        pixels = np.asarray(Image.open(io.BytesIO(row["bytes"])).convert("RGB"))
        return {"path": row["path"], "masks": self.generator.generate(pixels)}


photographs = ray.data.read_binary_files(sys.argv[1], include_paths=True)
photographs.map(Segment, concurrency=1).write_parquet(sys.argv[2])
"""

IMPORT = "from segment_anything import SamAutomaticMaskGenerator, sam_model_registry\n"

# The reference package lacks the encoder of MobileSAM.
REGISTERED = f"""{IMPORT}from benchmarks.masks.reference import reference_mobile_sam

sam_model_registry["mobile_sam"] = reference_mobile_sam
"""

MAPPED = """
import sys

import ray
import segmint.ray

photographs = ray.data.read_binary_files(sys.argv[1], include_paths=True)
masks = photographs.map_batches(
    segmint.ray.Masks,
    fn_constructor_kwargs={
        "weights": "mobile_sam", "settings": "official", "device": "cpu", "points_per_side": POINTS, "crop_n_layers": 0
    },
    batch_format="pyarrow",
    batch_size=1,
    concurrency=1,
)
masks.write_parquet(sys.argv[2])
"""

SCRIPTS = {
    "segment_anything": PLAIN.replace(IMPORT, REGISTERED),
    "segmint.compat": PLAIN.replace("from segment_anything import", "from segmint.compat import"),
    "segmint.ray.Masks": MAPPED,
}
BUILD = "segmint build"
SIDES = (*SCRIPTS, BUILD)

SIZE = (320, 240)
PANORAMA = (13_300, 13_300)
LIMIT_MIB = 1536
LOOK_S = 0.1


def main() -> None:
    """Run all sides, print a line for each, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--points-per-side", type=int, default=4)
    parser.add_argument("--deaths", type=int, default=3, help="deaths in a row without a new photograph that end a run")
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=SIDES)
    parser.add_argument("--output", type=Path, default=RESULTS / "ray_script.json")
    arguments = parser.parse_args()
    machine = describe_machine(1, "fp32", packages=("ray", "segment-anything"))
    rows = []
    with tempfile.TemporaryDirectory(prefix="segmint-script-") as name:
        folder = Path(name)
        names = write_photographs(folder / "photos", arguments.images)
        for side in arguments.sides:
            rows.append(measure(folder, side, names, arguments.points_per_side, arguments.deaths))
            print(rows[-1], flush=True)
    settings = {
        "images": arguments.images,
        "size": list(SIZE),
        "panorama": list(PANORAMA),
        "limit_mib": LIMIT_MIB,
        "points_per_side": arguments.points_per_side,
        "most_deaths": arguments.deaths,
    }
    write_result(arguments.output, "ray_script", machine, {"settings": settings, "sides": rows})


def write_photographs(folder: Path, images: int) -> list[str]:
    """Write different parts of scikit-image's photographs and, at three fifths, the panorama. Return their names."""
    from PIL import Image
    from skimage import data

    folder.mkdir()
    sources = [Image.fromarray(getattr(data, name)()) for name in ("astronaut", "coffee", "chelsea", "rocket")]
    names = [f"{index:03}.jpg" for index in range(images)]
    for index, name in enumerate(names):
        source = sources[index % len(sources)]
        left, top = (index * 5) % (source.width - 200), (index * 3) % (source.height - 150)
        photograph = source.crop((left, top, left + 200, top + 150)).resize(SIZE)
        if name == panorama_of(names):
            photograph = source.resize(PANORAMA)
        photograph.save(folder / name, quality=90)
    return names


def panorama_of(names: list[str]) -> str:
    """Return the name of the panorama."""
    return names[len(names) * 3 // 5]


def measure(folder: Path, side: str, names: list[str], points: int, deaths: int) -> dict[str, Any]:
    """Run a side twice: until a third of the photographs are done, then until its end or too many deaths."""
    output = folder / side
    command = build_command(folder, output, names, points)
    if side != BUILD:
        script = folder / "script.py"
        script.write_text(SCRIPTS[side].replace("POINTS", str(points)))
        command = [sys.executable, str(script), str(folder / "photos"), str(output)]
    count = count_build if side == BUILD else count_rows
    log = folder / f"{side}.log"
    first = Run(command, log)
    first.until(lambda: count(output).total(), len(names) // 3, deaths)
    first.end()
    second = Run(command, log)
    second.until(lambda: count(output).total(), math.inf, deaths)
    ended = second.end()
    done = count(output)
    if not done:
        raise SystemExit(f"{side} has no output:\n{log.read_text(errors='replace')[-4000:]}")
    named = set(rejected(output)) if side == BUILD else failed(output)
    deadly = panorama_of(names)
    return {
        "side": side,
        "ended_by_itself": ended,
        "done": len(done),
        "lost": len(set(names) - set(done) - named),
        "twice": sum(rows > 1 for rows in done.values()),
        "named": deadly in named or deadly in log.read_text(errors="replace"),
        "deaths": [first.deaths, second.deaths],
        "minutes": round((first.seconds + second.seconds) / 60, 2),
        "cpu_s": round(first.cpu_s + second.cpu_s, 1),
    }


@dataclass
class Run:
    """One start of a side: its process with all descendants, and what they have used."""

    command: list[str]
    log: Path
    deaths: int = 0  # processes that exceeded the limit
    seconds: float = 0.0
    _cpu_s: dict[tuple[int, float], float] = field(default_factory=dict)  # of each process, at the last look
    _killed: set[tuple[int, float]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self._began = time.monotonic()
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}
        with self.log.open("ab") as stream:
            self._root = psutil.Popen(
                self.command, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL, env=environment, cwd=ROOT
            )

    @property
    def cpu_s(self) -> float:
        """CPU seconds of all processes."""
        return sum(self._cpu_s.values())

    def until(self, count: Callable[[], int], rows: float, deaths: int) -> None:
        """Return once the process has ended, `count` returns `rows`, or `deaths` processes died without a new row."""
        counted, seen, in_vain_since = time.monotonic(), count(), self.deaths
        while self._root.poll() is None and self.deaths - in_vain_since < deaths and seen < rows:
            self._look()
            if time.monotonic() - counted > 1:
                counted, before = time.monotonic(), seen
                seen = count()
                if seen > before:
                    in_vain_since = self.deaths
            time.sleep(LOOK_S)

    def end(self) -> bool:
        """Kill what is left of the run. Return whether its process had ended by itself, without an error."""
        code = self._root.poll()
        living = self._look() if code is None else []
        for process in living:  # the driver is the first
            with suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(living, timeout=30)
        self.seconds = time.monotonic() - self._began
        return code == 0

    def _look(self) -> list[psutil.Process]:
        """Kill processes above the limit, and note the CPU seconds of all. Return the living ones."""
        living: list[psutil.Process] = [self._root]
        with suppress(psutil.Error):
            living += self._root.children(recursive=True)
        for process in living:
            with suppress(psutil.Error):
                key = process.pid, process.create_time()
                times, memory = process.cpu_times(), process.memory_info()
                self._cpu_s[key] = times.user + times.system
                if memory.rss - memory.shared > LIMIT_MIB * MIB and key not in self._killed:
                    os.kill(process.pid, signal.SIGKILL)
                    self._killed.add(key)
                    self.deaths += 1
        return living


def build_command(folder: Path, output: Path, names: list[str], points: int) -> list[str]:
    """Write a catalog and a configuration, and return the command of a build."""
    lines = [
        json.dumps({"uri": str(folder / "photos" / name), "image_id": name, "license": "CC0-1.0"}) for name in names
    ]
    (folder / "catalog.jsonl").write_text("\n".join(lines) + "\n")
    settings = {
        "name": "benchmark",
        "catalog": str(folder / "catalog.jsonl"),
        "output": str(output),
        "images_per_shard": 4,
        "rows_per_block": 1,
        "license": {"allow": ["CC0-1.0"]},
        "masks": {"profile": "official", "crop_n_layers": 0, "points_per_side": points},
        "model": {"weights": "mobile_sam", "device": "cpu", "precision": "fp32", "threads": 1},
        "resources": {"segment": {"actors": 1}},
    }
    (folder / "build.yaml").write_text(json.dumps(settings))  # JSON is YAML
    return [sys.executable, "-m", "segmint", "build", str(folder / "build.yaml")]


def count_rows(output: Path) -> Counter[str]:
    """Count a script's rows with masks by photograph."""
    return Counter(name for name, error in script_rows(output) if not error)


def failed(output: Path) -> set[str]:
    """Return the photographs whose rows in a script's output contain an error."""
    return {name for name, error in script_rows(output) if error}


def script_rows(output: Path) -> list[tuple[str, str | None]]:
    """Return the photograph and the error of each row that a script wrote."""
    rows = []
    for path in sorted(output.glob("*.parquet")):
        with suppress(OSError, ValueError):  # the file isn't complete, for example after a kill
            columns = pq.ParquetFile(path).schema_arrow.names
            for row in pq.read_table(path, columns=[name for name in ("path", "error") if name in columns]).to_pylist():
                rows.append((Path(row["path"]).name, row.get("error")))
    return rows


def count_build(output: Path) -> Counter[str]:
    """Count a dataset's images by photograph."""
    return Counter(_ids(output / "images"))


def rejected(output: Path) -> list[str]:
    """Return the photographs among a dataset's rejected rows."""
    return _ids(output / "rejects")


def _ids(folder: Path) -> list[str]:
    found: list[str] = []
    for path in sorted(folder.glob("*.parquet")) if folder.is_dir() else ():
        with suppress(OSError, ValueError):
            found += pq.read_table(path, columns=["image_id"]).column("image_id").to_pylist()
    return found


if __name__ == "__main__":
    main()
