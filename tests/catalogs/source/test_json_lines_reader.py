"""JSON Lines are counted and read the same way, whether a block's lines are split or not."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmint.catalogs.schema import SOURCE
from segmint.catalogs.source import text_blocks
from segmint.catalogs.source.json_lines_reader import json_blocks, read_json_lines, split_lines
from segmint.infra.errors import UsageError
from tests.support.locations import location_of

ROWS = st.fixed_dictionaries({"uri": st.text(min_size=1), "license": st.none() | st.just("CC0-1.0")})
BLANK = st.sampled_from(["", " ", "\t", "\r", "  \r"])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lines")


def read(path: Path) -> pa.Table:
    return pa.Table.from_batches(list(read_json_lines(location_of(path))), schema=SOURCE)


def spelled(row: dict[str, Any], before: str, after: str) -> str:
    return f"{before}{json.dumps(row)}{after}"


@given(
    st.lists(
        st.tuples(ROWS, st.sampled_from(["", "", " ", "\t "]), st.sampled_from(["", "", "\r", " "]), st.lists(BLANK)),
        min_size=1,
        max_size=20,
    ),
    st.booleans(),
    st.sampled_from([1 << 20, 200]),
)
def test_blank_lines_spaces_and_any_line_ends_are_not_rows(
    folder: Path, parts: list[tuple[dict[str, Any], str, str, list[str]]], ended: bool, block_bytes: int
) -> None:
    lines = [text for row, before, after, blank in parts for text in (*blank, spelled(row, before, after))]
    path = folder / "c.jsonl"
    path.write_text("\n".join(lines) + "\n" * ended, encoding="utf-8", newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_blocks, "BLOCK_BYTES", block_bytes)
        blocks = list(json_blocks(location_of(path)))
        table = read(path)
    assert [rows for _, rows in blocks] == [len(split_lines(block)) for block, _ in blocks]
    assert sum(rows for _, rows in blocks) == len(parts)
    assert table.column("uri").to_pylist() == [row["uri"] for row, *_ in parts]
    assert table.column("license").to_pylist() == [row["license"] for row, *_ in parts]


@pytest.mark.parametrize(
    "text",
    [
        '{"uri": "a", "license": "x"}\n{"uri": "b"} {"uri": "c"}\n\n',
        '{"uri": "a", "license": "x"}\n{"uri": "b"}\r{"uri": "c"\n',
        '{"uri": "a", "license": "x"}\n{"uri":\n"b"}\n',
    ],
)
def test_a_line_is_a_row_even_if_others_even_out_the_count(folder: Path, text: str) -> None:
    """Two objects on one line plus a blank line add up to two rows, but are still an error."""
    (folder / "bad.jsonl").write_text(text, encoding="utf-8", newline="")
    with pytest.raises(UsageError, match=r"bad\.jsonl, row \d is not JSON"):
        read(folder / "bad.jsonl")


@pytest.mark.parametrize("start", ["", "\n"])
def test_a_row_that_is_too_long_is_refused(folder: Path, start: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segmint.catalogs.source.json_lines_reader.ROW_BYTES", 1000)
    row = json.dumps({"uri": "a.jpg", "license": "x"})
    long = json.dumps({"uri": "b" * 1000, "license": "x"})
    (folder / "long.jsonl").write_text(f"{start}{row}\n{long}\n{row}\n")
    with pytest.raises(UsageError, match="one of the rows up to 3 is longer than 1,000 bytes"):
        read(folder / "long.jsonl")
