"""Writing a shard: committed once, never with the wrong rows, never over an outage."""

import hashlib
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.commits import Commit, CommitLog
from segmint.catalogs.layout import DATA_KINDS
from segmint.infra.storage.errors import AccessRefusedError, PassingFaultError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.operators.shards.write import (
    RetryTask,
    ShardResult,
    ShardTask,
    WrongRowsError,
    faulted_ordinals,
    hold_reason,
    retry_shard,
    write_shard,
)
from tests.support.builds import digests
from tests.support.described_rows import accepted_row, described, faulted_row, rejected_row
from tests.support.locations import handle_of, location_of
from tests.support.s3_server import S3Server
from tests.support.stepped import SteppedThreads, stepping

ROWS = [accepted_row(3), rejected_row(4), accepted_row(5), rejected_row(6), rejected_row(7, "truncated", "ingest")]


def task(folder: Path, **changes: object) -> ShardTask:
    values = {
        "shard": 1,
        "start": 3,
        "stop": 6,
        "dataset": handle_of(folder),
        "numerics": "0123456789ab",
        "max_reject_ratio": 0.5,
    }
    return ShardTask(**{**values, **changes})


BLOCKS = (
    described([accepted_row(1), accepted_row(2), accepted_row(3)]),
    described([rejected_row(4), accepted_row(5), accepted_row(6)]),
)
CUTS = [(2, 3), (0, 2)]


def test_a_shard_is_cut_written_and_committed(tmp_path: Path) -> None:
    result = write_shard(task(tmp_path), CUTS, *BLOCKS)
    assert (result.status, result.counts["images"], result.counts["rejected"]) == ("committed", 2, 1)
    assert result.drawn == result.counts["masks"] > 0  # the rows' funnels have one number in all steps
    commit = CommitLog(location_of(tmp_path)).read(1, 1)
    assert commit.ordinals == (3, 6)
    assert {entry.path.split("/")[0] for entry in commit.files} == {"shards", "images", "masks", "rejects"}
    for entry in commit.files:
        data = (tmp_path / entry.path).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (entry.size, entry.sha256)
        assert f"sa_000001-{entry.sha256[:12]}." in entry.path


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    write_shard(task(tmp_path), CUTS, *BLOCKS)
    before = digests(tmp_path)
    other = (described([accepted_row(3), accepted_row(4), accepted_row(5)]),)
    assert write_shard(task(tmp_path), [(0, 3)], *other).counts["rejected"] == 1
    assert digests(tmp_path) == before


@pytest.mark.parametrize("cuts", [[(1, 3), (0, 2)], [(2, 3), (0, 3)], [(2, 3), (0, 1)], [(0, 1), (0, 2)]])
def test_rows_of_another_shard_are_never_written(tmp_path: Path, cuts: list[tuple[int, int]]) -> None:
    with pytest.raises(WrongRowsError, match="shard 1 expected the ordinals 3 to 5"):
        write_shard(task(tmp_path), cuts, *BLOCKS)
    assert digests(tmp_path) == {}


def test_a_faulted_row_holds_its_shard_back(tmp_path: Path) -> None:
    block = described([accepted_row(3), faulted_row(4), accepted_row(5)])
    result = write_shard(task(tmp_path), [(0, 3)], block)
    assert (result.status, result.faulted) == ("on_hold", (4,))
    assert result.detail == (
        "1 of 3 rows couldn't be judged; the first: row 4 (image_id 'image-4', uri 'photo_4.jpg'): "
        "prepare: StorageFaultError: the store does not answer"
    )
    assert digests(tmp_path) == {}


def test_many_faulted_rows_are_an_outage_and_none_of_them_is_named_for_it(tmp_path: Path) -> None:
    block = described([faulted_row(ordinal) for ordinal in range(3, 8)])
    result = write_shard(task(tmp_path, stop=8), [(0, 5)], block)
    assert (result.status, result.faulted) == ("on_hold", ())


