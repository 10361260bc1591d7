"""Custom stage: an actor starts a user's callable once, which then judges rows in batches and adds its column."""

import math
import os
import re
import sysconfig
import traceback
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import nullcontext
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from segmint.catalogs.dataset.mask_labels import MASK_LABEL
from segmint.catalogs.findings import RejectedError
from segmint.catalogs.lineage import StageField
from segmint.infra.device import device_failure
from segmint.infra.stopping import Deadline, outlive_signals
from segmint.operators.child import is_out_of_memory
from segmint.operators.custom.contract import Reject, StageContractError, StageRow, StageSpec, call_stage
from segmint.operators.rows import VERDICT, faulted

if TYPE_CHECKING:
    from segmint.infra.row_ledger import BlockEntry, RowLedger

HIDDEN = frozenset({"original", *VERDICT.names})
"""Columns that a stage can't see: the verdict, and the full-size source, although it is redacted. A segmenter may ask
for the latter."""

_LABEL = frozenset(MASK_LABEL)
_SOURCE = re.compile(r"model:[0-9a-f]{64}")

_LIBRARIES = (str(Path(__file__).parents[2]), *map(sysconfig.get_path, ("stdlib", "purelib", "platlib")))
"""Folders of segmint, of Python, and of installed packages."""

VERDICTS = (Reject, RejectedError)
"""Exceptions that are verdicts: the stage's own, and segmint's."""

Result = StageRow | Exception
"""Result of a stage for one row. Any exception that isn't one of `VERDICTS` is a fault."""


def is_fault(result: Any) -> bool:
    """Return whether a stage's result is an error that isn't a verdict."""
    return isinstance(result, Exception) and not isinstance(result, VERDICTS)


class CustomStage:
    """Ray Data actor that maps a table to the same rows with a stage's column, labels, and verdicts.

    With a `ledger`, the actor is part of a build, and the process ends if a batch takes more than `timeout_s` seconds
    per row, if memory runs out, or if the GPU breaks. Without a `ledger`, the stage is only tried out, and the process
    doesn't end.
    """

    def __init__(
        self,
        spec: StageSpec,
        batch_size: int | None = None,
        timeout_s: float | None = None,
        ledger: "RowLedger | None" = None,
        on_gpu: bool = False,
    ) -> None:
        """Start the stage. A batch contains at most `batch_size` rows, or all rows of a block if that is None.

        Raises `StageContractError` if the stage can't start.
        """
        if ledger is not None:  # in a Ray worker
            outlive_signals()
        self._spec, self._batch_size, self._deadline = spec, batch_size, Deadline(timeout_s)
        self._ledger, self._on_gpu = ledger, on_gpu
        self._stage = spec.start()

    def __call__(self, table: pa.Table) -> pa.Table:
        """Apply the stage to each live row and pass all other rows through."""
        rows = list(stage_rows(table, with_original=self._spec.wants_original).items())
        size = self._batch_size or max(1, len(rows))
        results: dict[int, Any] = {}
        begun = [row["ordinal"] for _, row in rows[:size]]
        with nullcontext() if self._ledger is None or not rows else self._ledger.entry(ordinals=begun) as entry:
            for first in range(0, len(rows), size):
                batch = rows[first : first + size]
                started: Iterable[tuple[Sequence[int], Exception | None]] = [(range(len(batch)), None)]
                if entry is not None:  # the rows of the first batch started together with the block
                    replies = entry.replies if first == 0 else None
                    started = entry.start([row["ordinal"] for _, row in batch], replies)
                for indices, error in started:
                    judged: Sequence[Any] = [error] * len(indices)
                    if error is None:
                        judged = self._judged([batch[index][1] for index in indices], entry)
                    results |= zip([batch[index][0] for index in indices], judged, strict=True)
                for _, row in batch:
                    row.free_image()
            return self._finished(table, dict(rows), results, entry)

    def _judged(self, rows: Sequence[StageRow], entry: "BlockEntry | None") -> Sequence[Any]:
        """Judge rows that started, and record that they are done. Return what `_finished` needs of each row."""
        results = self._judge(rows, entry)
        if entry is not None:
            for row in rows:
                entry.leave(row["ordinal"])
        return results

    def _judge_alone(self, row: StageRow, entry: "BlockEntry | None" = None) -> Any:
        """Judge a row, and return what `_finished` needs of it."""
        (result,) = self._judge([row], entry)
        return result

    def _finished(
        self, table: pa.Table, rows: Mapping[int, StageRow], results: Mapping[int, Any], entry: "BlockEntry | None"
    ) -> pa.Table:
        """Return a block's table with the results of its live rows, both keyed by their position in the table."""
        return with_results(table, self._spec, results)

    def _judge(self, rows: Sequence[StageRow], entry: "BlockEntry | None" = None) -> list[Result]:
        """Call the stage. After an error, call it again with one row at a time to find the rows at fault."""
        try:
            with self._deadline.running(len(rows)):
                return list(call_stage(self._spec.name, self._stage, rows))
        except StageContractError:
            raise
        except (Exception, SystemExit) as raised:  # noqa: BLE001 - the row at fault is found below
            # Convert SystemExit, because Ray wouldn't restart an actor that exits this way.
            error = raised if isinstance(raised, Exception) else RuntimeError(f"it called sys.exit({raised.code!r})")
            if is_fault(error):
                self._end_if_unfit(rows, error, entry)
            if len(rows) == 1:
                return [error]
        return [result for row in rows for result in self._judge([row], entry)]

    def _end_if_unfit(self, rows: Sequence[StageRow], error: Exception, entry: "BlockEntry | None") -> None:
        if entry is None:
            return
        if is_out_of_memory(error):
            os._exit(1)  # this process is now unreliable, and the ledger lists its rows
        failure = device_failure("cuda") if self._on_gpu and isinstance(error, RuntimeError) else None
        if failure is not None:
            try:
                if len(rows) == 1:  # if there are several rows, each of them runs alone after this process ends
                    entry.excuse(rows[0]["ordinal"], f"the GPU failed, and its worker was ended: {failure}")
            finally:
                os._exit(1)

    def node(self) -> str:
        """Return the id of this worker's node, and make the worker ignore signals that stop processes from now on."""
        import ray

        outlive_signals()
        return str(ray.get_runtime_context().get_node_id())

    def has_memory_for(self, table: pa.Table) -> bool:
        """Judge each live row of a trial. Return False if memory ran out; this process is unusable then.

        The driver tries suspect rows this way to find out whether the process survives. Any other error of the stage
        that isn't a verdict propagates.
        """
        for row in stage_rows(table, with_original=self._spec.wants_original).values():
            result = self._judge_alone(row)
            if is_fault(result):
                if is_out_of_memory(result):
                    return False
                raise result
        return True


