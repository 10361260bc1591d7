"""Cost of windows: what a restart of the actors takes, and what the driver spends per block.

    python benchmarks/building/windows.py [--starts 20 60 90] [--rows N N] [--actors 2 16] [--blocks N]
        [--minutes M] [--folder DIR] [--output FILE]

Stubs replace the two pixel stages.

1. For each start time, the first part runs two windows. Each segment actor sleeps as long as it would take to load a
   model. The part measures the pause between the last image of the first window and the first image of the second. From
   this pause, it derives the loss for windows of an hour.
2. The second part builds two datasets with different numbers of rows. It divides the differences in time, CPU time, and
   memory by the difference in rows, so that starting the processes doesn't count. It uses blocks of 16 rows with each
   number of segment actors, and blocks of 128 rows with the first number.
3. The third part runs one execution of `--blocks` blocks with one row each, and ends after `--minutes`.

Each figure is written as soon as it is measured. Figures that the result already contains from the same machine,
versions, and settings are kept. You can therefore resume an interrupted command, or measure only some figures at a
time.

Each segment actor takes about 400 MB, so 64 actors need a machine with more than 26 GB.

Stubs can't show how long a real start on GPUs takes, what blocks of real sizes cost, or how fast a driver is that
doesn't share its cores with the actors.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from itertools import pairwise
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.building.pace import EVENTS, IMAGE_S  # noqa: E402
from benchmarks.building.scale import OBJECT_STORE, measure, write_build  # noqa: E402
from benchmarks.building.stubs import START_S  # noqa: E402
from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, Figures  # noqa: E402

ACTORS = 2
WINDOW_S = 3600


def main() -> None:
    """Measure all parts, print them, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--starts", type=float, nargs="*", default=[20, 60, 90], help="seconds that an actor starts")
    parser.add_argument("--rows", type=int, nargs=2, default=[4_000, 20_000], help="rows of the two builds")
    parser.add_argument("--actors", type=int, nargs="*", default=[2, 16], help="segment actors of the two builds")
    parser.add_argument("--blocks", type=int, default=40_000, help="blocks of the long execution; 0: leave it out")
    parser.add_argument("--minutes", type=float, help="end the long execution after this time")
    parser.add_argument("--folder", type=Path, help="folder for catalogs and datasets during the run")
    parser.add_argument("--output", type=Path, default=RESULTS / "windows.json")
    arguments = parser.parse_args()
    machine = describe_machine(1, "fp32", packages=("ray", "pyarrow"))
    sizes = [*((16, actors) for actors in arguments.actors), *((128, actors) for actors in arguments.actors[:1])]
    figures = Figures(arguments.output, "windows", machine)
    with tempfile.TemporaryDirectory(prefix="segmint-windows-", dir=arguments.folder) as name:
        folder = Path(name)
        for start in arguments.starts:
            figures.add("restarts", {"start_s": start}, lambda start=start: measure_restart(folder / f"{start}", start))
        for rows, actors in sizes:
            settings = {"rows_per_block": rows, "segment_actors": actors, "rows": arguments.rows}
            own = folder / f"{rows}-{actors}"
            figures.add(
                "driver", settings, lambda own=own, of=(rows, actors): measure_driver(own, *of, *arguments.rows)
            )
        if arguments.blocks:
            settings = {"wanted": arguments.blocks, "most_minutes": arguments.minutes}
            figures.add("long", settings, lambda: measure_long(folder, arguments.blocks, arguments.minutes))


