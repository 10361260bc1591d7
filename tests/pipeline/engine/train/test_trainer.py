"""Steps of MobileSAM: two workers are as one, a damaged embedding is made again, and what is no number is an error."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from segmint.catalogs.dataset.manifest import dataset_keys
from segmint.catalogs.dataset.outputs import EMBEDDINGS
from segmint.infra.device import Compute
from segmint.model.sam.load import Sam, load_sam
from segmint.pipeline.engine.train.images import DrawSequence
from segmint.pipeline.engine.train.reading import (
    EmbeddingCache,
    FrozenEncoder,
    TrainingImageReader,
    WorkerRank,
    cache_key,
    encoder_hash,
)
from segmint.pipeline.engine.train.trainer import Trainer, TrainingError
from tests.support.locations import location_of
from tests.support.trained import DatasetInputs, find

CPU = Compute("cpu", "fp32", 1)
FEW = {"batch": {"images": 2, "masks": 2, "masks_per_image": 1}, "sampling": {"clicks": 1}}


@pytest.fixture
def found(ended, tmp_path) -> DatasetInputs:
    return find(tmp_path, ended.dataset, **FEW)


def trainer_of(found: DatasetInputs, cache: Path, weights: Path, world: WorkerRank | None = None) -> Trainer:
    sam = load_sam(weights)
    images = found.images
    draws = DrawSequence(images, images.ids != 2, [1.0], found.config.batch, seed=0)
    kept = EmbeddingCache(location_of(cache), cache_key(encoder_hash(sam), CPU), 1e9)
    reader = TrainingImageReader(images, 256, 0.9, found.skipped)
    return Trainer(
        sam, found.config, images, draws, reader, FrozenEncoder(sam, images, kept, CPU), CPU, world or WorkerRank()
    )


def side_by_side(count: int, work: Callable[[WorkerRank], object]) -> list[object]:
    """Run workers as threads that add tensors up, in the order of their ranks."""
    barrier = threading.Barrier(count)
    given: list[Tensor] = [torch.empty(0)] * count
    answers: list[object] = [None] * count

    def run(rank: int) -> None:
        torch.set_num_threads(1)

        def add(values: Tensor) -> Tensor:
            given[rank] = values
            barrier.wait()
            total = torch.stack(list(given)).sum(dim=0)
            barrier.wait()
            return total

        answers[rank] = work(WorkerRank(rank, count, add))

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_two_workers_take_the_step_of_one(one_thread, found, ended, mobile_sam_path):
    cache = ended.output.parent / "cache"
    one = trainer_of(found, cache, mobile_sam_path)
    alone = one.step(1)
    assert alone.masks == 2

    def work(world: WorkerRank) -> tuple[object, dict[str, Tensor]]:
        trainer = trainer_of(found, cache, mobile_sam_path, world)
        result = trainer.step(
            1, {slot: clicks for slot, clicks in alone.clicks.items() if slot in range(world.rank, 9, 2)}
        )
        return result, trainer.weights()

    (first, weights), (second, others) = side_by_side(2, work)
    for result in (first, second):
        assert result.masks == 2
        assert set(result.clicks) < set(alone.clicks)
        for name in ("loss", "focal", "dice", "iou_error", "last_iou", "gradient"):
            assert getattr(result, name) == pytest.approx(getattr(alone, name), rel=1e-4, abs=1e-7)
    moved = 0.0
    before = load_sam(mobile_sam_path).state_dict()
    for name, weight in one.weights().items():
        assert torch.equal(weights[name], others[name])
        # AdamW's first step moves each weight by the rate, whatever its gradient: where that is near zero, its sign
        # may differ.
        assert (weights[name] - weight).abs().mean() < 1e-7
        moved = max(moved, float((weight - before[name]).abs().max()))
    assert moved > 1e-6

    kept, state = one.weights(), one.state()
    state["weights"] = {name: weight + 1 for name, weight in kept.items()}
    state["optimizer"]["param_groups"] = state["optimizer"]["param_groups"][1:]
    with pytest.raises(ValueError, match="parameter groups"):
        one.load_state(state)
    assert all(torch.equal(weight, kept[name]) for name, weight in one.weights().items())


def test_what_is_no_number_is_an_error_with_the_step_and_the_images(one_thread, ended, mobile_sam_path, tmp_path):
    found = find(tmp_path, ended.dataset, batch={"images": 1, "masks": 1, "masks_per_image": 1}, sampling={"clicks": 1})
    trainer = trainer_of(found, ended.output.parent / "cache", mobile_sam_path)
    with torch.no_grad():
        trainer.sam.mask_decoder.iou_token.weight.fill_(float("nan"))
    before = trainer.weights()
    with pytest.raises(
        TrainingError, match=r"step 3: the loss is not finite, on image [13] of .*\. The step was not applied"
    ):
        trainer.step(3)
    assert all(torch.equal(weight, before[name]) or weight.isnan().any() for name, weight in trainer.weights().items())


def test_pixels_are_read_only_for_embeddings_that_are_not_kept(one_thread, found, ended, mobile_sam_path, tmp_path):
    sam = load_sam(mobile_sam_path)
    cache = EmbeddingCache(location_of(ended.output.parent / "cache"), cache_key(encoder_hash(sam), CPU), 1e9)
    encoder = FrozenEncoder(sam, found.images, cache, CPU)
    empty = EmbeddingCache(location_of(tmp_path / "cache"), "w", 1e9)
    fresh = FrozenEncoder(sam, found.images, empty, CPU)
    reader = TrainingImageReader(found.images, 256, 0.9, found.skipped)
    draw = DrawSequence(found.images, np.ones(3, bool), [1.0], found.config.batch, seed=0).step(1)[0]
    read = reader.read(draw, fresh.kept)
    assert read.pixels is not None
    made = fresh.embed(read)
    assert all(torch.equal(made, each) for each in (encoder.kept(read.image), fresh.kept(read.image)))
    (file,) = (tmp_path / "cache").rglob("*.npy")
    without = reader.read(draw, fresh.kept)
    assert without.pixels is None
    file.write_bytes(b"damaged")
    assert torch.equal(made, fresh.embed(without))  # it was read with its embedding
    assert np.array_equal(reader.read(draw, fresh.kept).pixels, read.pixels)


@pytest.mark.long
def test_images_whose_tar_is_gone_and_whose_embedding_is_damaged_are_left_out(
    one_thread, ended, mobile_sam_path, tmp_path
):
    """Both were there as the run began, and as the next step's images were read."""
    dataset, cache = tmp_path / "dataset", tmp_path / "cache"
    shutil.copytree(ended.dataset, dataset)
    found = find(tmp_path, dataset, **FEW)
    kept = ended.output.parent / "cache" / EMBEDDINGS / dataset_keys(location_of(ended.dataset))[0]
    shutil.copytree(kept, cache / EMBEDDINGS / found.datasets[0].key)
    trainer = trainer_of(found, cache, mobile_sam_path)
    assert trainer.step(1).masks == 2
    before = dict(found.skipped.counts)
    for file in (*dataset.rglob("*.tar"), *cache.rglob("*.npy")):
        file.unlink() if file.suffix == ".tar" else file.write_bytes(b"damaged")
    trainer.step(2)  # maybe of images that were read before
    assert trainer.step(3).masks == 0
    trainer.close()
    assert found.skipped.counts == {**before, "damaged images": 2}
    assert found.skipped.listed[-1]["detail"] == "its shard's tar is gone"


@pytest.mark.long
def test_an_encoder_that_is_trained_gets_gradients_and_moves(one_thread, ended, mobile_sam_path, tmp_path):
    found = find(
        tmp_path, ended.dataset, **FEW, encoder="trained", optimizer={"drop_path": 0.2, "warmup": 0, "decay_steps": []}
    )
    sam: Sam = load_sam(mobile_sam_path)
    draws = DrawSequence(found.images, np.ones(3, bool), [1.0], found.config.batch, seed=0)
    reader = TrainingImageReader(found.images, 256, 0.9, found.skipped)
    trainer = Trainer(sam, found.config, found.images, draws, reader, None, CPU)
    before = trainer.weights()
    result = trainer.step(1)
    assert result.masks == 2
    moved = {name.split(".")[0] for name, weight in trainer.weights().items() if not torch.equal(weight, before[name])}
    assert moved == {"image_encoder", "prompt_encoder", "mask_decoder"}
