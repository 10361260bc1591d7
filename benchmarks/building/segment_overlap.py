"""Idle time of a segment actor's device thread while it waits for the host, measured without a device.

    python benchmarks/building/segment_overlap.py [--images N] [--compute-ms MS] [--output FILE]

The `segment` actor is real, including its tables, calls, and queues, and Ray Data runs it as in a build. Only its three
stages are replaced, and sleep instead. Computing an image takes `--compute-ms`; decoding and finishing each take 80%
of that. The benchmark compares one thread per pool with the default number, and blocks of one row with blocks of
sixteen, using `HostThreads.calls` concurrent calls. The idle share covers the device's thread from the first image to
the last.

Sleeping doesn't show contention for Python's global lock, for which finishing competes with the device's thread. To
measure this, the benchmark also times short torch operations, each of which releases the lock like a kernel launch.
They run on their own, and while another thread finishes a photograph's real masks, both with Python's default switch
interval and with the actor's. The result is written to `benchmarks/results/` as JSON.
"""

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.data

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, in_process, read, spread, write_result  # noqa: E402
from segmint.infra.ray_session import ray_session  # noqa: E402
from segmint.infra.row_ledger import RowLedger  # noqa: E402
from segmint.operators.rows import (  # noqa: E402
    FUNNEL_STEPS,
    PREPARED,
    Row,
    to_table,
)
from segmint.operators.segment.overlap import HostThreads  # noqa: E402
from segmint.operators.segment.segment import SWITCH_INTERVAL_S, Segment  # noqa: E402
from segmint.pipeline.building.execution.stages import ActorPool  # noqa: E402

HOST_SHARE = 0.8
"""Time that decoding takes, and that finishing takes, as a share of the computing time."""

LAUNCHES = 3000
"""Number of short operations, which is the maximum number of kernels that the host launches per image."""


def main() -> None:
    """Measure idle shares and launches, print a line per case, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--compute-ms", type=float, default=50.0)
    parser.add_argument("--rounds", type=int, default=9, help="of the short operations")
    parser.add_argument("--output", type=Path, default=RESULTS / "segment_overlap.json")
    arguments = parser.parse_args()
    machine = describe_machine(1, "fp32")
    cases = []
    with ray_session("local", object_store_memory=200_000_000):
        for threads in (HostThreads(1, 1, 2), HostThreads.of("cuda")):
            for rows in (1, 16):
                cases.append(measure_idle(threads, rows, arguments.images, arguments.compute_ms / 1000))
                print(cases[-1], flush=True)
    launches = in_process(measure_launches, arguments.rounds)
    for name, seconds in launches.items():
        print(f"{LAUNCHES} operations {name}: {seconds} s")
    settings = {"images": arguments.images, "compute_ms": arguments.compute_ms, "host_share": HOST_SHARE}
    parts = {"settings": {**settings, "launches": LAUNCHES}, "cases": cases, "launches_s": launches}
    write_result(arguments.output, "segment_overlap", machine, parts)


def idle_share(seconds: Mapping[str, float]) -> float:
    """Compute the share of time in which the device's thread computed nothing, from the first item to the last."""
    whole = seconds["compute"] + seconds["idle"] + seconds["blocked"]
    return 1 - seconds["compute"] / whole if whole else 0.0


class SleepingSegment(Segment):
    """Segment actor whose stages only sleep."""

    def __init__(self, threads: HostThreads, compute_s: float, host_share: float, report: Callable[[float], None]):
        self._set_up("cpu", None, None, threads)
        self._compute_s = compute_s
        self._host_s = host_share * compute_s
        self._report = report

    def __call__(self, table: pa.Table) -> pa.Table:
        """Pass a block through the stages, and report the device's idle share so far."""
        done = super().__call__(table)
        self._report(idle_share(self._stages.seconds()))
        return done

    def _decode(self, row: Row) -> Any:
        self._spend("decode", self._host_s)
        return row

    def _find(self, images: Any) -> Any:
        for image in images:
            if image is not None:
                self._spend("compute", self._compute_s)
                yield image

    def _finish(self, row: Row, found: Any) -> Row:
        self._spend("finish", self._host_s)
        return {**row, "masks": [], "funnel": dict.fromkeys(FUNNEL_STEPS, 0)}

    def _spend(self, stage: str, seconds: float) -> None:
        time.sleep(seconds)


