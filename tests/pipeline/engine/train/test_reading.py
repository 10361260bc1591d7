"""Images as they are read for a step: pixels and targets of the drawn masks, without what cannot be used."""

import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
from torchvision.ops import masks_to_boxes

from segmint.infra.errors import SegmintError
from segmint.model.training.sampling import fit_targets
from segmint.pipeline.engine.train.images import DrawSequence, SkippedImages, StepDraw
from segmint.pipeline.engine.train.reading import TrainingImageReader, WorkerRank
from segmint.pipeline.engine.train.settings import BatchKeys
from tests.support.committed import write_generation
from tests.support.committed_shard import CommittedShard
from tests.support.locations import location_of
from tests.support.trainable import row_of, scene
from tests.support.trained import find


def drawn(image: int, row: int, indices=(0, 1)) -> StepDraw:
    return StepDraw(0, row, np.array([image * 10_000 + index for index in indices]), [7 + index for index in indices])


def test_pixels_and_targets_are_those_of_the_drawn_masks(trainable, tmp_path):
    found = find(tmp_path, trainable)
    reader = TrainingImageReader(found.images, 256, 0.9, found.skipped)
    picture, masks = scene(4)
    read = reader.read(drawn(5, 4))
    assert read.masks.input_size == (768, 1024)
    assert read.masks.numbers == [7, 8]
    expected = fit_targets(torch.from_numpy(np.stack(masks[:2])), (768, 1024), 256)
    assert torch.equal(read.masks.targets, expected)
    scale = 1024 / 160
    boxes = masks_to_boxes(torch.from_numpy(np.stack(masks[:2]))) + torch.tensor([0, 0, 1, 1])  # ends exclusive
    np.testing.assert_allclose(read.boxes, boxes.numpy() * scale)
    large = cv2.resize(picture, (1024, 768), interpolation=cv2.INTER_LINEAR).astype(int)
    assert np.abs(read.pixels.astype(int) - large).mean() < 6  # JPEG at quality 92
    kept = torch.zeros(1, 256, 64, 64)
    without = reader.read(drawn(5, 4), lambda row: kept if row == 4 else None)
    assert without.pixels is None
    assert without.features is kept


