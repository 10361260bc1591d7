"""A loop's place: what it received counts, and what workers read ahead does not."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from segmint.catalogs.dataset.reader import Sample
from segmint.catalogs.dataset.reading.torch_dataset import BatchLoader, open_dataset
from segmint.infra.errors import UsageError
from tests.support.committed import write_dataset
from tests.support.locations import location_of


def loader(uri: str, workers: int = 0, global_batch: int = 8, **options) -> BatchLoader:
    batches = open_dataset(uri).batches(global_batch, seed=4)
    return BatchLoader(batches, num_workers=workers, **options)


def ids(batches) -> list[list[int]]:
    return [[sample.id for sample in batch] for batch in batches]


def flat(batches: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(batches))


def areas(batch: list[Sample]) -> torch.Tensor:
    return torch.tensor([mask.area for sample in batch for mask in sample.masks])


@pytest.mark.usefixtures("processes")
def test_each_iteration_is_an_epoch_also_in_workers_that_persist(many: str) -> None:
    own, persisting = loader(many), loader(many, 2, persistent_workers=True)
    epochs = [ids(own) for _ in range(3)]
    assert [ids(persisting) for _ in range(3)] == epochs
    assert len(own) == 5
    assert own.epoch == persisting.epoch == 3
    assert len({str(epoch) for epoch in epochs}) == 3
    assert [sorted(flat(epoch)) for epoch in epochs] == [sorted(flat(epochs[0]))] * 3


@pytest.mark.usefixtures("processes")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_loop_that_was_left_goes_on_and_counts_what_it_received(many: str, workers: int) -> None:
    whole = ids(loader(many))
    left = loader(many, workers, persistent_workers=workers > 0)
    seen = []
    for batch in left:
        seen.append([sample.id for sample in batch])
        assert left.state_dict()["samples"] == 8 * len(seen)
        if len(seen) == 2:
            break
    state = left.state_dict()
    assert seen + ids(left) == whole
    left.load_state_dict(state)
    assert ids(left) == whole[2:]


def test_a_state_loaded_in_a_loop_holds_for_the_next_one(many: str) -> None:
    one = loader(many)
    whole = ids(loader(many))
    start = one.state_dict()
    for number, _ in enumerate(one):
        if number == 1:
            one.load_state_dict(start)
    assert ids(one) == whole


@pytest.mark.usefixtures("processes")
def test_loaders_of_the_same_batches_are_at_places_of_their_own(many: str) -> None:
    whole = ids(loader(many))
    batches = open_dataset(many).batches(8, seed=4)
    one, other = BatchLoader(batches, num_workers=1, multiprocessing_context="spawn"), BatchLoader(batches)
    one.load_state_dict({**one.state_dict(), "samples": 8})
    later = iter(one)  # its worker takes seconds to begin
    assert ids(other) == whole
    assert ids(later) == whole[1:]


def test_batches_out_of_their_order_are_refused(many: str) -> None:
    with pytest.raises(UsageError, match="in_order=False"):
        loader(many, 2, in_order=False)


def test_a_state_has_plain_numbers_that_every_checkpoint_holds(many: str, tmp_path: Path) -> None:
    one = BatchLoader(open_dataset(many).batches(np.int64(8), seed=np.int64(4), window=np.int64(32)))
    next(iter(one))
    torch.save(one.state_dict(), tmp_path / "state.pt")
    other = loader(many)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert other.state_dict() == json.loads(json.dumps(one.state_dict()))


def test_after_a_correction_a_loop_goes_on_with_the_next_epoch(many: str) -> None:
    state = {**loader(many).state_dict(), "epoch": 3, "shards": "of what was corrected"}
    one = loader(many)
    with pytest.raises(UsageError, match="shards: 'of what was corrected'"):
        one.load_state_dict(state)
    one.load_state_dict({**one.state_dict(), "epoch": state["epoch"] + 1})
    assert one.epoch == 4
    assert sorted(flat(ids(one))) == sorted(flat(ids(loader(many))))


def test_another_global_batch_goes_on_at_the_same_image(many: str) -> None:
    order = flat(ids(loader(many)))
    one = loader(many)
    next(iter(one))
    other = loader(many, global_batch=16)
    other.load_state_dict(one.state_dict())
    assert ids(other) == [order[8:24], order[24:40]]


def test_too_few_images_for_a_larger_batch_are_left_to_the_next_epoch(many: str) -> None:
    state = {**loader(many).state_dict(), "samples": 32}
    large = BatchLoader(open_dataset(many).batches(16, seed=4, last="drop"))
    large.load_state_dict(state)
    assert len(ids(large)) == 2
    assert large.epoch == 2


@pytest.mark.usefixtures("processes")
def test_a_collate_function_runs_in_the_workers(many: str) -> None:
    batches = list(loader(many, 2, collate_fn=areas))
    assert [batch.shape for batch in batches] == [(16,)] * 5
    assert sum(int(batch.sum()) for batch in batches) == sum(
        mask.area for sample in open_dataset(many) for mask in sample.masks
    )


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 5}, "seed: 5, here 4"),
        ({"window": 3}, "window: 3, here 32"),
        ({"format": 2}, "format: 2, here 1"),
        ({"samples": 40}, "samples=40 in the state"),
        ({"epoch": "first"}, "epoch='first'"),
    ],
)
def test_a_state_of_another_order_is_refused(many: str, changes: dict, told: str) -> None:
    one = loader(many)
    with pytest.raises(UsageError, match=told):
        one.load_state_dict({**one.state_dict(), **changes})


def test_a_state_of_another_dataset_is_refused(many: str, tmp_path: Path) -> None:
    uri = str(tmp_path / "dataset")
    write_dataset(location_of(uri), shards=20, refuse=2)
    with pytest.raises(UsageError, match=r"images: 40, here 20; shards: .* Open the same version of the dataset"):
        loader(uri).load_state_dict(loader(many).state_dict())
