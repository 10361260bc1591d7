"""What a build has to do: shards without a commit, and refused rows to retry."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from segmint.catalogs.dataset.commits import CommitLog, FileEntry
from segmint.catalogs.findings import Reason
from segmint.catalogs.layout import ShardSpan
from segmint.infra.errors import UsageError
from segmint.infra.metrics import RunMetrics
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from segmint.pipeline.building.dataset import BuildDataset, open_or_create
from segmint.pipeline.building.execution.accounting import MissingShards, RejectedRows, WindowRows, WindowSize
from segmint.pipeline.config.config import Config, load_config
from tests.support.builds import NO_DETECTORS, write_catalog, write_config
from tests.support.faulty_proxy import faulty_proxy
from tests.support.locations import location_of
from tests.support.photographs import photograph
from tests.support.s3_server import S3Server
from tests.support.signed_images import data_mining
from tests.support.small_dataset import build_dataset
from tests.support.two_masks import TwoMaskSegment


@pytest.fixture
def opened(small_dataset: Path, dataset: Path) -> tuple[Config, BuildDataset]:
    """A copy of the small real dataset: row 2 refused for its license, row 7 not found, three rows a shard."""
    config = load_config(str(small_dataset.parent / "build.yaml"), [f"output={dataset}"])
    return config, open_or_create(config, Storage())


def ordinals_of(rows: WindowRows) -> list[int]:
    tables = (table for task in rows.source.get_read_tasks(1) for table in task())
    return [ordinal for table in tables for ordinal in table.column("ordinal").to_pylist()]


def rejected(opened: tuple[Config, BuildDataset], *reasons: str, wanted: range = range(3)) -> RejectedRows:
    config, dataset = opened
    return RejectedRows(config, dataset, wanted, reasons)


def commits(opened: tuple[Config, BuildDataset]) -> CommitLog:
    return CommitLog(opened[1].location)


def log_files(log: CommitLog, shard: int) -> tuple[FileEntry, ...]:
    """The files of another shard, whose rows were rejected for other reasons."""
    commit = log.latest(shard)
    assert commit is not None
    return commit.files


def test_shards_without_a_commit_are_missing(opened: tuple[Config, BuildDataset]) -> None:
    config, dataset = opened
    (Path(dataset.location.uri) / "commits" / "000001.g1.json").unlink()
    work = MissingShards(config, dataset, range(3), RunMetrics("small"))
    assert (work.left, work.rows) == ([1], 3)
    taken = work.read([1])
    assert ordinals_of(taken) == [3, 4, 5]
    assert [(span.shard, span.rows) for span in taken.source.stream()] == [(1, 3)]
    assert (taken.tasks[1].start, taken.tasks[1].stop) == (3, 6)
    assert MissingShards(config, dataset, range(2, 3), RunMetrics("small")).left == []


def test_what_is_held_back_comes_last_and_what_another_committed_is_done(opened: tuple[Config, BuildDataset]) -> None:
    config, dataset = opened
    folder = Path(dataset.location.uri) / "commits"
    kept = {path: path.read_bytes() for path in sorted(folder.iterdir())}
    for path in kept:
        path.unlink()
    work = MissingShards(config, dataset, range(3), RunMetrics("small"))
    assert work.left == [0, 1, 2]
    paths = list(kept)
    paths[1].write_bytes(kept[paths[1]])
    assert work.settle([0, 1], done=()) == 1
    assert work.left == [2, 0]
    paths[0].write_bytes(kept[paths[0]])
    assert work.settle([2], done=()) == 1
    assert work.left == [0, 2]
    assert list(work.read([0, 2]).source.stream()) == [ShardSpan(2, 0, 2)]
    assert work.settle([0, 2], done=()) == 1
    assert work.left == [2]
    assert work.settle([2], done={2}) == 0, "a writer's result needs no look"


@pytest.mark.parametrize(
    ("reasons", "shards", "ordinals"),
    [
        ([Reason.NOT_FOUND], [2], [7]),
        ([Reason.LICENSE_NOT_ALLOWED, Reason.NOT_FOUND], [0, 2], [2, 7]),
        ([Reason.TRUNCATED], [], []),
        ([], [], []),
    ],
)
def test_rows_are_retried_by_their_reason(
    opened: tuple[Config, BuildDataset], reasons: list[Reason], shards: list[int], ordinals: list[int]
) -> None:
    work = rejected(opened, *reasons)
    assert (work.left, work.rows) == (shards, len(ordinals))
    taken = work.read(work.left)
    assert ordinals_of(taken) == ordinals
    assert [(span.shard, span.rows) for span in taken.source.stream()] == [(shard, 1) for shard in shards]
    assert [(task.shard, task.generation, task.ordinals) for task in taken.tasks.values()] == [
        (shard, 1, [ordinal]) for shard, ordinal in zip(shards, ordinals, strict=True)
    ]


def test_a_range_of_shards_limits_the_rows(opened: tuple[Config, BuildDataset]) -> None:
    both = Reason.LICENSE_NOT_ALLOWED, Reason.NOT_FOUND
    assert rejected(opened, *both, wanted=range(1, 3)).left == [2]
    assert rejected(opened, *both, wanted=range(1, 2)).left == []


def test_a_reason_that_no_custom_stage_gave_is_refused(opened: tuple[Config, BuildDataset]) -> None:
    log = commits(opened)
    commit = log.latest(0)
    assert commit is not None
    log.location(0, 1).delete()
    assert rejected(opened, "blury").left == [], "the missing shard may have it"
    log.put(replace(commit, counts={**commit.counts, "rejected:blurry": 1}))
    with pytest.raises(UsageError, match=r"'blury': no row was rejected for it\. Reasons of custom stages: blurry$"):
        rejected(opened, "blurry", "blury")
    assert rejected(opened, "blurry").left == [0]
    assert rejected(opened, "blury", wanted=range(2)).left == [], "other shards may have it"
    log.put(replace(commit, generation=2))
    log.location(0, 1).delete()
    assert rejected(opened, "blurry").left == [], "its rows were retried"


def test_a_row_is_retried_once_in_a_run(opened: tuple[Config, BuildDataset]) -> None:
    work = rejected(opened, Reason.LICENSE_NOT_ALLOWED, Reason.NOT_FOUND)
    assert work.settle([0, 2], done={0}) == 1
    assert work.left == [2]
    assert work.settle([2], done={2}) == 0
    assert work.left == []


def test_a_shard_that_another_replaced_is_retried_in_its_newer_generation(opened: tuple[Config, BuildDataset]) -> None:
    work = rejected(opened, Reason.NOT_FOUND)
    log = commits(opened)
    commit = log.latest(2)
    assert commit is not None
    log.put(replace(commit, generation=2))
    log.location(2, 1).delete()
    for _ in range(2):
        taken = work.read([2])
        assert [(task.shard, task.generation, task.ordinals) for task in taken.tasks.values()] == [(2, 2, [7])]
        assert work.settle([2], done=()) == 1
    log.put(replace(commit, generation=3, counts={**commit.counts, "rejected:not_found": 0}, files=log_files(log, 0)))
    log.location(2, 2).delete()
    assert list(work.read([2]).source.stream()) == []
    assert (work.settle([2], done=()), work.left) == (0, [])


def test_an_image_whose_opt_out_was_withdrawn_is_tried_again_and_one_that_the_catalog_forbids_stays_out(
    tmp_path: Path,
) -> None:
    picture = photograph("coffee", (240, 180))
    Image.fromarray(picture).save(tmp_path / "a.jpg", xmp=data_mining("DMI-PROHIBITED-AIMLTRAINING"))
    rows = [{"uri": "a.jpg", "license": "CC0-1.0"}, {"uri": "b.jpg", "license": "CC0-1.0", "opt_out": True}]
    catalog = write_catalog(tmp_path / "c.jsonl", rows)
    config = write_config(tmp_path / "build.yaml", catalog, tmp_path / "dataset", deidentify=NO_DETECTORS)
    log = CommitLog(location_of(build_dataset(config, segment_class=TwoMaskSegment)))
    before = log.latest(0)
    assert before is not None
    assert before.counts["rejected:opted_out"] == 2
    build_dataset(config, retry=[Reason.OPTED_OUT], segment_class=TwoMaskSegment)
    assert log.latest(0) == before
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    build_dataset(config, retry=["opted_out"], segment_class=TwoMaskSegment)
    after = log.latest(0)
    assert after is not None
    assert (after.generation, after.counts["images"], after.counts["rejected:opted_out"]) == (2, 1, 1)


@pytest.mark.s3
def test_the_requests_per_window_do_not_depend_on_the_number_of_commits(
    opened: tuple[Config, BuildDataset], s3_server: S3Server, make_bucket: Callable[[], str]
) -> None:
    config, dataset = opened
    commit = commits(opened).latest(0)
    assert commit is not None
    counts = []
    with faulty_proxy(s3_server.port) as proxy:
        for others in (0, 1100):  # a page of a listing has 1,000 names
            uri = f"s3://{make_bucket()}/set"
            location = Location(Storage({"s3://": {"endpoint_url": proxy.url}}), uri)
            log = CommitLog(Location(Storage({"s3://": {"endpoint_url": s3_server.endpoint_url}}), uri))
            work = MissingShards(config, replace(dataset, location=location), range(6), RunMetrics("small"))
            rest = [replace(commit, shard=shard) for shard in (1, *range(5000, 5000 + others))]
            with ThreadPoolExecutor(16) as pool:
                assert all(pool.map(log.put, rest))
            proxy.requests.clear()
            assert work.settle([0, 1, 2], done={0}) == 1, "shard 1 has the commit of another build"
            counts.append(len(proxy.requests))
            assert work.left == [3, 4, 5, 2]
            assert len(log.latest_commits()) == 1 + others
    assert 0 < counts[0] == counts[1] <= 2


def test_windows_last_an_hour_at_the_measured_rate() -> None:
    size = WindowSize("auto", rate=0.5, most=2000)
    assert size.shards == 300, "ten minutes at the expected rate"
    size.note([90 + 2.5 * shard for shard in range(200)], 590)
    assert size.shards == 1440, "an hour at the rate after the actors started"
    size.note([], 100)
    assert size.shards == 1440, "a window without a shard tells nothing"
    size.note([10, 20], 40)
    assert size.shards == 180
    size.note([index / 100 for index in range(100)], 2)
    assert size.shards == 2000
    size.note([7000], 7000)
    assert size.shards == 1
    assert WindowSize("auto").shards == 200
    assert WindowSize("auto", most=80).shards == 80
    fixed = WindowSize(7, rate=0.5)
    fixed.note([1, 2], 3)
    assert fixed.shards == 7
