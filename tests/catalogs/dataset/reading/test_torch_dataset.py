"""Workers and ranks share a dataset: every image goes to exactly one of them."""

import os
import pickle
import signal
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, IterableDataset

from segmint.catalogs.dataset.reader import Dataset, Sample
from segmint.catalogs.dataset.reading.opened import OpenShard
from segmint.catalogs.dataset.reading.torch_dataset import ReaderPosition, TorchDataset, open_dataset, share
from segmint.infra.errors import UsageError
from segmint.infra.storage.location import Location
from segmint.infra.storage.storage import Storage
from tests.support.committed import write_dataset, write_generation
from tests.support.locations import location_of

ALL = [1, 2, 4, 5, 7, 8]


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the rank of the environment that runs the tests."""
    for variable in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(variable, raising=False)


def loaded(uri: str, workers: int, **options) -> list[int]:
    return [sample.id for sample in DataLoader(open_dataset(uri), num_workers=workers, batch_size=None, **options)]


def on_rank(monkeypatch: pytest.MonkeyPatch, rank: int, ranks: int) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(ranks))


def first(samples: list[Sample]) -> Sample:
    return samples[0]


def test_it_is_what_a_data_loader_takes(dataset: str) -> None:
    opened = open_dataset(dataset)
    assert isinstance(opened, IterableDataset)
    assert isinstance(opened, Dataset)
    assert loaded(dataset, 0) == ALL
    assert len(DataLoader(opened, batch_size=None)) == 6


def test_an_image_is_read_by_its_position(dataset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = open_dataset(dataset)
    assert repr(opened) == f"TorchDataset({dataset!r}, 3 of 3 shards)"
    samples = list(opened)
    for index, sample in enumerate(samples):
        for place in (index, np.int64(index - 6)):
            found = opened[place]
            assert (found.id, found.jpeg, dict(found.row)) == (sample.id, sample.jpeg, dict(sample.row))
            assert [mask.counts for mask in found.masks] == [mask.counts for mask in sample.masks]
    for outside in (6, -7):
        with pytest.raises(IndexError, match=f"image {outside} of .*, which has 6"):
            opened[outside]
    with pytest.raises(TypeError):
        opened["first"]  # type: ignore[index]
    assert sorted(sample.id for sample in DataLoader(opened, 2, num_workers=2, collate_fn=first)) == [1, 4, 5, 8]
    assert pickle.loads(pickle.dumps(opened))[3].id == 5  # with open files here
    on_rank(monkeypatch, 1, 2)
    assert len(opened) == 3
    assert opened[0].id == 1
    write_dataset(location_of(tmp_path / "empty"), shards=1, refuse=3)
    with pytest.raises(IndexError, match="which has 0"):
        open_dataset(str(tmp_path / "empty"))[0]


@pytest.mark.parametrize("workers", [2, 7, *(pytest.param(count, marks=pytest.mark.long) for count in (1, 4))])
def test_each_worker_takes_other_images(dataset: str, workers: int) -> None:
    assert sorted(loaded(dataset, workers)) == ALL


def test_samples_come_whole_from_workers(dataset: str) -> None:
    for sample in DataLoader(open_dataset(dataset), num_workers=2, batch_size=None):
        assert sample.image.shape == (60, 80, 3)
        assert [mask.mask.sum() for mask in sample.masks] == [mask.area for mask in sample.masks]


@pytest.mark.long
def test_a_spawned_worker_opens_it_again(dataset: str) -> None:
    assert sorted(loaded(dataset, 1, multiprocessing_context="spawn")) == ALL


@pytest.mark.s3
def test_forked_workers_read_from_s3(s3_bucket: str, s3_options: dict[str, dict[str, str]]) -> None:
    storage, uri = Storage(s3_options), f"s3://{s3_bucket}/some/dataset"
    write_dataset(Location(storage, uri), shards=3)
    loader = DataLoader(open_dataset(uri, storage), num_workers=2, batch_size=None)
    assert sorted(sample.id for sample in loader) == ALL


@pytest.mark.parametrize("ranks", [2, 3, 5])
def test_ranks_share_it_and_know_their_part(dataset: str, ranks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for rank in range(ranks):
        on_rank(monkeypatch, rank, ranks)
        opened = open_dataset(dataset)
        mine = [sample.id for sample in opened]
        assert len(opened) == len(mine)
        seen += mine
    assert seen == ALL


def test_two_ranks_with_two_workers_each(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    for rank in range(2):
        on_rank(monkeypatch, rank, 2)
        mine = loaded(dataset, 2)
        assert len(mine) == len(open_dataset(dataset)) == 3
        seen += mine
    assert sorted(seen) == ALL


@pytest.fixture
def process_group(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rank 1 of 2 by a process group, and rank 0 of 1 by the environment."""
    on_rank(monkeypatch, 0, 1)
    from torch.testing._internal.distributed.fake_pg import FakeStore  # noqa: PLC2701 - one process is two ranks

    torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_the_rank_of_a_process_group_comes_first(dataset: str) -> None:
    assert [sample.id for sample in open_dataset(dataset)] == [5, 7, 8]
    assert loaded(dataset, 1) == [5, 7, 8]


