"""Corrections beside builds and beside one another: each shard ends with all of them, and no image comes back."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from segmint.catalogs.dataset.commits import Commit
from segmint.catalogs.dataset.sweep import sweep
from segmint.catalogs.dataset.tombstones import TakedownRequest
from segmint.catalogs.dataset.versions import name_now, put_version
from segmint.infra.ray_session import Cluster
from segmint.operators.rows import Row
from segmint.operators.shards.put import remove_replaced
from segmint.operators.shards.revise import read_committed_rows
from segmint.pipeline.corrections.correction import Revision, revise
from segmint.pipeline.corrections.proof import prove
from segmint.pipeline.corrections.repair import repair
from segmint.pipeline.corrections.takedown import TakedownResult, takedown
from segmint.pipeline.quality.audit.integrity import audit_integrity
from tests.support.described_rows import accepted_row, described
from tests.support.everything import mentions
from tests.support.history_commands import grow, mark, marks_of
from tests.support.protocol import ROWS, DatasetPath, broken_promises, contents, copy_folder, two_shards, write
from tests.support.stepped import SteppedThreads, stepping


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """A dataset with one of its two shards committed."""
    with two_shards(committed=1) as place:
        yield place


def take(place: DatasetPath, *ordinals: int) -> TakedownResult:
    return takedown(place.location, TakedownRequest(ids=tuple(f"image-{n}" for n in ordinals)), "asked for")


def lose_masks(place: DatasetPath) -> str:
    """Delete the table of masks of shard 0; return its path."""
    commit = place.log.latest(0)
    assert commit is not None
    path = commit.file("masks").path
    (place.location / path).delete()
    return path


def until(actor: SteppedThreads, call: str) -> SteppedThreads:
    while not actor.next_call.startswith(call):
        actor.step()
    return actor


def test_a_takedown_beside_a_build_spares_what_it_writes_and_the_build_takes_the_image_out(place: DatasetPath) -> None:
    with stepping():
        build = until(SteppedThreads(lambda: write(place, 1)), "create commits")
        done = take(place, 0, ROWS)
        assert (done.rows, done.images, done.changed_shards, done.building) == (2, 1, (0,), (1,))
        assert any("a build is writing shards 1, or died while writing" in line for line in done.lines())
        assert broken_promises(place) == []
        build.finish()
    assert build.error is None
    assert mentions(Path(place.uri), ["image-0", f"image-{ROWS}"]) == []
    assert take(place, 0).building == ()
    assert audit_integrity(place.location).findings.total == 0


@pytest.mark.parametrize("call", ["read dataset", "create tombstones", "create commits", "walk dataset/masks"])
def test_two_takedowns_at_once_are_both_done(place: DatasetPath, call: str) -> None:
    with stepping():
        late = until(SteppedThreads(lambda: take(place, 0)), call)
        take(place, 1)
        late.finish()
    assert late.error is None
    assert name_now(place.location).number is not None
    assert mentions(Path(place.uri), ["image-0", "image-1"]) == []
    assert audit_integrity(place.location).findings.total == 0
    assert not [path for path in contents(place) if path.startswith("reservations/")]


@pytest.mark.parametrize("call", ["create commits", "walk dataset/masks"])
def test_a_takedown_does_not_record_another_that_died_as_finished(place: DatasetPath, call: str) -> None:
    with stepping():
        done = until(SteppedThreads(lambda: take(place, 0)), call)  # it has read the tombstones, and found only its own
        dead = until(SteppedThreads(lambda: take(place, 1)), "create tombstones")
        dead.step()
        dead.kill()
        done.finish()
    assert done.error is None
    assert name_now(place.location).number is None
    assert put_version(place.location, "build").number is None
    assert len(repair(place.location).unfinished) == 2, "no version lists the other's tombstone, either"
    take(place, 1)
    assert name_now(place.location).number == 1
    assert repair(place.location).unfinished == []
    assert mentions(Path(place.uri), ["image-0", "image-1"]) == []


@pytest.mark.parametrize("call", ["create dataset/dataset.g2", "create commits"])
def test_a_takedown_beside_growth_and_a_redaction_loses_nothing(place: DatasetPath, call: str) -> None:
    with stepping():
        late = until(SteppedThreads(lambda: take(place, 0)), call)
        grow(place)
        mark(place, 1, x=5)
        sweep(place.location)
        late.finish()
    assert late.error is None
    assert mentions(Path(place.uri), ["image-0"]) == []
    commit = place.log.latest(0)
    assert commit is not None
    rows = read_committed_rows(place.location, commit)
    assert [(row["reason"], marks_of(row)) for row in rows[:2]] == [("taken_down", set()), (None, {5})]
    write(place, 2)
    assert audit_integrity(place.location).findings.total == 0


def test_the_same_bytes_are_found_in_a_shard_that_is_committed_as_a_takedown_looks(place: DatasetPath) -> None:
    """Its writer has applied the tombstones before there was one."""
    same = described([{**accepted_row(ROWS), "source_sha256": f"{0:064x}"}, *map(accepted_row, (ROWS + 1, ROWS + 2))])
    with stepping():
        late = until(SteppedThreads(lambda: take(place, 0)), "create tombstones")
        write(place, 1, rows=same)
        late.finish()
    assert late.error is None
    assert (late.result.rows, late.result.images, late.result.changed_shards) == (2, 2, (0, 1))
    assert mentions(Path(place.uri), ["image-0", f"image-{ROWS}"]) == []
    assert audit_integrity(place.location).findings.total == 0


def test_a_repair_that_slept_through_a_takedown_brings_nothing_back(place: DatasetPath) -> None:
    masks = lose_masks(place)
    with stepping():
        late = until(SteppedThreads(lambda: repair(place.location)), "put masks")
        assert repair(place.location).repaired == [masks]
        take(place, 0)
        before = contents(place)
        late.finish()
    assert late.error is None
    assert masks not in contents(place)
    assert contents(place) == before
    assert prove(place.location, "image-0").found == ()


def test_a_repair_that_slept_until_its_generation_was_removed_leaves_no_file_of_it(place: DatasetPath) -> None:
    masks = lose_masks(place)
    with stepping():
        late = until(SteppedThreads(lambda: repair(place.location)), "put masks")
        assert repair(place.location).repaired == [masks]
        write(place, 0, variant=1, generation=2)
        remove_replaced(place.location, [0])
        before = contents(place)
        assert masks not in before
        late.finish()
    assert late.error is None
    assert contents(place) == before


def test_a_repair_puts_nothing_where_another_has_done_it(place: DatasetPath) -> None:
    masks = lose_masks(place)
    with stepping():
        late = until(SteppedThreads(lambda: repair(place.location)), "version reservations")
        assert repair(place.location).repaired == [masks]
        mark(place, 0, x=5)
        before = contents(place)
        while not late.done:
            assert not late.next_call.startswith("put masks")
            late.step()
    assert late.error is None
    assert contents(place) == before


def test_a_repair_takes_down_what_a_takedown_that_died_has_left(place: DatasetPath) -> None:
    commit = place.log.latest(0)
    assert commit is not None
    masks = commit.file("masks").path
    with stepping():
        until(SteppedThreads(lambda: take(place, 0)), "create commits").kill()
    (place.location / masks).delete()
    done = repair(place.location)
    assert (done.repaired, done.not_repaired) == ([masks], {})
    named = mentions(Path(place.uri), ["image-0"])
    assert [path for path in named if not path.startswith("catalog/")] == []  # that part goes with the takedown again
    assert place.log.committed()[0] == 2
    (tombstone,) = done.unfinished  # its catalog isn't blank yet, so nothing may record this state as a version
    assert f"not repaired: the takedown of {tombstone} didn't finish; run it again" in done.lines()
    assert put_version(place.location, "build").number is None
    take(place, 0)
    assert repair(place.location).unfinished == []
    assert put_version(place.location, "build").number == 1


def test_a_repair_looks_again_where_a_shard_is_replaced_as_it_looks(place: DatasetPath) -> None:
    with stepping():
        late = until(SteppedThreads(lambda: repair(place.location)), "read masks")
        mark(place, 0, x=5)
        late.finish()
    assert late.error is None
    assert (late.result.damages, late.result.not_repaired) == ([], {})


def test_a_damaged_commit_is_not_made_of_what_a_dead_revision_has_put(place: DatasetPath) -> None:
    commit = place.log.latest(0)
    assert commit is not None
    with stepping():
        until(SteppedThreads(lambda: mark(place, 0, x=5)), "create commits").kill()
    before = contents(place)
    (place.location / commit.file("images").path).delete()
    done = repair(place.location)
    assert (done.repaired, list(done.not_repaired)) == ([], [0])
    (place.location / "commits/000000.g1.json").put(commit.to_json().replace(b"numerics", b"numerocs"))
    assert "images: none" in repair(place.location).not_repaired[0]
    assert not before.keys() - contents(place).keys() - {commit.file("images").path}


@pytest.mark.ray
def test_ray_repairs_the_shards_of_a_large_dataset(place: DatasetPath, local_ray: Cluster) -> None:
    write(place, 1, variant=2)
    before = contents(place)
    damaged = []
    for shard, kind in enumerate(("masks", "rejects")):
        commit = place.log.latest(shard)
        assert commit is not None
        damaged.append(commit.file(kind).path)
        (place.location / damaged[-1]).delete()
    done = repair(place.location, ray_from=2)
    assert (done.repaired, done.not_repaired) == (damaged, {})
    assert contents(place) == before


@pytest.mark.ray
def test_ray_revises_the_shards_of_a_large_dataset_to_the_same_bytes(
    place: DatasetPath, local_ray: Cluster, tmp_path: Path
) -> None:
    write(place, 1)
    other = DatasetPath(str(tmp_path / "other"))
    copy_folder(Path(place.uri), other)

    def change(_: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        return [{**row, "country": "CH"} if row["reason"] is None and row["ordinal"] % 2 else row for row in rows]

    revision = Revision(frozenset({0, 1, 2}), change)
    one = revise(place.handle, revision)
    by_ray = revise(other.handle, revision, ray_from=2)
    assert by_ray == one
    assert {shard: revised.rows for shard, revised in one.changed.items()} == {0: 1, 1: 1}
    assert contents(other) == contents(place)