def stage_rows(table: pa.Table, *, with_original: bool = False) -> dict[int, StageRow]:
    """Return the live rows of a table as `StageRow`s, keyed by their position in the table.

    They contain the redacted original only if `with_original` is set.
    """
    live = pc.and_(pc.is_null(table.column("reason")), pc.is_null(table.column("fault"))).to_pylist()
    hidden = HIDDEN - {"original"} if with_original else HIDDEN
    columns = {name: table.column(name) for name in table.column_names if name not in hidden}
    return {place: StageRow(columns, place) for place, lives in enumerate(live) if lives}


def with_results(table: pa.Table, spec: StageSpec, results: Mapping[int, Result]) -> pa.Table:
    """Return a table with a stage's column, labels, and verdicts added.

    `results` maps the positions of live rows to their results. If a row's values don't fit the declared types, the row
    becomes faulted. Raises `StageContractError` if the stage sets values that it doesn't declare, or if the number of
    values differs from the number of masks.
    """
    try:
        return _joined(table, spec, results)
    except StageContractError:
        raise
    except Exception:  # noqa: BLE001 - the row at fault is found below
        return _joined(table, spec, {place: _fitting(table, spec, place, each) for place, each in results.items()})


def _fitting(table: pa.Table, spec: StageSpec, place: int, result: Result) -> Result:
    try:
        _joined(table.slice(place, 1), spec, {0: result})
    except StageContractError:
        raise
    except (pa.ArrowException, ValueError, OverflowError) as error:  # one row's values must not affect the other rows
        return _naming_field(result, spec, error)
    except Exception as error:  # noqa: BLE001 - the same
        return error
    return result


def _naming_field(result: Result, spec: StageSpec, error: Exception) -> Exception:
    """Return an error that names the field whose value Arrow refuses, or `error` if there is no such field."""
    if not isinstance(result, StageRow) or spec.column is None:
        return error
    for values in filter(None, (result.values_set, *(result.mask_values or ()))):
        for field in spec.column.fields:
            try:
                pa.array([values.get(field.name)], field.arrow_type)
            except (pa.ArrowException, ValueError, OverflowError) as refused:
                return TypeError(f"{field.name}: {refused}")
    return error


def _joined(table: pa.Table, spec: StageSpec, results: Mapping[int, Result]) -> pa.Table:
    column = spec.column
    rows = {place: each for place, each in results.items() if isinstance(each, StageRow)}
    masks = table.column("masks") if spec.sets_masks else None
    for place, row in rows.items():
        _check_declared(row, spec, 0 if masks is None else len(masks[place]))
        for value in filter(None, (row.values_set, *(row.mask_values or ()))):
            for each in column.fields if column is not None else ():
                _check_fit(value.get(each.name), each)
    if column is not None and column.table == "images":
        values = [(rows[place].values_set or None) if place in rows else None for place in range(table.num_rows)]
        table = table.append_column(column.arrow_field, pa.array(values, column.arrow_type))
    elif spec.sets_masks:
        table = _with_mask_columns(table, spec, rows)
    return with_verdicts(table, spec, {place: each for place, each in results.items() if isinstance(each, Exception)})


