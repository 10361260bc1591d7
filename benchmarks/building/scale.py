"""Cost of a build apart from its images: a million rows in a real build whose two pixel stages are stubs.

    python benchmarks/building/scale.py [--rows N] [--rows-per-block N] [--minutes M] [--every S]
        [--folder DIR] [--output FILE]

Catalog, windows, blocks, actors, ledger, shards, commits, and accounting are real (see `stubs.py`). Every fiftieth row
is rejected for its license. Every few seconds, the memory of the driver, Ray's processes, and every worker is sampled.
The result contains the wall and CPU milliseconds per row, and how much the memory of each kind of process grew over the
second half of the run.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, write_result  # noqa: E402
from benchmarks.processes import Trace, TracedProcess  # noqa: E402
from segmint.catalogs.dataset.commits import (  # noqa: E402
    CommitLog,
    sum_listing,
)
from segmint.infra.storage.location import Location  # noqa: E402
from segmint.infra.storage.storage import Storage  # noqa: E402

OBJECT_STORE = 500_000_000
REFUSED_EVERY = 50
POINTS = 80
"""Number of points per curve in the result."""

_GROUP_ROWS = 50_000


def main() -> None:
    """Build, print the cost, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--rows-per-block", type=int, default=128, help="rows in a block between stages")
    parser.add_argument("--minutes", type=float, help="end the build after this time, with the shards written so far")
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two samples of the processes")
    parser.add_argument("--folder", type=Path, help="folder for catalog and dataset during the run")
    parser.add_argument("--output", type=Path, default=RESULTS / "scale.json")
    arguments = parser.parse_args()
    machine = describe_machine(1, "fp32", packages=("ray", "pyarrow"))
    with tempfile.TemporaryDirectory(prefix="segmint-scale-", dir=arguments.folder, ignore_cleanup_errors=True) as name:
        rows_per_block = {"rows_per_block": arguments.rows_per_block}
        parts = measure(Path(name), arguments.rows, arguments.every, arguments.minutes, **rows_per_block)
    write_result(arguments.output, "scale", machine, parts)
    rows = parts["build"]
    print(f"{rows['rows_per_s']} rows/s, {rows['cpu_ms_a_row']} ms of CPU a row; written to {arguments.output}")