def test_as_many_faulted_rows_as_may_be_rejected_are_named() -> None:
    block = described([faulted_row(ordinal) for ordinal in range(3, 9)])
    assert faulted_ordinals(block, 5) == ()
    assert faulted_ordinals(block, 6) == (3, 4, 5, 6, 7, 8)


def test_more_persistent_faults_than_allowed_hold_a_shard_back(tmp_path: Path) -> None:
    block = described([rejected_row(3, "persistent_fault"), rejected_row(4, "persistent_fault"), accepted_row(5)])
    result = write_shard(task(tmp_path, max_faults=1), [(0, 3)], block)
    assert (result.status, result.faulted, digests(tmp_path)) == ("on_hold", (), {})
    assert result.detail.startswith("2 of 3 rows were rejected as persistent_fault, over max_faults 1. Fix the causes")
    result = write_shard(task(tmp_path, max_faults=2), [(0, 3)], block)
    assert (result.status, result.counts["rejected:persistent_fault"]) == ("committed", 2)


def test_a_row_in_an_outage_keeps_a_shard_with_persistent_faults_back(tmp_path: Path) -> None:
    block = described([rejected_row(3, "persistent_fault"), faulted_row(4), accepted_row(5)])
    result = write_shard(task(tmp_path, max_faults=1), [(0, 3)], block)
    assert (result.status, result.faulted, digests(tmp_path)) == ("on_hold", (4,), {})


def test_an_outage_that_looks_like_verdicts_holds_a_large_shard_back() -> None:
    def share(reason: str, refused: int, rows: int) -> str:
        refusals = [rejected_row(i, reason) for i in range(refused)]
        return hold_reason(described(refusals + [accepted_row(i, 0) for i in range(rows - refused)]), 0.5)

    assert share("not_found", 50, 100) == ""
    assert "51 of 100 rows were rejected as not_found" in share("not_found", 51, 100)
    assert share("not_found", 99, 99) == ""
    assert share("license_expired", 100, 100) == ""


def test_a_writer_that_loses_the_commit_deletes_what_the_winner_does_not_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = CommitLog(location_of(tmp_path))
    write_shard(task(tmp_path), CUTS, *BLOCKS)
    winner = log.read(1, 1)

    monkeypatch.setattr("segmint.catalogs.dataset.manifest.CommitLog", late_log())
    result = write_shard(task(tmp_path), [(0, 3)], OTHER)
    assert result.counts == winner.counts
    named = {entry.path for entry in winner.files}
    standing = {path for path in digests(tmp_path) if not path.startswith("commits/")}
    assert standing == named


OTHER = described([accepted_row(3, masks=1), accepted_row(4), accepted_row(5)])


def late_log() -> type[CommitLog]:
    """Sees no commit at first, like a paused writer that looked before the winner committed."""

    class LateLog(CommitLog):
        looked = 0

        def read(self, shard: int, generation: int) -> Commit | None:
            LateLog.looked += 1
            return None if LateLog.looked == 1 else super().read(shard, generation)

    return LateLog


@pytest.mark.s3
@pytest.mark.parametrize("refused", [None, AccessRefusedError, PassingFaultError])
def test_a_writer_that_loses_leaves_no_older_version_of_its_files(
    s3_server: S3Server,
    s3_bucket: str,
    s3_options: dict[str, dict[str, str]],
    monkeypatch: pytest.MonkeyPatch,
    refused: type[Exception] | None,
) -> None:
    """A takedown or a redaction may have ended meanwhile; nobody would look for its images in these files again."""
    client = s3_server.client()
    client.put_bucket_versioning(Bucket=s3_bucket, VersioningConfiguration={"Status": "Enabled"})
    dataset = handle_of(Location(Storage(s3_options), f"s3://{s3_bucket}/dataset"))
    write_shard(task(Path(), dataset=dataset), CUTS, *BLOCKS)
    monkeypatch.setattr("segmint.catalogs.dataset.manifest.CommitLog", late_log())
    if refused:  # a build may lack the permission to delete versions, and some stores answer 501 to a list of them

        def refuse(*_: object) -> None:
            raise refused("s3:ListBucketVersions")

        monkeypatch.setattr(Storage, "purge", refuse)
    assert write_shard(task(Path(), dataset=dataset), [(0, 3)], OTHER).counts["rejected"] == 1
    named = {f"dataset/{entry.path}" for entry in dataset.commits.latest(1).files}
    page = client.list_object_versions(Bucket=s3_bucket)
    kinds = tuple(f"dataset/{kind}/" for kind in DATA_KINDS)
    standing, ever = (
        {each["Key"] for each in page["Versions"] if each["Key"].startswith(kinds) and (each["IsLatest"] or not latest)}
        for latest in (True, False)
    )
    assert standing == named
    assert (ever == named) is (refused is None)


