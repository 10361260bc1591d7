"""Text is read completely, in blocks that end at line ends, compressed or not."""

import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmint.catalogs.source import text_blocks
from segmint.catalogs.source.text_blocks import line_blocks, open_text
from segmint.infra.errors import UsageError
from tests.support.locations import location_of


@given(st.lists(st.binary(max_size=40).map(lambda line: line.replace(b"\n", b"")), max_size=30), st.booleans())
def test_blocks_are_the_text_split_at_line_ends(lines: list[bytes], marked: bool) -> None:
    text = b"\n".join(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_blocks, "BLOCK_BYTES", 50)
        blocks = list(line_blocks(io.BytesIO(b"\xef\xbb\xbf" * marked + text)))
    assert b"".join(blocks) == text.removeprefix(b"" if marked else b"\xef\xbb\xbf")
    assert all(block.endswith(b"\n") for block in blocks[:-1])


def test_an_endless_line_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_blocks, "BLOCK_BYTES", 50)
    monkeypatch.setattr(text_blocks, "ROW_BYTES", 100)
    (block,) = line_blocks(io.BytesIO(b"a" * 10_000))
    assert 150 < len(block) < 300


def test_a_compressed_text_is_decompressed_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "c.csv.GZ").write_bytes(gzip.compress(b"uri,license\n"))
    with open_text(location_of(tmp_path / "c.csv.GZ")) as stream:
        assert stream.read() == b"uri,license\n"
    (tmp_path / "bad.csv.gz").write_bytes(b"uri,license\n")
    with (
        pytest.raises(UsageError, match=r"bad\.csv\.gz cannot be read as gzip"),
        open_text(location_of(tmp_path / "bad.csv.gz")) as stream,
    ):
        stream.read()
