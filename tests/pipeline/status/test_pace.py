"""The pace of a build, by the times of its commits."""

from datetime import UTC, datetime, timedelta

import pytest

from segmint.catalogs.dataset.summaries import CommitSums
from segmint.pipeline.status.pace import LEAST_COMMITS, MOST_COMMITS, first_commits, last_commits, pace_of

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def times(*minutes: float) -> dict[tuple[int, int], datetime]:
    """Commits of generation 1, so many minutes after noon, of the shards from 0."""
    return {(shard, 1): NOON + timedelta(minutes=minute) for shard, minute in enumerate(minutes)}


def test_builds_commits_are_in_order_of_time_without_corrected_ones() -> None:
    written = {**times(30, 10, 20, 0), (2, 2): NOON}
    assert first_commits(written, {0: 1, 1: 1, 2: 2, 3: 1}) == [3, 1, 0]


@pytest.mark.parametrize(
    ("minutes", "shards", "seconds"),
    [
        (range(0, 200, 10), 6, 3600),  # those of the last hour
        (range(0, 2000, 100), LEAST_COMMITS, 30_000),  # too few in it
        (range(0, 300, 100), 2, 12_000),  # there are no more
        ([shard / 100 for shard in range(1000)], MOST_COMMITS, MOST_COMMITS * 0.6),
    ],
)
def test_a_pace_rests_on_the_last_hour_or_on_enough_commits(minutes: range, shards: int, seconds: float) -> None:
    written = times(*minutes)
    chosen = last_commits(range(len(written)), written)
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
    chosen = last_commits(range(len(written)), written)
    assert chosen is not None
    assert (len(chosen.shards), chosen.since) == (9, NOON + timedelta(minutes=5000))


def test_commits_of_one_moment_have_no_pace() -> None:
    assert last_commits([], {}) is None
    assert last_commits(range(1), times(3)) is None
    assert last_commits(range(4), times(3, 3, 3, 3)) is None
