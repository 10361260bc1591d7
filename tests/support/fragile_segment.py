"""A segment actor without a model, in which a row's `image_id` names what happens to it and in which stage."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any
from unittest import mock

from segmint.infra.row_ledger import RowLedger
from segmint.operators.rows import FUNNEL_STEPS, Row
from segmint.operators.segment import segment
from segmint.operators.segment.overlap import HostThreads
from segmint.operators.segment.segment import Segment

TIMEOUT_S = 2.0
"""Seconds that a row may take in a stage: a row to which nothing happens takes next to none."""

THREADS = HostThreads(2, 2, 2)


class FragileSegment(Segment):
    """The real actor but for what a stage does with a row."""

    def __init__(self, ledger: RowLedger | None) -> None:
        self._set_up("cuda", ledger, TIMEOUT_S, THREADS)
        self._fault: str | None = None
        mock.patch.object(segment, "device_failure", self._failure).start()

    def stream_through(self, find: Callable[[Iterator[Any]], Iterator[Any]]) -> None:
        """Find the masks of all rows in the stream `find`, on a GPU."""
        self._set_up("cuda", None, 600, THREADS)
        self._find = find  # type: ignore[method-assign]

    def submit(self, rows: list[Row], entry: Any) -> list[Future[Row] | None]:
        """Start the rows of a block."""
        return self._submit(rows, entry)

    def _failure(self, _device: str) -> str | None:
        return self._fault

    def _decode(self, row: Row) -> Any:
        self._happens(row, "decode")
        return row

    def _find(self, images: Any) -> Any:
        for row in images:
            if row is not None:
                try:
                    self._happens(row, "compute")
                    yield row
                except Exception as error:  # noqa: BLE001 - the result of the row, as of the generator's images
                    yield error

    def _finish(self, row: Row, found: Any) -> Row:
        self._happens(row, "finish")
        return {**row, "masks": [], "funnel": dict.fromkeys(FUNNEL_STEPS, 0)}

    def _happens(self, row: Row, stage: str) -> None:
        where, _, what = row["image_id"].partition(" ")
        if where != stage:
            return
        if what == "takes long":
            time.sleep(0.6 * TIMEOUT_S)
            return
        if what == "hangs":
            time.sleep(30 * TIMEOUT_S)
        if what == "is told to stop":
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                os.kill(os.getpid(), number)
            time.sleep(0.2)
        if what == "lacks memory":
            raise MemoryError
        if what == "is killed":  # as by Ray's monitor or the kernel, for memory that a child or this process took
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "breaks the GPU":
            self._fault = "CUDA error: an illegal memory access was encountered"
            raise RuntimeError(self._fault)
        if what != "is told to stop":
            raise ValueError(f"{stage} cannot do this image")
