"""A stage made of one function, with the parts that every stage has."""

from collections.abc import Callable
from functools import partial

import pyarrow as pa

from segmint.operators.rows import Row, gather, is_live, judged, to_rows


def map_rows(table: pa.Table, stage: str, operator: Callable[[Row], Row], schema: pa.Schema) -> pa.Table:
    """Apply `operator` to each live row, in order, as `judged` does; return every row, with exactly `schema`."""
    rows = [judged(row, stage, partial(operator, row)) if is_live(row) else row for row in to_rows(table, stage)]
    return gather(rows, stage, schema)
