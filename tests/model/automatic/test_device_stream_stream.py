"""A stream of images on an accelerator: the same masks as alone, waits only for earlier crops, and bounded memory."""

import copy
import gc
import itertools
import math
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from segmint.model.automatic import device_crops, mask_tiles
from segmint.model.automatic.candidates import RawMasks
from segmint.model.automatic.crops import cut, placed_crops
from segmint.model.automatic.device_crops import ChunkMasks, DeviceCrops
from segmint.model.automatic.device_stream import ImageStream
from segmint.model.automatic.generator import MaskGenerator
from segmint.model.automatic.rle import GeneratedMasks
from segmint.model.automatic.settings import MaskSettings
from segmint.model.automatic.tiled_upscaling import TiledUpscaling
from segmint.model.device import CopyStream
from segmint.model.sam import preprocess
from segmint.model.sam.load import build_sam
from segmint.model.sam.predictor import Embedding, Predictor
from segmint.model.sam.preprocess import resized_size
from tests.model import gpu_budgets
from tests.support.pretended_cuda import OnCuda, PretendedCuda, counted, pretended_mask_kernels
from tests.support.whole_masks import blobs

FEW: dict[str, Any] = {"points_per_chunk": 4, "pred_iou_thresh": 0.3, "stability_score_thresh": 0.5}
CROPS = MaskSettings.sa1b(points_per_side=2, crop_n_layers=1, **FEW)
FULL = MaskSettings.sa1b(points_per_side=2, crop_n_layers=0, **FEW)


class Brightness(nn.Module):
    """An encoder whose embeddings are the mean of an image's pixels."""

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        return batch.mean(dim=(1, 2, 3), keepdim=True)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    torch.manual_seed(0)
    return Predictor(build_sam("mobile_sam"), kernels=None)


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.random.default_rng(0).integers(100, 140, (100, 150, 3), dtype=np.uint8)


@pytest.fixture
def device() -> Iterator[PretendedCuda]:
    try:
        with PretendedCuda() as device, pretended_mask_kernels(device):
            yield device
    finally:
        preprocess.weights_on_device.cache_clear()
        preprocess.mean_and_std.cache_clear()


