"""Batches of a `DataLoader`: each image with its masks, whatever their sizes."""

import functools

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

pytest.importorskip("pycocotools")  # a machine that runs only the tests marked `cuda` may lack it

import segmint
from segmint.catalogs.dataset.reader import Sample
from segmint.catalogs.dataset.reading.torch_dataset import Batch, BatchLoader, TorchDataset, collate, open_dataset
from tests.support.committed import write_dataset
from tests.support.locations import location_of


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> TorchDataset:
    folder = tmp_path_factory.mktemp("collate") / "dataset"
    write_dataset(location_of(folder), shards=2)
    return open_dataset(str(folder))


def check(batches: list[Batch], dataset: TorchDataset) -> None:
    samples = list(dataset)
    assert torch.cat([batch.ids for batch in batches]).tolist() == [sample.id for sample in samples]
    images = [image for batch in batches for image in batch.images]
    masks = [masks for batch in batches for masks in batch.masks]
    rows = [row for batch in batches for row in batch.rows]
    for sample, image, found, row in zip(samples, images, masks, rows, strict=True):
        assert np.array_equal(image.numpy().transpose(1, 2, 0), sample.image)
        assert found.dtype == torch.bool
        assert np.array_equal(found.numpy(), [mask.mask for mask in sample.masks])
        assert row == sample.row


def test_batches_hold_the_samples_in_order(dataset: TorchDataset) -> None:
    batches = list(DataLoader(dataset, batch_size=3, collate_fn=segmint.collate))
    assert [len(batch) for batch in batches] == [3, 1]
    assert repr(batches[0]) == "Batch(3 images: 80 x 60, 80 x 60, 80 x 60; 6 masks)"
    check(batches, dataset)
    assert all("mask" not in vars(mask) for batch in batches for masks in batch.annotations for mask in masks)


@pytest.mark.usefixtures("processes")
def test_a_worker_makes_the_same_batches(dataset: TorchDataset) -> None:
    check(list(DataLoader(dataset, batch_size=2, num_workers=1, collate_fn=collate)), dataset)


def test_shuffled_batches_are_made_of_the_same_samples(dataset: TorchDataset) -> None:
    samples = {sample.id: sample for sample in dataset}
    batches = list(BatchLoader(dataset.batches(2, seed=1), collate_fn=collate))
    assert sorted(torch.cat([batch.ids for batch in batches]).tolist()) == sorted(samples)
    for batch in batches:
        for number, image, masks in zip(batch.ids.tolist(), batch.images, batch.masks, strict=True):
            assert np.array_equal(image.numpy().transpose(1, 2, 0), samples[number].image)
            assert np.array_equal(masks.numpy(), [mask.mask for mask in samples[number].masks])


def test_images_and_masks_of_other_sizes_share_a_batch(dataset: TorchDataset) -> None:
    first, second, *_ = dataset
    assert len(collate([first, second]).masks[0]) == 2
    bare = Sample(second.row, [], second.jpeg)
    assert collate([bare]).masks[0].shape == (0, 60, 80)


@pytest.mark.parametrize(("most", "kept"), [(0, []), (1, [0]), (3, [0, 2, 4]), (9, [*range(7)]), (None, [*range(7)])])
def test_masks_are_kept_evenly_spread(dataset: TorchDataset, most: int | None, kept: list[int]) -> None:
    sample = next(iter(dataset))
    many = Sample(sample.row, (sample.masks * 4)[:7], sample.jpeg)
    batch = functools.partial(collate, most_masks=most)([many])
    assert batch.annotations == [[many.masks[index] for index in kept]]
    assert batch.masks[0].shape == (len(kept), 60, 80)


def test_what_cannot_be_a_batch_is_refused(dataset: TorchDataset) -> None:
    with pytest.raises(ValueError, match="no samples were given"):
        collate([])
    with pytest.raises(ValueError, match="most_masks is -1"):
        collate([next(iter(dataset))], most_masks=-1)


def test_a_batch_moves_to_a_device(dataset: TorchDataset) -> None:
    moved = collate([next(iter(dataset))]).to("meta")
    assert {tensor.device.type for tensor in (moved.ids, *moved.images, *moved.masks)} == {"meta"}


@pytest.mark.cuda
def test_a_batch_is_pinned_for_a_gpu(dataset: TorchDataset) -> None:
    (batch,) = DataLoader(dataset, batch_size=4, collate_fn=collate, pin_memory=True)
    assert all(tensor.is_pinned() for tensor in (batch.ids, *batch.images, *batch.masks))
