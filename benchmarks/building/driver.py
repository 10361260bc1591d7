"""Cost of a build's driver per block, by the number of segment actors and by the number of blocks per second.

    python benchmarks/building/driver.py [--actors N ...] [--rates R ...] [--minutes M] [--rows-per-block N]
        [--plain] [--profile] [--folder DIR] [--output FILE]

Each build is real except for its two pixel stages, which are stubs (see `stubs.py`). Each segment actor sleeps instead
of computing, for as long as the number of blocks per second needs. One build per number of actors runs at each rate for
some minutes. Time in which the actors start, or in which the rate changes, doesn't count. With `--plain`, a pipeline
of Ray Data with as many operators and actors runs instead of the build (see `plain_pipeline.py`). With `--profile`,
py-spy finds which code the driver spends its time in (see `driver_profile.py`), instead of measuring the cost.

A block has one row and a shard has 32, because a build with default settings writes a shard after about as many blocks.
A result has the CPU time per block and the memory of the driver, of Ray's processes, and of the workers. All processes
share the machine's cores, so a rate may not be reached: the result has the rate that was. An actor takes 130 MiB.

Each figure is written as soon as it is measured. Figures that the result already contains from the same machine,
versions, and settings are kept.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.building.driver_profile import profile  # noqa: E402
from benchmarks.building.pace import EVENTS, PACE  # noqa: E402
from benchmarks.building.plain_pipeline import CPUS_PER_ACTOR  # noqa: E402
from benchmarks.building.scale import OBJECT_STORE, write_build  # noqa: E402
from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, Figures  # noqa: E402
from benchmarks.processes import Trace  # noqa: E402

ROWS_PER_SHARD = 32

LOOK_S = 10.0
"""Seconds between two samples of the processes."""

START_TIMEOUT_S = 1800.0

STARTING_S = 5.0
"""Seconds that an image takes until all actors have started, so that the first actors leave the cores to the others."""


def main() -> None:
    """Measure each number of actors at each rate, print the figures, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--actors", type=int, nargs="*", default=[16, 64, 128], help="segment actors")
    parser.add_argument("--rates", type=float, nargs="*", default=[10, 30, 100], help="blocks per second")
    parser.add_argument("--minutes", type=float, default=10.0, help="minutes at each rate")
    parser.add_argument("--rows-per-block", type=int, default=1)
    parser.add_argument("--plain", action="store_true", help="run Ray Data's operators without segmint's code")
    parser.add_argument("--profile", action="store_true", help="profile the driver with py-spy")
    parser.add_argument("--folder", type=Path, help="folder for catalogs and datasets during the run")
    parser.add_argument("--output", type=Path, default=RESULTS / "driver.json")
    arguments = parser.parse_args()
    figures = Figures(arguments.output, "driver", describe_machine(1, "fp32", packages=("ray", "pyarrow")))
    part = "plain" if arguments.plain else "driver"
    if arguments.profile:
        part += " profile"
    for actors in arguments.actors:
        rows = int(sum(arguments.rates) * (60 * arguments.minutes + 60) * arguments.rows_per_block)
        with (
            tempfile.TemporaryDirectory(
                prefix="segmint-driver-", dir=arguments.folder, ignore_cleanup_errors=True
            ) as name,
            running(Path(name), actors, rows, arguments.rows_per_block, arguments.plain) as build,
        ):
            for rate in arguments.rates:
                settings = {
                    "actors": actors,
                    "wanted_blocks_per_s": rate,
                    "rows_per_block": arguments.rows_per_block,
                    "minutes": arguments.minutes,
                }
                measure = build.profile if arguments.profile else build.measure
                figures.add(part, settings, partial(measure, rate, 60 * arguments.minutes))


