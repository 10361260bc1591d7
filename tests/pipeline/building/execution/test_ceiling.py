"""The ceiling: what is measured where, and how many devices count."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segmint.infra.errors import UsageError
from segmint.infra.ray_session import Cluster
from segmint.infra.storage.storage import Storage
from segmint.model.automatic.settings import MaskSettings
from segmint.model.cost import image_cost, mask_flop
from segmint.pipeline.building.dataset import BuildDataset, open_or_create
from segmint.pipeline.building.execution.ceiling import Ceiling, CeilingMeter
from segmint.pipeline.building.execution.stages import ActorPool
from segmint.pipeline.config.config import Config, load_config
from tests.support.builds import write_catalog, write_config

LAPTOP = Cluster(local=True, cpus=8, gpus=0, nodes=1, cores=2)


def opened(folder: Path, **changes: Any) -> tuple[Config, BuildDataset]:
    catalog = write_catalog(folder / "c.jsonl", [{"uri": "0.jpg", "license": "CC0-1.0"}])
    config = load_config(str(write_config(folder / "build.yaml", catalog, folder / "dataset", **changes)))
    return config, open_or_create(config, Storage())


def pool(actors: int) -> ActorPool:
    return ActorPool(actors, actors, num_cpus=1, num_gpus=0, calls_at_once=1)


@pytest.mark.usefixtures("weights")
def test_a_local_cpu_is_measured_by_the_driver_and_counts_as_many_times_as_its_cores_allow(tmp_path: Path) -> None:
    meter = CeilingMeter(*opened(tmp_path))
    one, many = meter.read(LAPTOP, pool(1)), meter.read(LAPTOP, pool(5))
    assert one is not None
    assert many is not None
    assert (one.devices, many.devices, one.threads, one.precision) == (1, 2, 1, "fp32")
    assert one.flop_per_s > 1e9
    settings = MaskSettings.sa1b(points_per_side=3, crop_n_layers=0)
    assert one.flop_per_image == image_cost(settings).flop("mobile_sam")
    assert (one.flop_per_mask, one.drawn_per_image) == (mask_flop(), 0)
    assert many.images_per_s == 2 * one.images_per_s


@pytest.mark.usefixtures("weights")
def test_a_cluster_s_actors_measure_their_own_devices(tmp_path: Path) -> None:
    """Each window starts an actor on each device again."""
    meter = CeilingMeter(*opened(tmp_path))
    cluster = replace(LAPTOP, local=False)
    growing = replace(pool(9), smallest=1)
    assert meter.read(cluster, growing) is None
    for peaks in ([1e12], [3e12, 2e12, 2e12], [], [1e12, 4e12]):
        meter.note_window(peaks, growing)
    ceiling = meter.read(cluster, growing)
    assert ceiling is not None
    assert (ceiling.flop_per_s, ceiling.devices) == (2e12, 3)
    fixed = meter.read(cluster, pool(9))
    assert fixed is not None
    assert fixed.devices == 9


@pytest.mark.usefixtures("weights")
def test_the_largest_of_a_cluster_s_pools_counts(tmp_path: Path) -> None:
    """Two nodes became four, whose pool started one actor again, and then three."""
    meter = CeilingMeter(*opened(tmp_path))
    for peaks, actors in (([1e12] * 2, 2), ([1e12] * 5, 4), ([1e12] * 3, 3)):
        meter.note_window(peaks, pool(actors))
    ceiling = meter.read(replace(LAPTOP, local=False), pool(2))
    assert ceiling is not None
    assert ceiling.devices == 4


def test_weights_by_path_tell_their_own_cost_and_wrong_ones_are_refused(tmp_path: Path, mobile_sam_path: Path) -> None:
    known = CeilingMeter(*opened(tmp_path)).read(LAPTOP, pool(1))
    (tmp_path / "path").mkdir()
    by_path = {"threads": 1, "device": "cpu", "weights": str(mobile_sam_path)}
    config, dataset = opened(tmp_path / "path", model=by_path)
    found = CeilingMeter(config, dataset).read(LAPTOP, pool(1))
    assert known is not None
    assert found is not None
    assert found.flop_per_image == known.flop_per_image
    (tmp_path / "wrong.pt").write_bytes(b"no checkpoint")
    with pytest.raises(UsageError, match=r"wrong\.pt"):
        CeilingMeter(config, replace(dataset, weights=tmp_path / "wrong.pt"))


def test_the_hardware_in_words() -> None:
    gpus = Ceiling("cuda", "NVIDIA H200", "bf16", 1, 8, flop_per_s=7.9e14, flop_per_image=10**14, flop_per_mask=10**11)
    assert gpus.hardware == "8 x cuda (NVIDIA H200, bf16, 790 TFLOP/s)"
    half = replace(gpus, decoder_precision="fp16")
    assert half.hardware == "8 x cuda (NVIDIA H200, bf16 with the decoder in fp16, 790 TFLOP/s)"
    assert gpus.images_per_s == pytest.approx(63.2)


def test_drawn_masks_lower_the_ceiling() -> None:
    before = Ceiling("cpu", "AVX512", "fp32", 1, devices=1, flop_per_s=1e11, flop_per_image=10**12, flop_per_mask=10**9)
    assert before.images_per_s == pytest.approx(0.1)
    assert before.drawing(1000).images_per_s == pytest.approx(0.05)
