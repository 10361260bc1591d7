"""torchdata's `StatefulDataLoader` continues an epoch where its state was saved, without reading it again."""

import itertools
from collections.abc import Iterator
from typing import Any

import pytest

from segmint.catalogs.dataset.reading.batches import Batches
from segmint.catalogs.dataset.reading.opened import OpenShard
from segmint.catalogs.dataset.reading.torch_dataset import open_dataset
from segmint.infra.errors import UsageError

stateful_dataloader = pytest.importorskip("torchdata.stateful_dataloader")


def loader_of(batches: Batches, workers: int = 0) -> Any:
    return stateful_dataloader.StatefulDataLoader(batches, batch_size=None, num_workers=workers)


def ids(batches: Any) -> list[list[int]]:
    return [[sample.id for sample in batch] for batch in batches]


@pytest.fixture
def batches(many: str) -> Batches:
    return open_dataset(many).batches(6, seed=4)


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The rows that this process has read."""
    rows: list[int] = []
    sample = OpenShard.sample
    monkeypatch.setattr(OpenShard, "sample", lambda shard, row: rows.append(row) or sample(shard, row))
    return rows


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("workers", [0, 2])
def test_an_epoch_goes_on_after_the_batches_that_were_received(many: str, batches: Batches, workers: int) -> None:
    loader = loader_of(batches, workers)
    batches.begin(1)
    whole = ids(loader)
    batches.begin(1)
    received = ids(itertools.islice(iter(loader), 3))
    state = loader.state_dict()
    again = open_dataset(many).batches(6, seed=4)  # as in a new process, in its first epoch
    other = loader_of(again, workers)
    other.load_state_dict(state)
    assert received + ids(other) == whole
    again.begin(2)
    batches.begin(2)
    assert ids(other) == ids(loader) != whole


def test_the_epoch_is_not_read_again(many: str, batches: Batches, read: list[int]) -> None:
    loader = loader_of(batches)
    left = iter(loader)
    for _ in range(5):
        next(left)
    other = loader_of(open_dataset(many).batches(6, seed=4))
    other.load_state_dict(loader.state_dict())
    read.clear()
    assert len(ids(other)) == 2
    assert len(read) == 2 * 6


def test_after_a_whole_epoch_the_next_one_begins(many: str, batches: Batches) -> None:
    loader = loader_of(batches)
    first = ids(loader)
    again = open_dataset(many).batches(6, seed=4)
    other = loader_of(again)
    other.load_state_dict(loader.state_dict())
    again.begin(1)
    batches.begin(1)
    assert ids(other) == ids(loader) != first


def test_a_state_of_another_order_is_refused(many: str, batches: Batches) -> None:
    loader = loader_of(batches)
    next(iter(loader))
    other = loader_of(open_dataset(many).batches(6, seed=5))
    other.load_state_dict(loader.state_dict())
    with pytest.raises(UsageError, match="seed: 4, here 5"):
        next(iter(other))
