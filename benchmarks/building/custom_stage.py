"""CPU time that a custom stage adds per row to a Ray Data actor that returns its blocks unchanged.

    python benchmarks/building/custom_stage.py [--rows N] [--output FILE]

Each row contains an image of 450 kB and 100 masks, and a block contains 16 rows. The same flow runs with three actors:
`plain` returns its blocks unchanged, the stage `unchanged` returns its rows, and the stage `valued` returns its rows
with an additional value.

The result contains three times. `calls` is the CPU time of the actor's process during its calls. `ledger` is the CPU
time of the ledger actor, which records the rows of both stages. `per_call` is the time of the same calls in this
process, without Ray and without the ledger. The benchmark fails if a row or a value differs.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])

import pyarrow as pa  # noqa: E402

from benchmarks.building.stubs import MANY_MASKS, RELEASE_BYTES, masks, released  # noqa: E402
from benchmarks.machine import describe_machine  # noqa: E402
from benchmarks.measuring import RESULTS, write_result  # noqa: E402
from benchmarks.processes import Trace  # noqa: E402
from segmint.operators.custom.contract import (  # noqa: E402
    StageRow,
    load_stage,
)
from segmint.operators.custom.stage import CustomStage  # noqa: E402
from segmint.operators.rows import (  # noqa: E402
    DESCRIBED,
    to_table,
)

TIMES = "SEGMINT_STAGE_TIMES"
"""Environment variable that contains the folder for the actors' times."""

BLOCK_ROWS, IMAGE_BYTES, MASKS = 16, 450_000, 100


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


def _noted(began: float, table: pa.Table, rows: int) -> pa.Table:
    """Append a call's CPU seconds and number of rows to this process's file."""
    with (Path(os.environ[TIMES]) / str(os.getpid())).open("a") as file:
        file.write(f"{time.process_time() - began} {rows}\n")
    return table


class PlainActor:
    """Actor that returns its blocks."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Return the block."""
        return _noted(time.process_time(), table, table.num_rows)


class StageActor(CustomStage):
    """`CustomStage` that notes its CPU time."""

    def __call__(self, table: pa.Table) -> pa.Table:
        """Apply the stage."""
        began = time.process_time()
        return _noted(began, super().__call__(table), table.num_rows)


def block() -> pa.Table:
    """Return a block of described rows."""
    os.environ[MANY_MASKS], os.environ[RELEASE_BYTES] = str(MASKS), str(IMAGE_BYTES)
    rows = [
        {"ordinal": n, "id": n + 1, "image_id": str(n), "width": 64 + n, "height": 48, "release": released(n)}
        for n in range(BLOCK_ROWS)
    ]
    return to_table([{**row, "masks": masks()} for row in rows], DESCRIBED)


def per_call(table: pa.Table, name: str) -> float:
    """Measure the CPU milliseconds per row of calls in this process."""
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


def flow(reference: Any, blocks: int, kind: str) -> dict[str, float]:
    """Run a flow with one actor. Return the CPU milliseconds per row of the actor's calls and of the ledger."""
    import ray

    from segmint.infra.row_ledger import RowLedger

    times = Path(os.environ[TIMES])
    for file in times.iterdir():
        file.unlink()
    ledger = RowLedger()
    ledger.suspects()  # wait until the ledger runs
    spec = None if kind == "plain" else load_stage(f"benchmarks.building.custom_stage.{kind.capitalize()}", {})
    trace = Trace(os.getpid())
    trace.look()
    before = _ledgers_cpu_s(trace)
    dataset = ray.data.from_arrow_refs([reference] * blocks).map_batches(
        PlainActor if spec is None else StageActor,
        fn_constructor_args=() if spec is None else (spec, None, 600.0, ledger.of_stage(1)),
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=0.5,
        batch_size=None,
        batch_format="pyarrow",
        udf_modifying_row_count=False,
    )
    assert sum(each.metadata.num_rows for b in dataset.iter_internal_ref_bundles() for each in b.blocks) == (
        blocks * BLOCK_ROWS
    )
    trace.look()
    noted = [tuple(map(float, line.split())) for file in times.iterdir() for line in file.read_text().splitlines()]
    steady = noted[len(noted) // 10 :]  # the first calls import modules
    return {
        "calls": round(1000 * sum(s for s, _ in steady) / sum(rows for _, rows in steady), 4),
        "ledger": round(1000 * (_ledgers_cpu_s(trace) - before) / (blocks * BLOCK_ROWS), 4),
    }


def _ledgers_cpu_s(trace: Trace) -> float:
    return sum(each.cpu_s for each in trace.processes.values() if each.role == "ledger actor")


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--output", type=Path, default=RESULTS / "custom_stage.json")
    arguments = parser.parse_args()
    table = block()
    parts: dict[str, Any] = {
        "settings": {"rows": arguments.rows, "block_rows": BLOCK_ROWS, "image_bytes": IMAGE_BYTES, "masks": MASKS},
        "per_call_cpu_ms_per_row": {name.lower(): per_call(table, name) for name in ("Unchanged", "Valued")},
        "flow_cpu_ms_per_row": {},
    }
    print(parts["per_call_cpu_ms_per_row"], flush=True)
    import ray

    from segmint.infra.ray_session import ray_session

    with tempfile.TemporaryDirectory() as folder:
        os.environ[TIMES] = folder
        with ray_session("local", object_store_memory=1_000_000_000):
            ray.data.DataContext.get_current().enable_progress_bars = False
            reference = ray.put(table)
            for kind in ("plain", "unchanged", "valued"):
                parts["flow_cpu_ms_per_row"][kind] = flow(reference, arguments.rows // BLOCK_ROWS, kind)
                print(kind, parts["flow_cpu_ms_per_row"][kind], flush=True)
    plain, *stages = ({"kind": kind, **each} for kind, each in parts["flow_cpu_ms_per_row"].items())
    parts["added_cpu_ms_per_row"] = {
        each["kind"]: round(each["calls"] + each["ledger"] - plain["calls"] - plain["ledger"], 4) for each in stages
    }
    print(parts["added_cpu_ms_per_row"])
    write_result(arguments.output, "custom_stage", describe_machine(1, "fp32", packages=("ray", "pyarrow")), parts)


if __name__ == "__main__":
    main()