def measure_restart(folder: Path, start_s: float) -> dict[str, Any]:
    """Build two windows of 40 images with actors that take `start_s` seconds to start. Raises SystemExit on failure."""
    pools = {"address": "local", "segment": {"actors": ACTORS, "num_cpus": 1}, "prepare": {"actors": 1}}
    config = write_build(folder, 80, images_per_shard=10, window_shards=4, rows_per_block=2, resources=pools)
    events = folder / "events"
    script = ROOT / "benchmarks" / "building" / "stubbed_build.py"
    subprocess.run(
        [sys.executable, str(script), str(config), str(folder / "accounting.json")],
        cwd=ROOT,
        env={**os.environ, START_S: str(start_s), IMAGE_S: "0.5", EVENTS: str(events)},
        check=True,
        capture_output=True,
    )
    lines = sorted((float(time), kind) for time, kind in (line.split()[:2] for line in events.read_text().splitlines()))
    images = [time for time, kind in lines if kind == "image"]
    starts = sum(kind == "start" for _, kind in lines)
    if starts != 2 * ACTORS:
        raise SystemExit(f"{starts} actors started in 2 windows, instead of {ACTORS} in each")
    pause = max(later - earlier for earlier, later in pairwise(images))
    return {
        "windows": 2,
        "actor_starts": starts,
        "pause_s": round(pause, 1),
        "loss_at_an_hour": round(pause / (WINDOW_S + pause), 4),
    }


def measure_driver(folder: Path, rows_per_block: int, actors: int, few: int, many: int) -> dict[str, Any]:
    """Measure what each additional row and block costs the driver and the ledger, with builds of `few` and `many` rows.

    Each build is one window.
    """
    pools = {"segment": {"actors": actors, "num_cpus": 0.05}, "prepare": {"actors": 1}}
    pools |= {"address": "local", "object_store_memory": OBJECT_STORE}
    settings = {"rows_per_block": rows_per_block, "window_shards": many, "resources": pools}
    runs = [measure(folder / str(rows), rows, every=1.0, **settings) for rows in (few, many)]
    roles = [{role["role"]: role for role in run["roles"]} for run in runs]
    more_rows = many - few
    more_blocks = more_rows / rows_per_block

    def cpu_ms(role: str) -> float:
        few_ms, many_ms = (each[role]["cpu_ms_a_row"] * rows for each, rows in zip(roles, (few, many), strict=True))
        return float(many_ms - few_ms)

    most = [max(each["driver"]["most_mib"]["own"]) for each in roles]
    return {
        "blocks_per_s": round(more_blocks / (runs[1]["build"]["seconds"] - runs[0]["build"]["seconds"]), 1),
        "driver_cpu_ms_per_row": round(cpu_ms("driver") / more_rows, 4),
        "ledger_cpu_ms_per_row": round(cpu_ms("ledger actor") / more_rows, 4),
        "driver_cpu_ms_per_block": round(cpu_ms("driver") / more_blocks, 3),
        "driver_growth_kib_per_block": round(1024 * (most[1] - most[0]) / more_blocks, 2),
        "rows_per_s": [run["build"]["rows_per_s"] for run in runs],
        "segment_actor_most_mib": max(roles[1]["segment actor"]["most_mib"]["own"]),
    }


def measure_long(folder: Path, blocks: int, minutes: float | None) -> dict[str, Any]:
    """Measure the cost of one execution with many one-row blocks, or with as many as fit into `minutes`.

    The driver's growth is measured after a tenth of the time, when all processes have started.
    """
    pools = {"segment": {"actors": ACTORS, "num_cpus": 1}, "prepare": {"actors": 1}}
    pools |= {"address": "local", "object_store_memory": OBJECT_STORE}
    run = measure(folder / "long", blocks, 5.0, minutes, rows_per_block=1, window_shards=blocks, resources=pools)
    done = run["build"]["rows"]
    driver = next(role for role in run["roles"] if role["role"] == "driver")
    seconds, sizes = driver["curve"]["seconds"], driver["curve"]["own_mib"]
    early = next(place for place, second in enumerate(seconds) if second >= seconds[-1] / 10)
    growth = sizes[-1] - sizes[early]
    share = 1 - seconds[early] / seconds[-1]
    return {
        "blocks": done,
        "seconds": run["build"]["seconds"],
        "blocks_per_s": round(done / run["build"]["seconds"], 1),
        "driver_growth_mib": round(growth, 1),
        "driver_growth_kib_per_block": round(1024 * growth / (done * share), 2),
        "driver_most_mib": max(driver["most_mib"]["own"]),
        "driver_cpu_ms_per_block": driver["cpu_ms_a_row"],
    }


if __name__ == "__main__":
    main()
