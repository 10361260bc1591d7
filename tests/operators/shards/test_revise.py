"""Revising a shard beside others: a beaten revision starts over, and tombstones are applied whenever they come."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pyarrow as pa
import pytest

from segmint.catalogs.dataset.commits import Commit, Reservation
from segmint.catalogs.dataset.tombstones import (
    SAME_SOURCE,
    Fingerprint,
    RemovedImage,
    TakedownRequest,
    Tombstone,
    put_fingerprints,
    put_tombstone,
)
from segmint.catalogs.layout import DamagedDatasetError
from segmint.operators.rows import Row
from segmint.operators.shards.put import remove_replaced
from segmint.operators.shards.revise import (
    ShardRevision,
    apply_tombstones,
    finish_dead_writers,
    read_committed_rows,
    revise_shard,
)
from tests.support.protocol import ROWS, DatasetPath, broken_promises, contents, rows_of, two_shards, write
from tests.support.stepped import SteppedThreads, stepping


@pytest.fixture
def place() -> Iterator[DatasetPath]:
    """A dataset with one of its two shards committed: two images and a refused row."""
    with two_shards(committed=1) as place:
        yield place


def credit(place: DatasetPath, ordinal: int, name: str) -> ShardRevision | None:
    """Append a name to an image's attribution."""

    def change(_: Commit, rows: Sequence[Row]) -> Sequence[Row]:
        return [
            {**row, "attribution": f"{row['attribution'] or ''}{name}"} if row["ordinal"] == ordinal else row
            for row in rows
        ]

    return revise_shard(place.handle, 0, change)


def credits(place: DatasetPath) -> list[str | None]:
    commit = place.log.latest(0)
    assert commit is not None
    return [row["attribution"] for row in read_committed_rows(place.location, commit)]


def take(place: DatasetPath, *ordinals: int, sha256: str | None = None, uri: str = "gone.jpg") -> None:
    images = tuple(RemovedImage(ordinal=n, id=n + 1, image_id=f"x{n}", uri=uri, sha256=sha256) for n in ordinals)
    tombstone = Tombstone(
        request=TakedownRequest(license="L"), reason="asked", when="2026-01-01T00:00:00Z", images=images
    )
    put_tombstone(place.location, tombstone)


def until(actor: SteppedThreads, call: str) -> SteppedThreads:
    while not actor.next_call.startswith(call):
        actor.step()
    return actor


def test_a_revision_without_a_change_writes_nothing(place: DatasetPath) -> None:
    before = contents(place)
    revised = revise_shard(place.handle, 0, lambda _, rows: rows)
    assert revised is not None
    assert (revised.changed, revised.rows, contents(place)) == (False, 0, before)
    assert revise_shard(place.handle, 1, lambda _, rows: rows) is None
    assert revise_shard(place.handle, 0, lambda *_: 1 / 0, needed=lambda _: False) is not None  # type: ignore[arg-type,return-value]


def test_a_beaten_revision_is_applied_to_what_beat_it(place: DatasetPath) -> None:
    with stepping():
        late = until(SteppedThreads(lambda: credit(place, 0, "A")), "create commits")
        credit(place, 0, "B")
        credit(place, 1, "C")
        late.finish()
    assert (late.error, late.result.commit.generation, late.result.rows) == (None, 4, 1)
    assert credits(place) == ["BA", "C", None]
    assert not [path for path in contents(place) if path.startswith("reservations/")]


def test_a_revision_that_slept_until_its_generation_was_replaced_has_lost(place: DatasetPath) -> None:
    """Its commit can be put again, for a later correction has removed the one that beat it."""
    with stepping():
        late = until(SteppedThreads(lambda: credit(place, 0, "A")), "create commits")
        credit(place, 0, "B")
        credit(place, 0, "C")
        remove_replaced(place.location, [0])
        late.step()
        assert place.log.generations() == {0: [2, 3]}
        assert credits(place)[0] == "BC"
        late.finish()
    assert late.error is None
    remove_replaced(place.location, [0])
    assert (credits(place)[0], place.log.generations()) == ("BCA", {0: [4]})
    assert broken_promises(place) == []


def test_files_that_are_removed_as_a_revision_reads_them_are_read_again(place: DatasetPath) -> None:
    with stepping():
        late = until(SteppedThreads(lambda: credit(place, 0, "A")), "read masks")
        credit(place, 1, "B")
        remove_replaced(place.location, [0])
        late.finish()
    assert late.error is None
    assert credits(place) == ["A", "B", None]
    commit = place.log.latest(0)
    assert commit is not None
    (place.location / commit.file("images").path).delete()
    with pytest.raises(DamagedDatasetError, match="no such file"):
        credit(place, 0, "A")