def without_reservations(files: dict[str, str]) -> dict[str, str]:
    """All files but the reservations of writers at work."""
    kept = {path: digest for path, digest in files.items() if not path.startswith("reservations/")}
    assert len(kept) < len(files)
    return kept


def _write(folder: str, masks: int) -> None:
    block = described([accepted_row(i, masks) for i in (3, 4, 5)])
    write_shard(task(Path(folder)), [(0, 3)], block)


def test_writers_at_the_same_time_leave_one_whole_shard(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write, args=(str(tmp_path), masks)) for masks in (1, 2, 3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    commit = CommitLog(location_of(tmp_path)).read(1, 1)
    assert {path for path in digests(tmp_path) if not path.startswith("commits/")} == {
        entry.path for entry in commit.files
    }


def test_a_writer_that_loses_spares_what_a_later_generation_names(tmp_path: Path) -> None:
    """The late writer has the correction's result; the commit that beat it is about to be deleted."""
    block = described([accepted_row(3), accepted_row(4), accepted_row(5)])
    with stepping():
        late = SteppedThreads(lambda: write_shard(task(tmp_path), [(0, 3)], block))
        while not late.next_call.startswith("create commits"):
            late.step()
        write_shard(task(tmp_path), CUTS, *BLOCKS)
        write_shard(task(tmp_path, generation=2), [(0, 3)], block)
        before = digests(tmp_path)
        late.finish()
    assert late.error is None
    assert digests(tmp_path) == without_reservations(before)


def test_a_writer_that_loses_to_a_commit_that_is_gone_again_has_lost(tmp_path: Path) -> None:
    block = described([accepted_row(3, masks=1), accepted_row(4), accepted_row(5)])
    with stepping():
        late = SteppedThreads(lambda: write_shard(task(tmp_path), [(0, 3)], block))
        while not late.next_call.startswith("create commits"):
            late.step()
        write_shard(task(tmp_path), CUTS, *BLOCKS)
        while not late.next_call.startswith("walk"):  # it has lost: it looks up what the shard's commits name
            late.step()
        write_shard(task(tmp_path, generation=2), CUTS, *BLOCKS)
        (tmp_path / "commits/000001.g1.json").unlink()
        before = digests(tmp_path)
        late.finish()
    assert late.error is None
    commit = CommitLog(location_of(tmp_path)).read(1, 2)
    named = {entry.path for entry in commit.files}
    assert digests(tmp_path) == {
        path: digest for path, digest in before.items() if path in named | {"commits/000001.g2.json"}
    }


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


def test_a_retry_adds_no_more_persistent_faults_than_allowed(shard: Path) -> None:
    refused = [rejected_row(4, "persistent_fault"), rejected_row(6, "persistent_fault")]
    before = digests(shard)
    result = retry(shard, refused, max_faults=1)
    assert (result.status, digests(shard)) == ("on_hold", before)
    assert "2 of 5 rows were rejected as persistent_fault, over max_faults 1" in result.detail
    assert retry(shard, refused, max_faults=2).status == "committed"
    assert retry(shard, refused, generation=2).status == "unchanged", "a lower limit rejects no row again"
    again = retry(shard, [rejected_row(7, "persistent_fault")], generation=2, max_faults=2)
    assert "3 of 5 rows" in again.detail


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
    with pytest.raises(WrongRowsError, match="expected the ordinals 4 to 7, but got 2 of 2 rows, from 4 to 6"):
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
