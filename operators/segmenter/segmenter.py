"""Segmenter stage: an actor starts a user's segmenter once, which then makes masks, in place of SAM or beside it."""

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from segmint.catalogs.findings import Reason, RejectedError
from segmint.infra.uris import redact
from segmint.operators.custom.contract import Mask, StageContractError, StageRow, StageSpec
from segmint.operators.custom.stage import CustomStage, Result, is_fault, place_of, stage_rows, with_verdicts
from segmint.operators.rows import SEGMENTED, carried, to_table
from segmint.operators.segment.numerics import Numerics, check_release_numerics
from segmint.operators.segmenter.found_masks import MaskFilters, added_columns, found_columns

if TYPE_CHECKING:
    from segmint.infra.row_ledger import BlockEntry, RowLedger

_WAITING = 2
"""Maximum number of images whose masks wait for an encoding thread, which bounds their memory."""

_LONGEST_DETAIL = 1000


@dataclass(frozen=True)
class SegmenterSettings:
    """Settings of a segmenter's actors besides those of any custom stage."""

    filters: MaskFilters = field(default_factory=MaskFilters)
    rejects: bool = False  # whether an image for which the segmenter raises an error is rejected
    threads: int = 1  # threads that check, filter, and encode masks while the segmenter works on the next images
    numerics: Numerics | None = None  # those that an actor must have; None: any


class CustomSegmenter(CustomStage):
    """Ray Data actor that maps a table of prepared rows to the same rows with a segmenter's masks.

    If the rows have masks already, as after `Segment`, the segmenter's masks are added to them.

    The masks of an image are encoded in other threads while the segmenter works on the next batch. A row is in flight
    in the ledger until its masks are encoded. For everything else, see `CustomStage`.
    """

    def __init__(
        self,
        spec: StageSpec,
        batch_size: int | None = None,
        timeout_s: float | None = None,
        ledger: "RowLedger | None" = None,
        on_gpu: bool = False,
        settings: SegmenterSettings | None = None,
    ) -> None:
        """Start the segmenter. If `batch_size` is None, a batch is one image, because masks need much memory.

        Raises `StageContractError` if the segmenter can't start, and `MixedNumericsError` if this process may release
        other images than the one that started the dataset.
        """
        settings = settings or SegmenterSettings()
        if settings.numerics is not None:
            check_release_numerics(settings.numerics)
        super().__init__(spec, batch_size or 1, timeout_s, ledger, on_gpu)
        self._settings = settings
        self._encoders = ThreadPoolExecutor(settings.threads, thread_name_prefix="segmint-encode-masks")
        self._room = threading.Semaphore(settings.threads + _WAITING)

    def _judged(self, rows: Sequence[StageRow], entry: "BlockEntry | None") -> Sequence[Any]:
        """Call the segmenter. Return a future of each row's columns, or of the error or verdict."""
        judged: list[Any] = []
        for row, result in zip(rows, self._judge(rows, entry), strict=True):
            self._room.acquire()
            judged.append(self._encoders.submit(self._encode_and_leave, row, result, entry))
        return judged

    def _judge_alone(self, row: StageRow, entry: "BlockEntry | None" = None) -> Any:
        (result,) = self._judge([row], entry)
        return self._encode(row, result, entry)

    def _encode_and_leave(self, row: StageRow, result: Result, entry: "BlockEntry | None") -> Any:
        try:
            return self._encode(row, result, entry)
        finally:
            self._room.release()
            if entry is not None:
                entry.leave(row["ordinal"])

    def _encode(self, row: StageRow, result: Result, entry: "BlockEntry | None") -> dict[str, Any] | Exception:
        """Return the columns of a row's masks, or the error or verdict."""
        if isinstance(result, Exception):
            return result
        if result.masks_found is None:
            raise StageContractError(
                f"the segmenter {self._spec.name} returned image {row['id']} without masks: it must call with_masks "
                "for each row that it returns, with an empty list if it found nothing"
            )
        try:
            with self._deadline.running():
                return found_columns(row, result.masks_found, self._settings.filters, f"model:{self._spec.sha256}")
        except Exception as error:  # noqa: BLE001 - the error is the row's result
            if is_fault(error):
                self._end_if_unfit([row], error, entry)
            return error

    def _finished(
        self, table: pa.Table, rows: Mapping[int, StageRow], results: Mapping[int, Any], entry: "BlockEntry | None"
    ) -> pa.Table:
        done = {place: each.result() if isinstance(each, Future) else each for place, each in results.items()}
        for place, result in done.items():
            if is_fault(result) and self._settings.rejects and entry is not None:
                done[place] = self._tried_again(rows[place], result, entry)
        if "masks" in table.column_names:
            done = {place: self._added(table, place, each) for place, each in done.items()}
        columns = {name: table.column(name) for name in SEGMENTED.names if name in table.column_names}
        for name in ("masks", "funnel"):
            values: list[Any] = [None] * table.num_rows
            for place, result in done.items():
                if not isinstance(result, Exception):
                    values[place] = result[name]
            columns[name] = pa.array(values, SEGMENTED.field(name).type)
        result = pa.table([columns[name] for name in SEGMENTED.names], schema=SEGMENTED)
        segmented = carried(table, result, "prompts")
        errors = {place: each for place, each in done.items() if isinstance(each, Exception)}
        return with_verdicts(segmented, self._spec, errors)

    def _added(self, table: pa.Table, place: int, result: Any) -> Any:
        """Return the columns of a row whose masks aren't the only ones, or the error or verdict."""
        if isinstance(result, Exception):
            return result
        earlier = {name: table.column(name)[place].as_py() for name in ("masks", "funnel")}
        try:
            return added_columns(earlier, result, self._spec.sha256)
        except RejectedError as verdict:
            return verdict

    def _tried_again(self, row: StageRow, error: Exception, entry: "BlockEntry") -> Any:
        """Try a row again after a control image, with no other row of this actor. Return its result or verdict.

        If the control image fails, the image isn't to blame, and the row keeps its fault.
        """
        from segmint.infra.row_ledger import BarredRowError

        if isinstance(error, BarredRowError):
            return error
        try:
            entry.begin(row["ordinal"])
        except Exception as refused:  # noqa: BLE001 - a fault of this row
            return refused
        try:
            if not self._passes_control(adds="masks" in row):
                return error
            result = self._judge_alone(row, entry)
        finally:
            entry.leave(row["ordinal"])
            row.free_image()
        if not is_fault(result):
            return result
        detail = f"{type(result).__name__}: {' '.join(str(result).split())}"
        return RejectedError(Reason.STAGE_FAILED, redact(detail)[:_LONGEST_DETAIL] + place_of(result))

    def _passes_control(self, *, adds: bool) -> bool:
        (control,) = stage_rows(control_rows(adds=adds), with_original=self._spec.wants_original).values()
        return not is_fault(self._judge_alone(control))


def control_rows(*, adds: bool, phrase: str | None = None) -> pa.Table:
    """Return the control image as a segmenter gets it, or with a mask, as a stage that `adds` masks gets it.

    With a `phrase`, that is its only prompt, in place of a box and points.
    """
    from segmint.operators.segment.segment_alone import control_table  # imports Ray

    table = control_table() if phrase is None else control_table([{"label": phrase}])
    if not adds:
        return table
    (row,) = table.to_pylist()
    whole = Mask(np.ones((row["height"], row["width"]), bool), score=1.0, stability=1.0)
    columns = found_columns(row, [whole], MaskFilters(), "")
    return carried(table, to_table([{**row, **columns}], SEGMENTED), "prompts")