@pytest.fixture
def known_masks(device: PretendedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of the decoder: blobs that are larger in brighter images. Each crop is noted among the events."""
    shapes = device.to_device(blobs(4, 12, 6))

    def start_chunks(_: DeviceCrops, embedding: Embedding, points: np.ndarray) -> list[ChunkMasks]:
        device.note("crop")
        count = 3 * len(points)
        logits = (shapes[:count] + 20 * embedding.features[0]).reshape(len(points), 3, 256, 256)
        ious = torch.arange(count, device="cuda").reshape(-1, 3) / 20 + 0.35
        return [ChunkMasks(logits, ious, ious > 0)]

    monkeypatch.setattr(DeviceCrops, "start_chunks", start_chunks)


def generator_on(device: PretendedCuda, predictor: Predictor, settings: MaskSettings, batch: int = 1) -> MaskGenerator:
    there = Predictor(device.moved(copy.deepcopy(predictor.sam)))  # type: ignore[arg-type]
    there.batch_encoder.network = Brightness()
    return MaskGenerator(there, settings, batch)


def finished(generator: MaskGenerator, found: Any) -> GeneratedMasks:
    assert isinstance(found, RawMasks), found
    return generator.finish(found)


def late_waits(device: PretendedCuda) -> list[int]:
    """The waits for work after which no crop was begun, as places among the crops."""
    crops = [event[-1] for event in device.events if event[0] == "crop"]
    return [
        sum(crop < place for crop in crops)
        for kind, recorded, place in (event for event in device.events if event[0] == "wait")
        if not any(recorded <= crop < place for crop in crops)
    ]


@pytest.mark.usefixtures("known_masks")
@pytest.mark.parametrize(("settings", "batch"), [(CROPS, 5), (FULL, 1)], ids=["crops", "full image"])
def test_images_of_a_stream_have_the_masks_that_they_have_alone_and_nothing_waits_for_the_newest_crop(
    settings: MaskSettings,
    batch: int,
    device: PretendedCuda,
    predictor: Predictor,
    image: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = generator_on(device, predictor, settings, batch)
    mirrored, dark = np.ascontiguousarray(image[:, ::-1]), image - 40
    alone = {id(one): finished(generator, generator.find(one)) for one in (image, dark)}
    assert alone[id(image)] != alone[id(dark)]
    assert alone[id(image)].records
    broken = np.zeros((4, 4), np.uint8)
    device.events.clear()

    stream = [(image, None), (dark, None), (broken, None), None, (mirrored, None), (image, None)]
    found = list(generator.find_many(stream))

    assert [finished(generator, found[index]) for index in (0, 1, 4)] == [
        alone[id(one)] for one in (image, dark, image)
    ]
    assert isinstance(found[2], ValueError)
    assert isinstance(found[3], RawMasks)
    crops = sum(event[0] == "crop" for event in device.events)
    assert crops == 4 * settings.encodes
    # After the stream's end, and where no image was ready, there is nothing else to do.
    assert set(late_waits(device)) <= {2 * settings.encodes, crops}
    uploads = [(event[1], event[2]) for event in device.events if event[0] == "upload"]
    assert [stream for nbytes, stream in uploads if nbytes == image.nbytes] == [generator.copies.stream] * 4
    assert generator.copies.stream is not None
    assert {stream for nbytes, stream in uploads if nbytes != image.nbytes} == {None}


@pytest.mark.usefixtures("known_masks")
@pytest.mark.parametrize("in_a_stream", [True, False], ids=["in a stream", "one by one"])
@pytest.mark.parametrize(("settings", "copies"), [(CROPS, 1), (FULL, 0)], ids=["crops", "full image"])
def test_an_original_is_copied_only_if_crops_are_cut_from_it(
    settings: MaskSettings,
    copies: int,
    in_a_stream: bool,
    device: PretendedCuda,
    predictor: Predictor,
    image: np.ndarray,
) -> None:
    generator = generator_on(device, predictor, settings)
    original = np.repeat(np.repeat(image, 2, axis=0), 2, axis=1)
    device.events.clear()
    if in_a_stream:
        generator.find(image, original)
    else:
        list(generator.embed_crops(placed_crops((100, 150), settings), image, original))
    uploads = [event[1] for event in device.events if event[0] == "upload"]
    assert uploads.count(image.nbytes) == 1
    assert uploads.count(original.nbytes) == copies
    with pytest.raises(ValueError, match="original is float64"):
        generator.find(image, original.astype(np.float64))


@pytest.mark.usefixtures("known_masks")
def test_an_image_that_raises_or_takes_too_long_fails_alone(
    device: PretendedCuda,
    predictor: Predictor,
    image: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = generator_on(device, predictor, FULL, 2)
    alone = finished(generator, generator.find(image))
    embed_many = generator.predictor.embed_many

    def failing(images: list[torch.Tensor], *arguments: Any) -> Any:
        if any(one.shape[0] == 60 for one in images):
            raise RuntimeError("this image breaks its batch")
        return embed_many(images, *arguments)

    monkeypatch.setattr(generator.predictor, "embed_many", failing)
    first, broken, third = generator.find_many([(image, None), (image[:60], None), (image, None)])
    assert finished(generator, first) == finished(generator, third) == alone
    assert isinstance(broken, RuntimeError)
    with pytest.raises(RuntimeError, match="breaks its batch"):
        generator.find(image[:60])

    now = itertools.count()
    monkeypatch.setattr("segmint.model.automatic.device_stream.time.monotonic", lambda: next(now))
    assert [type(one) for one in generator.find_many([(image, None)] * 3, timeout_s=0)] == [TimeoutError] * 3
    assert finished(generator, *generator.find_many([(image, None)], timeout_s=9)) == alone


@pytest.mark.usefixtures("known_masks")
def test_masks_on_the_device_take_no_more_than_the_bytes_allowed(
    device: PretendedCuda,
    predictor: Predictor,
    image: np.ndarray,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    generator = generator_on(device, predictor, FULL)
    generator.find(image)
    assert generator.device_crops is not None
    peaks: list[int] = []

    def logits() -> int:
        gc.collect()
        there = [one for one in gc.get_objects() if type(one) is OnCuda and one.shape[-2:] == (256, 256)]
        sizes = {one.inner.untyped_storage().data_ptr(): one.inner.untyped_storage().nbytes() for one in there}
        return sum(sizes.values())

    start: Any = DeviceCrops.start_chunks

    def measuring(self: DeviceCrops, *arguments: Any) -> Any:
        chunks = start(self, *arguments)
        peaks.append(logits())
        return chunks

    idle = logits()
    monkeypatch.setattr(DeviceCrops, "start_chunks", measuring)
    needed = 4 * 3 * 256 * 256 * 4
    for held, allowed in ((1, needed + 3 * image.nbytes), (2, 2 * needed + 3 * image.nbytes)):
        peaks.clear()
        stream = ImageStream(
            generator.predictor, FULL, 1, generator.device_crops, CopyStream(torch.device("cuda")), max_bytes=allowed
        )
        with torch.inference_mode():
            found = list(stream.find([(image, None)] * 3, lambda: lambda _: None))
        assert all(isinstance(one, RawMasks) for one in found)
        assert len(peaks) == 3
        assert needed <= max(peaks) - idle <= allowed
        assert max(peaks) - idle > (held - 1) * needed


def test_a_full_image_in_a_batch_has_few_launches(
    device: PretendedCuda, predictor: Predictor, image: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The structure of 1,024 points: four chunks. What an image's graphs hold is counted elsewhere."""
    monkeypatch.setattr(device_crops, "plan_image", lambda _, features: features + 1)
    monkeypatch.setattr(device_crops, "decode_chunk", lambda _, plan, points, __: DrawnChunk(points))
    settings = MaskSettings.sa1b(points_per_side=4, crop_n_layers=0, **FEW)
    found: dict[int, int] = {}
    for batch in (1, 8):
        generator = generator_on(device, predictor, settings, batch)
        generator.find(image)  # graphs are captured
        device.forget()
        masks = list(generator.find_many([(image, None)] * batch))
        assert len(masks) == batch
        assert all(len(finished(generator, one).records) == 1 for one in masks)
        found[batch] = math.ceil((sum(device.launches.values()) + gpu_budgets.ENCODER_LAUNCHES_A_BATCH) / batch)
    print(found, counted(device))
    assert found[1] <= gpu_budgets.FULL_IMAGE_LAUNCHES
    assert 20 < found[8] <= gpu_budgets.FULL_IMAGE_LAUNCHES_IN_A_BATCH


class DrawnChunk:
    """A decoded chunk whose masks, spots of logits around each point, take one kernel to draw, as with Triton."""

    def __init__(self, points: torch.Tensor) -> None:
        self.predicted_iou = (points + 1).float()
        self.wanted = points > -1
        self.drawing = self

    def draw(self, wanted: torch.Tensor) -> torch.Tensor:
        logits = wanted.new_full((*wanted.shape, 256, 256), -9, dtype=torch.float32)
        logits[:, :, 20:40, 30:60] = 9
        return logits


def test_weights_of_an_images_crops_are_computed_in_another_thread(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that the crops need, with crops from a larger original, and no others are left to the device's thread."""
    threads: list[str] = []
    right = mask_tiles.interpolation

    def recorded(*axis: int) -> Any:
        threads.append(threading.current_thread().name)
        return right(*axis)

    monkeypatch.setattr(mask_tiles, "interpolation", recorded)
    found = DeviceCrops(predictor, CROPS)
    stream = ImageStream(predictor, CROPS, 1, found, CopyStream(torch.device("cpu")))
    image, original = np.zeros((91, 133, 3), np.uint8), np.zeros((187, 270, 3), np.uint8)
    stream.pull(iter([(image, original)]), lambda: lambda _: None)
    found.weights_thread.shutdown(wait=True)
    prepared = len(threads)
    for crop in placed_crops((91, 133), CROPS):
        pixels = cut(crop, (91, 133), image if crop.layer == 0 else original)
        embedding = Embedding(torch.zeros(1, 256, 64, 64), resized_size(*pixels.shape[:2], 1024), crop.size)
        TiledUpscaling(embedding, predictor.sam.geometry)

    assert len(threads) == prepared > 2
    assert {name.partition("_")[0] for name in threads} == {"segmint-taps"}