@pytest.mark.parametrize("jitter", [(0.1, 0.5, 0.5), (1.0, 0.3, 0.9), (2.0, 1.0, 0.25)])
def test_jitter_scales_and_crops_pixels_and_masks_alike(trainable, tmp_path, jitter):
    found = find(tmp_path, trainable)
    before = dict(found.skipped.counts)
    reader = TrainingImageReader(found.images, 256, 0.9, found.skipped)
    _, masks = scene(4)  # 120 x 160 pixels
    read = reader.read(replace(drawn(5, 4), jitter=jitter))
    scale, top, left = jitter
    shown = {0.1: (120, 160), 1.0: (120, 160), 2.0: (80, 80)}[scale]
    assert read.masks.input_size == {0.1: (77, 102), 1.0: (768, 1024), 2.0: (1024, 1024)}[scale]
    assert read.pixels.shape == (*read.masks.input_size, 3)
    rows, columns = (
        slice(start := round(at * (whole - part)), start + part)
        for at, whole, part in zip((top, left), (120, 160), shown, strict=True)
    )
    seen = [mask[rows, columns] for mask in masks[:2] if mask[rows, columns].any()]
    assert len(read.masks.targets) == len(seen) > 0
    assert torch.equal(read.masks.targets, fit_targets(torch.from_numpy(np.stack(seen)), read.masks.input_size, 256))
    whole = reader.read(drawn(5, 4)).pixels[:, :, 0]
    height, width = (round(6.4 * part) for part in shown)
    y, x = round(6.4 * rows.start), round(6.4 * columns.start)
    expected = cv2.resize(whole[y : y + height, x : x + width], read.pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(read.pixels[:, :, 0].astype(int) - expected).mean() < 6
    assert found.skipped.counts == before, "masks outside the crop aren't unusable"


def test_jitter_depends_on_the_seed_and_the_place_only(trainable, tmp_path):
    images = find(tmp_path, trainable).images
    every = np.ones(len(images), bool)
    batch = BatchKeys(images=4)
    one, again, other = (DrawSequence(images, every, [1.0], batch, seed, (0.1, 2.0)) for seed in (3, 3, 4))
    found = [draw.jitter for step in range(1, 101) for draw in one.step(step)]
    assert found == [draw.jitter for step in range(1, 101) for draw in again.step(step)]
    assert found[:4] != [draw.jitter for draw in other.step(1)]
    scales, tops, lefts = np.array(found).T
    assert (scales.min(), scales.max()) == pytest.approx((0.1, 2.0), abs=0.05)
    assert (scales.mean(), tops.mean(), lefts.mean()) == pytest.approx((1.05, 0.5, 0.5), abs=0.1)
    assert {draw.jitter for draw in DrawSequence(images, every, [1.0], batch, 3).step(1)} == {None}


def test_masks_and_images_that_cannot_be_read_are_left_out_once(trainable, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(trainable, dataset)
    shard = CommittedShard(dataset, 0)
    place = [name for name, _ in shard.members].index("sa_1.json")

    def spoil(data: bytes) -> bytes:
        document = json.loads(data)
        document["annotations"][0]["segmentation"]["counts"] = "~~~"
        document["annotations"][2]["segmentation"] = document["annotations"][1]["segmentation"]
        return json.dumps(document).encode()

    shard.edit_member(place, spoil)
    shard.edit_member([name for name, _ in shard.members].index("sa_2.json"), lambda _: b"{}")
    shard.write()
    found = find(tmp_path, dataset)
    skipped = SkippedImages()
    reader = TrainingImageReader(found.images, 256, 0.5, skipped)
    for _ in range(2):
        read = reader.read(drawn(1, 0))
        assert read.masks.numbers == [8]
        assert read.annotations.tolist() == [10_001]
        assert reader.read(drawn(1, 0, [0])) is None
        assert reader.read(drawn(2, 1)) is None
    assert dict(skipped.counts) == {"masks that cannot be decoded": 1, "damaged images": 1}
    later = SkippedImages()  # of the next start of the run
    again = TrainingImageReader(found.images, 256, 0.5, later)
    again.recall(skipped.listed, skipped.counts)
    assert again.read(drawn(1, 0)).masks.numbers == [8]
    assert again.read(drawn(2, 1)) is None
    assert (later.counts, later.listed) == (skipped.counts, skipped.listed)
    tar = dataset / found.images.shards[0].tar.path
    data = bytearray(tar.read_bytes())
    data[int(found.images.places[2, 0]) + 900] ^= 1
    tar.write_bytes(data)
    assert reader.read(drawn(3, 2)) is None
    assert skipped.listed[-1]["detail"] == "its JPEG changed after the run started"


def test_a_store_that_fails_is_not_the_images_fault(trainable, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(trainable, dataset)
    found = find(tmp_path, dataset)
    shutil.rmtree(dataset)
    with pytest.raises(SegmintError, match="is not a segmint dataset"):
        TrainingImageReader(found.images, 256, 0.9, found.skipped).read(drawn(1, 0))


@pytest.mark.parametrize("changed", [False, True])
def test_images_whose_tar_is_gone_are_left_out(trainable, tmp_path, changed):
    dataset = tmp_path / "dataset"
    shutil.copytree(trainable, dataset)
    found = find(tmp_path, dataset)
    if changed:
        write_generation(location_of(dataset), 0, generation=2, make_row=row_of)
    (dataset / found.images.shards[0].tar.path).unlink()
    skipped = SkippedImages()
    assert TrainingImageReader(found.images, 256, 0.9, skipped).read(drawn(1, 0)) is None
    why = "its shard's tar is gone" + ", because the dataset changed during training" * changed
    assert [line["detail"] for line in skipped.listed] == [why]


def test_workers_know_what_each_of_them_left_out(trainable, tmp_path):
    dataset = tmp_path / "dataset"
    shutil.copytree(trainable, dataset)
    shard = CommittedShard(dataset, 0)
    for name in ("sa_1.json", "sa_2.json"):
        shard.edit_member([name for name, _ in shard.members].index(name), lambda _: b"{}")
    shard.write()
    found = find(tmp_path, dataset)
    skipped = [SkippedImages(), SkippedImages()]
    readers = [TrainingImageReader(found.images, 256, 0.9, each) for each in skipped]

    def exchange() -> None:
        with ThreadPoolExecutor(2) as threads:
            given: list[list[object]] = [[], []]
            barrier = threading.Barrier(2)

            def take_part(rank: int) -> None:
                def gather(value: list[object]) -> list[list[object]]:
                    given[rank] = list(value)
                    barrier.wait(timeout=60)
                    return given

                readers[rank].exchange(WorkerRank(rank, 2, gather=gather))

            list(threads.map(take_part, range(2)))

    readers[0].read(drawn(1, 0))
    exchange()
    for reader in readers:
        reader.read(drawn(1, 0))
    readers[1].read(drawn(2, 1))
    exchange()
    exchange()
    assert [dict(each.counts) for each in skipped] == [{"damaged images": 2}] * 2
    assert [line["image"] for line in skipped[0].listed] == [line["image"] for line in skipped[1].listed] == [1, 2]
