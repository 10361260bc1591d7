"""Two writers of one shard: races for its commit, and lost responses of the store."""

import os
from pathlib import Path
from typing import Any

import pytest

from segmint.catalogs.dataset.commits import Commit, FileEntry
from segmint.catalogs.layout import data_path
from tests.support.contenders import PROCESSES
from tests.support.faulty_proxy import LOSE_ANSWER, faulty_proxy
from tests.support.protocol import DatasetPath, begin, broken_promises, contents, write
from tests.support.s3_server import S3Server
from tests.support.stepped import SteppedThreads, stepping

DIGEST = "0123456789ab" + "0" * 52


def a_commit(shard: int, masks: int) -> Commit:
    entry = FileEntry(data_path("shards", shard, DIGEST), 100, DIGEST)
    return Commit(shard, 1, (shard, shard + 1), "0123456789ab", DIGEST, {"rows": 1, "masks": masks}, (entry,))


def contend(process: int, environment: dict[str, str], place: DatasetPath, alike: bool, start: Any, won: Any) -> None:
    """One process: put a commit of every shard, each together with the other processes."""
    os.environ.update(environment)
    for shard in range(len(won) // start.parties):
        start.wait(60)
        won[shard * start.parties + process] = place.log.put(a_commit(shard, 0 if alike else process))


def race(place: DatasetPath, races: int, processes: int, alike: bool) -> list[list[bool]]:
    """Put commits of the same shard from several processes at once; return what each is told, race by race."""
    start = PROCESSES.Barrier(processes)
    won = PROCESSES.Array("b", races * processes, lock=False)
    work = (dict(os.environ), place, alike, start, won)
    children = [PROCESSES.Process(target=contend, args=(index, *work)) for index in range(processes)]
    for child in children:
        child.start()
    for child in children:
        child.join(120)
        assert child.exitcode == 0
    return [[bool(flag) for flag in won[n * processes : (n + 1) * processes]] for n in range(races)]


def check_races(place: DatasetPath, races: int, processes: int) -> None:
    outcomes = race(place, races, processes, alike=False)
    for shard, flags in enumerate(outcomes):
        assert flags.count(True) == 1, f"shard {shard}: {flags}"
        winner = place.log.read(shard, 1)
        assert winner == a_commit(shard, masks=flags.index(True))
    assert len({flags.index(True) for flags in outcomes}) > 1, "the same process won every race: there was none"


def test_200_races_for_a_commit_on_local_files_have_one_winner_each(tmp_path: Path) -> None:
    check_races(DatasetPath(str(tmp_path)), races=200, processes=4)


def test_equal_commits_in_200_races_on_local_files_all_succeed(tmp_path: Path) -> None:
    assert all(all(flags) for flags in race(DatasetPath(str(tmp_path)), races=200, processes=4, alike=True))


@pytest.mark.s3
def test_20_races_for_a_commit_on_s3_have_one_winner_each(
    s3_bucket: str, s3_options: dict[str, dict[str, str]]
) -> None:
    check_races(DatasetPath(f"s3://{s3_bucket}/differ", s3_options), races=20, processes=3)
    alike = race(DatasetPath(f"s3://{s3_bucket}/alike", s3_options), races=20, processes=3, alike=True)
    assert all(all(flags) for flags in alike)


@pytest.mark.s3
def test_a_lost_answer_to_a_commit_is_recognized(s3_server: S3Server, s3_bucket: str) -> None:
    with faulty_proxy(s3_server.port) as proxy:
        place = DatasetPath(f"s3://{s3_bucket}/dataset", {"s3://": {"endpoint_url": proxy.url}})
        begin(place)
        proxy.requests.clear()
        proxy.plan = [*[("PUT", b"")] * 5, ("PUT", LOSE_ANSWER)]
        result = write(place, 0)
        assert (result.status, result.counts["images"]) == ("committed", 2)
        # Is it committed? Reservation and four files; the commit, whose response is lost; again, refused; and whose is
        # there? Are the files there? Is there a higher generation? A tombstone? An amended catalog? The reservation
        # goes.
        afterwards = [*["HEAD"] * 4, "GET", "GET", "GET", "DELETE"]
        assert proxy.requests == ["GET", *["PUT"] * 5, "PUT", "PUT", "GET", *afterwards]
        assert broken_promises(place) == []
        assert len(contents(place)) == 7


@pytest.mark.s3
def test_a_lost_answer_to_a_losing_commit_is_not_a_win(s3_server: S3Server, s3_bucket: str) -> None:
    with faulty_proxy(s3_server.port) as proxy, stepping():
        place = DatasetPath(f"s3://{s3_bucket}/dataset", {"s3://": {"endpoint_url": proxy.url}})
        begin(place)
        late = SteppedThreads(lambda: write(place, 0, variant=2))
        while not late.next_call.startswith("create commits"):
            late.step()
        write(place, 0)
        before = contents(place)
        proxy.plan = [("PUT", LOSE_ANSWER)]
        late.finish()
        assert (late.error, proxy.plan) == (None, [])
        ours = before.keys() - contents(place).keys()
        assert sorted(path.partition("/")[0] for path in ours) == [
            "images",
            "masks",
            "rejects",
            "reservations",
            "shards",
        ]
        assert broken_promises(place) == []
