"""The pace of a build, by the times of its commits."""

from datetime import UTC, datetime, timedelta

import pytest

from segmint.catalogs.dataset.commits import CommitSums, ListedCommit
from segmint.infra.storage.stores import NO_TIME
from segmint.pipeline.building.totals import LEAST_COMMITS, MOST_COMMITS, first_commits, last_commits, pace_of

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def times(*minutes: float) -> dict[int, datetime]:
    """Times so many minutes after noon, of the shards from 0."""
    return {shard: NOON + timedelta(minutes=minute) for shard, minute in enumerate(minutes)}


def found(*commits: tuple[int, int, float | None]) -> dict[int, int]:
    """The minutes of the first commits, in order, by those of commits (shard, generation, minutes) in a listing."""
    listed = [
        ListedCommit(shard, generation, 9, NO_TIME if minute is None else NOON + timedelta(minutes=minute))
        for shard, generation, minute in commits
    ]
    return {shard: int((time - NOON).total_seconds() / 60) for shard, time in first_commits(listed).items()}


def test_first_commits_are_in_order_of_time() -> None:
    of_both = ((0, 1, 30), (1, 1, 10), (2, 1, 20), (2, 2, 90), (3, 1, 0))
    assert list(found(*of_both).items()) == [(3, 0), (1, 10), (2, 20), (0, 30)]


@pytest.mark.parametrize(
    ("listed", "minutes"),
    [
        # The correction was long after; it ran beside the build.
        ([(0, 1, 0), (1, 2, 500), (3, 2, 501), (4, 1, 20)], {0: 0, 1: 5, 3: 15, 4: 20}),
        ([(0, 1, 0), (1, 2, 5), (2, 1, 20)], {0: 0, 1: 5, 2: 20}),
        # No neighbor on one side: a sweep of corrections is not the pace of a build.
        ([(0, 2, 500), (1, 3, 501), (2, 1, 20), (3, 2, 502)], {2: 20}),
        ([(0, 2, 500), (1, 2, 501)], {}),
        # A shard that was on hold is committed last: those after it came before.
        ([(0, 1, 400), (1, 2, 500), (2, 1, 20)], {2: 20, 0: 400}),
        ([(0, 1, 400), (1, 2, 300), (2, 1, 500)], {0: 400, 2: 500}),
        # A store that gives no times.
        ([(0, 1, None), (1, 1, 10), (2, 1, None), (3, 1, 30)], {1: 10, 3: 30}),
        ([(0, 1, None), (1, 1, None)], {}),
    ],
)
def test_a_corrected_shard_came_between_its_neighbors(
    listed: list[tuple[int, int, float | None]], minutes: dict[int, int]
) -> None:
    assert found(*listed) == minutes
    assert list(found(*listed)) == list(minutes)


def test_an_amendment_beside_a_build_does_not_change_its_pace() -> None:
    """A commit a minute; all but each tenth shard of the first hundred is amended in the last minutes."""
    built = [(shard, 1, float(shard)) for shard in range(120)]
    amended = [(shard, 2, 110 + shard / 10) if shard % 10 and shard < 100 else (shard, 1, at) for shard, _, at in built]
    for listed in (built, amended):
        first = {shard: NOON + timedelta(minutes=minute) for shard, minute in found(*listed).items()}
        chosen = last_commits(first)
        assert chosen is not None
        assert (len(chosen.shards), chosen.last - chosen.since) == (60, timedelta(minutes=60))


@pytest.mark.parametrize(
    ("minutes", "shards", "seconds"),
    [
        (range(0, 200, 10), 6, 3600),  # those of the last hour
        (range(0, 2000, 100), LEAST_COMMITS, 30_000),  # too few in it
        ([shard / 100 for shard in range(1000)], MOST_COMMITS, MOST_COMMITS * 0.6),
    ],
)
def test_a_pace_rests_on_the_last_hour_or_on_enough_commits(minutes: range, shards: int, seconds: float) -> None:
    written = times(*minutes)
    chosen = last_commits(written)
    assert chosen is not None
    assert list(chosen.shards) == list(range(len(written) - shards, len(written)))
    assert (chosen.last - chosen.since).total_seconds() == pytest.approx(seconds)
    counts = {"rows": 60 * shards, "images": 30 * shards, "masks": 90 * shards}
    pace = pace_of(chosen, CommitSums(shards, 4, 4, counts, {}))
    assert pace.rows_per_s == pytest.approx(60 * shards / seconds)
    assert (pace.images_per_s, pace.masks_per_s) == (
        pytest.approx(pace.rows_per_s / 2),
        pytest.approx(3 * pace.images_per_s),
    )


def test_a_pause_before_the_last_hour_does_not_slow_the_pace() -> None:
    written = times(0, *range(5000, 5060, 6))
    chosen = last_commits(written)
    assert chosen is not None
    assert (len(chosen.shards), chosen.since) == (9, NOON + timedelta(minutes=5000))


def test_commits_of_one_moment_have_no_pace() -> None:
    assert last_commits({}) is None
    assert last_commits(times(3)) is None
    assert last_commits(times(*[3] * 9)) is None


def test_a_few_commits_have_no_pace() -> None:
    """Two writers end within a second, after an hour of work."""
    assert last_commits(times(60, 60.01)) is None
    assert last_commits(times(*range(LEAST_COMMITS))) is None
    assert last_commits(times(*range(LEAST_COMMITS + 1))) is not None