def with_verdicts(table: pa.Table, spec: StageSpec, errors: Mapping[int, Exception]) -> pa.Table:
    """Return a table in which the rows at the positions of `errors` are rejected or faulted."""
    if not errors:
        return table
    verdicts = table.select(VERDICT.names).to_pylist()
    for place, error in errors.items():
        if isinstance(error, VERDICTS):
            verdict = {"reason": str(error.reason), "detail": error.detail, "stage": spec.label, "fault": None}
        else:
            verdict = faulted({}, spec.label, error)
            verdict["fault"] = f"{verdict['fault']}{place_of(error)}"
        verdicts[place] = verdict
    for field, values in zip(VERDICT, pa.Table.from_pylist(verdicts, VERDICT).columns, strict=True):
        table = table.set_column(table.schema.get_field_index(field.name), field, values)
    return table


def place_of(error: BaseException) -> str:
    """Return where a user's code raised an error, as in " (lamps.py, line 24)", or "" if no such code did."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith(_LIBRARIES):
            return f" ({os.path.basename(frame.filename)}, line {frame.lineno})"  # noqa: PTH119 - of any system
    return ""


def _check_declared(row: StageRow, spec: StageSpec, count: int) -> None:
    """Raise `StageContractError` if a stage set values that it doesn't declare, or labels that can't be stored.

    If the stage set values for masks at all, it must have done so for all `count` masks of the image.
    """
    fields = frozenset(each.name for each in spec.column.fields) if spec.column is not None else frozenset()
    of_image, of_masks = (frozenset(), fields) if spec.sets_masks else (fields, frozenset())
    masks = [each for each in row.mask_values or () if each is not None]
    wrong = row.values_set.keys() - of_image
    for each in masks:
        wrong |= each.keys() - of_masks - (_LABEL if spec.labels else frozenset())
    if wrong:
        raise StageContractError(
            f"the stage {spec.name} set {', '.join(sorted(wrong))} of image {row['id']}, which it doesn't declare for "
            "that table"
        )
    for each in masks if spec.labels else ():
        score, source = each.get("label_score"), str(each.get("label_source"))
        if each.get("label") and (not _SOURCE.fullmatch(source) or not (score is None or math.isfinite(score))):
            raise StageContractError(
                f"the stage {spec.name} set label_source {source!r} and label_score {score!r}: expected model: and the "
                "SHA-256 of the weights, and a finite number or None"
            )
    if spec.sets_masks and row.mask_values is not None and len(row.mask_values) != count:
        raise StageContractError(
            f"the stage {spec.name} returned {len(row.mask_values)} values for the {count} masks of image {row['id']}"
        )


def _check_fit(value: Any, field: StageField) -> None:
    """Raise `TypeError` for a value that Arrow would silently convert or drop.

    Arrow truncates fractions, splits texts into lists of characters, stores sets in any order, and ignores values that
    a nested struct doesn't declare.
    """
    if value is None:
        return
    if field.type == "struct":
        names = [each.name for each in field.fields]
        values = dict(zip(names, value, strict=False) if isinstance(value, tuple) else value)
        if unknown := values.keys() - set(names):
            raise TypeError(f"{field.name} has {', '.join(sorted(map(str, unknown)))}, which the stage doesn't declare")
        for each in field.fields:
            _check_fit(values.get(each.name), each)
    elif field.type == "list":
        if isinstance(value, str | bytes | Mapping | Set):
            raise TypeError(f"{field.name} is of type {type(value).__name__}: expected a list")
        for item in value:
            _check_fit(item, field.fields[0])
    elif "int" in field.type and not isinstance(value, Integral):
        raise TypeError(f"{field.name} is {value!r}: expected a whole number")


def _with_mask_columns(table: pa.Table, spec: StageSpec, rows: Mapping[int, StageRow]) -> pa.Table:
    masks = table.column("masks").combine_chunks()
    structs = masks.flatten()
    counts = pc.fill_null(pc.list_value_length(masks), 0).to_pylist()
    values: list[Mapping[str, Any] | None] = []
    for place, count in enumerate(counts):
        own = rows[place].mask_values if place in rows else None
        values += [None] * count if own is None else own
    fields, arrays = list(structs.type), structs.flatten()
    for name in MASK_LABEL if spec.labels else ():
        at = structs.type.get_field_index(name)
        now = [
            each.get(name) if each and each.get("label") else old
            for each, old in zip(values, arrays[at].to_pylist(), strict=True)
        ]
        arrays[at] = pa.array(now, fields[at].type)
    if spec.column is not None:
        fields.append(spec.column.arrow_field)
        arrays.append(pa.array(values, spec.column.arrow_type))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    longer = pa.StructArray.from_arrays(arrays, fields=fields)
    column = pa.ListArray.from_arrays(offsets, longer, mask=pc.is_null(masks))
    return table.set_column(table.schema.get_field_index("masks"), "masks", column)
