"""Shards cut out of a stream of blocks, whatever the blocks' sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segmint.catalogs.layout import ShardPart, ShardSpan
from segmint.pipeline.building.execution.stage_watch import StreamLengthError, cut_at_borders


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 12))
def test_every_row_lands_in_its_shard_in_order(sizes: list[int], rows_per_shard: int) -> None:
    total = sum(sizes)
    ordinals = iter(range(total))
    blocks = [[next(ordinals) for _ in range(size)] for size in sizes]
    spans = [
        ShardSpan(shard, start, min(start + rows_per_shard, total))
        for shard, start in enumerate(range(0, total, rows_per_shard))
    ]
    written = {
        span.shard: [row for cut in cuts for row in cut.block[cut.start : cut.stop]]
        for span, cuts in cut_at_borders(((block, len(block)) for block in blocks), spans)
    }
    assert written == {span.shard: list(range(span.start, span.stop)) for span in spans}


def test_a_shard_is_yielded_before_the_stream_goes_on() -> None:
    drawn = []

    def blocks():
        for name in "abc":
            drawn.append(name)
            yield name, 2

    stream = cut_at_borders(blocks(), [ShardSpan(0, 0, 3), ShardSpan(1, 3, 6)])
    span, cuts = next(stream)
    assert (span.shard, [(cut.block, cut.start, cut.stop) for cut in cuts]) == (0, [("a", 0, 2), ("b", 0, 1)])
    assert drawn == ["a", "b"]


@pytest.mark.parametrize(("rows", "words"), [(5, "1 rows before the end of shard 1"), (7, "after its last shard")])
def test_a_stream_of_another_length_is_an_error(rows: int, words: str) -> None:
    spans = [ShardSpan(0, 0, 3), ShardSpan(1, 3, 6)]
    with pytest.raises(StreamLengthError, match=words):
        list(cut_at_borders([("block", rows)], spans))


@given(st.integers(0, 500), st.integers(1, 60))
def test_parts_are_disjoint_and_whole_and_alike(shards: int, parts: int) -> None:
    ranges = [ShardPart(index, parts).of(shards) for index in range(parts)]
    assert [shard for part in ranges for shard in part] == list(range(shards))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1
