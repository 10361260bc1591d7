"""Retrying refused rows of a committed shard: only they change, once, and never without a verdict."""

from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.operators.shards.retry import RetryTask, retry_shard
from segmint.operators.shards.write import ShardResult, ShardTask, WrongRowsError, write_shard
from tests.support.builds import digests
from tests.support.described_rows import accepted_row, described, faulted_row, rejected_row
from tests.support.locations import handle_of, location_of

ROWS = [accepted_row(3), rejected_row(4), accepted_row(5), rejected_row(6), rejected_row(7, "truncated", "ingest")]


def commit_shard(folder: Path, rows: list[dict[str, Any]]) -> None:
    task = ShardTask(1, 3, 8, handle_of(folder), "0123456789ab", max_reject_ratio=1.0)
    assert write_shard(task, [(0, len(rows))], described(rows)).status == "committed"


def retry(folder: Path, rows: list[dict[str, Any]], generation: int = 1, **changes: Any) -> ShardResult:
    """Pass the rows in two blocks, cut out of longer ones."""
    ordinals = [row["ordinal"] for row in rows]
    values = {"ordinals": ordinals, "dataset": handle_of(folder), **changes}
    blocks = described([accepted_row(0), *rows[:1]]), described([*rows[1:], accepted_row(9)])
    return retry_shard(RetryTask(shard=1, generation=generation, **values), [(1, 2), (0, len(rows) - 1)], *blocks)


def latest(folder: Path) -> Commit:
    commit = CommitLog(location_of(folder)).latest(1)
    assert commit is not None
    return commit


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    """A dataset's folder with one committed shard: two images, two rows not found, one truncated."""
    commit_shard(tmp_path / "dataset", ROWS)
    return tmp_path / "dataset"


def test_the_next_generation_is_what_a_first_build_would_have_written(shard: Path, tmp_path: Path) -> None:
    result = retry(shard, [accepted_row(4, masks=3), rejected_row(6)])
    assert (result.status, dict(result.counts)) == (
        "committed",
        {"rows": 2, "images": 1, "masks": 3, "rejected": 1, "rejected:not_found": 1},
    )
    commit_shard(tmp_path / "first", [ROWS[0], accepted_row(4, masks=3), *ROWS[2:]])
    first = latest(tmp_path / "first")
    commit = latest(shard)
    assert (commit.generation, commit.ordinals, commit.numerics) == (2, (3, 8), "0123456789ab")
    assert commit.counts == first.counts
    assert commit.files == first.files
    for entry in commit.files:
        assert (shard / entry.path).read_bytes() == (tmp_path / "first" / entry.path).read_bytes()


def test_another_reason_is_a_change_and_the_same_words_are_not(shard: Path) -> None:
    before = digests(shard)
    result = retry(shard, [rejected_row(4), rejected_row(6)])
    assert (result.status, result.counts["rejected:not_found"]) == ("unchanged", 2)
    assert digests(shard) == before
    assert retry(shard, [rejected_row(4, "truncated", "ingest"), rejected_row(6)]).status == "committed"
    assert latest(shard).counts["rejected:truncated"] == 2


def test_a_fault_changes_nothing(shard: Path) -> None:
    before = digests(shard)
    result = retry(shard, [accepted_row(4), faulted_row(6)])
    assert (result.status, dict(result.counts)) == ("on_hold", {})
    assert "1 of 2 rows couldn't be judged" in result.detail
    assert result.faulted == (6,)
    assert digests(shard) == before


@pytest.mark.parametrize("rows", [[accepted_row(5), accepted_row(6)], [accepted_row(4), accepted_row(8)]])
def test_an_accepted_image_is_never_replaced(shard: Path, rows: list[dict[str, Any]]) -> None:
    before = digests(shard)
    with pytest.raises(WrongRowsError, match="its generation 1 hadn't rejected all"):
        retry(shard, rows)
    with pytest.raises(WrongRowsError, match="2 rows were to be retried, but got 2 other rows"):
        retry(shard, [accepted_row(4), accepted_row(6)], ordinals=[4, 7])
    assert digests(shard) == before


def test_a_second_writer_of_the_same_rows_changes_nothing(shard: Path) -> None:
    """Ray runs a writer again whose node was lost after its commit."""
    first = retry(shard, [accepted_row(4), rejected_row(6)])
    before = digests(shard)
    assert retry(shard, [accepted_row(4), rejected_row(6)]) == first
    assert digests(shard) == before


def test_a_late_writer_changes_nothing(shard: Path) -> None:
    """Another command replaced the shard by other content, and perhaps deleted the old one."""
    old = latest(shard)
    retry(shard, [accepted_row(4), rejected_row(6)])
    before = digests(shard)
    late = retry(shard, [accepted_row(4), accepted_row(6)])
    assert (late.status, late.detail) == ("unchanged", "another command replaced the shard in the meantime")
    assert digests(shard) == before
    for path in {entry.path for entry in old.files} - {entry.path for entry in latest(shard).files}:
        (shard / path).unlink()
    assert retry(shard, [accepted_row(4), accepted_row(6)]).status == "unchanged"
    (shard / "commits" / "000001.g1.json").unlink()
    assert retry(shard, [accepted_row(4), accepted_row(6)]).status == "unchanged"
    assert latest(shard).counts["images"] == 3