@dataclass
class Build:
    """Running build whose segment actors read their pace from a file."""

    process: "subprocess.Popen[bytes]"
    folder: Path
    actors: int
    rows_per_block: int

    def started(self) -> int:
        """Return how many segment actors have started."""
        return self._count(" start ")

    def rows(self) -> int:
        """Return how many rows have left the segment actors."""
        return self._count(" image ")

    def measure(self, rate: float, seconds: float) -> dict[str, Any]:
        """Run at `rate` blocks per second for `seconds`, and return the cost of a block."""
        self._settle(rate)
        trace = Trace(self.process.pid)
        trace.look()
        before = {key: process.cpu_s for key, process in trace.processes.items()}
        rows, began = self.rows(), time.monotonic()
        while time.monotonic() - began < seconds:
            self._sleep(LOOK_S)
            trace.look()
        blocks = (self.rows() - rows) / self.rows_per_block
        return costs(trace, before, blocks, time.monotonic() - began)

    def profile(self, rate: float, seconds: float) -> dict[str, Any]:
        """Run at `rate` blocks per second for `seconds`, and return where the driver spends its time."""
        self._settle(rate)
        rows, began = self.rows(), time.monotonic()
        found = profile(self.process.pid, seconds)
        blocks = (self.rows() - rows) / self.rows_per_block
        return {"blocks_per_s": round(blocks / (time.monotonic() - began), 1), **found}

    def wait_until_started(self) -> None:
        """Wait until all segment actors have started."""
        deadline = time.monotonic() + START_TIMEOUT_S
        while self.started() < self.actors:
            if time.monotonic() > deadline:
                raise SystemExit(f"{self.started()} of {self.actors} actors have started in {START_TIMEOUT_S:g} s")
            self._sleep(1)

    def _settle(self, rate: float) -> None:
        block_s = self.actors / rate
        set_pace(self.folder, block_s / self.rows_per_block)
        self._sleep(3 * block_s + LOOK_S)  # blocks in flight finish at the rate before

    def _sleep(self, seconds: float) -> None:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return
        log = (self.folder / "log").read_text()[-4000:]
        raise SystemExit(f"the build ended with {self.process.returncode}, before the measurement did:\n{log}")

    def _count(self, kind: str) -> int:
        events = self.folder / "events"
        return events.read_text().count(kind) if events.exists() else 0


def costs(trace: Trace, before: Mapping[tuple[int, float], float], blocks: float, seconds: float) -> dict[str, Any]:
    """Return what `blocks` blocks cost in `seconds`. `before` has the processes' CPU seconds at the start."""
    if not blocks:
        raise SystemExit(f"no block left the segment actors in {seconds:.0f} s: lower the number of actors")
    cpu_ms: dict[str, float] = {}
    memory: dict[str, list[float]] = {}
    for key, process in trace.processes.items():
        spent = 1000 * (process.cpu_s - before.get(key, 0.0))
        cpu_ms[process.role] = cpu_ms.get(process.role, 0.0) + spent
        memory.setdefault(process.role, []).append(max(process.own_mib))
    driver = next(process for process in trace.processes.values() if process.role == "driver")
    return {
        "seconds": round(seconds, 1),
        "blocks": round(blocks),
        "blocks_per_s": round(blocks / seconds, 1),
        "driver_cpu_ms_per_block": round(cpu_ms["driver"] / blocks, 2),
        "driver_cpu_share": round(cpu_ms["driver"] / 1000 / seconds, 3),
        "cpu_ms_per_block": {role: round(spent / blocks, 2) for role, spent in sorted(cpu_ms.items())},
        "driver_rss_mib": {"start": driver.rss_mib[0], "end": driver.rss_mib[-1], "most": max(driver.rss_mib)},
        "driver_own_mib": {"start": driver.own_mib[0], "end": driver.own_mib[-1], "most": max(driver.own_mib)},
        "most_mib": {role: max(sizes) for role, sizes in sorted(memory.items())},
        "processes": {role: len(sizes) for role, sizes in sorted(memory.items())},
    }


@contextmanager
def running(folder: Path, actors: int, rows: int, rows_per_block: int, plain: bool = False) -> Iterator[Build]:
    """Start a build with `actors` segment actors, wait until they have started, and stop the build at the end.

    With `plain`, start the plain pipeline instead.
    """
    pools = {
        "address": "local",
        "object_store_memory": OBJECT_STORE,
        "segment": {"actors": actors, "num_cpus": CPUS_PER_ACTOR},
        "prepare": {"actors": 1},
        "writers": 2,
    }
    sizes = {"rows_per_block": rows_per_block, "images_per_shard": ROWS_PER_SHARD * rows_per_block}
    set_pace(folder, STARTING_S)
    if plain:
        arguments = [str(number) for number in (actors, rows, rows_per_block, OBJECT_STORE)]
    else:
        config = write_build(folder, rows, window_shards=rows, resources=pools, **sizes)
        arguments = [str(config), str(folder / "accounting.json")]
    program = "plain_pipeline.py" if plain else "stubbed_build.py"
    command = [sys.executable, str(ROOT / "benchmarks" / "building" / program), *arguments]
    variables = {**os.environ, PACE: str(folder / "pace"), EVENTS: str(folder / "events")}
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=variables, stdout=log, stderr=log)
    build = Build(process, folder, actors, rows_per_block)
    try:
        build.wait_until_started()
        yield build
    finally:
        process.kill()
        process.wait()


def set_pace(folder: Path, seconds: float) -> None:
    """Set how many seconds an image takes in a segment actor."""
    new = folder / "pace.new"
    new.write_text(f"{seconds}")
    new.rename(folder / "pace")


if __name__ == "__main__":
    main()