def measure(folder: Path, rows: int, every: float, minutes: float | None = None, **settings: Any) -> dict[str, Any]:
    """Build a dataset of `rows` rows in `folder`. Raises SystemExit if a row is lost or the build fails.

    After `minutes`, the build is stopped, and the shards that it has written so far count. `settings` are keys of the
    configuration.
    """
    config = write_build(folder, rows, **settings)
    answer = folder / "accounting.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "building" / "stubbed_build.py"), str(config), str(answer)]
    with (folder / "log").open("wb") as log:
        build = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    trace, began, ended = Trace(build.pid), time.monotonic(), False
    try:
        while build.poll() is None and not ended:
            trace.look()
            time.sleep(every)
            ended = minutes is not None and time.monotonic() - began > 60 * minutes
    finally:
        build.kill()
        build.wait()
    seconds = time.monotonic() - began
    if build.returncode and not ended:
        raise SystemExit(f"the build ended with {build.returncode}:\n{(folder / 'log').read_text()[-4000:]}")
    dataset = Location(Storage(), str(folder / "dataset"))
    sums = sum_listing(dataset, CommitLog(dataset).latest_commits())
    done, written, refused = (sums.counts[name] for name in ("rows", "images", "rejected"))
    if (written, refused) != (done - done // REFUSED_EVERY, done // REFUSED_EVERY) or (done != rows and not ended):
        raise SystemExit(f"{rows} rows went in, but {sums} came out")
    processes = list(trace.processes.values())
    return {
        "settings": {"rows": rows, "seconds_between_looks": every, "object_store_memory": OBJECT_STORE, **settings},
        "build": {
            "rows": done,
            "seconds": round(seconds, 1),
            "rows_per_s": round(done / seconds, 1),
            "ms_a_row": round(1000 * seconds / done, 3),
            "cpu_ms_a_row": round(1000 * sum(process.cpu_s for process in processes) / done, 3),
            "shards": sums.shards,
            "masks": sums.counts["masks"],
        },
        "roles": [summary(role, members, done) for role, members in by_role(processes).items()],
    }


def write_build(folder: Path, rows: int, **settings: Any) -> Path:
    """Write a catalog of `rows` rows and a build's configuration. Return the configuration's path."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    schema = pa.schema([(name, pa.string()) for name in ("uri", "license", "image_id")])
    with pq.ParquetWriter(folder / "catalog.parquet", schema) as writer:
        for start in range(0, rows, _GROUP_ROWS):
            numbers = range(start, min(start + _GROUP_ROWS, rows))
            licenses = ["CC-BY-NC-4.0" if (n + 1) % REFUSED_EVERY == 0 else "CC0-1.0" for n in numbers]
            columns = [[f"photos/{n:09}.jpg" for n in numbers], licenses, [f"image-{n:09}" for n in numbers]]
            writer.write_table(pa.table(columns, schema=schema))
    none = {"detector": "none"}
    tree = {
        "name": "scale",
        "catalog": str(folder / "catalog.parquet"),
        "output": str(folder / "dataset"),
        "license": {"allow": ["CC0-1.0"]},
        "deidentify": {"faces": none, "plates": none},
        "masks": {"crop_n_layers": 0},
        "model": {"device": "cpu", "threads": 1},
        "resources": {"address": "local", "object_store_memory": OBJECT_STORE},
        **settings,
    }
    (folder / "build.yaml").write_text(json.dumps(tree))  # JSON is YAML
    return folder / "build.yaml"


def by_role(processes: Sequence[TracedProcess]) -> dict[str, list[TracedProcess]]:
    """Group processes by role. The driver and Ray's processes come first."""
    found: dict[str, list[TracedProcess]] = {}
    for process in processes:
        if process.seconds:
            found.setdefault(process.role, []).append(process)
    return found


def summary(role: str, members: Sequence[TracedProcess], rows: int) -> dict[str, Any]:
    """Summarize a role: the total cost of its processes, and the growth of the largest process over time."""
    curve = largest(members)
    middle = (curve[0][0] + curve[-1][0]) / 2
    halves = [[row for row in curve if (row[0] >= middle) is late] for late in (False, True)]
    return {
        "role": role,
        "processes": len(members),
        "cpu_ms_a_row": round(1000 * sum(process.cpu_s for process in members) / rows, 4),
        "rise_mib": {"rss": rise(members, "rss_mib"), "own": rise(members, "own_mib")},
        "most_mib": {
            name: [max((row[place] for row in half), default=0.0) for half in halves]
            for name, place in {"rss": 1, "own": 2}.items()
        },
        "curve": thinned(curve),
    }


def largest(members: Sequence[TracedProcess]) -> list[tuple[float, float, float]]:
    """Return the seconds, RSS, and private memory of the role's largest process at each sample."""
    at: dict[float, tuple[float, float]] = {}
    for process in members:
        for seconds, rss, own in zip(process.seconds, process.rss_mib, process.own_mib, strict=True):
            before = at.get(seconds, (0.0, 0.0))
            at[seconds] = max(before[0], rss), max(before[1], own)
    return [(seconds, *sizes) for seconds, sizes in sorted(at.items())]


def rise(members: Sequence[TracedProcess], which: str) -> float:
    """Return the largest growth of a process over the second half of its life, in MiB."""
    grown = [0.0]
    for process in members:
        sizes: list[float] = getattr(process, which)
        late = sizes[len(sizes) // 2 :]
        if len(late) > 2:
            grown.append(max(late[-2:]) - late[0])
    return round(max(grown), 1)


def thinned(curve: Sequence[tuple[float, float, float]]) -> dict[str, list[float]]:
    """Thin a curve out to `POINTS` samples, including the last one."""
    step = max(1, len(curve) // POINTS)
    kept = [*curve[::step], *([curve[-1]] if (len(curve) - 1) % step else [])]
    return {name: [row[place] for row in kept] for place, name in enumerate(("seconds", "rss_mib", "own_mib"))}


if __name__ == "__main__":
    main()
