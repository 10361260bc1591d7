"""CSV catalogs: how far a header may go."""

from pathlib import Path

import pyarrow as pa
import pytest

from catalogs.csv_reader import read_csv
from infra.errors import UsageError
from infra.storage import Storage


def read(path: Path) -> pa.Table:
    return pa.Table.from_batches(list(read_csv(str(path), Storage())))


def test_columns_without_end_are_refused(tmp_path: Path) -> None:
    for count in (9_998, 9_999):
        names = [f"c{index}" for index in range(count)]
        path = tmp_path / "c.csv"
        path.write_text(",".join(["uri", "license", *names]) + "\na,b" + "," * count + "\n")
        if count == 9_998:
            assert read(path).num_rows == 1
    with pytest.raises(UsageError, match="the header has 10,001 columns; expected at most 10,000"):
        read(path)
