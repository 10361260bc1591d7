"""Stages that tests put in place of a build's, for rows that have only ordinals.

Ray's workers import this module. It doesn't import torch or the build, which would take each of them seconds.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import ray

from segmint.infra.stopping import exit_within
from segmint.operators.shards.write import ShardResult

ROWS = 60


class Ordinals:
    """In place of a dataset, so that rows have only their ordinals, and the first ones take longest to read."""

    manifest = SimpleNamespace(catalog=())

    def read_runs(self, runs: Sequence[tuple[int, int]], columns: Sequence[str] | None = None) -> pa.Table:
        ordinals = [ordinal for start, stop in runs for ordinal in range(start, stop)]
        time.sleep(0.3 * (min(ordinals, default=ROWS) == 0))
        return pa.table({"ordinal": pa.array(ordinals, pa.int64())})


class Uneven:
    """In place of `Prepare` and `Segment`: rows pass, and every third block takes much longer."""

    def __init__(self, *_: Any) -> None:
        exit_within(10)  # Ray's exit handler may hang

    def __call__(self, table: pa.Table) -> pa.Table:
        first = table.column("ordinal")[0].as_py() if table.num_rows else 1
        time.sleep(0.1 * (first // 2 % 3 == 0))
        return table


class Gated:
    """In place of `Segment`: no row passes before the file `gate` exists, which it creates itself after 30 seconds."""

    def __init__(self, gate: Path, *_: Any) -> None:
        exit_within(10)  # Ray's exit handler may hang
        self._gate = gate

    def __call__(self, table: pa.Table) -> pa.Table:
        deadline = time.monotonic() + 30
        while not self._gate.exists():
            if time.monotonic() > deadline:
                self._gate.touch()
            time.sleep(0.05)
        return table


class Alone:
    """In place of `SegmentAlone`: it segments every image, unless it is told to die with those after the control."""

    def __init__(self, deadly: bool, _timeout_s: float) -> None:
        self._deadly = deadly
        self._images = 0

    def node(self) -> str:
        return str(ray.get_runtime_context().get_node_id())

    def has_memory_for(self, _table: object) -> bool:
        self._images += 1
        if self._deadly and self._images > 1:
            os._exit(1)
        return True


def describe_rows(table: pa.Table) -> pa.Table:
    """A stage that takes 0.05 seconds per block."""
    time.sleep(0.05)
    return table


def unchanged(table: pa.Table) -> pa.Table:
    return table


def write(task: int, cuts: Sequence[tuple[int, int]], *blocks: pa.Table) -> ShardResult:
    """In place of the writer: the result has the ordinals of the shard's rows."""
    tables = [block.slice(start, stop - start) for (start, stop), block in zip(cuts, blocks, strict=True)]
    ordinals = [ordinal for table in tables for ordinal in table.column("ordinal").to_pylist()]
    return ShardResult(task, "committed", {}, faulted=tuple(ordinals))