def test_what_is_reserved_is_removed_by_nobody_until_its_generation_is_committed(place: DatasetPath) -> None:
    commit = place.log.latest(0)
    assert commit is not None
    with stepping():
        late = until(SteppedThreads(lambda: credit(place, 0, "A")), "create commits")
        reserved = contents(place).keys()
        remove_replaced(place.location, [0])
        assert contents(place).keys() == reserved
        place.log.put(replace(commit, generation=2))
        remove_replaced(place.location, [0])
        left = {entry.path for entry in commit.files} | {"commits/000000.g2.json"}
        assert {path for path in contents(place) if "000000" in path and "reservations" not in path} == left
        late.finish()
    assert credits(place)[0] == "A"


def test_shards_that_a_build_is_writing_are_spared_and_named(place: DatasetPath) -> None:
    with stepping():
        build = until(SteppedThreads(lambda: write(place, 1)), "create commits")
        before = contents(place)
        assert remove_replaced(place.location, [0, 1]) == [1]
        assert contents(place) == before
        build.finish()
    assert remove_replaced(place.location, [0, 1]) == []
    assert broken_promises(place) == []


def test_a_file_that_vanished_is_put_again_after_the_commit(place: DatasetPath) -> None:
    """A sweep that looked before the reservation was there, and slept until its deletion, may delete it."""
    with stepping():
        build = until(SteppedThreads(lambda: write(place, 1)), "create commits")
        (masks,) = (path for path in contents(place) if path.startswith("masks/sa_000001"))
        (place.location / masks).delete()
        build.finish()
    assert build.error is None
    assert broken_promises(place) == []


@pytest.mark.parametrize("call", ["put shards", "create commits", "walk dataset/tombstones"])
def test_a_build_that_looked_before_a_takedown_takes_the_image_out_again(place: DatasetPath, call: str) -> None:
    with stepping():
        build = until(SteppedThreads(lambda: write(place, 1)), call)
        take(place, ROWS)
        take(place, 99, sha256=f"{ROWS + 1:064x}")
        build.finish()
    assert build.error is None
    assert build.result.counts["rejected:taken_down"] == 2
    commit = place.log.latest(1)
    assert commit is not None
    first, second, _ = read_committed_rows(place.location, commit)
    assert (first["image_id"], first["reason"]) == ("", "taken_down")
    assert (second["image_id"], second["reason"]) == (f"image-{ROWS + 1}", "taken_down")  # as the catalog, until then
    assert place.log.generations()[1] == [2]
    named = {entry.path for entry in commit.files}
    assert {path for path in contents(place) if "sa_000001" in path} == named


@pytest.mark.parametrize("measure", ["released", "pixels"])
def test_a_build_that_looked_before_a_takedown_takes_a_copy_out_again(place: DatasetPath, measure: str) -> None:
    """A copy with other bytes, in another shard, has the pixels or the JPEG of the image that was removed."""
    rows = rows_of(1, 0)
    pixels = pa.array([None, "1" * 64, None], pa.string())
    rows = rows.set_column(rows.schema.get_field_index("pixels_sha256"), "pixels_sha256", pixels)
    released = rows.column("release_sha256")[1].as_py()
    own = Fingerprint(released=(released,)) if measure == "released" else Fingerprint(pixels="1" * 64)
    with stepping():
        build = until(SteppedThreads(lambda: write(place, 1, rows=rows)), "walk dataset/tombstones")
        take(place, 99)
        put_fingerprints(place.location, 33, {100: own})
        build.finish()
    assert build.error is None
    assert build.result.counts["rejected:taken_down"] == 1
    commit = place.log.latest(1)
    assert commit is not None
    assert read_committed_rows(place.location, commit)[1]["detail"] == SAME_SOURCE


def test_a_build_that_goes_on_applies_what_one_that_died_did_not(place: DatasetPath) -> None:
    with stepping():
        build = until(SteppedThreads(lambda: write(place, 1)), "walk dataset/tombstones")
        take(place, 99, uri=f"./photo_{ROWS}.jpg")
        build.kill()
    assert [path for path in contents(place) if path.startswith("reservations/")]
    assert finish_dead_writers(place.handle, range(2)) == [1]
    assert not [path for path in contents(place) if path.startswith("reservations/")]
    assert finish_dead_writers(place.handle, range(2)) == []
    commit = place.log.latest(1)
    assert commit is not None
    assert commit.counts["rejected:taken_down"] == 1


def test_a_writer_that_is_run_again_after_its_commit_applies_the_tombstones(place: DatasetPath) -> None:
    """Ray runs a writer again whose node was lost."""
    with stepping():
        build = until(SteppedThreads(lambda: write(place, 1)), "walk dataset/tombstones")
        build.kill()
    take(place, ROWS)
    assert write(place, 1).counts["rejected:taken_down"] == 1
    applied = apply_tombstones(place.handle, 1)
    assert applied is not None
    assert not applied.changed
    assert not [path for path in contents(place) if path.startswith("reservations/")]


def test_equal_reservations_are_one_file(place: DatasetPath) -> None:
    one, other = Reservation(0, 2, ("b", "a")), Reservation(0, 2, ("a", "b"))
    assert one.to_json() == other.to_json()
    uris = [reservation.location(place.location).uri for reservation in (one, other, Reservation(0, 3, ("a", "b")))]
    assert uris[0] == uris[1] != uris[2]
