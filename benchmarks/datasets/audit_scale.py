"""Time and memory of auditing a large dataset, and of only computing its statistics.

    python benchmarks/datasets/audit_scale.py --dataset DIR [--images N] [--masks N] [--images-per-shard N]
        [--scratch DIR]

The large dataset is made from the rows of a small one (see `large_dataset.py`). It is complete, except that it contains
no images. First a tenth of the shards is committed and measured, and then all of them. At each size, the benchmark
measures the statistics on their own, and `audit_dataset` as `segmint audit` calls it, including the Ray that it starts.
If the audit has findings, the benchmark fails. An image contains repeated masks, so there are many more near-duplicates
to compare than in a real dataset.

Each measurement runs in a separate process and includes the memory of its child processes. The result is written to
`benchmarks/results/audit_scale.json`.
"""

import argparse
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import MIB, RESULTS, in_process, peak_mib, write_result  # noqa: E402
from benchmarks.processes import Trace  # noqa: E402

WORKER = "audit worker"
POINTS = 40
"""Number of points on the curve of memory over time in the result."""


def main() -> None:
    """Create the dataset, measure it at two sizes, print the figures, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=ROOT / "demo" / "dataset", help="a small local dataset")
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--masks", type=int, default=100, help="masks of each image")
    parser.add_argument("--images-per-shard", type=int, default=500)
    parser.add_argument("--sample", type=int, default=1_000, help="images in which statistics look for near-duplicates")
    parser.add_argument("--memory-limit", default="2GB", help="DuckDB's memory for the statistics alone")
    parser.add_argument("--scratch", type=Path, help="folder for the dataset and DuckDB's spill files; deleted")
    parser.add_argument("--output", type=Path, default=RESULTS / "audit_scale.json", help="file of the result")
    arguments = parser.parse_args()
    if min(arguments.images, arguments.masks, arguments.images_per_shard) < 1:
        parser.error("--images, --masks and --images-per-shard: expected 1 or more")
    machine = describe_machine(os.cpu_count() or 1, "none", packages=("ray", "duckdb", "pyarrow", "pycocotools"))
    scratch = Path(tempfile.mkdtemp(prefix="segmint-scale-", dir=arguments.scratch))
    try:
        made, runs = make_and_measure(arguments, scratch)
    finally:
        shutil.rmtree(scratch)
    settings = {
        "images": arguments.images,
        "masks_per_image": arguments.masks,
        "images_per_shard": arguments.images_per_shard,
        "sample": arguments.sample,
        "memory_limit": arguments.memory_limit,
    }
    write_result(arguments.output, "audit_scale", machine, {"settings": settings, "made": made, "runs": runs})
    print(f"written to {arguments.output}")


def make_and_measure(arguments: argparse.Namespace, scratch: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Create and measure the dataset. Return the cost of creating it, and the measurements at each size."""
    from benchmarks.datasets.large_dataset import LargeDataset

    sizes = arguments.images, arguments.masks, arguments.images_per_shard
    dataset = LargeDataset(arguments.dataset, scratch / "dataset", *sizes)
    dataset.begin()
    done, seconds, written, runs = 0, 0.0, 0, []
    for end in sorted({max(1, dataset.shards // 10), dataset.shards}):
        made = dataset.commit(done, end)
        seconds, written = seconds + made.seconds, written + made.bytes
        print(f"made {end - done} shards in {made.seconds:.0f} s, {made.bytes / MIB:,.0f} MiB", flush=True)
        done = end
        statistics = in_process(
            measure_statistics, dataset.folder, arguments.sample, arguments.memory_limit, scratch / "spill"
        )
        print(f"statistics: {summary_line(statistics)}", flush=True)
        audit = in_process(measure_audit, dataset.folder)
        print(f"audit: {summary_line(audit)}; workers at most {audit['worker_mib']:,} MiB", flush=True)
        runs.append({"shards": end, "statistics": statistics, "audit": audit})
    masks = arguments.images * arguments.masks
    return {"masks": masks, "shards": dataset.shards, "bytes": written, "seconds": round(seconds, 1)}, runs


def measure_statistics(dataset: Path, sample: int, memory_limit: str, scratch: Path) -> dict[str, Any]:
    """Measure the seconds and memory that a dataset's statistics take."""
    from segmint.infra.storage.location import Location
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.quality.statistics.masks import open_tables
    from segmint.pipeline.quality.statistics.statistics import compute_statistics

    scratch.mkdir(exist_ok=True)
    with watched_memory() as mib:
        before = mib[-1]
        started = time.perf_counter()
        with open_tables(Location(Storage(), str(dataset)), memory_limit, scratch) as tables:
            found = compute_statistics(tables, sample)
        seconds = time.perf_counter() - started
    twins = found.near_duplicates
    return {
        **measured(found.images, found.masks, seconds, before, mib),
        "near_duplicates": {"images_sampled": twins.images_sampled, "masks": twins.masks, "pairs": twins.pairs},
    }


def measure_audit(dataset: Path, ray_from: int | None = None) -> dict[str, Any]:
    """Measure the seconds, CPU time, and memory of a dataset's full audit. Raises SystemExit if it has findings.

    `ray_from` lowers the number of masks at which the audit starts Ray, for small datasets.
    """
    from segmint.infra.storage.location import Location
    from segmint.infra.storage.storage import Storage
    from segmint.pipeline.quality.audit.audit import AuditOptions, audit_dataset
    from segmint.pipeline.quality.audit.integrity import RAY_FROM_MASKS
    from segmint.pipeline.quality.audit.result import result_lines

    options = AuditOptions(ray_from=RAY_FROM_MASKS if ray_from is None else ray_from)
    trace = Trace(os.getpid())
    with watched_memory() as mib, repeatedly(trace.look, 1.0):
        before = mib[-1]
        started = time.perf_counter()
        report = audit_dataset(Location(Storage(), str(dataset)), options)
        seconds = time.perf_counter() - started
    if report.findings.total:
        raise SystemExit(
            "\n".join(["the audit has findings in a dataset that should be intact:", *result_lines(report)])
        )
    workers = [each for each in trace.processes.values() if each.role == WORKER]
    checked = report.checked
    cpu = {"driver": sum(os.times()[:2]), "workers": sum(each.cpu_s for each in workers)}
    return {
        **measured(checked.images, checked.masks, seconds, before, mib),
        "bytes": checked.bytes,
        "masks_decoded": checked.masks_decoded,
        "workers": len(workers),
        "worker_mib": round(max((size for each in workers for size in each.rss_mib), default=0)),
        "worker_mib_over_time": [thinned([round(size) for size in each.rss_mib]) for each in workers],
        "cpu_us_a_mask": {name: round(spent / checked.masks * 1e6, 2) for name, spent in cpu.items()},
    }


def measured(images: int, masks: int, seconds: float, before: int, mib: Sequence[int]) -> dict[str, Any]:
    """Return the figures that the statistics and the audit share. `mib` is this process's memory over time."""
    return {
        "images": images,
        "masks": masks,
        "seconds": round(seconds, 2),
        "seconds_per_million_masks": round(seconds / masks * 1e6, 3),
        "mib_before": before,
        "peak_mib": max(peak_mib(), *mib),  # the kernel's maximum may lag a few pages behind
        "mib_over_time": thinned(mib),
    }


def thinned(values: Sequence[int]) -> list[int]:
    """Choose about `POINTS` evenly spaced values."""
    return list(values[:: max(1, len(values) // POINTS)])


@contextmanager
def watched_memory(every_s: float = 0.1) -> Iterator[list[int]]:
    """Yield a list that grows in the background by this process's memory in MiB, every `every_s` seconds."""
    found = [resident_mib()]
    with repeatedly(lambda: found.append(resident_mib()), every_s):
        yield found


@contextmanager
def repeatedly(look: Callable[[], object], every_s: float) -> Iterator[None]:
    """Call `look` every `every_s` seconds in a thread."""
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(every_s):
            look()

    thread = threading.Thread(target=watch, name="look")
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def resident_mib() -> int:
    """Return the resident MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") // MIB


def summary_line(run: dict[str, Any]) -> str:
    """Format a measurement as one line."""
    return (
        f"{run['masks']:,} masks of {run['images']:,} images in {run['seconds']:.1f} s, "
        f"{run['seconds_per_million_masks']:.2f} s a million, from {run['mib_before']:,} to {run['peak_mib']:,} MiB"
    )


def statistics_row(run: dict[str, Any]) -> str:
    """Format a run's statistics as a row of the table in docs/report.md."""
    return f"{_row(run['statistics'])} |"


def audit_row(run: dict[str, Any]) -> str:
    """Format a run's audit as a row of the table in docs/audit.md."""
    return f"{_row(run['audit'])} | {run['audit']['worker_mib']:,} |"


def _row(found: dict[str, Any]) -> str:
    numbers = f"{found['masks']:,} | {found['images']:,} | {found['seconds']:.1f}"
    return f"| {numbers} | {found['seconds_per_million_masks']:.2f} | {found['mib_before']:,} | {found['peak_mib']:,}"


if __name__ == "__main__":
    main()
