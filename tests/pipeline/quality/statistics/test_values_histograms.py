"""Bins in SQL hold what numpy's do."""

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from segmint.pipeline.quality.statistics.values import Bins, as_counts


@pytest.mark.parametrize("bins", [Bins(0, 1, 50), Bins(0.5, 1.1, 60), Bins(-5, 5, 40, log2=True), Bins(0, 1, 1)])
def test_values_fall_where_numpy_puts_them(bins: Bins) -> None:
    draws = np.random.default_rng(3)
    steps = draws.uniform(bins.low, bins.high, 5000)
    values = 2**steps if bins.log2 else steps
    drawn = pa.table({"value": values})
    assert drawn.num_rows == 5000
    found = duckdb.sql(f"SELECT histogram({bins.index('value')}) AS counts FROM drawn").fetchall()
    expected, _ = np.histogram(values, bins.edges)
    assert bins.counts(found[0][0]) == tuple(expected.tolist())


def test_ends_and_what_lies_outside() -> None:
    bins = Bins(0, 1, 10)
    rows = "(VALUES (-1e300), (0.0), (0.3), (0.7), (1.0), (1e300), (NULL)) AS t(value)"
    table = duckdb.sql(f"SELECT histogram({bins.index('value')}) AS counts FROM {rows}").to_arrow_table()
    assert bins.counts(as_counts(table.to_pylist()[0]["counts"])) == (2, 0, 0, 1, 0, 0, 0, 1, 0, 2)
    assert as_counts(None) == {}