def measure_idle(
    threads: HostThreads,
    rows_per_block: int,
    images: int,
    compute_s: float,
    host_share: float = HOST_SHARE,
    segment: type[SleepingSegment] = SleepingSegment,
) -> dict[str, Any]:
    """Run images through one actor with Ray Data. Return the idle share of the device's thread."""
    rows = to_table([{"ordinal": ordinal} for ordinal in range(images)], PREPARED)
    pool = ActorPool(1, 1, num_cpus=1, num_gpus=0, calls_at_once=threads.calls(rows_per_block))
    ledger = RowLedger()  # here, its peaks are idle shares
    segmented = (
        ray.data.from_arrow(rows)
        .repartition(target_num_rows_per_block=rows_per_block)
        .materialize()  # so that the previous stage isn't part of the measurement
        .map_batches(
            segment,
            fn_constructor_args=(threads, compute_s, host_share, ledger.report_peak),
            **pool.options(rows_per_block),
        )
    )
    done = segmented.select_columns(["ordinal", "fault"]).take_all()
    if [row for row in done if row["fault"] is not None] or len(done) != images:
        raise SystemExit(f"{len(done)} rows came out of the actor: expected {images} without a fault")
    return {
        "decoders": threads.decoders,
        "finishers": threads.finishers,
        "rows_per_block": rows_per_block,
        "calls": pool.calls_at_once,
        "idle_share": round(ledger.peaks()[-1], 4),
    }


def measure_launches(rounds: int) -> dict[str, dict[str, float]]:
    """Time `LAUNCHES` operations: on their own and, for each switch interval, while another thread works."""
    import torch

    torch.set_num_threads(1)
    finish = real_finish()
    default = sys.getswitchinterval()
    found = {"alone": timed_launches(rounds)}
    for name, interval in (("with Python's interval", default), ("with the actor's interval", SWITCH_INTERVAL_S)):
        sys.setswitchinterval(interval)
        with repeated(finish):
            found[f"beside finishing, {name}"] = timed_launches(rounds)
    return found


def timed_launches(rounds: int) -> dict[str, float]:
    """Time several rounds of launches, and return the spread of their seconds."""
    import torch

    values = torch.ones(8)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        for _ in range(LAUNCHES):
            values.add_(1)
        seconds.append(time.perf_counter() - started)
    return spread(seconds, digits=4)


def real_finish() -> Callable[[], object]:
    """Prepare a function that finishes the masks of a photograph, enlarged to SA-1B's size."""
    import cv2

    from segmint.infra.assets import resolve
    from segmint.model.automatic.generator import MaskGenerator
    from segmint.model.automatic.settings import MaskSettings
    from segmint.model.sam.load import load_sam
    from segmint.model.sam.predictor import Predictor
    from segmint.operators.segment.segment import mask_columns

    settings = MaskSettings.sa1b(points_per_side=16, crop_n_layers=0)
    generator = MaskGenerator(Predictor(load_sam(resolve("mobile_sam"))), settings)
    found = generator.find(cv2.resize(read("coffee"), (2250, 1500), interpolation=cv2.INTER_CUBIC))
    return lambda: mask_columns(generator.finish(found))


@contextmanager
def repeated(function: Callable[[], object]) -> Iterator[None]:
    """Call the function repeatedly in another thread while the block runs."""
    end = threading.Event()

    def work() -> None:
        while not end.is_set():
            function()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        end.set()
        thread.join()


if __name__ == "__main__":
    main()
