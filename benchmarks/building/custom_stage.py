"""CPU time that a custom stage adds per row, compared with a plain Ray Data actor that returns its blocks unchanged.

    python benchmarks/building/custom_stage.py [--rows N] [--output FILE]

Each row has 100 masks and an image of 20 kB, because copying larger ones would hide the difference, in blocks of 16.
All actors run the same flow in the same Ray, in turns, for few and for many rows; the difference divided by the rows
leaves out what starting costs. `unchanged` returns its rows, and `valued` also sets a value. Their rows are recorded in
the ledger, whose CPU time counts. `per_call` measures the same calls in this process, without Ray and the ledger. The
benchmark fails if a row or a value differs.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

import numpy as np  # noqa: E402
import pyarrow as pa  # noqa: E402

from benchmarks.building.stubs import MANY_MASKS, RELEASE_BYTES, masks, released  # noqa: E402
from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, write_result  # noqa: E402
from benchmarks.processes import Trace  # noqa: E402
from segmint.operators.custom.contract import StageRow  # noqa: E402
from segmint.operators.custom.load import load_stage  # noqa: E402
from segmint.operators.custom.stage import CustomStage  # noqa: E402
from segmint.operators.rows import to_table  # noqa: E402
from segmint.operators.schemas import DESCRIBED  # noqa: E402

BLOCK_ROWS, IMAGE_BYTES, MASKS, REPEATS = 16, 20_000, 100, 2


class Unchanged:
    """Stage that returns its rows."""

    name = "unchanged"
    version = "1"

    def __call__(self, rows: Sequence[StageRow]) -> Sequence[StageRow]:
        """Return the rows."""
        return rows


class Valued:
    """Stage that sets a value."""

    name = "valued"
    fields = {"width": "int32"}  # noqa: RUF012
    version = "1"

    def __call__(self, rows: Sequence[StageRow]) -> Sequence[StageRow]:
        """Return the rows with their width."""
        return [row.with_values(width=row["width"]) for row in rows]


class PlainActor:
    """Actor that returns its blocks."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the block."""
        return table


class CustomActor(CustomStage):
    """`CustomStage` by another name, for the trace."""


def block() -> pa.Table:
    """Return a block of described rows."""
    os.environ[MANY_MASKS], os.environ[RELEASE_BYTES] = str(MASKS), str(IMAGE_BYTES)
    rows = [
        {"ordinal": n, "id": n + 1, "image_id": str(n), "width": 64 + n, "height": 48, "release": released(n)}
        for n in range(BLOCK_ROWS)
    ]
    return to_table([{**row, "masks": masks()} for row in rows], DESCRIBED)


def per_call(table: pa.Table, name: str) -> float:
    """Return the CPU ms per row of calls in this process."""
    stage = CustomStage(load_stage(f"benchmarks.building.custom_stage.{name}", {}))
    done = stage(table)
    assert done.select(table.column_names).equals(table)
    if name == "Valued":
        assert done.column("stage_valued").to_pylist() == [{"width": 64 + n} for n in range(BLOCK_ROWS)]
    times = []
    for _ in range(20):
        began = time.process_time()
        stage(table)
        times.append(time.process_time() - began)
    return round(1000 * statistics.median(times) / BLOCK_ROWS, 4)


def flow_cpu_s(reference: Any, blocks: int, kind: str) -> dict[str, float]:
    """Run a flow of one actor; return the CPU seconds of the actor, of the ledger, and of all processes."""
    import ray

    from segmint.infra.row_ledger import RowLedger

    trace = Trace(os.getpid())
    actor, arguments = PlainActor, ()
    ledger = None
    if kind != "plain":
        ledger = RowLedger()
        actor = CustomActor
        spec = load_stage(f"benchmarks.building.custom_stage.{kind.capitalize()}", {})
        arguments = (spec, None, 600.0, ledger.of_stage(1))
    dataset = ray.data.from_arrow_refs([reference] * blocks).map_batches(
        actor,
        fn_constructor_args=arguments,
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0.5,
        batch_size=None,
        batch_format="pyarrow",
        udf_modifying_row_count=False,
    )
    trace.look()
    before = {key: each.cpu_s for key, each in trace.processes.items()}
    rows = 0
    for number, bundle in enumerate(dataset.iter_internal_ref_bundles(), start=1):
        rows += sum(entry.metadata.num_rows for entry in bundle.blocks)
        if number >= blocks - 1 or number % 50 == 0:
            trace.look()
    assert rows == blocks * BLOCK_ROWS
    spent = {key: each.cpu_s - before.get(key, 0.0) for key, each in trace.processes.items()}
    of_role = lambda role: sum(s for key, s in spent.items() if trace.processes[key].role == role)  # noqa: E731
    return {"actor": of_role("measured actor"), "ledger": of_role("ledger actor"), "all": sum(spent.values())}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4800)
    parser.add_argument("--output", type=Path, default=RESULTS / "custom_stage.json")
    arguments = parser.parse_args()
    table = block()
    parts: dict[str, Any] = {
        "settings": {"rows": arguments.rows, "block_rows": BLOCK_ROWS, "image_bytes": IMAGE_BYTES, "masks": MASKS},
        "per_call_cpu_ms_per_row": {name.lower(): per_call(table, name) for name in ("Unchanged", "Valued")},
    }
    print(parts["per_call_cpu_ms_per_row"], flush=True)
    import ray

    from segmint.infra.ray_session import ray_session

    few, many = arguments.rows // BLOCK_ROWS // 8, arguments.rows // BLOCK_ROWS
    with ray_session("local", object_store_memory=1_000_000_000):
        ray.data.DataContext.get_current().enable_progress_bars = False
        reference = ray.put(table)
        runs: dict[str, list[dict[str, float]]] = {}
        for _ in range(REPEATS):
            for kind in ("plain", "unchanged", "valued"):
                short, long = (flow_cpu_s(reference, blocks, kind) for blocks in (few, many))
                per_row = {k: round(1000 * (long[k] - short[k]) / ((many - few) * BLOCK_ROWS), 4) for k in long}
                runs.setdefault(kind, []).append(per_row)
                print(kind, per_row, flush=True)
    median = {kind: {k: float(np.median([run[k] for run in each])) for k in each[0]} for kind, each in runs.items()}
    plain = median["plain"]
    parts["flow_cpu_ms_per_row"] = median
    parts["added_cpu_ms_per_row"] = {
        kind: {
            "actor_and_ledger": round(each["actor"] + each["ledger"] - plain["actor"], 4),
            "all_processes": round(each["all"] - plain["all"], 4),
        }
        for kind, each in median.items()
        if kind != "plain"
    }
    print(parts["added_cpu_ms_per_row"])
    write_result(arguments.output, "custom_stage", describe_machine(1, "fp32", packages=("ray", "pyarrow")), parts)


if __name__ == "__main__":
    main()