def test_the_rank_is_sent_to_a_worker(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To what torch says is one; `make test-long` spawns one."""
    on_rank(monkeypatch, 1, 2)
    packed = pickle.dumps(open_dataset(dataset))
    on_rank(monkeypatch, 0, 1)
    opened = pickle.loads(packed)
    assert [sample.id for sample in opened] == ALL
    here = SimpleNamespace(id=0, num_workers=1)
    for module in ("torch_dataset", "batches"):
        monkeypatch.setattr(f"segmint.catalogs.dataset.reading.{module}.get_worker_info", lambda: here)
    assert [sample.id for sample in opened] == [5, 7, 8]


@pytest.mark.long
@pytest.mark.usefixtures("process_group")
def test_the_rank_of_a_process_group_is_sent_to_spawned_workers(dataset: str) -> None:
    """They have no process group."""
    assert loaded(dataset, 1, multiprocessing_context="spawn") == [5, 7, 8]


def test_a_rank_that_a_launcher_sent_it_to_reads_its_own_part(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pickle.dumps(open_dataset(dataset))
    on_rank(monkeypatch, 1, 2)
    opened = pickle.loads(packed)
    assert isinstance(opened, TorchDataset)
    assert [sample.id for sample in opened] == [5, 7, 8]
    assert [sample.id for sample in DataLoader(opened, num_workers=1, batch_size=None)] == [5, 7, 8]


def test_a_size_without_a_rank_is_refused(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match=r"RANK=\(not set\) and WORLD_SIZE=2"):
        list(open_dataset(dataset))


@pytest.mark.parametrize(("rank", "ranks"), [("2", "2"), ("-1", "2"), ("one", "2"), ("0", "0")])
def test_a_rank_that_cannot_be_is_a_plain_error(
    dataset: str, rank: str, ranks: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", ranks)
    with pytest.raises(UsageError, match=f"RANK={rank} and WORLD_SIZE={ranks}"):
        list(open_dataset(dataset))


def test_workers_split_what_was_committed_when_it_was_opened(dataset: str) -> None:
    second = Path(dataset, "commits/000001.g1.json")
    hidden = second.rename(second.with_suffix(".hidden"))
    opened = open_dataset(dataset)
    hidden.rename(second)
    assert sorted(s.id for s in DataLoader(opened, num_workers=2, batch_size=None)) == [1, 2, 7, 8]
    assert [sample.id for sample in opened] == ALL


def test_workers_read_the_generation_that_holds(dataset: str) -> None:
    write_generation(location_of(dataset), shard=2, generation=2, refuse=2)
    assert sorted(loaded(dataset, 4)) == [1, 2, 4, 5, 7]


@given(
    sizes=st.lists(st.integers(1, 9), max_size=8),
    gaps=st.lists(st.integers(0, 5), min_size=8, max_size=8),
    parts=st.integers(1, 12),
)
def test_shares_are_disjoint_whole_and_even(sizes: list[int], gaps: list[int], parts: int) -> None:
    shards, start = {}, 0
    for index, size in enumerate(sizes):
        start += gaps[index]
        shards[index * 2] = (start, start + size)
        start += size
    shares = [share(shards, ReaderPosition(part, parts)) for part in range(parts)]
    taken = [(shard, ordinal) for each in shares for shard, ordinals in each.items() for ordinal in ordinals]
    assert taken == [(shard, ordinal) for shard, span in shards.items() for ordinal in range(*span)]
    rows = [sum(map(len, each.values())) for each in shares]
    assert max(rows) - min(rows) <= 1


def test_threads_may_read_single_images_although_each_closes_the_others_shards(
    dataset: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segmint.catalogs.dataset.reading.batches.OPEN_SHARDS", 1)
    opened, places = open_dataset(dataset), [*range(len(ALL))] * 20
    assert opened[0].id == ALL[0]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(lambda place: opened[place].id, places)) == ALL * 20
    finally:
        sys.setswitchinterval(interval)
    assert pickle.loads(pickle.dumps(opened))[1].id == ALL[1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_process_that_is_forked_while_a_thread_reads_can_read(dataset: str, monkeypatch: pytest.MonkeyPatch) -> None:
    opened, began, go_on = open_dataset(dataset), Event(), Event()
    assert opened[0].id == ALL[0]
    parent, plain = os.getpid(), OpenShard.sample

    def slow(*arguments: Any) -> Sample:
        if os.getpid() == parent:
            began.set()
            go_on.wait()
        return plain(*arguments)

    monkeypatch.setattr(OpenShard, "sample", slow)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(lambda: opened[0].id)
        began.wait()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(30)  # ends the child if it waits for the thread, which it doesn't have
            try:
                os._exit(opened[1].id)
            finally:  # an error must not let the child run the other tests
                os._exit(99)
        _, status = os.waitpid(child, 0)
        go_on.set()
        assert (os.waitstatus_to_exitcode(status), reading.result()) == (ALL[1], ALL[0])


def test_reading_alone_takes_no_torch() -> None:
    import subprocess

    code = (
        "import sys, segmint.catalogs.dataset.reader, segmint.pipeline.commands.cli; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
